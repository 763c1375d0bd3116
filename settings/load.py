"""YAML file and dotted overrides -> one validated model of settings, of a run or of anything else.

    load_settings(RunConfig, "configs/demo.yaml", ["--rollout.num_workers", "2", "--max-steps=10"])

`settings/files.py` reads a file and the files it extends, OmegaConf merges (and resolves `${...}`), pydantic
validates. Every mistake is a line of one ValueError, with the field and the nearest valid value or key.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from settings.files import check_yaml, read_settings_file
from settings.secrets import leaves, refuse_secrets, refusing_secret_variables

Model = TypeVar("Model", bound=BaseModel)

KEY = re.compile(r"[^\s.=\[\]]+(\.[^\s.=\[\]]+)*")
MAX_SHOWN = 120
MAX_PATH, MAX_NAME = 4000, 255

ANY_NAME = "NAME"
"""Stands for the name of a section that users choose: `teachers.NAME.model_path`."""


def load_settings(model: type[Model], path: str | None, overrides: Sequence[str] = ()) -> Model:
    """Return the validated settings; ValueError with one line per mistake."""
    own_names = frozenset(key.rpartition(".")[2] for key in _dotted_keys(model))
    try:
        given = _read_overrides(overrides, frozenset(_text_keys(model)), own_names)
        merged = _merged(read_settings_file(path), given)
        refuse_secrets(_container(merged, resolve=False), own_names)
        with refusing_secret_variables():
            values = _container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise ValueError(f"{key}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
    except RecursionError as error:
        raise ValueError("configuration: the settings refer to each other in a circle") from error
    refuse_secrets(values, own_names)
    check_texts(values)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_explain_all(error.errors(), model))) from error


def save_config(config: BaseModel, path: Path) -> None:
    """Write the resolved settings as YAML that `load_settings` reads back to equal ones."""
    path.write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: BaseModel) -> str:
    """The resolved settings as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _read_overrides(
    overrides: Sequence[str], text_keys: Collection[str], own_names: Collection[str]
) -> Iterator[Any]:
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
        if not KEY.fullmatch(key):
            raise ValueError(f"unexpected argument {item!r}; settings are given as --section.key value")
        refuse_secrets({key: value}, own_names)
        if key in text_keys and value != "null":
            yield _text(key, value)
        else:
            yield _parsed(option, key, value)


def _text(key: str, value: str) -> Any:
    """A text setting is taken verbatim: `007` keeps its zeros, `a: b` is not a mapping."""
    config = OmegaConf.create({})
    OmegaConf.update(config, key, value, force_add=True)
    return config


def _parsed(option: str, key: str, value: str) -> Any:
    check_yaml(value, f"{option}: {_shown(value)}")
    try:
        return OmegaConf.from_dotlist([f"{key}={value}"])
    except (YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{option}: {_shown(value)} is not valid YAML: {reason}") from error


def _merged(config: Any, overrides: Iterable[Any]) -> Any:
    for override in overrides:
        try:
            config = OmegaConf.merge(config, override)
        except TypeError as error:  # a list where a mapping is given, or the other way round
            raise ValueError(
                f"{next(iter(override))}: --config and an option cannot be merged: {error}"
            ) from error
    return config


def _container(config: Any, *, resolve: bool) -> dict[Any, Any]:
    values: Any = OmegaConf.to_container(config, resolve=resolve)
    return values


def check_texts(values: dict[Any, Any]) -> None:
    """ValueError for text that cannot be stored or passed to other programs, and for invalid paths."""
    for key, value in leaves(values):
        texts = [key] if not isinstance(value, str) else [key, value]
        if any("\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text) for text in texts):
            raise ValueError(f"{key!r}: must be text without NUL characters and unpaired surrogates")
        if isinstance(value, str) and key.rpartition(".")[2].endswith(("path", "base", "from_run", "address")):
            if any(ord(letter) < 32 or ord(letter) == 127 for letter in value) or not value:
                raise ValueError(f"{key} must be a path without control characters, got {_shown(value)}")
            if len(value) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in value.split("/")):
                raise ValueError(f"{key} must be a path of at most {MAX_PATH} characters, {MAX_NAME} in each name")


def _shown(value: object) -> str:
    """The value for an error message, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _explain_all(errors: Sequence[ErrorDetails], model: type[BaseModel]) -> Iterator[str]:
    """One line per mistake; the literals allowed for a field are joined in one line."""
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
            yield f"{key} must be {options}, got {_shown(details['input'])}{_nearest(details['input'], options)}"


def _key(details: ErrorDetails) -> str:
    """The dotted key of a mistake, without what pydantic adds for members of a union and for keys."""
    parts = [str(part) for part in details["loc"]]
    return ".".join(part for part in parts if not part.startswith(("literal[", "[key]"))) or "configuration"


def _explain(key: str, details: ErrorDetails, model: type[BaseModel]) -> str:
    context, given = details.get("ctx", {}), _shown(details["input"])
    match details["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{_nearest_key(key, model)}"
        case "missing":
            return f"{key}: required, but not set"
        case "greater_than_equal":
            return f"{key} must be >= {context['ge']}, got {given} (nearest valid: {context['ge']})"
        case "less_than_equal":
            return f"{key} must be <= {context['le']}, got {given} (nearest valid: {context['le']})"
        case "greater_than":
            return f"{key} must be > {context['gt']}, got {given}"
        case "string_too_long":
            return f"{key} must have at most {context['max_length']:,} characters, got {len(details['input']):,}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{key}: {details['msg']}, got {given}"


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
    """A known key with the section names that the user chose (`teachers.NAME`)."""
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
