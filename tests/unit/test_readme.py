"""What the documents show of configurations is valid, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from commands.checks import load_checked
from commands.compare.plan import CompareConfig
from settings.load import load_settings
from settings.run import RunConfig
from settings.teachers import check_sources

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", OBJECTIVES, re.MULTILINE | re.DOTALL)
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "docker" / "README.md",
]

SHOWN = [
    (str(path.relative_to(ROOT)), example)
    for path in DOCUMENTS
    if path.name not in ("objectives.md", "compare.md")
    for example in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
]


def written_over_the_demo(tmp_path: Path, *examples: str) -> str:
    """The path of the demo's configuration with these sections in place of its own."""
    values = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for example in examples:
        for name, section in yaml.safe_load(example).items():
            values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_configuration_that_is_shown_is_valid(tmp_path: Path, example: str) -> None:
    load_checked(written_over_the_demo(tmp_path, example))


def test_the_examples_of_teachers_reference_and_graded_answers_are_valid_together(tmp_path: Path) -> None:
    assert len(EXAMPLES) == 3
    config = load_checked(written_over_the_demo(tmp_path, *EXAMPLES))
    check_sources(config, ["gsm8k", "aime", "mbpp"])
    assert list(config.scorers) == ["teacher", "teacher-code", "reference"]
    assert config.outcome.rl_coef > 0


@pytest.mark.parametrize(("place", "example"), SHOWN)
def test_every_configuration_in_the_other_documents_is_valid(tmp_path: Path, place: str, example: str) -> None:
    file = re.match(r"# (configs/\S+\.yaml)\n", example)
    if file:  # a file that is shown as it is
        assert yaml.safe_load((ROOT / file[1]).read_text()) == yaml.safe_load(example), place
        return
    if isinstance(yaml.safe_load(example), list) or not RunConfig.model_fields.keys() & {*yaml.safe_load(example)}:
        return  # of another program, or a part of a list
    values = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text()) | yaml.safe_load(example)
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(values))
    errors = []
    for path in (written_over_the_demo(tmp_path, example), str(whole)):  # a part of a section, or all of it
        try:
            load_checked(path)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) < 2, (place, errors)


def test_the_comparison_that_is_shown_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    example = re.search(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert example is not None
    path = tmp_path / "compare.yaml"
    path.write_text(example[1])
    assert len(load_settings(CompareConfig, str(path)).objectives) == 2


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


PATH = re.compile(r"`(?:\./)?((?:[\w.-]+/)+[\w.-]*|\w+\.(?:py|md|toml|yml))`")
TOP = {path.name for path in ROOT.iterdir() if path.name[0] != "."} - {"runs", "site"}
MADE_BY_HAND = {"docker/.env", "docker/ray_token"}


@pytest.mark.parametrize(
    "path",
    [each for each in DOCUMENTS if each.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_of_the_repository_that_is_named_exists(path: Path) -> None:
    named = {name for name in PATH.findall(path.read_text(encoding="utf-8")) if name.split("/")[0] in TOP}
    missing = {name for name in named - MADE_BY_HAND if not (ROOT / name).exists() and "NAME" not in name}
    assert missing == set()
