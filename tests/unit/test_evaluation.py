"""What is kept of an evaluation and what it comes to; the command line of `eval` as far as nothing is started."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import launch
from cluster.placement import plan
from commands.evaluate import model_fingerprint
from commands.wiring import build_grade
from evaluation.metrics import GradedSample, latest_rows, mean_of_rows, result_of
from evaluation.results import EvaluatedProblem, KeptResults, ResultFolder, result_table, samples_of
from evaluation.view import progress_line, results_table
from records.events import Events
from records.run_folder import RunFolder
from settings.evaluation import EvaluationConfig
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RunConfig
from settings.run_files import load_config
from transport.batches import ROLLOUT_SCHEMA

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "examples" / "arithmetic" / "models" / "student"

EvalRefused = Callable[..., str]


def sample(
    number: int, answer_class: int, verdict: str = "wrong", *, tokens: int = 10, cut: bool = False
) -> GradedSample:
    return GradedSample(number, verdict, answer_class, tokens, cut)


SAMPLES_PK = [
    [sample(0, 0), sample(1, 1, "right"), sample(2, 1, "right", tokens=30)],
    [sample(0, 0), sample(1, 0, "timed out"), sample(2, 2, "right", cut=True)],
]


def test_a_row_holds_every_number_of_a_benchmark_at_its_k() -> None:
    row = result_of("tiny", SAMPLES_PK, 2).row()
    assert row == {
        **{"benchmark": "tiny", "n": 3, "k": 2, "num_problems": 2, "num_timed_out": 1, "grader": "strict"},
        **{"avg_at_k": pytest.approx(1 / 4), "pass_at_k": 0.5, "maj_at_k": 0.0},
        "pass_at_k_unbiased": pytest.approx(((1 - 0 / 3) + (1 - 1 / 3)) / 2),
        "mean_length": pytest.approx((10 + 10 + 30 + 10 + 10 + 10) / 6),
        "truncated_frac": pytest.approx(1 / 6),
    }
    assert result_of("tiny", SAMPLES_PK, 3).maj_at_k == 0.5


def test_the_mean_over_benchmarks_counts_each_the_same_and_one_row_stays_as_it_is() -> None:
    rows = [
        result_of(name, samples, 2).row()
        for name, samples in zip("ab", ([*SAMPLES_PK] * 5, SAMPLES_PK[:1]), strict=True)
    ]
    mean = mean_of_rows([{"step": 3, "model": "student", **row} for row in rows])
    assert mean["avg_at_k"] == pytest.approx((rows[0]["avg_at_k"] + rows[1]["avg_at_k"]) / 2)
    assert (mean["step"], mean["benchmark"], mean["k"], mean["num_problems"]) == (3, "mean", 2, 11)
    assert mean_of_rows(rows[:1]) == rows[0]
    old = {"step": 1, "model": "student", "avg_at_k": 0.5}
    assert latest_rows([old, old | {"avg_at_k": 0.75}]) == {(1, "student"): {"": old | {"avg_at_k": 0.75}}}


def graded_part(slots: range, *, num_samples: int = 2) -> pa.Table:
    """Graded rows of problems; the odd ones are of another benchmark."""
    rows = [
        {
            **{"uid": f"{slot}-{s}", "slot": slot, "attempt": 0, "prompt_id": f"p{slot}", "sample": s, "seed": s},
            **{"source": "x", "answer": "1", "prompt_token_ids": [5], "response_token_ids": [slot + 1, 2, 3]},
            "behaviour_log_probs": [-0.5, -0.25, -0.125],
            "weight_versions": [{"version": 4, "num_tokens": 3}],
            "finish_reason": "length" if s else "stop",
        }
        for slot in slots
        for s in reversed(range(num_samples))
    ]
    rollouts = pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)
    problems = [EvaluatedProblem("odd" if r["slot"] % 2 else "even", f"p{r['slot']}", "1 = ?", "1") for r in rows]
    texts = [f"so {r['slot']}" for r in rows]
    judged = {
        "extracted": [str(row["slot"]) for row in rows],
        "verdict": ["right" if row["slot"] == 1 else "wrong" for row in rows],
        "answer_class": [0 for _ in rows],
    }
    return result_table(rollouts, problems, texts, judged)


def test_an_interrupted_evaluation_continues_and_ends_with_one_file_per_benchmark(tmp_path: Path) -> None:
    settings = {"n": 2, "temperature": 0.6}
    first = ResultFolder(tmp_path / "out")
    assert first.resume(settings) == {}
    first.keep(graded_part(range(3, 5)))
    (tmp_path / "out" / "parts" / "000001.tmp").write_bytes(b"torn")
    second = ResultFolder(tmp_path / "out")
    graded = second.resume(settings)
    assert graded == samples_of(graded_part(range(3, 5)))
    assert [each.sample for each in graded[3]] == [0, 1]
    second.keep(graded_part(range(3)))
    assert not second.is_finished
    second.finish({"results": []})
    assert second.is_finished
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("even.parquet", "odd.parquet", "settings.json", "summary.json")
    ]
    rows = pq.read_table(tmp_path / "out" / "even.parquet").to_pylist()
    assert [(row["problem_id"], row["sample"]) for row in rows] == [
        (f"p{p}", s) for p in (0, 2, 4) for s in (0, 1)
    ]
    assert rows[-1] == {
        **{"problem_id": "p4", "sample": 1, "problem": "1 = ?", "answer": "1", "response": "so 4"},
        **{"extracted": "4", "correct": False, "verdict": "wrong", "answer_class": 0, "num_tokens": 3},
        **{"finish_reason": "length", "seed": 1, "weight_version": 4},
        **{"response_token_ids": [5, 2, 3], "behaviour_log_probs": [-0.5, -0.25, -0.125]},
    }
    assert ResultFolder(tmp_path / "out").finished_summary(settings) == {"results": []}


def test_a_folder_with_another_evaluation_or_other_files_is_refused(tmp_path: Path) -> None:
    ResultFolder(tmp_path / "out").resume({"n": 2, "temperature": 0.6})
    with pytest.raises(ValueError, match=r"--out: .* holds an evaluation with temperature 0.6, and not 1.0"):
        ResultFolder(tmp_path / "out").resume({"n": 2, "temperature": 1.0})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder, and holds no evaluation"):
        ResultFolder(tmp_path / "mine").resume({})
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_progress_tells_the_time_left_at_the_rate_since_it_continued() -> None:
    assert progress_line(30, 50, 10, 60.0) == "30/50 problems graded in 60 s, about 60 s left"
    assert progress_line(10, 50, 10, 1.0) == "10/50 problems graded in 1 s"


def test_the_table_ends_with_the_mean() -> None:
    rows = [result_of(name, SAMPLES_PK, k).row() for name in ("a", "b") for k in (1, 3)]
    means = [mean_of_rows([row for row in rows if row["k"] == k]) for k in (1, 3)]
    settings = {"n": 3, "k": [1, 3], "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 0, "max_tokens": 5}
    table = results_table({"model": "m", "settings": settings, "results": rows, "mean": means})
    assert [*table.columns[0].cells] == ["a", "a", "b", "b", "mean", "mean"]
    assert [*table.columns[2].cells] == ["1", "3"] * 3
    assert "2 responses took too long to grade" in str(table.caption)


def test_own_workers_have_a_pool_like_that_of_the_rollout_workers(tmp_path: Path) -> None:
    options = ["--evaluation.num_workers", "2", "--rollout.resources.num_gpus", "1"]
    demands = {demand.role: demand for demand in plan(load_config(str(ROOT / "configs" / "demo.yaml"), options))}
    assert demands["evaluation"].count == 2
    assert demands["evaluation"].bundle == demands["rollout"].bundle
    with pytest.raises(ValueError, match=r"evaluation\.num_workers must be 0 without evaluation\.benchmarks"):
        EvaluationConfig(num_workers=1)


def test_models_that_differ_in_weights_differ_in_their_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(200_000))
    (tmp_path / "config.json").write_text("{}")
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(bytes(199_999) + b"\1")
    assert before != model_fingerprint(str(tmp_path))
    assert model_fingerprint("owner/name") is None


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A benchmark of one's own."""
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(6)))
    return path


