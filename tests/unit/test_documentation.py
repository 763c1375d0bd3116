"""The documents say what the code says: generated pages are current, messages exist, every page is in the menu."""

import ast
import re
import tomllib
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from docs.generate.configuration_pages import configuration_page
from docs.generate.site_hooks import PAGES as OUTSIDE
from docs.generate.site_hooks import ROOT, on_page_markdown
from docs.generate.write_reference import FOLDER, PAGES
from settings.run import RunConfig

SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.mark.parametrize("name", PAGES)
def test_the_generated_pages_are_current(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "run make reference"


def test_every_setting_is_in_the_reference_with_its_documentation() -> None:
    page = " ".join(configuration_page().split())
    documented = 0
    for section in _sections(RunConfig):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert f"| `{name}` | " in page
            assert " ".join(field.description.split()).replace("|", r"\|") in page
            documented += 1
    assert documented > 150


def _sections(model: Any) -> list[Any]:
    from docs.generate.value_text import sections_in

    below = [section for field in model.model_fields.values() for _, section in sections_in(field.annotation)]
    return [model, *[each for section in below for each in _sections(section)]]


def test_every_page_is_in_the_menu_and_every_entry_is_a_page() -> None:
    listed = [*_leaves(SITE["nav"])]
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md") if path.name != "table.md"} | {
        *OUTSIDE
    }
    assert {*listed} == pages
    assert len(listed) == len({*listed})


def _leaves(entries: Any) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [leaf for value in values for leaf in _leaves(value)]


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert "offline" in SITE["plugins"]
    assert not {"extra_javascript", "repo_url", "google_analytics"} & SITE.keys()


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("index.md", "[a](docs/results/README.md#x)", "[a](results/README.md#x)"),
        ("index.md", "![a](docs/assets/data_flow.svg)", "![a](assets/data_flow.svg)"),
        ("index.md", "[a](SECURITY.md)", "[a](security.md)"),
        ("cluster.md", "[a](../SECURITY.md)", "[a](security.md)"),
        ("results/README.md", "[a](../objectives.md)", "[a](../objectives.md)"),
        ("results/README.md", "[b](demo/table.md)", "[b](demo/table.md)"),
        ("benchmarks.md", "[a](../docs/reliability.md#kills-simulated)", "[a](reliability.md#kills-simulated)"),
        ("recipes.md", "[the file](../configs/demo.yaml)", "the file"),
        ("recipes.md", "[a](https://example.org/x.md) [b](#there)", "[a](https://example.org/x.md) [b](#there)"),
    ],
)
def test_links_between_files_become_links_between_pages(page: str, markdown: str, expected: str) -> None:
    file = SimpleNamespace(src_uri=page)
    assert on_page_markdown(markdown, page=SimpleNamespace(file=file)) == expected


def test_every_message_in_the_troubleshooting_is_one_of_the_code() -> None:
    said = [*_messages_of_the_code()]
    quoted = re.findall(r"^\| `([^`]*)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for message in quoted if " " in message]
    assert len(messages) >= 20
    missing = [message for message in messages if not any(_says(text, message) for text in said)]
    assert missing == []


def _says(text: str, message: str) -> bool:
    """Whether a text with gaps says the message: every part of the message, in order, without the gaps."""
    pattern = ".*".join(re.escape(part.strip()) for part in message.split("...") if part.strip())
    return re.search(pattern, text) is not None


def _messages_of_the_code() -> list[str]:
    """Every text in the code, with `...` for what is filled in."""
    found = []
    for package in sorted(ROOT.glob("*/__init__.py")):
        for path in sorted(package.parent.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_licence_and_version_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["license"], str(citation["version"])) == (project["license"], project["version"])
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert f"Copyright 2026 {citation['authors'][0]['name']}" in licence
