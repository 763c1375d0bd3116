"""Bad input: exit code 2, one clear line, and nothing started. Uses the demo's models; no Ray."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from commands.checks import load_checked
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run_files import load_config

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "arithmetic" / "models"

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


def test_an_unknown_key_names_the_nearest_known_one(refused: Refused) -> None:
    assert "rollout.num_worker: unknown key; did you mean rollout.num_workers?" in refused(
        "--rollout.num_worker", "2"
    )


@pytest.mark.parametrize("alpha", ["0", "-1", "nan", "inf", "1001"])
def test_an_alpha_out_of_range_is_refused(refused: Refused, alpha: str) -> None:
    assert "objective.alpha must be > 0 and <= 1000" in refused("--objective.alpha", alpha)


def test_an_unknown_objective_names_the_nearest_known_one(refused: Refused) -> None:
    assert "power" in refused("--objective.name", "powr")


def test_a_missing_model_folder_is_refused(refused: Refused) -> None:
    assert "student.model_path" in refused("--student.model_path", "./no/such/folder")
    assert "teacher.model_path" in refused("--teacher.model_path", "/no/such/folder")


def test_a_corrupt_row_names_file_and_line(refused: Refused, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"problem": "1+\n')
    assert f"{data}:11" in refused()


def test_an_empty_data_set_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "data.train_path" in refused("--data.train_path", str(tmp_path / "empty.jsonl"))


def test_a_teacher_with_another_tokenizer_is_refused(refused: Refused, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(MODELS / "teacher", other)
    text = (other / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused("--teacher.model_path", str(other))
    assert "teacher.model_path" in line
    assert "another tokenizer" in line


def test_more_workers_than_the_machine_can_place_says_what_is_missing(refused: Refused) -> None:
    line = refused("--cluster.num_cpus", "2", "--rollout.num_workers", "5")
    assert "rollout.num_workers" in line
    assert "1.5 CPU missing (3.5 wanted, 2 there)" in line


def test_staleness_without_an_importance_correction_is_refused(refused: Refused) -> None:
    assert "importance.name" in refused("--importance.name", "none", "--max-staleness", "2")


def test_a_synchronous_run_may_go_without_importance_correction(arguments: list[str]) -> None:
    options = ["--importance.name", "none", "--max-staleness", "0", "--batches-ahead", "0"]
    assert launch.main([*arguments, *options]) == FINISHED


def test_a_prompt_longer_than_the_context_is_refused(refused: Refused, data: Path) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"id": "long", "problem": "1+" * 60, "answer": "0"}) + "\n")
    line = refused()
    assert "data.train_path" in line
    assert "'long'" in line


def test_an_existing_run_folder_is_refused_without_resume(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert launch.main([*arguments, "--run-name", "demo"]) == BAD_INPUT
    assert "already exists" in capsys.readouterr().err


def test_resuming_a_run_that_is_not_there_is_refused(refused: Refused) -> None:
    assert "--resume" in refused("--resume")


def test_more_ranks_than_slots_in_a_batch_are_refused(refused: Refused) -> None:
    assert "learner.num_workers must be <= batch_size" in refused(
        "--batch-size", "2", "--learner.num_workers", "3"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--objective.name", "g_opd"), "reference.model_path: required for g_opd"),
        (("--objective.name", "lsm"), "objective.k must be <= 32, the vocabulary, got 64"),
        (("--objective.name", "reverse_kl", "--objective.normaliser", "zscore"), "normaliser must be none"),
        (("--objective.name", "eopd", "--importance.name", "none"), "importance.name must not be none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_objective_that_no_worker_can_serve_is_refused(
    refused: Refused, options: tuple[str, ...], reason: str
) -> None:
    options = (*options, "--objective.k", "64") if "got 64" in reason else options
    assert reason in refused(*options)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd", "power_full", "veto", "linear_kl"])
def test_divergences_may_train_stale_tokens_without_correction(arguments: list[str], name: str) -> None:
    assert launch.main([*arguments, "--objective.name", name, "--importance.name", "none"]) == FINISHED


@pytest.mark.parametrize("name", ["lsm", "eopd", "aopd", "top_k_forward_kl"])
def test_objectives_on_the_likeliest_tokens_are_served(arguments: list[str], name: str) -> None:
    assert launch.main([*arguments, "--objective.name", name, "--objective.k", "8"]) == FINISHED
