"""What the README shows of configurations is valid."""

import re
from pathlib import Path

import pytest
import yaml

import launch
from cluster.settings import load_config
from cluster.teachers import check_sources

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


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
def test_every_configuration_in_the_readme_is_valid(tmp_path: Path, example: str) -> None:
    launch.check_objective(load_config(written_over_the_demo(tmp_path, example)))


def test_the_examples_of_teachers_reference_and_graded_answers_are_valid_together(tmp_path: Path) -> None:
    assert len(EXAMPLES) == 3
    config = launch.check_objective(load_config(written_over_the_demo(tmp_path, *EXAMPLES)))
    check_sources(config, ["gsm8k", "aime", "mbpp"])
    assert list(config.scorers) == ["teacher", "teacher-code", "reference"]
    assert config.outcome.rl_coef > 0
