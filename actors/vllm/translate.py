"""Our settings and records in vLLM's terms, and vLLM's outputs in ours."""

from typing import Any

import numpy as np
import torch
from vllm import PoolingParams, SamplingParams
from vllm.config import PoolerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from actors.engine import EngineSettings, Generation, Sampling, TokenScores
from actors.vllm import weight_transfer
from actors.vllm.sampling import SAMPLING_KEY, VOCAB_SIZE_KEY, SeededSampler, VocabularyLimit
from settings.engine import EngineConfig
from transport.batches import TeacherSignal

MIN_LOG_PROBS = 20
"""vLLM's own limit of log-probs per token."""
HIDDEN_STATES: dict[str, Any] = {"task": "token_embed", "use_activation": False}
"""vLLM's pooling task that returns every token's hidden state after the final norm, as it is."""
CPU_KV_CACHE_GIB = 1.0
"""Default size of a CPU engine's cache: vLLM would take a share of the machine's memory, for each engine."""


def engine_args(settings: EngineSettings) -> EngineArgs:
    """Translate our settings into vLLM's; `settings.config.extra` has the last word."""
    config = settings.config
    arguments: dict[str, Any] = {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
        "load_format": "safetensors",  # pickled weights could run code
        "seed": settings.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.step_tokens(settings.device),
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "distributed_executor_backend": executor(config),
        "enforce_eager": config.enforce_eager or settings.device == "cpu",
        "gpu_memory_utilization": config.gpu_memory_fraction,
        "logprobs_mode": "raw_logprobs",
        "skip_tokenizer_init": True,
        "async_scheduling": False,  # a step's outputs belong to that step's weights
        "scheduling_policy": "priority",  # a golden sequence does not wait behind the backlog
        "disable_log_stats": True,
    }
    arguments |= _pooling_args() if settings.signal.kind == "full" else _generating_args(settings)
    kv_cache_gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if settings.device == "cpu" else None)
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
    return EngineArgs(**(arguments | config.extra))


def executor(config: EngineConfig) -> str | None:
    """How vLLM starts the processes of an engine with several devices.

    Devices of one node all belong to the worker, whose child processes take them. Pipeline stages may lie on
    other nodes: Ray actors in the worker's placement group, one for each bundle of one device. Left to itself,
    vLLM would take Ray for both, and refuse a bundle of several devices.
    """
    if config.pipeline_parallel_size > 1:
        return "ray"
    return "mp" if config.tensor_parallel_size > 1 else None


def _generating_args(settings: EngineSettings) -> dict[str, Any]:
    return {
        "max_logprobs": max(MIN_LOG_PROBS, settings.signal.k),
        "logits_processors": [VocabularyLimit, *([SeededSampler] if settings.device == "cpu" else [])],
        "additional_config": {VOCAB_SIZE_KEY: settings.vocab_size},
        "weight_transfer_config": {"backend": weight_transfer.BACKEND},
        "worker_extension_cls": f"{weight_transfer.__name__}.{weight_transfer.WorkerExtension.__name__}",
    }


def _pooling_args() -> dict[str, Any]:
    """A cached prefix has no hidden states, hence no prefix caching."""
    return {
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": PoolerConfig(**HIDDEN_STATES),
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
    }


def sampling_params(settings: EngineSettings, sampling: Sampling, seed: int) -> SamplingParams:
    """vLLM's parameters of one response: its own seed, raw log-prob of each sampled token, final output only."""
    choice: dict[str, Any] = {"seed": seed, "top_p": sampling.top_p, "top_k": sampling.top_k}
    if settings.device == "cpu":
        choice = {"extra_args": {SAMPLING_KEY: (seed, sampling.top_k, sampling.top_p)}}
    return SamplingParams(
        temperature=sampling.temperature,
        **choice,
        max_tokens=sampling.max_tokens,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        stop_token_ids=list(sampling.stop_token_ids or settings.stop_token_ids),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params(k: int = 0) -> SamplingParams:
    """vLLM's parameters of one scoring: log-probs of the prompt, and the one token vLLM insists on.

    With `k`, also the top-k tokens of every position.
    """
    return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=k, flat_logprobs=True, detokenize=False)


def pooling_params() -> PoolingParams:
    """vLLM's parameters of one scoring that returns hidden states."""
    return PoolingParams(**HIDDEN_STATES)


def token_scores(output: RequestOutput | PoolingRequestOutput, signal: TeacherSignal) -> TokenScores:
    """Our record of a scored sequence; ValueError if a token has no score."""
    if isinstance(output, PoolingRequestOutput):
        return TokenScores(hidden=hidden_bytes(output.outputs.data, signal))
    log_probs = prompt_log_probs(output)
    if signal.kind == "token":
        return TokenScores(log_probs)
    ids, values = top_k(output, signal.k)
    return TokenScores(log_probs, ids, values)


def top_k(output: RequestOutput, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (int32) and log-probs (float32) [len - 1, k] of the top-k tokens; ValueError if some are missing.

    A position holds the token itself, then the top k in order, which may repeat it.
    """
    flat: Any = output.prompt_logprobs
    shape = (len(flat.start_indices) - 1, k + 1)
    starts = np.asarray(flat.start_indices[1:])
    if len(flat.token_ids) != shape[0] * shape[1] or not np.array_equal(starts, np.arange(shape[0]) * (k + 1)):
        raise ValueError(f"request {output.request_id}: the engine did not return {k} tokens at every position")
    ids = np.asarray(flat.token_ids, dtype=np.int32).reshape(shape)
    values = np.asarray(flat.logprobs, dtype=np.float32).reshape(shape)
    return ids[:, 1:], values[:, 1:]


def hidden_bytes(hidden: torch.Tensor, signal: TeacherSignal) -> np.ndarray:
    """Hidden states [len, H] of vLLM, of which the last predicts nothing that is asked: uint8 [len - 1, bytes]."""
    if hidden.shape[-1] != signal.hidden_size:
        raise ValueError(f"the engine's hidden states have {hidden.shape[-1]} values, not {signal.hidden_size}")
    kept = hidden[:-1].to(getattr(torch, signal.dtype)).contiguous()
    return kept.view(torch.uint8).numpy()


def prompt_log_probs(output: RequestOutput) -> np.ndarray:
    """Log-prob of every prompt token but the first: float32 [len - 1]; ValueError if one is missing."""
    flat: Any = output.prompt_logprobs
    wanted = list(output.prompt_token_ids or ())[1:]
    starts = flat.start_indices[1:]
    if len(starts) != len(wanted) or [flat.token_ids[i] for i in starts] != wanted:
        raise ValueError(f"request {output.request_id}: the engine did not return a log-prob for every token")
    return np.asarray([flat.logprobs[i] for i in starts], dtype=np.float32)


def generation(output: RequestOutput) -> Generation:
    """Our record of a finished response; ValueError if a log-prob is missing."""
    completion: Any = output.outputs[0]
    token_ids, flat = list(completion.token_ids), completion.logprobs
    starts = flat.start_indices
    if len(starts) != len(token_ids) or [flat.token_ids[i] for i in starts] != token_ids:
        raise ValueError(f"request {output.request_id}: the engine did not return a log-prob for every token")
    return Generation(
        request_id=output.request_id,
        token_ids=token_ids,
        log_probs=np.asarray([flat.logprobs[i] for i in starts], dtype=np.float32),
        version_runs=[(int(s.version), s.end - s.start) for s in completion.weight_versions],
        finish_reason=str(completion.finish_reason),
    )
