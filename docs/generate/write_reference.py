"""Writes the generated pages of the documentation.

python -m docs.generate.write_reference          # into docs/reference
"""

from pathlib import Path

from docs.generate.command_page import command_page
from docs.generate.configuration_pages import comparison_and_plan_page, configuration_page
from docs.generate.data_page import data_page
from docs.generate.metric_page import metric_page
from docs.generate.objective_page import objective_page

FOLDER = Path(__file__).resolve().parents[1] / "reference"

PAGES = {
    "configuration.md": configuration_page,
    "comparison_and_plan.md": comparison_and_plan_page,
    "commands.md": command_page,
    "objectives.md": objective_page,
    "data_formats.md": data_page,
    "metrics.md": metric_page,
}


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
