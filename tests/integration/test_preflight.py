"""Checks that need real engines: replicas of a teacher, the golden sequence, and what a forced run records."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from commands.preflight.golden import record_replicas
from commands.wiring import build_pools
from inputs.inputs import read_inputs
from learner.served import check_objective
from records.events import Events
from records.files import read_rows
from settings.checks import Checks, RefusedError
from settings.run import RunConfig
from settings.run_files import load_config

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "arithmetic" / "models"
DEMO = str(ROOT / "configs" / "demo.yaml")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """The demo with a copy of its teacher and a few problems."""
    rows = [{"id": str(i), "problem": f"{i}+1", "answer": str(i + 1)} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(MODELS / "teacher", tmp_path / "teacher")
    return [
        *("--runs-path", str(tmp_path / "runs"), "--run-name", "checked", "--cluster.num_cpus", "4"),
        *("--data.train_path", str(tmp_path / "train.jsonl"), "--evaluation.data_path", "null"),
        *("--student.model_path", str(MODELS / "student"), "--teacher.model_path", str(tmp_path / "teacher")),
    ]


def launched(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "launch.py", command, "--config", DEMO, *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=280)
    print(done.stdout[-6000:], done.stderr[-6000:])
    return done


def exchange_weights(folder: Path) -> None:
    """Put other weights where a worker that starts later finds them."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: rows.flip(0).contiguous() for name, rows in tensors.items()}, folder / "model.safetensors")


async def start_with_other_weights(
    config: RunConfig, folder: Path, checks: Checks, *, tolerated: set[str]
) -> None:
    """Start two teachers one after the other, with other weights on the disk for the second."""
    pools = build_pools(config, read_inputs(config), Events(), roles=["teacher"], tolerated=tolerated)
    pool = pools["teacher"]
    try:
        await pool.place()
        await pool.launch(pool.workers[0], "test")
        exchange_weights(folder)
        await pool.launch(pool.workers[1], "test")
    finally:
        record_replicas(checks, pools, config.scorers)
        await pool.close()


@pytest.mark.usefixtures("local_ray")
def test_a_replica_with_other_weights_is_found_and_named(options: list[str], tmp_path: Path) -> None:
    config = check_objective(load_config(DEMO, [*options, "--teacher.num_workers", "2"]))
    collected, enforced = Checks(collects=True), Checks()
    asyncio.run(start_with_other_weights(config, tmp_path / "teacher", collected, tolerated={"replicas"}))
    [result] = collected.errors
    assert result.key == "replicas"
    assert "teacher-1 does not agree with its replicas" in result.message
    assert "differ from those of teacher-0" in result.message
    with pytest.raises(RefusedError, match=r"teacher-1 does not .*--force replicas"):
        asyncio.run(start_with_other_weights(config, tmp_path / "teacher", enforced, tolerated=set()))
    assert [each.key for each in enforced.errors] == ["replicas"]


def test_the_demo_passes_with_every_path_scored(options: list[str], tmp_path: Path) -> None:
    done = launched("preflight", *options, "--json", "--teacher.num_workers", "2", "--rollout.num_workers", "2")
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["ok"]
    rows = {row["key"]: row for row in report["checks"]}
    assert {row["status"] for row in rows.values()} == {"ok"}
    golden, replicas = rows["golden"]["details"], rows["replicas"]["details"]["teacher"]
    assert sorted(golden["differences"]) == ["rollout-0", "rollout-1"]
    assert sorted(replicas["differences"]) == ["teacher-0", "teacher-1"]
    assert max([*golden["differences"].values(), *replicas["differences"].values()]) < golden["limit"] == 1e-3
    assert golden["learner_mean"] < 0
    assert set(report["seconds"]) == {"models and data", "disk", "nodes", "Ray", "engines"}
    assert not (tmp_path / "runs").exists()


def test_a_forced_mismatch_trains_on_the_common_ids_and_is_recorded(options: list[str], tmp_path: Path) -> None:
    tokenizer = tmp_path / "teacher" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    words = content["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    del words["#"]  # the last id
    tokenizer.write_text(json.dumps(content))
    settings = ["--max_steps", "2", "--batch_size", "4", "--checkpoint.every_steps", "0"]
    assert launched("train", *options, *settings, "--force", "tokenizer").returncode == 0
    run = tmp_path / "runs" / "checked"
    report = json.loads((run / "preflight.json").read_text())
    rows = {row["key"]: row for row in report["checks"]}
    assert report["forced"] == report["force"] == ["tokenizer"]
    assert {key for key, row in rows.items() if row["status"] not in ("ok", "forced")} == set()
    assert rows["tokenizer"]["details"]["common_ids"] == 31
    assert rows["golden"]["details"]["differences"]["rollout-0"] < 1e-3
    assert list(rows["replicas"]["details"]["teacher"]["differences"]) == ["teacher-0"]
    [event] = [row for row in read_rows(run / "events.jsonl") if row["event"] == "preflight"]
    assert event["force"] == ["tokenizer"]
    assert "the first is 8" in event["forced"]["tokenizer"]
    assert event["seconds"] < 5
