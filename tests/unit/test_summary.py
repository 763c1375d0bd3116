"""The end of a run in numbers, and a step in one line."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from records.run_folder import RunFolder
from reporting.advisor import flow_line, flow_means
from reporting.live.terminal import step_line
from reporting.summary import accuracy_table, summarise
from tests.unit.metric_rows import metrics_row

ROW = metrics_row(
    3,
    **{"reward__mean": -0.01234, "kl__reverse": 0.5, "loss": 0.0123456, "grad_norm": 1.23456},
    **{"staleness__mean": 0.75, "staleness__max": 2.0, "response_length__mean": 12.4},
    **{"throughput__rollout": 1234.5, "throughput__teacher": 99.9, "throughput__learner": 10000.0},
    **{"time__rollout_wait_s": 0.126, "time__score_wait_s": 0.0, "time__train_s": 1.5, "time__publish_s": 0.25},
)
TEACHERS = [("teacher", 0.75), ("teacher-code", 0.875)]


def folder_with_steps(path: Path, num_steps: int) -> RunFolder:
    """A run folder whose step i trained i tokens at reverse KL 1 / i and staleness i mod 4."""
    folder = RunFolder(path)
    for step in range(1, num_steps + 1):
        row = {"step": step, "kl/reverse": 1 / step, "staleness/max": step % 4, "tokens_trained": step}
        folder.add_step(row, [f"{step}"])
    return folder


def test_the_summary_counts_the_steps_that_are_valid(tmp_path: Path) -> None:
    folder = folder_with_steps(tmp_path, 20)
    assert summarise(folder, wall_s=12.345) == {
        "kl_reverse_first": (1 + 1 / 2) / 2,
        "kl_reverse_last": (1 / 19 + 1 / 20) / 2,
        "staleness_max": 3,
        "steps": 20,
        "tokens_trained": 210,
        "wall_s": 12.3,
    }
    folder.roll_back_to(2)
    summary = summarise(folder, wall_s=1.0)
    assert (summary["steps"], summary["tokens_trained"], summary["kl_reverse_last"]) == (2, 3, 0.5)


def test_a_run_without_steps_has_a_summary_too(tmp_path: Path) -> None:
    summary = summarise(RunFolder(tmp_path), wall_s=0.0)
    assert summary["steps"] == summary["tokens_trained"] == summary["staleness_max"] == 0
    assert summary["kl_reverse_first"] is summary["kl_reverse_last"] is None


def test_the_summary_holds_the_last_evaluation_of_each_model_and_the_table_shows_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for model, accuracy in [("student_before", 0.25), ("student", 0.3), ("student_after", 0.5), *TEACHERS]:
        values = {"avg_at_k": accuracy, "pass_at_k": 1.0, "mean_length": 10.0, "truncated_frac": 0.125}
        folder.add_evaluation({"step": 0, "model": model, "k": 8, "n": 8, **values})
    summary = summarise(folder, wall_s=0.0)
    expected = {"avg_at_8": 0.25, "pass_at_8": 1.0, "mean_length": 10.0, "truncated_frac": 0.125}
    assert summary["student_before"] == expected
    assert "student" not in summary
    output = StringIO()
    Console(file=output, width=120).print(accuracy_table(summary))
    lines = [line.split() for line in output.getvalue().splitlines()]
    rows = [[word for word in line if word.isascii() and word != "|"] for line in lines]
    assert ["teacher", "0.750", "1.000", "10.0", "0.125"] in rows
    assert ["teacher-code", "0.875", "1.000", "10.0", "0.125"] in rows
    assert ["student", "before", "0.250", "1.000", "10.0", "0.125"] in rows
    assert any("avg@8" in line for line in lines)


def test_the_table_of_a_run_without_evaluation_is_empty() -> None:
    assert accuracy_table({}).row_count == 0


def test_a_step_is_one_plain_line() -> None:
    line = step_line(ROW, 10)
    assert line.startswith("step 3/10  reward -0.0123  kl/reverse 0.5000  ")
    assert "  staleness 0.75/2  " in line
    assert "  tok/s rollout 1,234 teacher 100 learner 10,000  waits 0.13+0.00 s  " in line
    assert "kl/reverse" not in step_line({"step": 3, "reward/mean": 0.5}, 10), "what the row lacks is left out"


def test_what_limits_the_run_is_in_the_summary(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_step(ROW, ["a"])
    assert summarise(folder, wall_s=1.0)["limit"].startswith("learner-bound: 88 % of its time")


def test_waits_back_pressure_and_use_are_means_over_the_time_of_the_steps(tmp_path: Path) -> None:
    flow = {"wait/rollout_s": 0.25, "wait/teacher_s": 2.0, "wait/learner_s": 0.5, "busy/rollout": 0.5}
    flow |= {"busy/teacher": 1.0, "backpressure/teacher_s": 0.6, "backpressure/learner_s": 0.0, "time/step_s": 2.0}
    other = flow | {"wait/teacher_s": 5.0, "busy/rollout": 0.8, "backpressure/teacher_s": 0.0, "time/step_s": 4.0}
    means = flow_means([{"step": 1}, flow, other])
    assert means == {
        "wait": {"rollout": 0.25, "teacher": 4.0, "learner": 0.5},
        "backpressure": {"teacher": 0.1, "learner": 0.0},
        "busy": {"rollout": 0.7, "teacher": 1.0},
    }
    assert flow_line(means) == (
        "waits for: rollout 0.25 s, teacher 4.00 s (held up 10 %), learner 0.50 s; "
        "busy: rollout 70 %, teacher 100 %"
    )
    folder = RunFolder(tmp_path)
    folder.add_step(ROW | flow, ["a"])
    assert summarise(folder, wall_s=1.0)["flow"]["wait"]["teacher"] == 2.0
    assert flow_means([{"step": 1}]) == {}
