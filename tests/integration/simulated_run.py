"""A pipeline with simulated engines and learner, started as `launch.py` starts a real one, and what it leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.rollout_worker import RolloutWorker
from actors.teacher_worker import TeacherWorker
from cluster.config import RunConfig
from cluster.evaluation import Evaluation
from cluster.events import Events
from cluster.jsonl import read_rows
from cluster.learner_group import LearnerGroup
from cluster.pipeline import Pipeline
from cluster.placement import plan
from cluster.pool import Pool, WorkerSpec
from cluster.resume import Progress, restore
from cluster.run_folder import RunFolder, valid_ledger
from cluster.stop_tokens import StopTokens
from tests.integration.simulated import (
    SAMPLING,
    SETTINGS,
    EngineBehaviour,
    LearnerBehaviour,
    SimulatedEngine,
    SimulatedLearner,
    SimulatedPrompts,
    WorkerCutOff,
)


@dataclass(frozen=True)
class SimulatedRun:
    """A pipeline with started workers, and what it leaves."""

    pipeline: Pipeline
    prompts: SimulatedPrompts
    rollout: Pool
    teacher: Pool
    folder: RunFolder

    def calls(self, name: str) -> list[dict[str, Any]]:
        """The learner's calls of one kind."""
        return [row for row in read_rows(self.folder.path / "calls.jsonl") if row["call"] == name]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [row for row in read_rows(self.folder.events) if row["event"] == name]

    def trained_slots(self) -> list[int]:
        """Slots in the order in which they count as trained; of a group, once per sample."""
        return [int(uid.split("-")[0]) for uids in valid_ledger(self.folder.ledger).values() for uid in uids]

    async def failure(self) -> BaseException:
        """Run to the end, which must be a failure; returns the error behind it."""
        try:
            await self.pipeline.run()
        except BaseExceptionGroup as error:
            cause: BaseException = error
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            return cause
        raise AssertionError("the run did not fail")


async def eventually(condition: Callable[[], Any], *, timeout_s: float = 20.0) -> None:
    """Wait until a condition holds; TimeoutError after a while."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def other_tasks() -> set[asyncio.Task[Any]]:
    """Every asyncio task but the caller's."""
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


def run_config(path: Path, **settings: Any) -> RunConfig:
    """A small run: settings as for `RunConfig`, sections as dictionaries."""
    tiny = {"resources": {"num_cpus": 0.01}}
    sections = {
        "rollout": tiny,
        "teacher": tiny | {"model_path": "simulated"},
        "learner": tiny,
        "cluster": {"step_timeout_s": 20.0, "rollout_timeout_s": 20.0, "score_timeout_s": 20.0},
        "evaluation": {"teacher": False},
        "checkpoint": {"every_steps": 0},
    }
    values = {"run_name": "simulated", "runs_path": str(path), "batch_size": 8, "max_steps": 10, **settings}
    for name, section in sections.items():
        values[name] = section | values.get(name, {})
    return RunConfig.model_validate(
        {"student": {"model_path": "simulated"}, "data": {"train_path": "none"}, **values}
    )


@asynccontextmanager
async def simulated_run(
    config: RunConfig,
    *,
    engines: Sequence[EngineBehaviour] = (EngineBehaviour(),),
    teachers: Sequence[EngineBehaviour] = (EngineBehaviour(),),
    learner: LearnerBehaviour | None = None,
    evaluation: Evaluation | None = None,
    resume: bool = False,
) -> AsyncIterator[SimulatedRun]:
    """Start workers as `launch.py` does, one per behaviour, and connect the stages; closes all at the end."""
    sections = {"rollout": {"num_workers": len(engines)}, "teacher": {"num_workers": len(teachers)}}
    config = config.model_copy(
        update={name: getattr(config, name).model_copy(update=update) for name, update in sections.items()}
    )
    folder = RunFolder.of(config, resume=resume)
    folder.open(config)
    events = Events(folder.events)
    teacher_settings = {"stop_mode": "mask", "stops": StopTokens((0,), (0,))}
    build = {
        "rollout": lambda i: WorkerSpec(
            WorkerCutOff if engines[i].dies_after_note else RolloutWorker,
            (SETTINGS, partial(SimulatedEngine, engines[i])),
        ),
        "teacher": lambda i: WorkerSpec(
            TeacherWorker, (SETTINGS, partial(SimulatedEngine, teachers[i])), teacher_settings
        ),
        "learner": lambda i: WorkerSpec(
            SimulatedLearner, (learner or LearnerBehaviour(), folder.path / "calls.jsonl"), is_async=False
        ),
    }
    pools = {d.role: Pool(d, build[d.role], config=config.cluster, events=events) for d in plan(config)}
    try:
        for pool in pools.values():
            await pool.place()
        group = LearnerGroup(pools["learner"], config.cluster)
        await asyncio.gather(group.setup(), pools["teacher"].start(), pools["rollout"].start())
        prompts = SimulatedPrompts(config)
        pipeline = Pipeline(
            config,
            pools=pools,
            learner=group,
            prompts=prompts,
            sampling=SAMPLING,
            evaluation=evaluation,
            folder=folder,
            events=events,
            progress=await restore(group, _newest(folder), folder, events) if resume else Progress(),
        )
        yield SimulatedRun(pipeline, prompts, pools["rollout"], pools["teacher"], folder)
    finally:
        for pool in pools.values():
            await pool.close()


def _newest(folder: RunFolder) -> Path:
    """The checkpoint of the last step."""
    return max(folder.checkpoints.iterdir(), key=lambda path: int(path.name.removeprefix("step_")))
