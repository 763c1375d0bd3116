"""The live view: everything that it must show fits every width, and it moves without steps."""

import asyncio
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from reporting.live.progress import ProgressView
from reporting.live.terminal import LiveView
from reporting.status_text import as_text
from settings.run import RunConfig
from tests.unit.metric_rows import metrics_row
from tests.unit.run_status import ADVICE, pool, running_status, starting_status, worker

WIDTHS = (60, 100, 170)


def rendered(status: dict[str, Any], width: int) -> list[str]:
    """The view's lines on a terminal of that width."""
    console = Console(width=width, file=StringIO(), record=True, force_terminal=True)
    console.print(LiveView(status))
    return [line.rstrip() for line in console.export_text().splitlines()]


def words_of(lines: list[str]) -> str:
    """All text in one line, so that line breaks do not matter."""
    return " ".join(" ".join(lines).split())


def config(**settings: Any) -> RunConfig:
    """A run of ten steps."""
    models = {"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": {"model_path": "t"}}
    return RunConfig.model_validate(models | {"max_steps": 10, "run_name": "first"} | settings)


@pytest.mark.parametrize("width", WIDTHS)
def test_pools_queues_health_and_time_left_are_shown_at_every_width(width: int) -> None:
    lines = rendered(running_status(), width)
    assert max(map(len, lines)) <= width
    text = words_of(lines)
    for shown in ("demo running step 37 of 160", "2:05 so far, about 6:42 left", "12,346 95 % 41 of 96 in flight"):
        assert shown in text
    assert "17 of 64" in text
    assert "9 scored, batch 32" in text
    assert "rollout 2 healthy, 1" in text
    assert "restarting" in text


def test_what_is_below_the_pools_is_whole_at_every_width() -> None:
    for width in (60, 120):
        text = words_of(rendered(running_status(), width))
        for shown in (
            "reward -0.0123, reverse KL 0.4567, gradient norm 0.789",
            "length 12 (0.5% truncated), 1 prompts given up",
            "version 37, engines at 37; staleness mean 1.25, max 3 of 4",
            "student at step 30 is being evaluated since 0:04; teacher 0.983 (avg@8) on arithmetic",
            "deaths 2 (rollout 2; 1 recent), restarts 1 (rollout 1; 0 recent)",
            "rollout-1 has died: ping: ActorDiedError (0:08 ago)",
            ADVICE,
        ):
            assert shown in text


def test_an_evaluation_shows_how_far_it_is_where_the_run_tells() -> None:
    status = running_status() | {"evaluation": {"model": "student", "step": 30, "graded": 1200, "problems": 1319}}
    text = words_of(rendered(status, 120))
    assert "is being evaluated since 0:04 (1,200 of 1,319 problems); teacher" in text


def test_waits_and_back_pressure_have_columns_where_there_is_space() -> None:
    narrow, wide = (words_of(rendered(running_status(), width)) for width in (80, 120))
    assert "holds others up" not in narrow
    assert "a slot waits holds others up" in wide
    assert "17 of 64 2.1 s 30 %" in wide


def test_a_start_says_what_it_waits_for() -> None:
    for width in (60, 120):
        text = words_of(rendered(starting_status(), width))
        assert "demo starting step 0 of 160 0:42 so far" in text
        waited = "waiting for rollout (1 of 2), teacher (0 of 1), learner (0 of 1) since 0:31"
        assert f"starting engines: {waited}" in text


def test_a_lone_worker_that_has_left_is_not_shown_as_one() -> None:
    status = running_status()
    status["pools"]["teacher"] = pool(worker("teacher-0", "retired"), worker("teacher-1", "dead"))
    assert "teacher 1 dead" in words_of(rendered(status, 120))


def test_the_status_as_text_has_the_same_facts() -> None:
    text = as_text(running_status())
    assert "newest event: rollout-1 has died: ping: ActorDiedError" in text
    assert "about 6:42 left" in text
    assert text.splitlines()[-1] == ADVICE
    assert "starting engines: waiting for rollout (1 of 2)" in as_text(starting_status())


def test_the_live_view_moves_without_a_step_and_ends_with_the_last_status() -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    view = ProgressView(config(logging={"display": "live"}), console=console)
    statuses = [starting_status(), running_status()]

    async def watch() -> None:
        async with view.following(lambda: statuses.pop(0) if len(statuses) > 1 else statuses[0]):
            view.say("run folder [x]")
            await asyncio.sleep(0.7)

    asyncio.run(watch())
    shown = output.getvalue()
    assert "run folder [x]" in shown
    assert "starting engines" in shown
    assert "0.4567" in shown.rpartition("starting engines")[2]


def test_without_a_terminal_phases_of_the_start_evaluations_and_steps_are_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = ProgressView(config())
    for _ in range(2):
        view.show(starting_status())
    view.show(running_status())
    view.evaluation({"model": "student_before", "step": 0, "benchmark": "gsm8k", "k": 4, "avg_at_k": 0.25})
    view.step(metrics_row(3, reward__mean=1.0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "starting engines: waiting for rollout (1 of 2), teacher (0 of 1), learner (0 of 1)",
        "evaluation of student before at step 0 on gsm8k: 0.250 (avg@4)",
    ]
    assert lines[2].startswith("step 3/10  reward +1.0000")
    assert lines[2].endswith("left 6:42")


def test_a_view_that_fails_is_logged_and_nothing_else_happens(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("no status")

    async def watch() -> str:
        async with ProgressView(config()).following(broken):
            await asyncio.sleep(0.05)
            return "trained"

    assert asyncio.run(watch()) == "trained"
    assert "the live view has ended, the run continues" in caplog.text
