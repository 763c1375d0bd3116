"""What is read of each model before a run: tokenizer, stop tokens, context, and rows of its embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from inputs.models import Shape, count_parameters, model_paths
from inputs.tokenizers import (
    check_model_folder,
    check_weights,
    load_tokenizer,
    model_limits,
    num_known_ids,
    position_limit,
    stop_ids,
    text_config,
)
from settings.checks import Checks, RefusedError
from settings.run import RunConfig
from settings.teachers import field_of

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")
"""How the names of the input embedding and of the output head end."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as its files describe it."""

    role: str
    """`student`, `teacher`, `teacher-NAME` or `reference`."""
    field: str
    """Where the configuration names its folder: `teachers.math.model_path`."""
    path: str
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """The one that ends its turns first."""
    context: int
    """Positions that it was made for."""
    max_model_len: int | None
    """Longest sequence of its engine, as configured."""
    num_head_rows: int
    """Rows of the output head, by its configuration; may be padded beyond the tokenizer."""
    shape: Shape | None
    """Its size; None if its configuration does not tell."""
    position_limit: tuple[str, int] | None = None
    """Rope type and longest sequence up to which it computes every sequence alike, where there is such a limit."""

    @property
    def who(self) -> str:
        """The model in prose: `teacher math`."""
        return self.role.replace("-", " ", 1)

    @property
    def num_known_ids(self) -> int:
        """One more than the largest id of its tokenizer."""
        return num_known_ids(self.tokenizer)

    @property
    def max_tokens(self) -> int:
        """Longest sequence that its engine takes: a scored one needs one position more, for the token after it."""
        longest = min(self.max_model_len or self.context, self.context)
        return longest if self.role == "student" else longest - 1

    def rows_of_weights(self) -> dict[str, int]:
        """Rows of embedding and head in its weight files, by tensor; empty for a name on the hub.

        ValueError naming the field if a file is broken.
        """
        rows: dict[str, int] = {}
        for file in sorted(Path(self.path).glob("*.safetensors")):
            try:
                with safe_open(file, framework="np") as tensors:
                    names = [name for name in tensors.keys() if name.endswith(EMBEDDINGS)]  # noqa: SIM118
                    rows |= {name: int(tensors.get_slice(name).get_shape()[0]) for name in names}
            except SafetensorError as error:
                raise ValueError(f"{self.field}: {file} is no safetensors file: {error}") from error
        return rows


def read_models(config: RunConfig, checks: Checks) -> Mapping[str, ModelFacts]:
    """Read every model, by role, the student first; what cannot be read is an error of a check.

    RefusedError if one could not be read, after all have been tried.
    """
    paths = model_paths(config)
    usable = set[str]()
    for role, path in paths.items():
        with checks.guard("paths", is_hard=True):
            check_model_folder(path, f"{field_of(role)}.model_path")
            check_weights(path, f"{field_of(role)}.model_path")
            usable.add(role)
    facts = {role: _read(config, role, path, checks) for role, path in paths.items() if role in usable}
    read = {role: each for role, each in facts.items() if each is not None}
    if missing := paths.keys() - read.keys():
        raise RefusedError(f"not every model can be read: {', '.join(sorted(missing))}")
    return read


def _read(config: RunConfig, role: str, path: str, checks: Checks) -> ModelFacts | None:
    field, trusts = f"{field_of(role)}.model_path", {"trust_remote_code": config.trusts_code_of(role)}
    engine = config.rollout.engine if role == "student" else config.scorers[role].engine
    tokenizer = limits = ids = shape = None
    with checks.guard("tokenizer", is_hard=True):
        tokenizer = load_tokenizer(path, field, **trusts)
    with checks.guard("paths", is_hard=True):
        limits = model_limits(path, field, **trusts)
    if tokenizer is None or limits is None:
        return None
    with checks.guard("stop_ids", is_hard=True):
        arguments = config.data.template_arguments
        ids = stop_ids(path, tokenizer, field=field, template_arguments=arguments, **trusts)
    with checks.guard("memory"):
        shape = _shape(path, field, **trusts)
    if ids is None:
        return None
    context, num_head_rows = limits
    alike = position_limit(path, field, **trusts)
    return ModelFacts(
        *(role, field, path, tokenizer, ids, context, engine.max_model_len, num_head_rows, shape, alike)
    )


def _shape(path: str, field: str, *, trust_remote_code: bool) -> Shape | None:
    """The model's size, if its configuration tells; parameters of other than dense models from its files."""
    config = text_config(path, field, trust_remote_code=trust_remote_code)
    stored = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    item_bytes = 4 if "32" in str(config.get("dtype")) else 2
    try:
        counted = count_parameters(config)
        shape = Shape.of(config, num_parameters=counted or stored / item_bytes or None)
        if shape is None or counted is None or not stored or not config.get("quantization_config"):
            return shape
        return replace(shape, quantised_bytes=stored / counted)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{field}: {path}/config.json describes no decoder: {error}") from error
