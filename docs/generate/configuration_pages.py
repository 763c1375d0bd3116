"""Pages of every setting, from the pydantic fields: type, allowed range, default, documentation."""

from collections.abc import Iterator

from pydantic import BaseModel

from commands.compare.plan import CompareConfig
from commands.plan.plan_config import PlanConfig
from docs.generate.value_text import default_text, sections_in, value_text
from settings.run import RunConfig

NOTE = "<!-- Written by docs/generate/write_reference.py (make reference): do not edit. -->\n"

INTRODUCTION = f"""{NOTE}
# Configuration

Every setting of a run: a key of the YAML file, and an option of `launch.py train` and `launch.py eval`
(`--rollout.num_workers 2`, `--max-staleness 4`). Unknown keys are refused, with the nearest known one.

A file may extend others: `extends: other.yaml`, or a list of files, with paths relative to the file itself.
Later files win over earlier ones, the file's own keys over all of them, options over everything. Mappings are
merged key by key, lists are replaced. `${{max_steps}}` refers to another setting. Integers have at most 32 bits.

Sections of one kind are listed once, with all places where they occur. What the sections `objective`,
`importance`, `masks`, `token_weights` and `surrogate` take besides their own keys depends on what they name:
[parameters of objectives](objectives.md).
"""

OTHERS = f"""{NOTE}
# Configuration of compare and plan

Settings of `launch.py compare` and `launch.py plan`, which take a run's configuration as their `base`. Their
files may extend others, too.
"""


def configuration_page() -> str:
    """Every setting of a run."""
    return INTRODUCTION + "".join(_sections(RunConfig, level=2))


def comparison_and_plan_page() -> str:
    """Every setting of comparisons and plans."""
    compare = "\n## compare\n" + "".join(_sections(CompareConfig, level=3))
    return OTHERS + compare + "\n## plan\n" + "".join(_sections(PlanConfig, level=3))


def _sections(model: type[BaseModel], *, level: int) -> Iterator[str]:
    places: dict[type[BaseModel], list[str]] = {}
    for place, section in _places(model, ""):
        places.setdefault(section, []).append(place)
    for section, where in places.items():
        text = _one_line(section.__doc__) + _where(where)
        yield f"\n{'#' * level} {_title(where)}\n\n{text}\n\n{_table(section)}"


def _title(places: list[str]) -> str:
    """The key of a section, or all of them; of sections that have the same key in several places, that one."""
    keys = {place.rpartition(".")[2] for place in places}
    names = sorted(keys) if len(keys) == 1 and len(places) > 1 else places
    return ", ".join(f"`{name}`" for name in names if name) or "Top level"


def _where(places: list[str]) -> str:
    return f" In {', '.join(f'`{place}`' for place in places)}." if len(places) > 1 else ""


def _places(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        for below, section in sections_in(field.annotation):
            yield from _places(section, f"{prefix}{'.' if prefix else ''}{name}{below}")


def _table(section: type[BaseModel]) -> str:
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        parts = (f"`{name}`", value_text(field), default_text(field), _one_line(field.description))
        rows.append("| " + " | ".join(part.replace("|", r"\|") for part in parts) + " |")
    return "\n".join(rows) + "\n"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
