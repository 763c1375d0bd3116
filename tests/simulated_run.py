"""A pipeline with simulated engines and learner, started as `launch.py` starts a real one, and what it leaves."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.reference_worker import ReferenceWorker
from actors.rollout_worker import RolloutWorker
from actors.teacher_worker import TeacherWorker
from cluster.placement import plan
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.replica_check import ReplicaCheck
from cluster.worker import Worker
from commands.plan.local_pool import LocalActor, LocalPool
from commands.plan.run import connected_run, make_pools
from controller.pipeline import Pipeline
from evaluation.evaluation import Evaluation
from evaluation.results import EvaluatedProblem
from records.files import read_rows
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from settings.run import RunConfig
from tests.simulated import (
    QUESTION,
    SAMPLING,
    SETTINGS,
    EngineBehaviour,
    FaultyLearner,
    LearnerBehaviour,
    PlacedPrompts,
    SimulatedEngine,
    WorkerCutOff,
)
from transport.batches import TeacherSignal
from transport.stop_tokens import StopTokens


@dataclass(frozen=True)
class FaultyRun:
    """A pipeline with started workers, and what it leaves."""

    pipeline: Pipeline
    prompts: PlacedPrompts
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


def kill(worker: Worker) -> None:
    """As `kill -9`: the pool is not told."""
    if isinstance(worker.handle, LocalActor):
        worker.handle.kill()
    else:
        os.kill(worker.pid, signal.SIGKILL)


def freeze(worker: Worker) -> None:
    """As `kill -STOP`."""
    if isinstance(worker.handle, LocalActor):
        worker.handle.freeze()
    else:
        os.kill(worker.pid, signal.SIGSTOP)


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
    resume: bool = False,
    pool_class: type[Pool] = LocalPool,
    **given: Any,
) -> AsyncIterator[FaultyRun]:
    """Start one worker per behaviour and connect the stages; closes all at the end.

    `scorers` holds the behaviours of further teachers and of the reference by role; one worker each otherwise.
    `evaluators` are the workers of the evaluation alone, if the configuration has any.
    Workers that are added later behave as `added` says for their role, or as the last one of the start.
    Workers live in this process, or with `Pool` as `pool_class` on Ray. Further arguments are the pipeline's.
    """
    behaviours: dict[str, Sequence[EngineBehaviour]] = dict.fromkeys(config.scorers, (EngineBehaviour(),))
    behaviours |= {"rollout": engines, "teacher": teachers, **(scorers or {})}
    if config.evaluation.num_workers:
        behaviours["evaluation"] = evaluators
    folder = RunFolder.of(config, resume=resume)
    folder.open(config)
    signal = TeacherSignal(has_reference="reference" in config.scorers)
    labels = {"stop_mode": "mask", "stops": StopTokens((0,), (0,))}

    def build(role: str, i: int) -> WorkerSpec:
        if role == "learner":
            return WorkerSpec(FaultyLearner, (learner or LearnerBehaviour(), folder.path / "calls.jsonl", signal))
        known = behaviours[role]
        behaviour = known[i] if i < len(known) else (added or {}).get(role, known[-1])
        engine = (SETTINGS, partial(SimulatedEngine, behaviour))
        if role in ("rollout", "evaluation"):
            return WorkerSpec(WorkerCutOff if behaviour.dies_after_note else RolloutWorker, engine)
        if role == "reference":
            return WorkerSpec(ReferenceWorker, engine, labels | {"signal": signal})
        return WorkerSpec(TeacherWorker, engine, labels)

    demands = [replace(d, count=len(behaviours[d.role])) if d.role in behaviours else d for d in plan(config)]
    pools = make_pools(config, build, demands, folder, pool_class)
    pools["teacher"].replica_check = ReplicaCheck(QUESTION, dtype="float32", timeout_s=20.0)
    prompts, given = PlacedPrompts(config), {"sampling": SAMPLING} | given
    async with connected_run(
        config, pools, prompts, folder, with_checkpoints=True, is_resumed=resume, **given
    ) as run:
        yield FaultyRun(run.pipeline, prompts, pools, folder)


class Numbers:
    """Decodes to the token ids as text, and the right answer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return f"{' '.join(map(str, token_ids))} #### 1"


def simulated_evaluation(num_problems: int, *, num_benchmarks: int = 1) -> Evaluation:
    """One response to each of so many problems, which are shared out among the benchmarks `bench0`, ...

    Its problems are the first places of the prompt order, all solved.
    """
    requests = PlacedPrompts(run_config(Path("none"))).requests_for(range(num_problems), [0] * num_problems)
    problems = [
        EvaluatedProblem(
            f"bench{place * num_benchmarks // num_problems}", f"p{place}", f"{place} - {place} + 1", "1"
        )
        for place in range(num_problems)
    ]
    tokenizer: Any = Numbers()
    return Evaluation(problems, requests, SAMPLING, tokenizer, k=(1,))
