"""Reads a configuration: YAML file, then dotted overrides, into one validated `RunConfig`.

    load_config("configs/demo.yaml", ["--rollout.num_workers", "2", "--max-steps=10"])

OmegaConf merges (and resolves `${...}`), pydantic validates. Every mistake is one ValueError naming the field and
the nearest valid value or key.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from cluster.config import RunConfig

Model = TypeVar("Model", bound=BaseModel)

ANY_NAME = "NAME"
"""Stands for the names of sections that the configuration names itself: `teachers.NAME.model_path`."""


def load_config(path: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the validated configuration of a run; ValueError with one line per mistake."""
    return load_settings(RunConfig, path, overrides)


def load_settings(model: type[Model], path: str | None, overrides: Sequence[str] = ()) -> Model:
    """Return the validated settings; ValueError with one line per mistake."""
    try:
        merged = OmegaConf.merge(_read_yaml(path), *_read_overrides(overrides, frozenset(_text_keys(model))))
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_explain_all(error.errors(), model))) from error


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML that `load_config` reads back to an equal one."""
    path.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def describe_fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield one help line per setting: dotted key, default, documentation."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from describe_fields(section, f"{prefix}{name}.")
            continue
        default = (
            "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        )
        yield f"  --{prefix}{name}  ({default})\n      {' '.join((field.description or '').split())}"


def _read_yaml(path: str | None) -> Any:
    if path is None:
        return OmegaConf.create({})
    if not Path(path).is_file():
        raise ValueError(f"--config: no such file: {path}")
    try:
        loaded = OmegaConf.load(path)
    except YAMLError as error:
        raise ValueError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config: {path} is not UTF-8 text: {error}") from error
    except OSError as error:  # also what OmegaConf raises for a lone number
        raise ValueError(f"--config: {path} must hold a mapping of settings: {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise ValueError(f"--config: {path} must hold a mapping of settings")
    return loaded


def _read_overrides(overrides: Sequence[str], text_keys: Collection[str]) -> Iterator[Any]:
    """Yield one configuration for each of `--a.b v`, `--a-b v` and `--a.b=v`."""
    items = iter(overrides)
    for item in items:
        option, equals, value = item.partition("=")
        if not option.startswith("--") or option == "--":
            raise ValueError(f"unexpected argument {item!r}; settings are given as --section.key value")
        if not equals:
            following = next(items, None)
            if following is None or following.startswith("--"):
                raise ValueError(f"{option}: a value is missing")
            value = following
        key = option[2:].replace("-", "_")
        if key in text_keys and value != "null":
            yield _text(key, value)
        else:
            yield _parsed(option, key, value)


def _text(key: str, value: str) -> Any:
    """A setting whose value is text is taken as typed: `007` keeps its zeros, `a: b` is no mapping."""
    config = OmegaConf.create({})
    OmegaConf.update(config, key, value, force_add=True)
    return config


def _parsed(option: str, key: str, value: str) -> Any:
    try:
        return OmegaConf.from_dotlist([f"{key}={value}"])
    except YAMLError as error:
        raise ValueError(f"{option}: {value!r} is not valid YAML: {' '.join(str(error).split())}") from error


def _explain_all(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> Iterator[str]:
    """One line per mistake; a field that may be one of several literals is explained once."""
    expected: dict[str, list[str]] = {}
    for details in errors:
        if details["type"] == "literal_error":
            expected.setdefault(_key(details), []).append(details["ctx"]["expected"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    for details in errors:
        key = _key(details)
        if details["type"] != "literal_error":
            yield _explain(key, details, model)
        elif key in expected:
            options = " or ".join(expected.pop(key))
            yield f"{key} must be {options}, got {details['input']!r}{_nearest(details['input'], options)}"


def _key(details: ErrorDetails) -> str:
    """The dotted key of a mistake, without what pydantic adds for the parts of a union, and for keys."""
    parts = [str(part) for part in details["loc"]]
    return ".".join(part for part in parts if not part.startswith(("literal[", "[key]"))) or "configuration"


def _explain(key: str, details: ErrorDetails, model: type[BaseModel]) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{_nearest_key(key, model)}"
        case "missing":
            return f"{key}: required, but not set"
        case "greater_than_equal":
            return f"{key} must be >= {context['ge']}, got {details['input']!r} (nearest valid: {context['ge']})"
        case "less_than_equal":
            return f"{key} must be <= {context['le']}, got {details['input']!r} (nearest valid: {context['le']})"
        case "greater_than":
            return f"{key} must be > {context['gt']}, got {details['input']!r}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{key}: {details['msg']}, got {details['input']!r}"


def _nearest(given: object, expected: str) -> str:
    options = [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(given), options, n=1)
    return f" (nearest valid: {close[0]})" if close else ""


def _nearest_key(key: str, model: type[BaseModel]) -> str:
    known = list(_dotted_keys(model))
    parts = [part for part in key.split(".") if not part.isdigit()]
    known = [".".join(_named(k.split("."), parts)) for k in known]
    parent, _, leaf = ".".join(parts).rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5)
    found = siblings[close[0]] if close else next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.0)), "")
    return f"; did you mean {found}?" if found else ""


def _named(known: list[str], given: list[str]) -> list[str]:
    """A known key with the names that were given to sections of a mapping (`teachers.NAME`)."""
    same_place = [*given[: len(known)], *known[len(given) :]]
    return [one if part == ANY_NAME else part for part, one in zip(known, same_place, strict=True)]


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        below = f"{prefix}{name}.{ANY_NAME}." if get_origin(field.annotation) is dict else f"{prefix}{name}."
        for section in (field.annotation, *get_args(field.annotation)):  # the second: of a list or a mapping
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from _dotted_keys(section, below)


def _text_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if field.annotation in (str, str | None):
            yield prefix + name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _text_keys(field.annotation, f"{prefix}{name}.")
