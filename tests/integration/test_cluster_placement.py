"""Workers on the nodes of a real Ray cluster: strategies, pipelines, shared devices, and the plan before it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group_table

import launch
from cluster.mailbox import Mailbox
from cluster.placement import plan
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.reservation import nodes_now
from cluster.waiting import together
from commands.dry_run import plan_lines
from records.events import Events
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RunConfig
from tests.integration.namespaces import NodeOptions, driver, ray_nodes

pytestmark = [pytest.mark.timeout(300), pytest.mark.isolated, pytest.mark.slow]

NODES = {
    "head": NodeOptions(num_cpus=4),
    "big": NodeOptions(num_gpus=3, custom={"teacher": 9}),
    "other": NodeOptions(num_gpus=3, custom={"teacher": 9}),
    "shared": NodeOptions(num_gpus=1, custom={"share": 3}),
}
SOME = {"num_cpus": 0.1}
SHARE = {"share": 1}
CONFIG: dict[str, Any] = {
    "student": {"model_path": "s"},
    "data": {"train_path": "d"},
    "learner": {"num_workers": 2, "resources": SOME},
    "teacher": {
        "model_path": "t",
        "resources": SOME | {"num_gpus": 1, "custom": {"teacher": 1}},
        "engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    },
    "rollout": {"num_workers": 4, "resources": SOME},
    "cluster": {"learner_strategy": "strict_pack", "placement_timeout_s": 20},
}
SHARED: dict[str, Any] = CONFIG | {
    "learner": {"resources": SOME | {"num_gpus": 0.3, "custom": SHARE}},
    "teacher": {"model_path": "t", "resources": SOME | {"num_gpus": 0.3, "custom": SHARE}},
    "rollout": {"resources": SOME | {"num_gpus": 0.4, "custom": SHARE}},
}


def pools_of(config: RunConfig) -> dict[str, Pool]:
    """Pools of actors that do nothing."""
    build = lambda index: WorkerSpec(Mailbox)  # noqa: E731
    return {d.role: Pool(d, build, config=config.cluster, events=Events()) for d in plan(config)}


async def placed(config: RunConfig, pools: dict[str, Pool]) -> dict[str, str]:
    """The node of every worker, which must be the planned one; all pools are placed at once, as by a run."""
    nodes = nodes_now()
    assert not any("waits" in line for line in plan_lines(plan(config), nodes))
    turn = asyncio.Lock()
    await together(pool.place(turn) for pool in pools.values())
    found = {worker.name: worker.node for pool in pools.values() for worker in pool.workers}
    planned = {worker.removesuffix(" stage 0"): node.name for node in nodes for worker in node.workers}
    assert found == {worker: node for worker, node in planned.items() if "stage 1" not in worker}
    return found


def live_groups() -> list[dict[str, Any]]:
    """Placement groups that reserve something."""
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def test_workers_go_where_the_plan_and_a_dry_run_say_and_give_everything_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        config = RunConfig.model_validate(CONFIG)
        pools = pools_of(config)
        found = await placed(config, pools)
        assert {found["learner-0"], found["learner-1"]} == {"head"}
        assert {found[f"rollout-{i}"] for i in range(4)} == {"head"}, "the others are node groups"
        teacher = pools["teacher"].workers[0]
        bundles = placement_group_table(teacher.placement)
        assert list(bundles["bundles"].values()) == [
            *({"CPU": 0.1, "GPU": 1.0, "teacher": 1.0}, {"GPU": 1.0}, {"GPU": 1.0, "teacher": 1.0}, {"GPU": 1.0}),
        ]
        first, second, third, fourth = (bundles["bundles_to_node_id"][i] for i in range(4))
        assert (first, third) == (second, fourth)
        assert first != third
        assert ray.available_resources()["GPU"] == 3.0  # of 7: all four devices are reserved
        assert len(live_groups()) == 1 + 1 + 4
        pools["learner"].mark_dead(pools["learner"].workers[0], "test")
        assert len(live_groups()) == 6, "the other rank is in the same group"
        await asyncio.gather(*(pool.close(gracefully=False) for pool in pools.values()))
        assert live_groups() == []

        shared = RunConfig.model_validate(SHARED)
        pools = pools_of(shared)
        assert set((await placed(shared, pools)).values()) == {"shared"}
        await asyncio.gather(*(pool.close(gracefully=False) for pool in pools.values()))

        impossible = RunConfig.model_validate(
            CONFIG | {"learner": {"num_workers": 5, "resources": {"num_cpus": 1}}}
        )
        with pytest.raises(TimeoutError, match=r"placement of learner-0, .*; 5 CPU wanted, "):
            await asyncio.wait_for(pools_of(impossible)["learner"].place(), 60)
        assert live_groups() == []

    with ray_nodes(tmp_path, NODES) as address:
        with driver(address, len(NODES)):
            asyncio.run(scenario())
        check_dry_run(address, tmp_path, capsys)


def check_dry_run(address: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run shows who goes to which node and who waits, and starts nothing."""
    data = path / "train.jsonl"
    data.write_text('{"id": "0", "problem": "1+1", "answer": "2", "source": "a"}\n')
    settings = {"data.train_path": data, "evaluation.data_path": "null", "runs_path": path / "runs"}
    line = ["train", "--config", "configs/demo.yaml", "--dry-run", f"--cluster.address={address}"]
    line += [f"--{key}={value}" for key, value in settings.items()]
    line += ["--teacher.resources.custom.teacher=9", "--rollout.num_workers=2"]
    assert launch.main(line) == FINISHED
    printed = capsys.readouterr().out
    assert re.search(r"#   big: teacher-0; stays free: 1.5 CPU, 3 GPU, .* GiB memory, 0 teacher", printed), printed
    assert "#   head: learner-0, rollout-0, rollout-1; stays free: 2.5 CPU" in printed
    assert launch.main([*line, "--teacher.num_workers=3"]) == FINISHED
    waits = "# waits: 1 of teacher: 3 x (0.5 CPU, 9 teacher) do not fit now; the most that a node has free is"
    assert waits in capsys.readouterr().out
    assert launch.main([*line, "--teacher.resources.num_cpus=3"]) == BAD_INPUT
    assert "no node can ever hold one teacher worker: 3 CPU wanted" in capsys.readouterr().err
    assert not (path / "runs").exists()
