"""`launch.py scale`, `status` and `stop` as another process, on a run with simulated engines."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.connection import NAMESPACE
from cluster.mailbox import actor_name
from cluster.pool import Pool
from controller.remote_control import check_name_is_free, remote_control
from settings.exit_codes import BAD_INPUT, FINISHED
from tests.integration.conftest import ROOT
from tests.simulated import EngineBehaviour
from tests.simulated_run import eventually, run_config, simulated_run

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("local_ray")]

ENGINE = EngineBehaviour(token_s=0.01)


async def launch(command: str, runs_path: Path, *options: str, run: str = "simulated") -> tuple[int, str, str]:
    """Exit code, output and errors of one command in another process, with nothing of Ray in its environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "launch.py", command, "--run", run, "--runs-path", str(runs_path), *options),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def states(status: dict[str, Any], role: str) -> list[str]:
    """States of the workers of a pool."""
    return [worker["state"] for worker in status["pools"][role]["workers"]]


def test_a_run_is_scaled_watched_and_stopped_from_another_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=5000, max_staleness=3)
        async with simulated_run(config, engines=(ENGINE,), pool_class=Pool) as run:
            stop = run.pipeline.stop
            async with remote_control(run.pipeline.context, is_local=True, stop=stop) as control:
                code, out, errors = await launch("status", tmp_path, "--json")
                assert (code, json.loads(out)["state"]) == (FINISHED, "starting"), errors
                control.attach(run.pipeline)
                running = asyncio.create_task(run.pipeline.run())

                code, out, errors = await launch("scale", tmp_path, "--rollout", "2", "--teacher=2", "--json")
                assert code == FINISHED, errors
                assert json.loads(out) == {
                    "lines": [
                        "rollout 1 -> 2: to start: rollout-1, to serve once on the newest weights",
                        "teacher 1 -> 2: to start: teacher-1",
                    ]
                }
                await eventually(lambda: len(run.rollout.healthy) == len(run.teacher.healthy) == 2)
                await eventually(lambda: run.pipeline.slots.version > 0)
                code, out, errors = await launch("status", tmp_path, "--json")
                status = json.loads(out)
                assert (code, status["state"]) == (FINISHED, "running"), errors
                assert states(status, "rollout") == states(status, "teacher") == ["healthy"] * 2
                assert status["slots"]["version"] > 0
                assert status["staleness"]["max"] <= status["staleness"]["bound"] == 3
                assert status["waits"]["steps"] > 0
                assert "-bound: " in status["advice"]["text"]

                code, out, errors = await launch("scale", tmp_path, "--rolout", "3")
                assert (code, out) == (BAD_INPUT, "")
                assert errors.strip() == (
                    "error: --rolout: this run has no such pool; did you mean --rollout? (pools: teacher, rollout)"
                )
                code, _, errors = await launch("scale", tmp_path, "--rollout", "3000")
                assert code == BAD_INPUT
                assert "CPU missing" in errors
                address = ray.get_runtime_context().gcs_address
                code, _, errors = await launch("status", tmp_path, "--address", address, run="another")
                assert code == BAD_INPUT
                assert errors.strip() == (
                    f"error: --run: no run named another is running at {address} (running: simulated)"
                )
                code, out, errors = await launch("status", tmp_path)
                assert any(line.split()[:2] == ["rollout-1", "healthy"] for line in out.splitlines()), errors
                code, out, errors = await launch("stop", tmp_path)
                assert (code, out.split(",")[0]) == (FINISHED, "simulated finishes the step in progress"), errors
                await asyncio.wait_for(running, 60)
        assert not run.folder.cluster.exists()
        check_name_is_free("simulated")
        assert [event["reason"] for event in run.events("scaled")] == ["command", "command"]
        trained = run.trained_slots()
        assert len(trained) == len(set(trained)) == 8 * run.pipeline.slots.version

    asyncio.run(scenario())


def logs_of_drivers() -> set[Path]:
    """The log files that processes have left which joined the cluster."""
    node: Any = ray._private.worker._global_node  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    return {*Path(node.get_logs_dir_path()).glob("python-core-driver-*")}


def test_commands_on_this_machine_leave_nothing_in_ray_and_a_lost_actor_is_made_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = run_config(tmp_path, max_steps=5000, max_staleness=3)
        async with simulated_run(config, engines=(ENGINE,), pool_class=Pool) as run:
            stop = run.pipeline.stop
            async with remote_control(run.pipeline.context, is_local=True, stop=stop) as control:
                control.attach(run.pipeline)
                running = asyncio.create_task(run.pipeline.run())
                before = logs_of_drivers()
                for command in (("status",), ("status", "--json"), ("scale", "--rollout", "2")):
                    code, _, errors = await launch(command[0], tmp_path, *command[1:])
                    assert code == FINISHED, errors
                assert logs_of_drivers() == before

                def mailbox() -> Any:
                    return ray.get_actor(actor_name("simulated"), namespace=NAMESPACE)

                lost = mailbox()
                bad: Any = ray.get(lost.ask.remote({"rollout": "x"}), timeout=20)
                assert bad["error"].startswith("unknown request")
                ray.kill(lost)
                await eventually(lambda: run.events("controller_back"), timeout_s=60)
                status: Any = await asyncio.to_thread(
                    ray.get, mailbox().ask.remote({"kind": "status"}), timeout=20
                )
                assert status["state"] == "running"
                assert len(run.events("controller_lost")) == 1
                run.pipeline.stop()
                await asyncio.wait_for(running, 60)

    asyncio.run(scenario())
