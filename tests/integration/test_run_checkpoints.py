"""A whole run that keeps its checkpoints under a URL, loses the newest, and continues with other learner ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from records.checkpoints import MANIFEST_NAME
from records.files import read_rows
from tests.integration.real_run import assert_trained_once, command, run

pytestmark = [pytest.mark.timeout(1300), pytest.mark.slow]


def test_a_run_goes_on_from_an_uploaded_checkpoint_with_two_ranks_after_the_newest_was_damaged(
    workspace: Path,
) -> None:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "learner.micro_batch_tokens": 256,
        "learner.dtype": "float32",
        "checkpoint.every_steps": 2,
        "checkpoint.path": f"file://{workspace}/storage",
        "evaluation.data_path": "null",
    }
    path, storage = workspace / "remote", workspace / "storage" / "remote"
    assert run(command(workspace, "remote", **settings, max_steps=6)).returncode == 0
    assert sorted(folder.name for folder in storage.iterdir()) == ["step_4", "step_6"]
    assert list((path / "checkpoints").iterdir()) == []
    saved = [row for row in read_rows(path / "events.jsonl") if row["event"] == "checkpoint"]
    assert [row["step"] for row in saved] == [2, 4, 6]

    manifest = json.loads((storage / "step_6" / MANIFEST_NAME).read_text())
    shard = storage / "step_6" / max(manifest["files"], key=lambda name: manifest["files"][name]["num_bytes"])
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ledger = (path / "ledger.jsonl").read_bytes().split(b"\n")
    (path / "ledger.jsonl").write_bytes(b"\n".join([ledger[0], *ledger[2:]]))  # step 2 is lost

    more: dict[str, Any] = {"max_steps": 8, "learner.num_workers": 2}
    assert run(command(workspace, "remote", "--resume", **settings, **more)).returncode == 0
    events = {row["event"]: row for row in read_rows(path / "events.jsonl")}
    assert events["checkpoint_damaged"]["path"].endswith("step_6")
    assert events["checkpoint_converted"]["seconds"] > 0
    assert events["ledger_restored"]["steps"] == [2]
    assert (events["resumed"]["step"], events["checkpoint"]["step"]) == (4, 8)
    assert_trained_once(path, steps=8, batch=8)
    assert sorted(folder.name for folder in storage.iterdir()) == ["step_6", "step_8"]
