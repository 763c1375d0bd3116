"""The parts of a step by the libraries alone, without a line of this project: what a step cannot be faster than.

    generation   vLLM: sample the responses of a step, with the log-prob of every sampled token
    prefill      vLLM: the teacher's log-probs of every token of the same number of sequences
    update       transformers: forward with full logits, backward, and AdamW, one sequence at a time

Each function measures in this process, which must be new: vLLM reads its settings when it is imported.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peak_memory import peak_mib, start_peak_mib
from benchmarks.workload import Workload, read_prompts

SEED = 0


def prepare(threads: int) -> None:
    """Quiet libraries that use so many threads; before torch and vllm are imported."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def timed(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """Do `step` once, then `repeats` times: median seconds and CPU seconds of one, and the process's peak."""
    step()
    start_peak_mib()
    seconds, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    middle = len(seconds) // 2
    return {"seconds": sorted(seconds)[middle], "cpu_s": sorted(cpu)[middle], "peak_mib": peak_mib()}


def raw_engine(path: str, dtype: str, workload: Workload, **settings: Any) -> Any:
    """vLLM's own offline engine."""
    from vllm import LLM

    return LLM(
        path,
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=workload.sequence_tokens + 8,
        max_num_seqs=128,
        kv_cache_memory_bytes=2**30,
        logprobs_mode="raw_logprobs",
        seed=SEED,
        disable_log_stats=True,
        **settings,
    )


def token_ids(workload: Workload, count: int) -> list[list[int]]:
    """The first prompts as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload.student)
    return tokenizer(read_prompts(workload)[:count], add_special_tokens=False)["input_ids"]


def generation(workload: Workload, dtype: str, repeats: int) -> dict[str, float]:
    """Seconds that vLLM takes for the responses of one step."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    engine = raw_engine(str(workload.student), dtype, workload, max_num_batched_tokens=8192)
    parameters = SamplingParams(
        temperature=1.0,
        top_p=workload.top_p,
        top_k=workload.top_k,
        max_tokens=workload.response_tokens,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompts = [
        TokensPrompt(prompt_token_ids=ids) for ids in token_ids(workload, workload.batch_size * (repeats + 1))
    ]

    def step() -> None:
        batch = [prompts.pop() for _ in range(workload.batch_size)]
        outputs = engine.generate(batch, parameters, use_tqdm=False)
        lengths = {len(output.outputs[0].token_ids) for output in outputs}
        assert lengths == {workload.response_tokens}, lengths

    return timed(step, repeats)


def prefill(
    workload: Workload, dtype: str, repeats: int, *, k: int = 0, batch_tokens: int = 8192
) -> dict[str, float]:
    """Seconds that vLLM takes for the teacher's log-probs of one step's sequences."""
    import torch
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine = raw_engine(str(workload.teacher), dtype, workload, max_num_batched_tokens=batch_tokens)
    parameters = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=k, flat_logprobs=True, detokenize=False
    )
    generator = torch.Generator().manual_seed(SEED)
    shape = (workload.batch_size, workload.sequence_tokens)

    def step() -> None:
        ids_BN = torch.randint(2, 4096, shape, generator=generator)
        batch = [TokensPrompt(prompt_token_ids=ids) for ids in ids_BN.tolist()]
        outputs = engine.generate(batch, parameters, use_tqdm=False)
        assert all(len(output.prompt_logprobs or ()) == workload.sequence_tokens for output in outputs)

    return timed(step, repeats)


def update(workload: Workload, dtype: str, repeats: int, *, sequences: int = 1) -> dict[str, float]:
    """Seconds that transformers takes for forward, backward and AdamW on one step's sequences.

    One sequence at a time was the fastest of 1, 4 and 32 in float32, and within noise in bfloat16.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model: Any = AutoModelForCausalLM.from_pretrained(workload.student, dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.learning_rate, foreach=True)
    generator = torch.Generator().manual_seed(SEED)
    shape = (workload.batch_size, workload.sequence_tokens)

    def step() -> None:
        for ids_BN in torch.randint(2, 4096, shape, generator=generator).split(sequences):
            logits_BTV = model(input_ids=ids_BN[:, :-1], use_cache=False).logits[:, workload.prompt_tokens - 1 :]
            targets_BT1 = ids_BN[:, workload.prompt_tokens :, None]
            logp_BT = logits_BTV.float().log_softmax(-1).gather(-1, targets_BT1)[..., 0]
            (-logp_BT.sum() / (workload.batch_size * workload.response_tokens)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, repeats)
