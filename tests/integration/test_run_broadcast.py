"""A whole run from the command line whose weights travel by broadcast between hosts."""

import json
from pathlib import Path

import pytest

from records.files import read_rows
from tests.integration.real_run import assert_trained_once, command, run

pytestmark = [pytest.mark.timeout(1300), pytest.mark.slow]

STEPS, BATCH = 4, 8


def test_every_version_of_a_run_is_broadcast_and_no_engine_fetches(workspace: Path) -> None:
    settings = {
        "max_steps": STEPS,
        "batch_size": BATCH,
        "max_staleness": 1,
        "batches_ahead": 1,
        "rollout.num_workers": 2,
        "learner.num_workers": 2,
        "learner.zero_stage": 3,
        "learner.dtype": "bfloat16",
        "learner.micro_batch_tokens": 256,
        "weights.transport": "gloo",
        "weights.delta": "true",
    }
    assert run(command(workspace, "broadcast", **settings)).returncode == 0
    path = workspace / "broadcast"
    assert_trained_once(path, steps=STEPS, batch=BATCH)
    events = read_rows(path / "events.jsonl")
    (group,) = [row for row in events if row["event"] == "weights_group"]
    assert group["members"] == ["rollout-0"]  # of its one node; the other engine finds the file
    assert [row["version"] for row in events if row["event"] == "weights_broadcast"] == list(range(STEPS + 1))
    assert not [row for row in events if row["event"] in ("weights_fallback", "weights_failed")]
    loads = [row for row in events if row["event"] == "weights_loaded"]
    assert {row["worker"] for row in loads} == {"rollout-0", "rollout-1"}
    assert max(row["bytes_fetched"] for row in loads) == 0
    assert json.loads((path / "summary.json").read_text())["student_after"]
