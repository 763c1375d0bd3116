"""The report: one file that needs nothing, whatever the run's files hold, and whichever of them are missing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly import graph_objects

import launch
from commands.report import write_report
from commands.train import draw_report
from records.files import append_row
from records.run_folder import RunFolder
from reporting.page.cost import pool_costs, waste_lines
from reporting.page.figure import MAX_POINTS, logarithmic, thinned
from reporting.page.run_data import read_run
from reporting.page.sample_view import samples_view
from reporting.page.summary_table import verdicts
from reporting.page.timeline import timeline_figure
from reporting.page.write import plotly_js
from tests.unit.synthetic_run import BEGIN, event, metrics_row, write_run

FILES = (
    *("config.yaml", "environment.json", "metrics.jsonl", "ledger.jsonl", "eval.jsonl", "events.jsonl"),
    *("timeline.jsonl", "samples.jsonl", "summary.json", "preflight.json"),
)


class Page(HTMLParser):
    """What a page consists of, as a browser sees it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.figures: dict[str, Any] = {}
        self._is_figures = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._is_figures = ("id", "figures") in attrs

    def handle_data(self, data: str) -> None:
        if self._is_figures:
            self.figures = json.loads(data, parse_constant=_refuse)
            self._is_figures = False
        elif self.tags[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def page_of(*folders: RunFolder) -> Page:
    """The report of runs, read back."""
    path = folders[0].report
    write_report(folders, path)
    return Page(path.read_text(encoding="utf-8").replace(plotly_js(), ""))


def test_a_report_shows_every_part_of_a_run(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, "first"))
    assert {"accuracy", "kl", "length", "truncated", "grad_norm", "entropy", "reward", "position", "staleness"} | {
        *("throughput", "stages", "busy", "timeline-first")
    } == page.figures.keys()
    for text in (
        "arithmetic: accuracy 40.0 % before, 90.0 % after training; the teacher has 98.0 %, so 86.2 % of the",
        "Reverse KL to the teacher fell by",
        "teacher-bound: 50 % of the learner's time is waiting for scores",
        "worker died 1x",
        "ActorDiedError: killed",
        "rollouts lost with a worker or a table, generated again",
        "git checkout abc123 # the tree had uncommitted changes",
        "--run_name first-again",
        "launch.py train \\ --config configs/demo.yaml",
        "vocabulary ok",
        "template forced the chat templates differ",
        "before training step 0, 7 tokens, mean reward +0.0583",
    ):
        assert text in page.text


def test_plotly_takes_every_figure(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, "a"), write_run(tmp_path, "b", alpha=1.0)]
    for page in (page_of(folders[0]), page_of(*folders)):
        for name, figure in page.figures.items():
            drawn = json.loads(re.sub(r'"theme:[^"]*"', '"#123456"', json.dumps(figure)))
            assert graph_objects.Figure(drawn["data"], drawn["layout"]).data, name


