"""The page of data formats, from the readers."""

from collections.abc import Iterable

from docs.generate.configuration_pages import NOTE
from inputs.row_files import COMPRESSIONS, FORMATS

INTRODUCTION = f"""{NOTE}
# Data formats

Files that training data and benchmarks may come from; how they are chosen and combined is in [data](../data.md).

"""


def data_page() -> str:
    """Every format of a data file, and the compressions."""
    rows = ["| format | suffix | |", "|---|---|---|"]
    rows += [f"| {each.name} | {_listed(each.suffixes)} | {each.note} |" for each in FORMATS]
    compressions = f"Each may be compressed, with {_listed(COMPRESSIONS)} after its suffix.\n"
    return INTRODUCTION + "\n".join(rows) + f"\n\n{compressions}"


def _listed(suffixes: Iterable[str]) -> str:
    return ", ".join(f"`{suffix}`" for suffix in suffixes)
