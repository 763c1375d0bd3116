"""Checkpoints of a live run, of a learner that writes small files: order, failures, retries, fall-backs."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from controller.checkpointing import Checkpointer
from controller.recovery import Progress, restore
from records.checkpoint_store import CheckpointStore
from records.checkpoints import MANIFEST_NAME, Frontier, WriteReport, record_of
from records.events import Events
from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from tests.unit.full_disk import files_end_at
from tests.unit.test_learner_scene import run_config

BATCH = 2


@dataclass
class WritingLearner:
    """Two ranks that write as soon as `polls_left` polls have been answered."""

    polls: int = 0
    failure: str | None = None
    calls: list[str] = field(default_factory=list)
    folder: Path = Path()
    polls_left: int = 0

    async def begin_checkpoint(self, folder: str) -> int:
        self.calls.append("begin")
        self.folder, self.polls_left = Path(folder), self.polls
        return 2

    async def written_checkpoint(self) -> list[WriteReport | None]:
        self.polls_left -= 1
        if self.polls_left >= 0:
            return [None, None]
        self.calls.append("written")
        return [self._write(rank) for rank in (0, 1)]

    def _write(self, rank: int) -> WriteReport:
        (self.folder / f"rank_{rank}").write_bytes(b"state")
        return WriteReport({f"rank_{rank}": record_of([b"state"])}, 0.01, self.failure)

    async def load_checkpoint(self, path: str) -> float:
        self.calls.append(f"load {Path(path).name}")
        return 0.0


class Prompts:
    """Prompts `p0`, `p1`, ... of the slots."""

    def __init__(self) -> None:
        self.replacements: dict[int, int] = {99: 1}
        self.num_slots = 100

    def requests_for(self, slots: Sequence[int], attempts: Sequence[int]) -> pa.Table:
        return pa.table({"uid": [f"{slot}-0-p{slot}-0" for slot in slots]})

    def give_up(self, slot: int) -> str:
        return f"p{slot}"


class Run:
    """The parts of a run that save and restore."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.config = run_config("model", checkpoint={"every_steps": 4, **settings})
        self.folder = RunFolder(path)
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        self.events = Events(self.folder.events)
        self.learner: Any = WritingLearner()
        self.store = CheckpointStore(self.folder.checkpoints, keep=2)
        self.checkpointer = Checkpointer(
            self.config, learner=self.learner, store=self.store, folder=self.folder, events=self.events
        )

    def train(self, first: int, last: int) -> None:
        """Write ledger rows of steps."""
        for step in range(first, last + 1):
            slots = range((step - 1) * BATCH, step * BATCH)
            self.folder.add_step({"step": step}, [f"{slot}-0-p{slot}-0" for slot in slots])

    async def save(self, version: int) -> None:
        await self.checkpointer.begin(progress_at(version))
        await self.checkpointer.finish()

    async def restore(self, **arguments: Any) -> Progress:
        self.prompts = Prompts()
        return await restore(self.learner, self.store, self.folder, self.events, prompts=self.prompts, **arguments)

    def seen(self, *names: str) -> list[tuple[str, Any]]:
        """Name and step (or path) of events."""
        rows = [row for row in read_rows(self.folder.events) if not names or row["event"] in names]
        return [(row["event"], row.get("step", row.get("path"))) for row in rows]


def progress_at(version: int, incarnation: int = 0) -> Progress:
    return Progress(Frontier(version, version * BATCH), incarnation, {1: 50 + version})


