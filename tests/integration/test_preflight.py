"""Checks that need real engines: replicas of a teacher that differ, and the command. Runs are in `test_run.py`."""

import asyncio
import json
import shutil
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
from settings.checks import Checks, RefusedError
from settings.run import RunConfig
from settings.run_files import load_config
from tests.integration.real_run import MODELS, ROOT, run

DEMO = str(ROOT / "configs" / "demo.yaml")

pytestmark = pytest.mark.timeout(700)


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
        *("--teacher.num_workers", "2"),
    ]


def exchange_weights(folder: Path) -> None:
    """Put other weights where a worker that starts later finds them."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: rows.flip(0).contiguous() for name, rows in tensors.items()}, folder / "model.safetensors")


async def start_with_other_weights(config: RunConfig, folder: Path, checks: Checks) -> None:
    """Start two teachers one after the other, with other weights on the disk for the second.

    First the difference is tolerated, then the second is asked by who does not tolerate it.
    """
    inputs = read_inputs(config)
    pools = build_pools(config, inputs, Events(), roles=["teacher"], tolerated={"replicas"})
    pool = pools["teacher"]
    try:
        await pool.place()
        await pool.launch(pool.workers[0], "test")
        exchange_weights(folder)
        await pool.launch(pool.workers[1], "test")
        record_replicas(checks, pools, config.scorers)
        strict = build_pools(config, inputs, Events(), roles=["teacher"])["teacher"].replica_check
        assert strict is not None
        await strict.ask(pool.workers[0])
        with pytest.raises(RefusedError, match=r"teacher-1 does not .*--force replicas"):
            await strict.ask(pool.workers[1])
    finally:
        await pool.close()


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
def test_a_replica_with_other_weights_is_found_and_named(options: list[str], tmp_path: Path) -> None:
    config, checks = check_objective(load_config(DEMO, options)), Checks(collects=True)
    asyncio.run(start_with_other_weights(config, tmp_path / "teacher", checks))
    [result] = checks.errors
    assert result.key == "replicas"
    assert "teacher-1 does not agree with its replicas" in result.message
    assert "differ from those of teacher-0" in result.message


@pytest.mark.slow
def test_the_command_checks_the_demo_with_every_engine_and_leaves_no_run(
    options: list[str], tmp_path: Path
) -> None:
    line = [sys.executable, "launch.py", "preflight", "--config", DEMO, *options, "--json"]
    done = run([*line, "--rollout.num_workers", "2"])
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["ok"]
    rows = {row["key"]: row for row in report["checks"]}
    assert {row["status"] for row in rows.values()} == {"ok"}
    golden, replicas = rows["golden"]["details"], rows["replicas"]["details"]["teacher"]
    assert sorted(golden["differences"]) == ["rollout-0", "rollout-1"]
    assert sorted(replicas["differences"]) == ["teacher-0", "teacher-1"]
    assert set(report["seconds"]) == {"models and data", "disk", "nodes", "Ray", "engines"}
    assert not (tmp_path / "runs").exists()