@pytest.mark.parametrize("missing", [*FILES, "all"])
def test_whatever_file_is_missing_or_damaged_the_rest_is_shown(tmp_path: Path, missing: str) -> None:
    for name, is_damaged in (("gone", False), ("broken", True)):
        folder = write_run(tmp_path, name, steps=4)
        for path in (folder.path / file for file in (FILES if missing == "all" else [missing])):
            whole = path.read_bytes()
            path.unlink()
            if is_damaged:
                path.write_bytes(whole[: len(whole) // 2] + b"\x00\xff[{nonsense")
        page = page_of(folder)
        assert "Summary" in page.text
        if not is_damaged:
            assert ("accuracy" in page.figures) == (missing not in ("eval.jsonl", "all"))
            assert ("kl" in page.figures) == (missing not in ("metrics.jsonl", "ledger.jsonl", "all"))


def test_rows_that_are_not_what_they_should_be_do_no_harm(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=4)
    for path in (folder.evaluations, folder.events, folder.timeline, folder.samples):
        for row in ({}, {"event": 3, "time": "noon"}, {"step": None, "tokens": [], "worker": None}):
            append_row(path, row)
    append_row(folder.events, {"event": "worker_died"})
    append_row(folder.samples, {"tokens": ["a", "b"], "values": [1.0], "student_logp": "no", "step": "x"})
    assert "worker died 2x" in page_of(folder).text


def test_numbers_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=4)
    broken = dict.fromkeys(("kl/reverse", "grad_norm", "time/step_s"), float("nan"))
    broken |= {"reward/p95": float("-inf"), "throughput/learner": None}
    folder.add_step(metrics_row(5, 5) | broken, ["5-0-p-0"])
    folder.add_evaluation({"step": 5, "model": "student", "benchmark": "arithmetic", "avg_at_k": float("nan")})
    page = page_of(folder)
    assert page.figures["kl"]["data"][0]["x"] == [1, 2, 3, 4]
    assert page.figures["length"]["data"][0]["x"] == [1, 2, 3, 4, 5]


HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'`{{7*7}}</pre>&lt;\u2028\x00"""


def test_texts_from_models_and_logs_are_shown_and_never_run(tmp_path: Path) -> None:
    plain = page_of(write_run(tmp_path, "plain", steps=4))
    folder = write_run(tmp_path, "hostile", steps=4)
    sample: dict[str, Any] = dict.fromkeys(("when", "problem_id", "prompt", "value"), HOSTILE)
    sample |= {"step": 1, "tokens": [HOSTILE], "num_tokens": 1, "values": [1.0]}
    folder.samples.write_text(json.dumps(sample) + "\n")
    event(folder.events, 80, "worker_died", worker=HOSTILE, reason=HOSTILE)
    event(folder.events, 81, "run_started", command=HOSTILE)
    span = {"worker": HOSTILE, "stage": HOSTILE, "start": BEGIN, "end": BEGIN + 1, "busy_s": 1}
    append_row(folder.timeline, span)
    folder.add_evaluation({"step": 4, "model": "student", "benchmark": HOSTILE, "avg_at_k": 0.5})
    folder.add_evaluation({"step": 4, "model": f"teacher-{HOSTILE}", "benchmark": HOSTILE, "avg_at_k": 0.5})
    with (folder.path / "config.yaml").open("a") as file:
        file.write(f"# {HOSTILE!r}\n")
    page = page_of(folder)
    assert page.tags.count("script") == plain.tags.count("script") == 3
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text
    names = [trace["name"] for trace in page.figures["accuracy"]["data"]]
    assert not any("<" in name for name in names)


def test_a_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, "first", steps=4))
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert links
    assert all(value is not None and (value.startswith("#") or value == "data:,") for value in links)
    style = (Path(launch.__file__).parent / "reporting" / "page" / "report.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_several_runs_share_figures_and_tables(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, "five"), write_run(tmp_path, "one", alpha=1.0, steps=20, max_steps=40))
    assert [trace["name"] for trace in page.figures["kl"]["data"]] == ["five", "one"]
    names = ["five, teacher", "five", "one, teacher", "one"]
    assert [trace["name"] for trace in page.figures["accuracy"]["data"]] == names
    assert {"timeline-five", "timeline-one"} < page.figures.keys()
    assert "objective.alpha 5.0 1.0" in page.text
    assert "max_steps 30 40" in page.text
    assert "20 of 40 steps trained: the run has not finished" in page.text


def test_steps_that_were_rolled_back_are_not_in_the_curves_and_count_as_wasted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=4)
    folder.roll_back_to(2)
    folder.add_step(metrics_row(3, 4) | {"kl/reverse": 7.0, "wasted/fall_back": 2000}, ["3-0-p-0"])
    page = page_of(folder)
    assert page.figures["kl"]["data"][0]["x"] == [1, 2, 3]
    assert page.figures["kl"]["data"][0]["y"][-1] == 7.0
    assert {line.cause.split()[0]: line.tokens for line in waste_lines(read_run(folder))}["steps"] == 2000


def test_devices_count_from_the_start_of_a_worker_to_its_end(tmp_path: Path) -> None:
    costs = {cost.role: cost for cost in pool_costs(read_run(write_run(tmp_path, "first", steps=30)))}
    # All start at 30 s after 20 s and end at 110 s; the teacher is dead from 60 to 70 s.
    assert costs["learner"].device_s == pytest.approx(100)
    assert (costs["rollout"].num_workers, costs["rollout"].device_s) == (2, pytest.approx(2 * 100 * 1.5))
    assert (costs["teacher"].num_starts, costs["teacher"].device_s) == (2, pytest.approx((50 + 40) * 0.5))
    assert costs["learner"].per_1000_tokens == pytest.approx(100 / 30)
    assert costs["teacher"].busy == pytest.approx(0.9)


def test_workers_of_a_process_that_was_killed_count_until_it_was_last_heard_of(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=30)
    rows = [json.loads(line) for line in folder.events.read_text().splitlines()]
    folder.events.write_text("".join(json.dumps(row) + "\n" for row in rows if row["event"] != "worker_retired"))
    event(folder.events, 5000, "run_started", command="again", is_resumed=True)
    event(folder.events, 5030, "worker_started", worker="learner-0", seconds=20.0)
    event(folder.events, 5050, "worker_retired", worker="learner-0")
    costs = {cost.role: cost for cost in pool_costs(read_run(folder))}
    # The last row is of 100 s: 90 s until then, and 40 s of the second process.
    assert costs["learner"].device_s == pytest.approx(90 + 40)