@pytest.fixture
def eval_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> EvalRefused:
    """Run `eval` with options; returns the only line of the refusal."""

    def run(*options: Any) -> str:
        line = ["eval", "--runs-path", str(tmp_path / "runs"), *map(str, options)]
        assert launch.main(line) == BAD_INPUT
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "runs").exists()
        return lines[0]

    return run


def test_a_model_folder_and_a_benchmark_are_enough(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "eval",
        "--model",
        str(STUDENT),
        "--benchmarks",
        "tiny",
        "--data",
        f"tiny={tiny}",
        "--max-tokens",
        "16",
    ]
    line += [
        "--max-tokens",
        "16",
        "--n",
        "4",
        "--k",
        "1,4",
        "--temperature",
        "0.6",
        "--top-k",
        "20",
        "--limit",
        "5",
    ]
    assert launch.main([*line, "--dry-run", "--rollout.num_workers", "2", "--cluster.num_cpus", "2"]) == FINISHED
    printed = capsys.readouterr().out
    for expected in ("num_samples: 4", "temperature: 0.6", "max_problems: 5", "rollout: 2 x (1 CPU"):
        assert expected in printed


def test_wrong_arguments_are_refused_with_what_is_right(eval_refused: EvalRefused, tiny: Path) -> None:
    model, mine = ("--model", STUDENT), ("--benchmarks", "tiny", "--data", f"tiny={tiny}")
    assert "unknown benchmark 'gms8k' (nearest: gsm8k)" in eval_refused(*model, "--benchmarks", "gms8k")
    assert "--benchmarks: required for eval" in eval_refused(*model)
    assert "--model: required without --config" in eval_refused(*mine)
    assert "evaluation.k must be <= evaluation.num_samples (2), got 4" in eval_refused(
        *model, *mine, "--n", 2, "--k", "1,4"
    )
    assert "--k must be numbers with commas between them" in eval_refused(*model, *mine, "--k", "1;4")
    assert "--k must be >= 1, got 0" in eval_refused(*model, *mine, "--k", "0,1")
    assert "--data must be NAME=FILE" in eval_refused(*model, "--benchmarks", "tiny", "--data", tiny)
    assert "'tinny' is not among evaluation.benchmarks (nearest valid: tiny)" in eval_refused(
        *model, *mine, "--data", f"tinny={tiny}"
    )
    assert "no such file" in eval_refused(*model, "--benchmarks", "tiny", "--data", "tiny=/no/such.jsonl")
    assert "evaluation.temperature must be <= 2" in eval_refused(*model, *mine, "--temperature", 3)
    assert "nearest valid evaluation.max_response_tokens: " in eval_refused(*model, *mine, "--max-tokens", 100_000)


