"""Bad input: exit code 2, one clear line, and nothing started. Uses the demo's models; no Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from commands.checks import load_checked
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run_files import load_config

ROOT = Path(__file__).resolve().parents[2]

Refused = Callable[..., str]


def test_a_dry_run_prints_the_resolved_configuration_and_the_placement_plan(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch.main([*arguments, "--objective.alpha", "2", "--cluster.num_cpus", "2"]) == FINISHED
    printed = capsys.readouterr().out
    assert "alpha: 2.0" in printed
    assert "#   teacher: 1 x (0.5 CPU)" in printed
    (tmp_path / "resolved.yaml").write_text(printed)
    assert load_config(str(tmp_path / "resolved.yaml")).objective.parameters["alpha"] == 2.0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    if path.stem.startswith("compare"):
        assert launch.main(["compare", "--config", str(path), "--dry-run"]) == FINISHED
    elif path.stem.startswith("plan"):
        quick = ["--simulation.responses", "64", "--simulation.steps", "1", "--target.tokens_per_s", "null"]
        assert launch.main(["plan", "--config", str(path), *quick]) == FINISHED
    else:
        load_checked(str(path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--rollout.num_worker 2", "rollout.num_worker: unknown key; did you mean rollout.num_workers?"),
        ("--objective.alpha 0", "objective.alpha must be > 0 and <= 1000"),
        ("--objective.alpha nan", "objective.alpha must be > 0 and <= 1000"),
        ("--objective.alpha 1001", "objective.alpha must be > 0 and <= 1000"),
        ("--objective.name powr", "power"),
        ("--student.model_path ./no/such/folder", "student.model_path"),
        ("--teacher.model_path /no/such/folder", "teacher.model_path"),
        ("--cluster.num_cpus 2 --rollout.num_workers 5", "1.5 CPU missing (3.5 wanted, 2 there)"),
        ("--importance.name none --max-staleness 2", "importance.name"),
        ("--resume", "--resume"),
        ("--batch-size 2 --learner.num_workers 3", "learner.num_workers must be <= batch_size"),
        ("--objective.name g_opd", "reference.model_path: required for g_opd"),
        ("--objective.name lsm --objective.k 64", "objective.k must be <= 32, the vocabulary, got 64"),
        ("--objective.name reverse_kl --objective.normaliser zscore", "normaliser must be none"),
        ("--objective.name eopd --importance.name none", "importance.name must not be none"),
    ],
)
def test_a_mistake_in_the_settings_is_named(refused: Refused, options: str, reason: str) -> None:
    assert reason in refused(*options.split())


def test_a_corrupt_row_names_file_and_line(refused: Refused, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"problem": "1+\n')
    assert f"{data}:11" in refused()


def test_an_empty_data_set_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "data.train_path" in refused("--data.train_path", str(tmp_path / "empty.jsonl"))


def test_an_existing_run_folder_is_refused_without_resume(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert launch.main([*arguments, "--run-name", "demo"]) == BAD_INPUT
    assert "already exists" in capsys.readouterr().err
