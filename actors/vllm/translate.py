"""Our settings and records in vLLM's terms, and vLLM's outputs in ours."""

from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from actors.engine import EngineSettings, Generation, Sampling
from actors.vllm import weight_transfer
from actors.vllm.vocabulary import SETTING, VocabularyLimit

CPU_KV_CACHE_GIB = 1.0
"""Default size of a CPU engine's cache: vLLM would take a share of the machine's memory, for each engine."""


def engine_args(settings: EngineSettings) -> EngineArgs:
    """Translate our settings into vLLM's; `settings.config.extra` has the last word."""
    config = settings.config
    arguments: dict[str, Any] = {
        "model": settings.model_path,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": config.enforce_eager or settings.device == "cpu",
        "gpu_memory_utilization": config.gpu_memory_fraction,
        "logprobs_mode": "raw_logprobs",
        "skip_tokenizer_init": True,
        "async_scheduling": False,  # a step's outputs belong to that step's weights
        "scheduling_policy": "priority",  # a golden sequence does not wait behind the backlog
        "disable_log_stats": True,
        "logits_processors": [VocabularyLimit],
        "additional_config": {SETTING: settings.vocab_size},
        "weight_transfer_config": {"backend": weight_transfer.BACKEND},
        "worker_extension_cls": f"{weight_transfer.__name__}.{weight_transfer.WorkerExtension.__name__}",
    }
    kv_cache_gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if settings.device == "cpu" else None)
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
    return EngineArgs(**(arguments | config.extra))


def sampling_params(sampling: Sampling, seed: int, stop_token_ids: tuple[int, ...]) -> SamplingParams:
    """vLLM's parameters of one response: its own seed, raw log-prob of each sampled token, final output only."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        stop_token_ids=list(stop_token_ids),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params() -> SamplingParams:
    """vLLM's parameters of one scoring: log-probs of the prompt, and the one token vLLM insists on."""
    return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)


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
