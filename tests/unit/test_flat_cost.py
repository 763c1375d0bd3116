"""The windows of `benchmarks/flat_cost.py`: cost per token between two steps, memory by role."""

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.flat_cost import windows
from benchmarks.process_tree import ProcessTree, Sample, window_of


def samples(tokens_per_step: int, cpu_s_per_step: float, steps: int) -> list[Sample]:
    """Two looks at each step, with memory that grows by 1 MiB a step."""
    return [
        Sample(
            step, step * tokens_per_step, step * cpu_s_per_step + half / 2 * cpu_s_per_step, {"driver": 100 + step}
        )
        for step in range(1, steps + 1)
        for half in (0, 1)
    ]


def test_a_window_has_the_cost_of_its_tokens_alone() -> None:
    window = window_of(samples(2000, 0.5, 100), 10, 60)
    assert window["steps"] == 50
    assert window["tokens_per_step"] == 2000
    assert window["cpu_us_per_token"] == pytest.approx(1e6 * 0.5 / 2000)
    assert window["driver_mib"] == pytest.approx(135, abs=0.5)


def test_a_window_in_which_no_step_was_seen_is_an_error() -> None:
    with pytest.raises(ValueError, match="no two steps were seen between steps 200 and 250"):
        window_of(samples(2000, 0.5, 100), 200, 250)


def test_the_windows_of_long_and_short_runs_do_not_meet() -> None:
    assert windows(1000) == {"early": (10, 60), "settled": (300, 350), "late": (950, 1000)}
    assert windows(200) == {"early": (10, 60), "late": (150, 200)}
    assert windows(40) == {"early": (10, 20), "late": (30, 40)}


def test_processes_are_told_apart_by_the_events_of_the_run(tmp_path: Path) -> None:
    worker = psutil.Popen(
        [sys.executable, "-c", "x = bytearray(50 << 20); print(flush=True); input()"], stdin=-1, stdout=-1
    )
    try:
        worker.stdout.readline()
        tree = ProcessTree(psutil.Process(os.getpid()), tmp_path)
        assert tree.sample() is None, "nothing was trained yet"
        started = {"event": "worker_started", "worker": "teacher-0", "pid": worker.pid}
        (tmp_path / "events.jsonl").write_text(json.dumps(started) + "\n")
        (tmp_path / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": step, "tokens_trained": 10}) + "\n" for step in (1, 2))
        )
        sample = tree.sample()
        assert sample is not None
        assert (sample.step, sample.tokens) == (2, 20)
        assert sample.rss_mib["teacher"] > 50
        assert sample.rss_mib["driver"] > 0
        assert sample.cpu_s > 0
    finally:
        worker.kill()
        worker.wait()
