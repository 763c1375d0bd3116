"""Bad settings of several teachers, a reference model and graded outcomes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from settings.exit_codes import FINISHED

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "arithmetic" / "models"

Refused = Callable[..., str]


SECOND = ("--teachers.second.model_path", str(MODELS / "student"), "--teachers.second.sources", "[code]")


@pytest.fixture
def two_sources(data: Path) -> Path:
    """Training problems of two sources."""
    rows = [json.loads(line) | {"source": "code" if i % 2 else "math"} for i, line in enumerate(data.open())]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_several_teachers_a_reference_and_graded_outcomes_are_placed(
    arguments: list[str], two_sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--teacher.sources", "[math]", "--objective.name", "g_opd", "--outcome.rl_coef", "0.5"]
    options += ["--reference.model_path", str(MODELS / "student"), "--num_samples_per_prompt", "2"]
    options += ["--cluster.num_cpus", "4"]
    assert launch.main([*arguments, *SECOND, *options]) == FINISHED
    printed = capsys.readouterr().out
    assert "#   teacher-second: 1 x (1 CPU)" in printed
    assert "#   reference: 1 x (1 CPU)" in printed


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        (
            "null",
            "teacher.sources: required where there are several teachers, but not set (known sources: ",
        ),
        ("[maths]", "teacher.sources: the training data have none of 'maths', only 'code', 'math'"),
        ("[math,code]", "teachers.second.sources: source 'code' is also in teacher.sources"),
        ("[]", "teacher.sources"),
    ],
)
def test_sources_that_do_not_name_one_teacher_each_are_refused(
    refused: Refused, two_sources: Path, sources: str, reason: str
) -> None:
    assert reason in refused(*SECOND, "--teacher.sources", sources)


def test_a_source_that_no_teacher_takes_is_refused(refused: Refused, two_sources: Path) -> None:
    with two_sources.open("a") as file:
        file.write(json.dumps({"id": "other", "problem": "1+1", "source": "logic"}) + "\n")
    line = refused(*SECOND, "--teacher.sources", "[math]")
    assert "teachers: no teacher takes source 'logic' of data.train_path" in line
    assert "known sources: 'code', 'logic', 'math'" in line


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--teachers.second.model_path=./none", "teachers.second.model_path: no such model folder: ./none"),
        (
            "--teachers.second.num_worker=2",
            "teachers.second.num_worker: unknown key; did you mean teachers.second.num_workers?",
        ),
        ("--teachers.second.weight=0", "teachers.second.weight must be > 0"),
        ("--objective.name=reverse_kl", "reverse_kl as configured needs the teacher's output head in the learner"),
    ],
)
def test_a_further_teacher_is_checked_as_the_first_one(
    refused: Refused, two_sources: Path, option: str, reason: str
) -> None:
    assert reason in refused(*SECOND, "--teacher.sources", "[math]", option)


def test_a_further_teacher_with_another_tokenizer_is_refused(
    refused: Refused, two_sources: Path, tmp_path: Path
) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(MODELS / "teacher", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "teachers.second.model_path: the teacher second has another tokenizer" in refused(
        *SECOND, "--teacher.sources", "[math]", "--teachers.second.model_path", str(other)
    )


def test_a_name_of_a_teacher_that_no_option_could_name_is_refused(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "named.yaml"
    path.write_text((ROOT / "configs" / "demo.yaml").read_text() + "teachers: {a-b: {model_path: x}}\n")
    assert "teachers.a-b" in refused("--config", str(path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--outcome.rl_coef", "1"), "num_samples_per_prompt must be >= 2 with outcome.rl_coef > 0, got 1"),
        (("--outcome.opd_coef", "2"), "outcome.opd_coef must be 1 with outcome.rl_coef 0, got 2"),
        (("--outcome.rl_coef", "-1"), "outcome.rl_coef must be >= 0"),
        (("--outcome.std", "samples"), "(nearest valid: sample)"),
        (
            ("--outcome.rl_coef", "1", "--num_samples_per_prompt", "2", "--objective.name", "reverse_kl"),
            "outcome.rl_coef must be 0 with reverse_kl, which has no rewards to mix with, got 1",
        ),
        (("--teacher.sources", "[math]"), "teacher.sources must be null without further teachers"),
        (("--teacher.weight", "2"), "teacher.weight must be 1 where there is one teacher, got 2"),
    ],
)
def test_outcomes_and_weights_that_could_have_no_right_effect_are_refused(
    refused: Refused, options: tuple[str, ...], reason: str
) -> None:
    assert reason in refused(*options)


def test_a_training_problem_without_an_answer_is_refused_where_answers_are_graded(
    refused: Refused, data: Path
) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"id": "open", "problem": "1+1"}) + "\n")
    options = ("--evaluation.data_path", "null", "--outcome.rl_coef", "1", "--num_samples_per_prompt", "2")
    assert "data.train_path: problem 'open' has no answer to grade against" in refused(*options)


def test_a_reference_is_checked_as_a_teacher(refused: Refused) -> None:
    options = ("--objective.name", "g_opd", "--reference.model_path")
    assert "reference.model_path: no such model folder: ./none" in refused(*options, "./none")
    line = refused(*options, str(MODELS / "student"), "--reference.engine.max_model_len", "30")
    assert "but the context holds 29" in line
    line = refused(*options, str(MODELS / "student"), "--cluster.num_cpus", "2")
    assert "reference: 1 x (1 CPU)" in line


def test_a_reference_that_no_objective_asks_for_starts_no_workers(
    arguments: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--reference.model_path", str(MODELS / "student"), "--cluster.num_cpus", "2"]
    assert launch.main([*arguments, *options]) == FINISHED
    assert "#   reference" not in capsys.readouterr().out
    assert "reference.model_path is not used: power compares with no reference model" in caplog.text
