"""What a setting may be, in words: `integer, 1 to 10,000`, `text or null`, one of some words."""

import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

INTEGER_32 = 2**31 - 1
"""The largest of all integers; it is not worth a word for each setting."""

NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "anything"}


def value_text(field: FieldInfo) -> str:
    """Type and allowed range of a field, for people."""
    return _text(field.annotation, field.metadata)


def default_text(field: FieldInfo) -> str:
    """The default as it is written in YAML; `required` where there is none."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = [*value]
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
    return f"`{text}`"


def sections_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections that a field holds, each with what comes after the field's own key (`.NAME` in a mapping)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    origin = get_origin(annotation)
    inner = {dict: ".NAME", list: "[]"}.get(origin, "") if isinstance(origin, type) else ""
    for each in get_args(annotation):
        yield from ((inner + rest, section) for rest, section in sections_in(each))


def _text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _text(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        parts = ["`null`" if each is type(None) else _text(each, metadata) for each in arguments]
        return " or ".join(parts)
    limits = ", ".join(_limits(metadata))
    return f"{_plain(annotation, origin, arguments)}{', ' if limits else ''}{limits}"


def _plain(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is list:
        return f"list of ({_text(arguments[0])})"
    if origin is tuple:
        return f"list of {len(arguments)} ({_text(arguments[0])})"
    if origin is dict:
        return f"mapping to ({_text(arguments[1])})"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return NAMES[annotation]


def _limits(metadata: Iterable[Any]) -> Iterator[str]:
    """The limits among the annotations of a type, such as `1 to 10,000`."""
    found: dict[str, Any] = {}
    for each in _flat(metadata):
        names = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        found |= {name: value for name in names if (value := getattr(each, name, None)) is not None}
    if found.get("le") == INTEGER_32:
        del found["le"]
    if "ge" in found and "le" in found:
        yield f"{_number(found.pop('ge'))} to {_number(found.pop('le'))}"
    words = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}
    yield from (f"{word} {_number(found[name])}" for name, word in words.items() if name in found)
    if "pattern" in found:
        yield f"matching `{found['pattern']}`"


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for each in metadata:
        if isinstance(each, FieldInfo | annotated_types.GroupedMetadata):
            yield from _flat(each.metadata if isinstance(each, FieldInfo) else each)
        else:
            yield each


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
