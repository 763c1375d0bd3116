"""Checkpoints during a run: the ranks copy their state, train on, and write; the controller commits.

    begin(version, progress)    ranks copy their state to host memory; training waits for that alone
    run()                       asks the ranks between their steps whether they have written; then puts the ledger
                                on disk, writes the manifest, renames the folder (and uploads it), removes old ones

A disk that does not take a checkpoint fails the attempt, not the run.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from cluster.waiting import NO_LIMIT_S, Signal, now
from controller.learner_group import LearnerGroup, LearnerLostError
from controller.recovery import Progress
from records.checkpoint_store import CheckpointStore
from records.checkpoints import CheckpointManifest, WriteReport
from records.events import Events, reason_of
from records.files import is_disk_error
from records.run_folder import RunFolder
from settings.run import RunConfig

logger = logging.getLogger(__name__)

POLL_S = (0.02, 1.0)
"""Ranks are asked so soon, and later ever less often, up to this."""


@dataclass
class Attempt:
    """A checkpoint in progress."""

    version: int
    state: dict[str, Any]
    started: float
    num_ranks: int = 0
    waited_s: float = 0.0


class Checkpointer:
    """Saves the learner and where the run stands. One checkpoint is in progress at most.

    >>> await checkpointer.begin(progress)      # training may continue
    >>> await checkpointer.finish()             # committed, or failed with an event
    >>> checkpointer.check_saved(progress.frontier.version)
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        learner: LearnerGroup,
        store: CheckpointStore,
        folder: RunFolder,
        events: Events,
        saved: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`saved`: the version the run was restored at, which need not be saved again.

        `facts` (JSON) are saved with every checkpoint, to tell whether a run can continue from it.
        """
        self._config = config
        self._learner = learner
        self._store = store
        self._folder = folder
        self._events = events
        self._saved = saved
        self._facts = dict(facts or {})
        self._signal = Signal()
        self._attempt: Attempt | None = None
        self._failed_at: int | None = None
        self._failure = "none was begun"

    def is_due(self, version: int) -> bool:
        """True if a checkpoint of this version is to be begun: one is due, or a failed one is tried again."""
        settings = self._config.checkpoint
        if settings.every_steps and version % settings.every_steps == 0:
            return True
        return self._failed_at is not None and version >= self._failed_at + settings.retry_steps

    async def begin(self, progress: Progress) -> None:
        """Let the ranks take their state; returns when training may continue. A saved version is not saved again.

        An earlier checkpoint is waited for. With `checkpoint.asynchronous` false this one is, too.
        """
        started = now()
        await self.finish()
        if self._saved == progress.frontier.version:
            return
        attempt = Attempt(progress.frontier.version, {**self._facts, **progress.to_json()}, started)
        try:
            folder = await asyncio.to_thread(self._store.start, attempt.version)
        except OSError as error:
            await self._fail(attempt, error)
            return
        attempt.num_ranks = await self._learner.begin_checkpoint(str(folder))
        attempt.waited_s = now() - started
        self._attempt = attempt
        self._signal.changed()
        if not self._config.checkpoint.asynchronous:
            await self.finish()  # the ranks have written already

    async def finish(self) -> None:
        """Wait until the checkpoint in progress, if there is one, is committed or has failed."""
        await self._signal.until(
            lambda: self._attempt is None, timeout_s=NO_LIMIT_S, what=lambda: "the checkpoint in progress"
        )

    def check_saved(self, version: int) -> None:
        """Raise RuntimeError unless this version is saved."""
        if self._saved != version:
            newest = "there is none" if self._saved is None else f"the newest is of step {self._saved}"
            raise RuntimeError(f"step {version} is not saved in {self._store.place}: {self._failure}; {newest}")

    def fell_back_to(self, version: int | None) -> None:
        """The learner is to be restored at this version (None: at the start).

        Before it is restored: end the ranks of the old one, and await `finish()`.
        """
        assert self._attempt is None, "a checkpoint is in progress"
        self._saved, self._failed_at = version, None

    async def run(self) -> None:
        """Carry checkpoints through as long as the pipeline runs."""
        while True:
            attempt = await self._signal.until(
                lambda: self._attempt,
                timeout_s=NO_LIMIT_S,
                what=lambda: "a checkpoint (there need be none)",
            )
            try:
                await self._carry_through(attempt)
            except (OSError, RayError, LearnerLostError) as error:  # its next step says so too
                await self._fail(attempt, error)
            self._attempt = None
            self._signal.changed()

    async def _carry_through(self, attempt: Attempt) -> None:
        reports = await self._written(attempt)
        failure = next((report.failure for report in reports if report.failure is not None), None)
        if failure is not None:
            await self._fail(attempt, failure)
        else:
            await self._commit(attempt, reports)

    async def _written(self, attempt: Attempt) -> list[WriteReport]:
        """Ask the ranks until all have written; each answers between two steps."""
        delay_s, longest_s = POLL_S
        limit_s = self._config.cluster.step_timeout_s
        while True:
            reports = await self._learner.written_checkpoint()
            written = [report for report in reports if report is not None]
            if len(written) == attempt.num_ranks:
                return written
            if len(reports) != attempt.num_ranks:
                raise TimeoutError(f"{len(reports)} of {attempt.num_ranks} learner ranks answer")
            if now() - attempt.started > limit_s:
                raise TimeoutError(f"the checkpoint of step {attempt.version} is not written after {limit_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, longest_s)

    async def _commit(self, attempt: Attempt, reports: Sequence[WriteReport]) -> None:
        files = {name: record for report in reports for name, record in report.files.items()}
        learner = self._config.learner
        manifest = CheckpointManifest(attempt.num_ranks, learner.zero_stage, learner.dtype, files, attempt.state)
        await asyncio.to_thread(self._folder.flush)  # the ledger has every slot that counts as trained
        self._folder.owner.check()
        path = await asyncio.to_thread(self._store.commit, attempt.version, manifest)
        self._saved, self._failed_at = attempt.version, None
        self._events.add(
            "checkpoint",
            path=path,
            step=attempt.version,
            bytes=manifest.num_bytes,
            waited_s=round(attempt.waited_s, 4),
            write_s=round(max(report.seconds for report in reports), 4),
            seconds=round(now() - attempt.started, 4),
        )

    async def _fail(self, attempt: Attempt, error: BaseException | str) -> None:
        """Leave the run without this checkpoint; an error that is neither the disk's nor a rank's is raised."""
        is_expected = isinstance(error, str | RayError | TimeoutError | LearnerLostError) or is_disk_error(error)
        reason = error if isinstance(error, str) else reason_of(error)
        self._failed_at, self._failure = attempt.version, reason
        free = -1
        with suppress(OSError):  # the disk may be away
            free = self._store.free_bytes()
        logger.warning("the checkpoint of step %d failed: %s (%d bytes are free)", attempt.version, reason, free)
        with suppress(OSError):  # the next attempt does it
            await asyncio.to_thread(self._store.discard, attempt.version)
        self._events.add("checkpoint_failed", step=attempt.version, reason=reason, free_bytes=free)
        if not is_expected and isinstance(error, BaseException):
            raise error
