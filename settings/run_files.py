"""A run's configuration from a YAML file and dotted overrides, and the help text of its settings."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from settings.load import load_settings
from settings.run import RunConfig


def load_config(path: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the validated configuration of a run; ValueError with one line per mistake."""
    return load_settings(RunConfig, path, overrides)


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
