"""What is read and checked of a run before it takes anything: settings, inputs, placement. No Ray."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.capacity import check_local_machine
from cluster.placement import Demand, plan
from inputs.models import model_fingerprint, model_paths
from learner.served import check_objective, signal_kind
from learner.universal import check_world
from records.checkpoint_store import CheckpointStore
from records.run_folder import RunFolder
from settings.checks import Checks, Finding
from settings.run import RunConfig
from settings.run_files import load_config
from settings.teachers import field_of

if TYPE_CHECKING:  # transformers takes seconds to import
    from inputs.inputs import Inputs
    from inputs.models import Shape
    from transport.batches import TeacherSignal


def load_checked(path: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run with its objective checked; ValueError with one line per mistake."""
    return check_objective(load_config(path, overrides))


def check_inputs(config: RunConfig, checks: Checks) -> "Inputs":
    """Read the inputs and make every check that needs no node; returns the inputs.

    RefusedError at the first error; also where errors are collected, if something could not be read.
    """
    from actors.vllm import collection_paused

    with collection_paused():
        from inputs.inputs import read_inputs

    inputs = read_inputs(config, checks=checks)
    with checks.guard("padded_rows", is_hard=True):
        signal_of(config, inputs)
    with checks.guard("tokenizer", is_hard=True):
        special_token_ids(config, inputs)
    check_architectures(config, checks)
    return inputs


def check_architectures(config: RunConfig, checks: Checks) -> None:
    """Try what the learner does with the student, and with a teacher's head that it holds, on tiny models."""
    from actors.vllm import collection_paused

    with collection_paused():
        from learner.support import NotTriedError, check_architecture

    findings, tried, start = list[Finding](), ["student"], time.monotonic()
    if signal_kind(config) == "full":
        tried.append("teacher")
    paths = model_paths(config)
    for role in paths:
        with checks.guard("architecture", is_hard=True):
            check_cpu_engine(config, role, paths[role])
    for role in tried:
        with checks.guard("architecture", is_hard=True):
            try:
                check_architecture(
                    paths[role],
                    f"{role}.model_path",
                    attention=config.learner.attention,
                    trust_remote_code=config.trusts_code_of(role),
                    is_trained=role == "student",
                )
                findings.append(Finding("ok", f"a tiny {role} of the same configuration passes"))
            except NotTriedError as error:
                findings.append(Finding("warning", f"{error}; the real one is checked once it is loaded"))
    checks.add("architecture", findings, seconds=time.monotonic() - start)


def check_cpu_engine(config: RunConfig, role: str, path: str) -> None:
    """ValueError for a model that vLLM's engines on CPUs cannot serve, or cannot be given new weights of."""
    from inputs.tokenizers import text_config

    workers = config.rollout if role == "student" else config.scorers[role]
    if workers.resources.num_gpus > 0:
        return
    field = f"{field_of(role)}.model_path"
    model = text_config(path, field, trust_remote_code=config.trusts_code_of(role))
    is_latent, is_linear = bool(model.get("kv_lora_rank")), "linear_attention" in (model.get("layer_types") or ())
    kind = "latent attention (kv_lora_rank)" if is_latent else "linear attention"
    if is_latent and role == "student":
        raise ValueError(f"{field}: {path} has {kind}, of which engines on CPUs cannot load new weights; use GPUs")
    if (is_latent or is_linear) and config.dtype_of(workers.engine) == "float32":
        section = "rollout" if role == "student" else field_of(role)
        raise ValueError(
            f"{section}.engine.dtype must be bfloat16 on CPUs for {path}, which has {kind}, got float32"
        )


def check_placement(config: RunConfig, checks: Checks) -> list[Demand]:
    """The workers to place, all of which this machine must be able to hold if it is the only one."""
    demands = list[Demand]()
    with checks.guard("placement", is_hard=True):
        demands = plan(config)
        check_local_machine(config, demands)
    return demands