def carried_out(run: Run, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario next to the checkpointer."""

    async def both() -> None:
        async with asyncio.TaskGroup() as stages:
            stage = stages.create_task(run.checkpointer.run())
            async with asyncio.timeout(30):
                await scenario()
            stage.cancel()

    asyncio.run(both())


def test_training_goes_on_while_ranks_write_and_only_the_commit_makes_it_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner.polls = 3

    async def scenario() -> None:
        run.train(1, 4)
        await run.checkpointer.begin(progress_at(4))
        assert run.learner.calls == ["begin"]
        assert run.store.steps() == []
        await run.checkpointer.finish()
        assert run.store.steps() == [4]
        run.checkpointer.check_saved(4)
        await run.save(4)
        assert run.learner.calls == ["begin", "written"]

    carried_out(run, scenario)
    [row] = [row for row in read_rows(run.folder.events) if row["event"] == "checkpoint"]
    assert (row["step"], row["bytes"], row["write_s"]) == (4, 10, 0.01)
    assert row["seconds"] > row["waited_s"] >= 0
    assert run.store.fetch(4).manifest.client_state == progress_at(4).to_json()


def test_the_next_checkpoint_waits_for_the_one_in_progress(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.learner.polls = 2

    async def scenario() -> None:
        for version in (4, 8, 12):
            await run.checkpointer.begin(progress_at(version))
        await run.checkpointer.finish()

    carried_out(run, scenario)
    assert run.learner.calls == ["begin", "written"] * 3
    assert run.store.steps() == [8, 12]


def test_a_synchronous_checkpoint_is_committed_before_training_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, asynchronous=False)

    async def scenario() -> None:
        await run.checkpointer.begin(progress_at(4))
        assert run.store.steps() == [4]

    carried_out(run, scenario)


def test_a_full_disk_fails_the_attempt_which_is_tried_again_and_the_last_one_must_succeed(tmp_path: Path) -> None:
    run = Run(tmp_path, retry_steps=3)
    run.learner.failure = "OSError: No space left on device: shard.pt"

    async def scenario() -> None:
        assert [step for step in range(1, 9) if run.checkpointer.is_due(step)] == [4, 8]
        await run.save(4)
        assert list(run.folder.checkpoints.iterdir()) == []
        assert [step for step in range(5, 9) if run.checkpointer.is_due(step)] == [7, 8]
        with pytest.raises(RuntimeError, match=r"step 4 is not saved in .*: OSError: No space.*there is none"):
            run.checkpointer.check_saved(4)
        run.learner.failure = None
        await run.save(7)
        assert not run.checkpointer.is_due(9)
        with pytest.raises(RuntimeError, match="the newest is of step 7"):
            run.checkpointer.check_saved(8)

    carried_out(run, scenario)
    [row] = [row for row in read_rows(run.folder.events) if row["event"] == "checkpoint_failed"]
    assert row["step"] == 4
    assert row["free_bytes"] > 0
    assert run.seen() == [("checkpoint_failed", 4), ("checkpoint", 7)]


def test_a_checkpoint_is_not_committed_before_its_ledger_is_on_disk(tmp_path: Path) -> None:
    run = Run(tmp_path)

    async def scenario() -> None:
        with files_end_at(20):  # the ranks' files fit
            run.train(1, 4)
            await run.save(4)
            assert run.store.steps() == []
        await run.save(5)
        assert run.seen("checkpoint_failed", "checkpoint") == [("checkpoint_failed", 4), ("checkpoint", 5)]

    carried_out(run, scenario)
    assert run.store.steps() == [5]
    assert valid_ledger(run.folder.ledger).keys() == {1, 2, 3, 4}


def test_a_mistake_that_is_no_fault_of_the_disk_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.store.local.rmdir()
    run.store.local.write_text("a file in the way")
    with pytest.raises((ExceptionGroup, OSError)):
        carried_out(run, lambda: run.save(4))


# -- restoring --


def saved(tmp_path: Path, *versions: int) -> Run:
    """A run that has saved these versions and trained two steps more."""
    run = Run(tmp_path)

    async def scenario() -> None:
        done = 0
        for version in versions:
            run.train(done + 1, version)
            await run.save(version)
            done = version
        run.train(done + 1, done + 2)

    carried_out(run, scenario)
    return run


def damage(run: Run, step: int) -> None:
    (run.store.local / f"step_{step}" / "rank_1").write_bytes(b"stale")


def test_a_run_is_restored_at_its_newest_checkpoint_and_the_ledger_rolled_back(tmp_path: Path) -> None:
    run = saved(tmp_path, 4, 8)
    progress = asyncio.run(run.restore())
    assert progress == progress_at(8, incarnation=1)
    assert progress.saved_version == 8
    assert run.prompts.replacements == {1: 58}
    assert list(valid_ledger(run.folder.ledger)) == list(range(1, 9))
    assert run.learner.calls[-1] == "load step_8"
    assert asyncio.run(run.restore(reason="the learner died", above=6)).incarnation == 7
    assert [row["reason"] for row in read_rows(run.folder.events) if row["event"] == "resumed"] == [
        "--resume",
        "the learner died",
    ]


def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before_and_cannot_come_back(tmp_path: Path) -> None:
    run = saved(tmp_path, 4, 8)
    damage(run, 8)
    assert asyncio.run(run.restore()) == progress_at(4, incarnation=1)
    assert list(valid_ledger(run.folder.ledger)) == [1, 2, 3, 4]
    [row] = [row for row in read_rows(run.folder.events) if row["event"] == "checkpoint_damaged"]
    assert row["path"].endswith("step_8")
    assert "rank_1 is damaged" in row["reason"]
    assert sorted(path.name for path in run.store.local.iterdir()) == ["step_4", "step_8.damaged"]


def test_if_all_are_damaged_the_error_names_them_and_nothing_is_touched(tmp_path: Path) -> None:
    run = saved(tmp_path, 4, 8)
    for step in (4, 8):
        damage(run, step)
    with pytest.raises(RuntimeError, match=r"no checkpoint of the run is good: .*step_8: .*; .*step_4: ") as error:
        asyncio.run(run.restore())
    assert "\n" not in str(error.value)
    assert run.store.steps() == [4, 8]
    assert "load" not in " ".join(run.learner.calls)


def test_a_run_without_a_checkpoint_begins_anew_only_if_there_never_was_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(1, 3)
    assert asyncio.run(run.restore(above=2)) == Progress(incarnation=3)
    assert valid_ledger(run.folder.ledger) == {}
    run.events.add("checkpoint", path="runs/first/checkpoints/step_4", step=4)
    with pytest.raises(RuntimeError, match=r"holds no checkpoint, but 1 were committed, the last as .*step_4"):
        asyncio.run(run.restore())


def test_a_damaged_ledger_is_mended_from_the_checkpoint(tmp_path: Path) -> None:
    run = saved(tmp_path, 4)
    lines = run.folder.ledger.read_bytes().split(b"\n")
    run.folder.ledger.write_bytes(b"\n".join([lines[0], b"\xff{", *lines[3:]]))  # 2 damaged, 3 cut out
    asyncio.run(run.restore())
    ledger = valid_ledger(run.folder.ledger)
    assert sorted(uid for uids in ledger.values() for uid in uids) == sorted(f"{s}-0-p{s}-0" for s in range(8))
    assert run.seen("ledger_damaged", "ledger_restored", "resumed") == [
        ("ledger_damaged", None),
        ("ledger_restored", None),
        ("resumed", 4),
    ]


def test_the_run_continues_after_a_fall_back(tmp_path: Path) -> None:
    run = saved(tmp_path, 4, 8)
    damage(run, 8)

    async def scenario() -> None:
        progress = await run.restore(reason="the learner died")
        run.checkpointer.fell_back_to(progress.saved_version)
        run.checkpointer.check_saved(4)
        run.train(5, 8)
        await run.save(8)

    carried_out(run, scenario)
    assert run.store.steps() == [4, 8]
    assert (run.store.local / "step_8" / MANIFEST_NAME).is_file()
    assert not os.path.exists(run.store.local / "step_8.damaged")
