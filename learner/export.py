"""Weights, of a run or a checkpoint -> a Hugging Face folder that `from_pretrained` and vLLM load.

Its generation settings are the student's own, with this run's stop tokens and sampling.
"""

import copy
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from learner.publisher import TORCH_DTYPES, Gather
from learner.stored_tensors import stored_tensors
from records.checkpoints import CheckpointManifest
from settings.run import RolloutConfig, RunConfig
from transport.stop_tokens import StopTokens

logger = logging.getLogger(__name__)

KEPT_SETTINGS = {
    *("pad_token_id", "bos_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
}
"""Of the student's own generation settings: those that say nothing about sampling. Unknown ones are kept too."""
NO_SETTINGS = {"transformers_version", "_from_model_config", "_commit_hash"}


def export_student(
    causal_lm: Any,
    path: str,
    *,
    gathered: Gather,
    is_first_rank: bool,
    model_path: str,
    stops: StopTokens,
    rollout: RolloutConfig,
    trust_remote_code: bool = False,
) -> None:
    """Write model, generation settings and tokenizer to `path`, in the dtype of the model.

    `model_path` is the student before training: its tokenizer and chat template are kept.

    Every rank must call it; tensors are gathered one by one into the first rank's CPU memory.
    """
    weights = _full_weights(causal_lm, gathered=gathered, is_first_rank=is_first_rank)
    if is_first_rank:
        given = {"stops": stops, "rollout": rollout, "trust_remote_code": trust_remote_code}
        _write_folder(causal_lm, path, weights, model_path=model_path, **given)


def _write_folder(
    causal_lm: Any,
    path: str,
    weights: dict[str, Tensor],
    *,
    model_path: str,
    stops: StopTokens,
    rollout: RolloutConfig,
    trust_remote_code: bool,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    own = causal_lm.generation_config
    causal_lm.generation_config = exported_generation_config(
        own, stops=stops, rollout=rollout, pad_token_id=tokenizer.pad_token_id
    )
    try:
        causal_lm.save_pretrained(path, state_dict=weights)
    finally:
        causal_lm.generation_config = own  # the model that trains is left as it is
    keep_architecture(Path(path), AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code))
    tokenizer.save_pretrained(path)


def keep_architecture(path: Path, own: Any) -> None:
    """Let the class be spelled as the student's folder spells it: engines know PhiMoEForCausalLM, not Phimoe..."""
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    spelled = [name for name in own.architectures or () if name.lower() == config["architectures"][0].lower()]
    if spelled and spelled != config["architectures"]:
        config["architectures"] = spelled
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def try_export(config: RunConfig, path: Path, *, stops: StopTokens) -> None:
    """Export the student as it is, without weights, and read the folder back; whatever fails is raised.

    The model takes no memory: its parameters have no values.
    """
    student = config.student
    source, trusts = student.model_path, student.trust_remote_code
    model_config = AutoConfig.from_pretrained(source, trust_remote_code=trusts)
    with torch.device("meta"):
        causal_lm: Any = AutoModelForCausalLM.from_config(
            model_config, trust_remote_code=trusts, dtype=TORCH_DTYPES[config.learner.dtype]
        )
    if cached_file(source, "generation_config.json", _raise_exceptions_for_missing_entries=False) is not None:
        causal_lm.generation_config = GenerationConfig.from_pretrained(source)
    given = {"stops": stops, "rollout": config.rollout, "trust_remote_code": trusts}
    with _quiet():
        _write_folder(causal_lm, str(path), {}, model_path=source, **given)
    AutoConfig.from_pretrained(path, trust_remote_code=trusts)
    GenerationConfig.from_pretrained(path)
    ours = AutoTokenizer.from_pretrained(source, trust_remote_code=trusts)
    read = AutoTokenizer.from_pretrained(path, trust_remote_code=trusts)
    for name, is_same in {
        "vocabulary": read.get_vocab() == ours.get_vocab(),
        "chat template": read.chat_template == ours.chat_template,
        "special tokens": read.special_tokens_map == ours.special_tokens_map,
    }.items():
        if not is_same:
            raise ValueError(f"the exported tokenizer has another {name} than the student's")


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is printed by what `save_pretrained` brings along: progress bars, and DeepSpeed, for no use here."""
    name, before = "DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR")
    os.environ[name] = before or "cpu"  # else it looks for devices, and says so
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        if before is None:
            del os.environ[name]


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


def exported_generation_config(
    own: GenerationConfig, *, stops: StopTokens, rollout: RolloutConfig, pad_token_id: int | None = None
) -> GenerationConfig:
    """The stop ids of both sides and the sampling that the student was trained with; of its own settings the rest.

    Training ends responses on the stop ids of student and teachers, so the trained student may end with either:
    whatever loads the folder must stop on all of them. Other ways of sampling and searching (`min_p`,
    `repetition_penalty`, beams) are not those of training, and transformers saves no file with some of them beside
    `do_sample`. Limits on length are left out too (vLLM would take them for limits of a server).
    """
    known = GenerationConfig().to_dict().keys() - KEPT_SETTINGS
    kept = {
        name: value
        for name, value in own.to_dict().items()
        if name not in known and name not in NO_SETTINGS and value is not None
    }
    sampling: dict[str, Any] = {
        "eos_token_id": [*dict.fromkeys((*stops.student_ids, *stops.ids))],
        "do_sample": True,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": max(0, rollout.top_k),  # 0 is all, for transformers and vLLM; unset, transformers takes 50
    }
    if kept.get("pad_token_id", -1) < 0:
        kept["pad_token_id"] = pad_token_id
    config = GenerationConfig(**copy.deepcopy(kept) | sampling)
    try:
        config.validate(strict=True)
    except ValueError as error:
        logger.warning("the student's own generation settings are left out, for they are not valid: %s", error)
        config = GenerationConfig(pad_token_id=pad_token_id, **sampling)
    return config


def _full_weights(causal_lm: Any, *, gathered: Gather, is_first_rank: bool) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their names in the model, as `save_pretrained` takes them."""
    weights: dict[str, Tensor] = {}
    for name, tensor in stored_tensors(causal_lm).items():
        with gathered([tensor]), torch.no_grad():
            if is_first_rank:
                weights[name] = tensor.detach().to("cpu", copy=True)
    return weights


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