def test_data_that_is_not_there_offline_is_refused_with_what_to_do(
    eval_refused: EvalRefused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = eval_refused("--model", STUDENT, "--benchmarks", "math500")
    assert "evaluation.paths.math500" in error
    assert "--data math500=FILE" in error


def test_data_that_the_definition_does_not_expect_is_used_with_a_warning(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = ["eval", "--model", str(STUDENT), "--benchmarks", "gsm8k", "--data", f"gsm8k={tiny}"]
    line += ["--max-tokens", "16"]
    assert launch.main([*line, "--dry-run"]) == FINISHED
    assert "benchmark gsm8k: expected 1319 problems, found 6" in caplog.text


def test_what_a_thread_grades_after_its_evaluation_was_abandoned_is_not_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    kept = KeptResults(folder, "step_5", Events())
    kept.begin()
    kept.keep(graded_part(range(2)))
    kept.discard()
    kept.keep(graded_part(range(2, 4)))
    kept.finish()
    assert not (folder.evaluation_results / "step_5").exists()


class Sentences:
    """A tokenizer whose ids are whole answers."""

    TEXTS = ("The answer is 42.", r"\boxed{42}", "The answer is 43.")

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(self.TEXTS[each] for each in ids)


@dataclass(frozen=True)
class OnlyTokenizer:
    """As much of a run's inputs as grading asks for."""

    tokenizer: Sentences


def test_outcome_rewards_are_graded_as_evaluations_are() -> None:
    needed = {"student": {"model_path": "s"}, "teacher": {"model_path": "t"}, "data": {"train_path": "d"}}
    inputs: Any = OnlyTokenizer(Sentences())
    for grader, right in (("strict", [False, True, False]), ("lenient", [True, True, False])):
        config = RunConfig.model_validate(needed | {"evaluation": {"grader": grader}})
        assert build_grade(config, inputs)([[0], [1], [2]], ["42"] * 3) == right


def test_an_evaluation_from_before_there_were_graders_continues_as_a_strict_one(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"n": 2}))
    folder = ResultFolder(tmp_path)
    folder.check({"n": 2, "grader": "strict"})
    with pytest.raises(ValueError, match="an evaluation with grader 'strict', and not 'lenient'"):
        folder.check({"n": 2, "grader": "lenient"})
