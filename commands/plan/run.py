"""A whole run, simulated: the real controller, pools in this process, engines that only take time."""

import asyncio
import selectors
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.placement import Bundle, Demand, plan
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.waiting import together
from commands.plan.local_pool import LocalPool
from commands.plan.prompts import SimulatedPrompts
from commands.plan.rates import RatesConfig
from commands.plan.workers import SimulatedLearner, SimulatedRolloutWorker, SimulatedTeacher
from controller.checkpointing import Checkpointer
from controller.context import RunContext
from controller.learner_group import LearnerGroup
from controller.pipeline import Pipeline
from controller.recovery import Progress, restore
from controller.rollouts import Prompts
from records.checkpoint_store import CheckpointStore
from records.events import Events
from records.run_folder import RunFolder
from settings.run import RunConfig


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run, ready to go."""

    pipeline: Pipeline
    pools: Mapping[str, Pool]
    folder: RunFolder


@asynccontextmanager
async def simulated_run(
    config: RunConfig,
    rates: RatesConfig,
    path: Path,
    *,
    pool_class: type[Pool] = LocalPool,
    with_checkpoints: bool = False,
) -> AsyncIterator[SimulatedRun]:
    """A run of workers that pass sizes on where real ones pass tables; its run folder is made under `path`.

    With `Pool` as `pool_class` the workers are Ray actors, and the run takes its time really. With checkpoints
    (`config.checkpoint` says when) a lost learner falls back to the last one; without, it ends the run.
    """
    config = config.model_copy(update={"runs_path": str(path)})
    folder = RunFolder(path / config.run_name)
    folder.checkpoints.mkdir(parents=True)
    pools = make_pools(config, partial(worker_spec, config, rates), demands(config), folder, pool_class)
    prompts = SimulatedPrompts(config, rates.lengths)
    async with connected_run(config, pools, prompts, folder, with_checkpoints=with_checkpoints) as run:
        yield run


def make_pools(
    config: RunConfig,
    build: Callable[[str, int], WorkerSpec],
    demands: Sequence[Demand],
    folder: RunFolder,
    pool_class: type[Pool],
) -> dict[str, Pool]:
    """The pools of a run, by role; `build(role, index)` says how a worker is made."""
    events = Events(folder.events, folder.owner)
    given: dict[str, Any] = {"config": config.cluster, "events": events, "health": config.health}
    return {demand.role: pool_class(demand, partial(build, demand.role), **given) for demand in demands}


@asynccontextmanager
async def connected_run(
    config: RunConfig,
    pools: Mapping[str, Pool],
    prompts: Prompts,
    folder: RunFolder,
    *,
    with_checkpoints: bool,
    is_resumed: bool = False,
    **given: Any,
) -> AsyncIterator[SimulatedRun]:
    """Start the workers of a run as `launch.py train` does and connect the stages; all ends with the block.

    Further arguments are those of the pipeline.
    """
    events = Events(folder.events, folder.owner)
    learner, store = LearnerGroup(pools["learner"], config.cluster), CheckpointStore.of(config, folder)

    async def restore_newest(reason: str, incarnation: int) -> Progress:
        return await restore(learner, store, folder, events, prompts=prompts, reason=reason, above=incarnation)

    try:
        turn = asyncio.Lock()
        await together(pool.place(turn) for pool in pools.values())
        await asyncio.gather(learner.setup(), *(pool.start() for role, pool in pools.items() if role != "learner"))
        progress = await restore_newest("--resume", 0) if is_resumed else Progress()
        if with_checkpoints:
            parts: dict[str, Any] = {"learner": learner, "store": store, "folder": folder, "events": events}
            checkpointer = Checkpointer(config, **parts, saved=progress.saved_version)
            given |= {"restore": restore_newest, "checkpointer": checkpointer}
        defaults = {"sampling": None, "evaluation": None, "cluster": Endless(plan(config))}
        pipeline = Pipeline(
            RunContext.of(config, pools, folder, events),
            learner=learner,
            prompts=prompts,
            progress=progress,
            **defaults | given,
        )
        yield SimulatedRun(pipeline, pools, folder)
    finally:
        await asyncio.gather(*(pool.close() for pool in pools.values()))


def simulate(config: RunConfig, rates: RatesConfig) -> list[dict[str, Any]]:
    """Run to the end in simulated time; returns the metrics rows, with simulated seconds."""

    async def run(path: Path) -> list[dict[str, Any]]:
        async with simulated_run(config, rates, path) as simulated:
            await simulated.pipeline.run()
            return simulated.folder.valid_metrics()

    with tempfile.TemporaryDirectory() as path:
        return run_virtually(run(Path(path)))


class Endless:
    """A cluster that has capacity for everything."""

    may_grow = False

    def __init__(self, demands: Sequence[Demand]) -> None:
        self._names = {name for demand in demands for name in demand.bundle}

    async def free(self) -> Mapping[str, float]:
        """As much as anybody wants."""
        return {name: 1e9 for name in self._names}

    async def request(self, bundles: Sequence[Bundle]) -> None:
        """Nothing to do."""


def demands(config: RunConfig) -> list[Demand]:
    """Workers of a simulated run: one stands for all ranks of the learner."""
    return [replace(each, count=1) if each.role == "learner" else each for each in plan(config)]


def worker_spec(config: RunConfig, rates: RatesConfig, role: str, index: int) -> WorkerSpec:
    """How a simulated worker is built."""
    if role == "rollout":
        return WorkerSpec(SimulatedRolloutWorker, (rates.rollout,), {"start_s": rates.start_s})
    prompt = {"num_prompt_tokens": rates.lengths.prompt}
    if role == "learner":
        return WorkerSpec(SimulatedLearner, (rates.learner,), prompt | {"num_ranks": config.learner.num_workers})
    return WorkerSpec(SimulatedTeacher, (rates.teacher,), prompt | {"start_s": rates.start_s})


# -- virtual time ------------------------------------------------------------------------------------------
# An event loop whose time jumps to the next timer as soon as nothing else is left to do.
#
#     run_virtually(pipeline.run())       # hours of simulated waiting in seconds, by the code that real runs use
#
# Only waiting on timers (`asyncio.sleep`, timeouts) is simulated: there must be no threads and no other processes.
# What is meant for a thread (`asyncio.to_thread`) is done at once and takes no simulated time.


T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its clock starts at 0 s and stands still while anything is ready."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Simulated seconds."""
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Go to the next timer."""
        self._now_s += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """Do it here and now: while a thread worked, the simulated time would run away."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 (whoever awaits the future is told)
            future.set_exception(error)
        return future


class _Jumping(selectors.DefaultSelector):
    """Looks for events without waiting; where the loop would wait, its time jumps."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Events that are there; RuntimeError if nothing could ever happen."""
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("the simulation stands still: no timer is left, and something still waits")
        if not events and timeout is not None and timeout > 0:
            self._loop.jump(timeout)
        return events


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
