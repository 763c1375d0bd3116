"""A pipeline with simulated engines and learner, started as `launch.py` starts a real one, and what it leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.reference_worker import ReferenceWorker
from actors.rollout_worker import RolloutWorker
from actors.teacher_worker import TeacherWorker
from cluster.autoscaling import Cluster
from cluster.placement import plan
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.replica_check import ReplicaCheck
from cluster.waiting import together
from controller.checkpointing import Checkpointer
from controller.context import RunContext
from controller.learner_group import LearnerGroup
from controller.pipeline import Pipeline
from controller.recovery import Progress, restore
from evaluation.evaluation import Evaluation
from records.checkpoint_store import CheckpointStore
from records.events import Events
from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from settings.run import RunConfig
from tests.integration.simulated import (
    QUESTION,
    SAMPLING,
    SETTINGS,
    EngineBehaviour,
    LearnerBehaviour,
    SimulatedEngine,
    SimulatedLearner,
    SimulatedPrompts,
    WorkerCutOff,
)
from transport.batches import TeacherSignal
from transport.stop_tokens import StopTokens


@dataclass(frozen=True)
class SimulatedRun:
    """A pipeline with started workers, and what it leaves."""

    pipeline: Pipeline
    prompts: SimulatedPrompts
    pools: Mapping[str, Pool]
    folder: RunFolder

    @property
    def rollout(self) -> Pool:
        """The pool of student engines."""
        return self.pools["rollout"]

    @property
    def teacher(self) -> Pool:
        """The pool of the main teacher."""
        return self.pools["teacher"]

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
        "health": {"heartbeat_s": 1.0, "suspect_after_s": 15.0, "dead_after_s": 40.0, "backoff_s": 0.1},
    }
    values = {"run_name": "simulated", "runs_path": str(path), "batch_size": 8, "max_steps": 10, **settings}
    for name, section in sections.items():
        values[name] = section | values.get(name, {})
    if "reference" in values:
        values["reference"] = tiny | {"model_path": "simulated"} | values["reference"]
    named = {name: sections["teacher"] | each for name, each in values.get("teachers", {}).items()}
    values["teachers"] = named
    return RunConfig.model_validate(
        {"student": {"model_path": "simulated"}, "data": {"train_path": "none"}, **values}
    )


@asynccontextmanager
async def simulated_run(
    config: RunConfig,
    *,
    engines: Sequence[EngineBehaviour] = (EngineBehaviour(),),
    teachers: Sequence[EngineBehaviour] = (EngineBehaviour(),),
    scorers: Mapping[str, Sequence[EngineBehaviour]] | None = None,
    evaluators: Sequence[EngineBehaviour] = (EngineBehaviour(),),
    added: Mapping[str, EngineBehaviour] | None = None,
    learner: LearnerBehaviour | None = None,
    evaluation: Evaluation | None = None,
    resume: bool = False,
    cluster: Cluster | None = None,
) -> AsyncIterator[SimulatedRun]:
    """Start workers as `launch.py` does, one per behaviour, and connect the stages; closes all at the end.

    `scorers` holds the behaviours of further teachers and of the reference by role; one worker each otherwise.
    `evaluators` are the workers of the evaluation alone, if the configuration has any.
    Workers that are added later behave as `added` says for their role, or as the last one of the start.
    """
    behaviours: dict[str, Sequence[EngineBehaviour]] = dict.fromkeys(config.scorers, (EngineBehaviour(),))
    behaviours |= {"rollout": engines, "teacher": teachers, **(scorers or {})}
    if config.evaluation.num_workers:
        behaviours["evaluation"] = evaluators
    folder = RunFolder.of(config, resume=resume)
    folder.open(config)
    events = Events(folder.events, folder.owner)
    signal = TeacherSignal(has_reference="reference" in config.scorers)
    labels = {"stop_mode": "mask", "stops": StopTokens((0,), (0,))}

    def build(role: str, i: int) -> WorkerSpec:
        if role == "learner":
            arguments = (learner or LearnerBehaviour(), folder.path / "calls.jsonl", signal)
            return WorkerSpec(SimulatedLearner, arguments, is_async=False)
        known = behaviours[role]
        behaviour = known[i] if i < len(known) else (added or {}).get(role, known[-1])
        engine = (SETTINGS, partial(SimulatedEngine, behaviour))
        if role in ("rollout", "evaluation"):
            return WorkerSpec(WorkerCutOff if behaviour.dies_after_note else RolloutWorker, engine)
        if role == "reference":
            return WorkerSpec(ReferenceWorker, engine, labels | {"signal": signal})
        return WorkerSpec(TeacherWorker, engine, labels)

    demands = [replace(d, count=len(behaviours[d.role])) if d.role in behaviours else d for d in plan(config)]
    given: dict[str, Any] = {"config": config.cluster, "health": config.health, "events": events}
    answer = ReplicaCheck(QUESTION, dtype="float32", timeout_s=20.0)
    pools = {
        d.role: Pool(d, partial(build, d.role), replica_check=answer if d.role == "teacher" else None, **given)
        for d in demands
    }
    try:
        turn = asyncio.Lock()
        await together(pool.place(turn) for pool in pools.values())
        group = LearnerGroup(pools["learner"], config.cluster)
        engine_pools = [pool for role, pool in pools.items() if role != "learner"]
        await asyncio.gather(group.setup(), *(pool.start() for pool in engine_pools))
        prompts, store = SimulatedPrompts(config), CheckpointStore.of(config, folder)

        async def restore_newest(reason: str, incarnation: int) -> Progress:
            return await restore(group, store, folder, events, prompts=prompts, reason=reason, above=incarnation)

        progress = await restore_newest("--resume", 0) if resume else Progress()
        prompts.issued.clear()
        saving = {"learner": group, "store": store, "folder": folder, "events": events}
        pipeline = Pipeline(
            RunContext.of(config, pools, folder, events),
            learner=group,
            prompts=prompts,
            sampling=SAMPLING,
            evaluation=evaluation,
            cluster=cluster,
            restore=restore_newest,
            progress=progress,
            checkpointer=Checkpointer(config, **saving, saved=progress.saved_version),
        )
        yield SimulatedRun(pipeline, prompts, pools, folder)
    finally:
        for pool in pools.values():
            await pool.close()
