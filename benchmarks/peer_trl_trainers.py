"""TRL's trainers for on-policy distillation, set up for one workload and for its best time on a CPU.

All have a student and a teacher in this process and sample with transformers' `generate`: with `use_vllm` TRL
starts the CPU engine of vLLM 0.32 and fails when it loads the first weights into it, because that engine has
packed its own away (TRL 1.16 names 0.31 as the newest it supports, which packs them too). The sampled-token
trainer and GKD generate per micro-batch, so small ones cost them more than they save; the stable trainer
generates for the whole step.

What only saves memory is off (gradient checkpointing, which TRL has on), and so are logging and saving. The
kernels of Liger need Triton, so a GPU. Rows are not packed: all have one length, so nothing is padded.

Attention is sdpa, as TRL has it. In bfloat16 on a CPU it takes several times what eager does for the one new token
of a row; a whole step took the same CPU time with both (one step of each, on a busy machine).

Not here: GOLD and the trainers that need a teacher server. GOLD refuses a tokenizer that is not a byte-level
one.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload, read_prompts

PRECISIONS = ("float32", "bfloat16", "autocast")
"""`bfloat16` loads both models in it; `autocast` keeps the student in float32 and casts what it computes."""


def build_trainer(arguments: argparse.Namespace, workload: Workload, folder: Path) -> Any:
    """Return TRL's trainer with both models, ready to train."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(path: Path, dtype: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation=arguments.attention
        )

    narrow = "float32" if arguments.precision == "float32" else "bfloat16"
    student = load(workload.student, "float32" if arguments.precision == "autocast" else narrow)
    make_trainer, row_of = TRAINERS[arguments.trainer]
    prompts = read_prompts(workload)
    return make_trainer(
        common_settings(arguments, workload, folder),
        workload,
        model=student,
        teacher_model=load(workload.teacher, narrow),
        train_dataset=Dataset.from_list([row_of(text, workload) for text in prompts]),
        processing_class=AutoTokenizer.from_pretrained(workload.student),
    )


def common_settings(arguments: argparse.Namespace, workload: Workload, folder: Path) -> dict[str, Any]:
    """What every trainer is given: the workload, and what makes TRL fast on a CPU."""
    rows, _, accumulated = arguments.layout.partition("x")
    if int(rows) * int(accumulated) != workload.batch_size:
        raise ValueError(f"layout {arguments.layout} is not {workload.batch_size} rows per step")
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": int(rows),
        "gradient_accumulation_steps": int(accumulated),
        "max_steps": arguments.warmup_steps + arguments.steps,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "temperature": 1.0,
        "beta": 1.0,
        "bf16": arguments.precision == "autocast",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def distillation_trainer(settings: dict[str, Any], workload: Workload, **parts: Any) -> Any:
    """Reverse KL over the whole vocabulary, in chunks: TRL's stable distillation trainer."""
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    return DistillationTrainer(args=DistillationConfig(**settings, **_sampling(workload)), **parts)


def sampled_trainer(settings: dict[str, Any], workload: Workload, **parts: Any) -> Any:
    """Log-probs of the sampled tokens under both models: TRL's only such trainer with a local teacher."""
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer  # pyright: ignore[reportMissingImports]

    sampled = {"lmbda": 1.0, "distillation_objective": "iw_opd"}
    return IWOPDTrainer(args=IWOPDConfig(**settings, **_sampling(workload), **sampled), **parts)


def gkd_trainer(settings: dict[str, Any], workload: Workload, **parts: Any) -> Any:
    """Reverse KL from two whole softmaxes. It has no settings for top-p and top-k, so they are set afterwards."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # pyright: ignore[reportMissingImports]

    on_policy = {
        "lmbda": 1.0,
        "max_new_tokens": workload.response_tokens,
        "max_length": workload.sequence_tokens,
    }
    trainer = GKDTrainer(args=GKDConfig(**settings, **on_policy), **parts)
    cut = {"top_p": workload.top_p, "top_k": workload.top_k}
    trainer.generation_kwargs.update(cut)
    trainer.generation_config.update(**cut)
    return trainer


def _sampling(workload: Workload) -> dict[str, Any]:
    return {"top_p": workload.top_p, "top_k": workload.top_k, "max_completion_length": workload.response_tokens}


def _prompt_row(text: str, _: Workload) -> dict[str, Any]:
    return {"prompt": text}


def _dialogue_row(text: str, workload: Workload) -> dict[str, Any]:
    """With an answer, which on-policy training replaces; its length is what the loss is divided by."""
    answer = " " + " ".join(["w2"] * workload.response_tokens)
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


TRAINERS: dict[str, tuple[Callable[..., Any], Callable[[str, Workload], dict[str, Any]]]] = {
    "sampled": (sampled_trainer, _dialogue_row),
    "full": (distillation_trainer, _prompt_row),
    "gkd": (gkd_trainer, _dialogue_row),
}
