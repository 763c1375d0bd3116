"""A checkpoint -> the same Hugging Face folder that a finished run exports, without ranks and on the CPU."""

import logging
import os
import shutil
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from learner.export import export_student
from learner.publisher import TORCH_DTYPES
from records.checkpoints import CheckpointManifest
from settings.run import RunConfig
from transport.stop_tokens import StopTokens

logger = logging.getLogger(__name__)


def export_checkpoint(
    config: RunConfig, path: Path, manifest: CheckpointManifest, *, out: Path, stops: StopTokens, dtype: str
) -> None:
    """Write the student of the verified checkpoint at `path` to `out`, which appears complete or not at all.

    ValueError if the checkpoint's weights are not those of the configuration's student.
    """
    with redirect_stdout(sys.stderr):  # DeepSpeed's log would go to the standard output that it finds
        from learner.deepspeed_backend import read_checkpoint_weights

    student = config.student
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(
        student.model_path, trust_remote_code=student.trust_remote_code, use_safetensors=True, dtype=dtype
    )
    _fill(causal_lm, read_checkpoint_weights(path, zero_stage=manifest.zero_stage), dtype=TORCH_DTYPES[dtype])
    temporary = Path(f"{out}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    export_student(
        causal_lm,
        str(temporary),
        gathered=lambda parameters: nullcontext(),
        is_first_rank=True,
        model_path=student.model_path,
        stops=stops,
        rollout=config.rollout,
        trust_remote_code=student.trust_remote_code,
    )
    os.replace(temporary, out)


def _fill(causal_lm: Any, weights: dict[str, Tensor], *, dtype: torch.dtype) -> None:
    """Put weights in the place of the model's own, tied ones once."""
    for name, parameter in causal_lm.named_parameters():
        found = weights.get(name)
        if found is None or found.shape != parameter.shape:
            held = "not there" if found is None else f"of shape {tuple(found.shape)}"
            raise ValueError(
                f"student.model_path: the checkpoint is of another model: {name} is {held}, not of shape "
                f"{tuple(parameter.shape)}"
            )
        parameter.data.copy_(found.to(dtype))
