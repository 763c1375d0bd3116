"""Workers are killed again and again, in simulated time: every slot is trained exactly once, memory stays flat."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.killer import Killer
from benchmarks.kills import RATES, is_whole, run_config, soak
from cluster.waiting import now
from commands.plan.run import run_virtually, simulated_run
from commands.plan.timing import EngineRates
from controller.learner_group import LearnerLostError
from records.files import read_rows
from records.ledger import valid_ledger

pytestmark = pytest.mark.timeout(300)

LONG_PROOF = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(7200)]


def check(row: dict[str, Any]) -> None:
    """Nothing was lost, and what was killed came back, but for the last kills of the run."""
    assert is_whole(row), row
    assert sum(kind["not_seen_back"] for kind in row["kills"].values()) <= 5
    assert row["fall_backs"] + row["kills"]["learner"]["not_seen_back"] == row["kills"]["learner"]["kills"]


def test_nothing_is_lost_in_48_kills() -> None:
    row = soak(12_000, every=250, kinds={"rollout": 5, "teacher": 5, "learner": 2})
    check(row)
    assert sum(kind["kills"] for kind in row["kills"].values()) >= 48
    assert row["rollouts_repeated"] > 100


@pytest.mark.parametrize("seed", [pytest.param(0, marks=LONG_PROOF)])
def test_nothing_is_lost_in_a_million_rollouts_and_memory_is_flat(seed: int) -> None:
    row = soak(1_000_000, every=500, seed=seed)
    check(row)
    assert sum(kind["kills"] for kind in row["kills"].values()) >= 2000
    assert row["memory_growth_mib"] < 20


@pytest.mark.parametrize("seed", [pytest.param(1, marks=LONG_PROOF)])
def test_nothing_is_lost_in_500_kills_of_each_kind(seed: int) -> None:
    row = soak(153_000, every=100, kinds={"rollout": 1, "teacher": 1, "learner": 1}, batch_size=20, seed=seed)
    check(row)
    assert min(kind["kills"] for kind in row["kills"].values()) >= 500


def test_a_lost_learner_falls_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    async def main() -> None:
        async with simulated_run(run_config(1000, 100, 0), RATES, tmp_path, with_checkpoints=True) as run:

            def kill_at(row: dict[str, Any]) -> None:
                if row["step"] == 7 and run.pools["learner"].workers[0].num_lives == 1:
                    run.pools["learner"].workers[0].handle.kill()

            run.pipeline.on_step(kill_at)
            await run.pipeline.run()
            [restarted] = [row for row in read_rows(run.folder.events) if row["event"] == "learner_restarted"]
            assert (restarted["step"], restarted["lost_at"]) == (5, 7)
            assert '{"rollback_to": 5}' in run.folder.ledger.read_text()
            trained = [uid for uids in valid_ledger(run.folder.ledger).values() for uid in uids]
            assert sorted(int(uid.split("-")[0]) for uid in trained) == list(range(1000))
            assert (run.folder.checkpoints / "step_10").is_dir()

    run_virtually(main())


def test_without_checkpoints_a_lost_learner_ends_the_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with simulated_run(run_config(1000, 100, 0), RATES, tmp_path) as run:
            run.pipeline.on_step(lambda row: run.pools["learner"].workers[0].handle.kill())
            with pytest.RaisesGroup(LearnerLostError, flatten_subgroups=True):
                await run.pipeline.run()

    run_virtually(main())


def test_a_learner_that_dies_while_it_waits_for_a_batch_is_restarted_at_once(tmp_path: Path) -> None:
    slow = RATES.model_copy(update={"rollout": EngineRates(step_s=2.0)})  # the first batch takes minutes

    async def main() -> float:
        async with simulated_run(run_config(200, 100, 0), slow, tmp_path, with_checkpoints=True) as run:
            running = asyncio.create_task(run.pipeline.run())
            killer = Killer(run.pools, lambda worker: worker.handle.kill(), kinds={"learner": 1}, seed=0)
            await asyncio.sleep(10)
            began = now()
            killer.kill_within(0.0)
            while not any(row["event"] == "learner_restarted" for row in read_rows(run.folder.events)):
                await asyncio.sleep(1)
            seconds = now() - began
            await running
            await killer.close()
            assert run.folder.valid_metrics()[0]["time/step_s"] > 60
            return seconds

    assert run_virtually(main()) < 10


def test_the_same_seed_kills_the_same() -> None:
    def kills(seed: int) -> Any:
        return soak(1000, every=100, seed=seed)["kills"]

    assert kills(3) == kills(3)
    assert kills(3) != kills(4)