def test_a_pause_between_two_processes_is_left_out_of_the_timeline(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=4)
    later = BEGIN + 90_000
    span = {"worker": "learner-0", "stage": "train", "start": later, "end": later + 9, "busy_s": 9}
    append_row(folder.timeline, span)
    figure = timeline_figure(read_run(folder))
    assert figure is not None
    assert "1 pause(s)" in figure.caption
    assert max(x for trace in figure.traces for x in trace["x"] if x is not None) < 200


def test_a_long_run_has_a_small_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "long", steps=4)
    steps = range(5, 3_001)
    append(folder.metrics, [metrics_row(step, 3_000) for step in steps])
    append(folder.ledger, [{"step": step, "uids": [f"{step}-0-p-0"]} for step in steps])
    times = [(f"rollout-{i % 50}", BEGIN + 2 * i) for i in range(20_000)]
    span = {"stage": "generate", "busy_s": 1}
    append(folder.timeline, [span | {"worker": worker, "start": at, "end": at + 1} for worker, at in times])
    sample = {"tokens": ["word "] * 1500, "values": [0.1] * 1500, "value": "reward"}
    sample |= dict.fromkeys(("student_logp", "teacher_logp"), [-0.1] * 1500)
    append(folder.samples, [{"when": "after", "step": 9, "problem_id": f"q{i}", **sample} for i in range(8)])
    size = write_report([folder], folder.report)
    assert size - len(plotly_js()) < 6_000_000
    figures = Page(folder.report.read_text(encoding="utf-8").replace(plotly_js(), "")).figures
    assert all(len(trace["x"]) <= 3 * 6_000 for trace in figures["timeline-long"]["data"])
    assert len(figures["kl"]["data"][0]["x"]) <= MAX_POINTS


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append many rows at once."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_logarithmic_axis_has_a_tick_per_decade_or_three_of_few() -> None:
    few, many = ([{"y": [0.03, 2.0, 0.0]}], [{"y": [1e-5, 30.0]}])
    assert logarithmic(few)["ticktext"][:7] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    assert logarithmic(many)["tickvals"] == pytest.approx([10.0**decade for decade in range(-5, 3)])
    assert logarithmic([{"y": [0.0]}]) == {"type": "log"}


def test_thinning_keeps_the_spikes_and_the_order() -> None:
    values = [(float(step), 1000.0 if step == 777 else step % 3) for step in range(5000)]
    kept = thinned(values, 500)
    assert len(kept) <= 500
    assert (777.0, 1000.0) in kept
    assert kept == sorted(kept)


def test_the_shade_of_a_token_has_the_sign_and_the_size_of_its_reward() -> None:
    values = [1.0, -1.0, 0.5, -0.25, 0.01, None, 9.0]
    row = {"tokens": list("abcdefg"), "values": values, "value": "reward", "student_logp": [-1.0] * 7}
    view = samples_view([row, {"tokens": ["x"] * 100, "values": [1.0] * 100}])
    assert view is not None
    assert view.scale == 1.0
    assert [token.shade for token in view.problems[0].responses[0].tokens] == [5, -5, 2, -1, 0, 0, 5]
    assert view.problems[0].responses[0].tokens[0].details == "teacher p unknown, student p 0.3679, reward +1.0000"


def test_a_run_that_got_worse_is_told_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=4)
    folder.add_evaluation({"step": 5, "model": "student_after", "benchmark": "arithmetic", "avg_at_k": 0.1})
    bad = [verdict.text for verdict in verdicts(read_run(folder)) if verdict.kind == "bad"]
    assert bad[0].startswith("arithmetic: accuracy 40.0 % before, 10.0 % after")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--run nothing", r"--run: there is no run folder .*nothing \(there: first\)"),
        ("--run first --run first", "--run: first is given twice"),
        ("--run ../first", "--run must be letters"),
        ("--run first --out missing/report.html", "--out: missing is not a folder"),
        ("", "--run"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "first", steps=2)
    assert launch.main(["report", "--runs-path", str(tmp_path), *options.split()]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.html"))


def test_the_command_writes_where_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_run(tmp_path, name, steps=2)
    shared = ["report", "--runs-path", str(tmp_path)]
    assert launch.main([*shared, "--run", "a"]) == 0
    assert launch.main([*shared, "--run", "a", "--run", "b"]) == 0
    assert launch.main([*shared, "--run", "b", "--out", str(tmp_path / "mine.html")]) == 0
    written = [tmp_path / "a" / "report.html", tmp_path / "report_a_b.html", tmp_path / "mine.html"]
    assert all(path.is_file() for path in written)
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(path) for path in written
    ]


def test_a_report_that_cannot_be_written_does_not_fail_the_run_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path, "first", steps=2)
    folder.report.mkdir()
    (folder.report / "in the way").touch()
    draw_report(folder)
    assert "the report could not be drawn" in caplog.text