def check_resumed(config: RunConfig, folder: RunFolder, student: "Shape | None") -> None:
    """ValueError naming the setting with which the run could not continue from its newest checkpoint.

    `batch_size` and `max_steps` may be others: slots that are left are cut anew, and steps beyond the end stay.
    """
    store = CheckpointStore.of(config, folder)
    found = store.newest_manifest()
    if found is None:
        committed = [row for row in folder.event_rows() if row["event"] == "checkpoint"]
        if committed and not store.steps():
            raise ValueError(
                f"checkpoint.path: {store.place} holds no checkpoint, but {len(committed)} were committed, the "
                f"last as {committed[-1].get('path')}"
            )
        return
    place, manifest = found
    check_world(manifest, config.learner, path=place)
    held, now = manifest.client_state.get("student", {}), shape_facts(student)  # older ones do not say
    for name in held.keys() & now.keys():
        if held[name] != now[name]:
            raise ValueError(
                f"student.model_path: checkpoint {place} is of another model: its {name} is {held[name]}, not "
                f"{now[name]} as in {config.student.model_path}"
            )


def fingerprints_of(config: RunConfig, inputs: "Inputs") -> dict[str, str]:
    """What tells the student and the inputs of a run from others, by what they are of."""
    from inputs.prompt_table import tokenizer_text

    texts = {"tokenizer": tokenizer_text(inputs.tokenizer), "chat_template": str(inputs.tokenizer.chat_template)}
    found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    student = model_fingerprint(config.student.model_path)
    return ({} if student is None else {"student": student}) | found | {"data": inputs.data_report.fingerprint}


WHAT_OF = {
    "student": ("student.model_path", "weights or configuration of the student's folder", "architecture"),
    "tokenizer": ("student.model_path", "the tokenizer", "tokenizer"),
    "chat_template": ("student.model_path", "the chat template", "chat_template"),
    "data": ("data", "the training prompts", "data"),
}
"""By fingerprint: the setting, what it is of, and the check that says so."""


def check_unchanged(folder: RunFolder, now: Mapping[str, str], checks: Checks) -> list[str]:
    """Enter what of a resumed run is not as it began, unless the run does not say; returns what was forced.

    Prompts follow from tokenizer and template: they are compared where those are the same.
    """
    before, changed = folder.read_fingerprints(), list[str]()
    for name, (setting, what, key) in WHAT_OF.items():
        if name == "data" and {"tokenizer", "chat_template"} & {*changed}:
            continue
        if name in before and name in now and before[name] != now[name]:
            marks = f"fingerprint {now[name]:.12}, not {before[name]:.12}"
            text = f"{setting}: {what} changed since the run began ({marks})"
            checks.add(key, [Finding("error", text, "resume with what it began with, or begin a new run")])
            changed.append(name)
    return changed


def shape_facts(shape: "Shape | None") -> dict[str, Any]:
    """What a checkpoint keeps of the student's size, to tell another model from it; empty if it is not known."""
    names = ("num_layers", "hidden", "heads_width", "kv_width", "feed_forward", "num_rows")
    return {} if shape is None else {name: getattr(shape, name) for name in names}


def signal_of(config: RunConfig, inputs: "Inputs") -> "TeacherSignal":
    """What the teacher must return for the objective; ValueError if the models do not allow it."""
    from actors.engine_settings import teacher_signal

    return teacher_signal(config, inputs, kind=signal_kind(config), k=config.objective.parameters.get("k", 0))


def special_token_ids(config: RunConfig, inputs: "Inputs") -> list[int]:
    """Every token id of the texts in `masks.special_tokens`; ValueError for a text without one."""
    found: list[int] = []
    for text in config.masks.special_tokens:
        ids = inputs.tokenizer.encode(text, add_special_tokens=False)
        if not ids or inputs.tokenizer.unk_token_id in ids:
            raise ValueError(f"masks.special_tokens: the student's tokenizer has no token for {text!r}")
        found += ids
    return found
