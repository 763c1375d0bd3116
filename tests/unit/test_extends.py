"""Settings files that extend others: who wins, and what is refused."""

import re
from pathlib import Path

import pytest

from settings.run_files import load_config

BASE = """
max_steps: 10
student: {model_path: base-student}
teacher: {model_path: base-teacher, num_workers: 2}
data: {train_path: base.jsonl}
masks: {special_tokens: [a, b]}
"""


def written(tmp_path: Path, **files: str) -> str:
    """Writes files by name (`a` is a.yaml) beside base.yaml; returns the path of the last."""
    (tmp_path / "base.yaml").write_text(BASE)
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return str(tmp_path / f"{[*files][-1]}.yaml")


def test_own_keys_win_over_what_is_extended_and_later_files_over_earlier_ones(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        hardware="max_steps: 20\nteacher: {num_workers: 4}\nmasks: {special_tokens: [c]}",
        run="extends: [base.yaml, hardware.yaml]\nteacher: {model_path: own}\nrun_name: own-${max_steps}",
    )
    config = load_config(path, ["--batch_size", "7"])
    assert (config.max_steps, config.batch_size, config.run_name) == (20, 7, "own-20")
    assert (config.teacher.model_path, config.teacher.num_workers) == ("own", 4)
    assert config.masks.special_tokens == ["c"]  # lists are replaced
    assert config.student.model_path == "base-student"


def test_paths_are_relative_to_the_file_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "middle.yaml").write_text("extends: ../base.yaml\nmax_steps: 30")
    path = written(tmp_path, run="extends: deep/middle.yaml")
    assert load_config(path).max_steps == 30


def test_two_branches_may_extend_the_same_file(tmp_path: Path) -> None:
    one, other = "extends: base.yaml\nmax_steps: 1", "extends: base.yaml\nbatch_size: 2"
    config = load_config(written(tmp_path, one=one, other=other, run="extends: [one.yaml, other.yaml]"))
    assert (config.max_steps, config.batch_size) == (10, 2)  # the second branch brings the base's 10 again


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run": "extends: run.yaml"}, "extends: the files extend each other in a circle: run.yaml -> run.yaml"),
        (
            {"one": "extends: run.yaml", "run": "extends: one.yaml"},
            "the files extend each other in a circle: run.yaml -> one.yaml -> run.yaml",
        ),
        ({"run": "extends: none.yaml"}, "run.yaml: extends: no such file: "),
        ({"run": "extends: {a: 1}"}, "extends must be a path or a list of paths, got {'a': 1}"),
        ({"run": "extends: []"}, "extends must be a path or a list of paths, got []"),
        ({"run": "extends: null"}, "extends must be a path or a list of paths, got None"),
        ({"run": "extends: '${run_name}'"}, "extends must be a path as it is"),
        ({"bad": "- 1", "run": "extends: bad.yaml"}, "bad.yaml must hold a mapping of settings"),
        ({"bad": "a: [", "run": "extends: bad.yaml"}, "bad.yaml is not valid YAML"),
        ({"run": "extends: base.yaml\nmasks: [1]"}, "and what it extends cannot be merged"),
        ({"run": "extends: base.yaml\nstudent: {model_paht: x}"}, "did you mean student.model_path?"),
    ],
)
def test_mistakes_name_the_file_or_the_field(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(written(tmp_path, **files))


def test_files_that_extend_others_twice_come_to_an_end(tmp_path: Path) -> None:
    names = [f"level{i}" for i in range(30)]
    files = {name: f"extends: [{below}.yaml, {below}.yaml]" for name, below in zip(names[1:], names, strict=False)}
    with pytest.raises(ValueError, match="extends at most 50 files"):
        load_config(written(tmp_path, level0="extends: base.yaml", **files))
