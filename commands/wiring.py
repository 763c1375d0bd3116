"""Makes the parts of a run out of its settings and inputs, and connects them: the only place that knows all.

    inputs --> pools of workers (build_pools) --> learner, prompts, checkpoints, evaluation --> Pipeline

The commands decide what is started and when. They import this once Ray is connected: Ray reads its environment
when it is imported.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import rewards
from actors.engine_settings import evaluation_sampling, rollout_sampling, scorer_settings, student_settings
from actors.reference_worker import ReferenceWorker
from actors.rollout_worker import RolloutWorker
from actors.teacher_worker import TeacherWorker
from actors.vllm import open_engine
from cluster.autoscaling import RayCluster
from cluster.connection import is_local
from cluster.placement import plan
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.replica_check import ReplicaCheck
from cluster.waiting import together
from commands.checks import shape_facts, signal_of, special_token_ids
from controller.broadcasts import WeightBroadcast
from controller.checkpointing import Checkpointer
from controller.context import RunContext
from controller.learner_group import LearnerGroup
from controller.pipeline import Pipeline
from controller.recovery import Progress, restore
from controller.samples import Samples
from evaluation.evaluation import evaluation_of
from inputs.inputs import Inputs
from inputs.models import model_paths
from inputs.prompts import PromptSource, evaluation_requests
from learner.rank import LearnerRank
from records.checkpoint_store import CheckpointStore
from records.events import Events
from records.run_folder import RunFolder
from settings.run import RunConfig
from settings.teachers import field_of


def build_pools(
    config: RunConfig,
    inputs: Inputs,
    events: Events,
    *,
    roles: Collection[str] | None = None,
    tolerated: Collection[str] = (),
    folder: RunFolder | None = None,
) -> dict[str, Pool]:
    """The pools of a run by role, by default all; nothing is placed yet.

    `tolerated`: of the checks `golden` and `replicas`, those whose limits engines may exceed. `folder` keeps what
    the models that score answer, for when the run is resumed.
    """
    signal = signal_of(config, inputs)
    scored = replace(signal, has_outcome=config.outcome.rl_coef > 0, has_reference="reference" in config.scorers)
    labels = {"stop_mode": config.objective.stop_mode, "stops": inputs.stops}

    def rollout(index: int) -> WorkerSpec:
        limit = math.inf if "golden" in tolerated else config.preflight.golden_limit
        settings = replace(student_settings(config, inputs), golden_limit=limit)
        return WorkerSpec(RolloutWorker, (settings, open_engine))

    def teacher(role: str, index: int) -> WorkerSpec:
        grade = build_grade(config, inputs) if scored.has_outcome else None
        settings = scorer_settings(config, inputs, role, signal)
        return WorkerSpec(TeacherWorker, (settings, open_engine), labels | {"grade": grade})

    def reference(index: int) -> WorkerSpec:
        settings = scorer_settings(config, inputs, "reference")
        return WorkerSpec(ReferenceWorker, (settings, open_engine), labels | {"signal": scored})

    def learner(index: int) -> WorkerSpec:
        given = {
            "rank": index,
            "world_size": config.learner.num_workers,
            "stops": inputs.stops,
            "golden_token_ids": inputs.golden_token_ids,
            "vocab_size": inputs.num_head_rows,
            "signal": scored,
            "special_token_ids": special_token_ids(config, inputs),
            "is_local": is_local(config.cluster),
        }
        return WorkerSpec(LearnerRank, (config,), given, is_async=False)

    build: dict[str, Callable[[int], WorkerSpec]]
    build = {"rollout": rollout, "evaluation": rollout, "reference": reference, "learner": learner}
    build |= {role: partial(teacher, role) for role in config.teacher_of_role}
    return {
        demand.role: Pool(
            demand,
            build[demand.role],
            config=config.cluster,
            health=config.health,
            events=events,
            replica_check=_replica_check(config, inputs, demand.role, events, tolerated, folder),
        )
        for demand in plan(config)
        if demand.role in (roles or build)
    }


def _replica_check(
    config: RunConfig,
    inputs: Inputs,
    role: str,
    events: Events,
    tolerated: Collection[str],
    folder: RunFolder | None,
) -> ReplicaCheck | None:
    """What every worker of a pool that scores must answer; None for other pools."""
    if role not in config.scorers:
        return None
    token_ids, known, name = inputs.golden_token_ids, None, f"{field_of(role)}.model_path"
    if folder is not None:
        answer = folder.read_fingerprints().get("answers", {}).get(role, {})
        if answer and max(answer["token_ids"]) < inputs.num_shared_rows:
            token_ids, known = answer["token_ids"], answer["log_probs"]

    def keep(log_probs: list[float], difference: float | None) -> None:
        if folder is not None:
            answers = folder.read_fingerprints().get("answers", {})
            own = {"token_ids": token_ids, "log_probs": log_probs}
            folder.write_fingerprints({"answers": answers | {role: own}})
            if difference is not None:
                events.add("inputs_changed", changed=[role], difference=difference, reason="--force replicas")

    return ReplicaCheck(
        token_ids,
        known=known,
        keep=keep,
        model=f"{name} {model_paths(config)[role]}",
        dtype=config.dtype_of(config.scorers[role].engine),
        timeout_s=config.cluster.score_timeout_s,
        limit=config.preflight.golden_limit,
        is_enforced="replicas" not in tolerated,
    )


def build_learner(config: RunConfig, pools: Mapping[str, Pool], events: Events) -> LearnerGroup:
    """The learner as a group of ranks; nothing is set up yet."""
    weights = config.weights
    broadcasts = None
    if weights.is_broadcast:
        broadcasts = WeightBroadcast(
            weights.transport,
            learner=pools["learner"],
            engines=pools["rollout"],
            events=events,
            timeout_s=weights.broadcast_timeout_s,
        )
    return LearnerGroup(pools["learner"], config.cluster, transport=weights.transport, broadcasts=broadcasts)


async def start_pipeline(context: RunContext, inputs: Inputs, *, resume: bool) -> Pipeline:
    """Place and start all workers, restore a checkpoint if resuming, and connect the stages."""
    config, pools, folder, events = context.config, context.pools, context.folder, context.events
    turn = asyncio.Lock()
    await together(pool.place(turn) for pool in pools.values())
    events.add("workers_placed")
    learner = build_learner(config, pools, events)
    await together([learner.start(), *(pool.start() for role, pool in pools.items() if role != "learner")])
    prompts = PromptSource(
        inputs.prompts,
        seed=config.seed,
        num_samples=config.num_samples_per_prompt,
        num_slots=config.max_steps * config.batch_size,
    )
    store = CheckpointStore.of(config, folder)

    async def restore_newest(reason: str, incarnation: int) -> Progress:
        return await restore(learner, store, folder, events, prompts=prompts, reason=reason, above=incarnation)

    progress = await restore_newest("--resume", 0) if resume else Progress()
    checkpointer = Checkpointer(
        config,
        learner=learner,
        store=store,
        folder=folder,
        events=events,
        saved=progress.saved_version,
        facts={"student": shape_facts(inputs.shapes.get("student"))},
    )
    return Pipeline(
        context,
        learner=learner,
        prompts=prompts,
        sampling=rollout_sampling(config, inputs),
        evaluation=evaluation_of(config, inputs),
        progress=progress,
        restore=restore_newest,
        token_bytes=signal_of(config, inputs).token_bytes,
        cluster=RayCluster(may_grow=config.balance.request_nodes and not is_local(config.cluster)),
        checkpointer=checkpointer,
        samples=_build_samples(context, inputs),
    )


def _build_samples(context: RunContext, inputs: Inputs) -> Samples | None:
    """What keeps a few responses before and after training, or None without."""
    config = context.config
    if not config.logging.samples:
        return None
    from learner.sample_rows import SampleRows  # torch

    source = inputs.evaluation_prompts or inputs.prompts
    prompts = [source[index] for index in range(min(config.logging.samples, len(source)))]
    return Samples(
        context,
        requests=evaluation_requests(prompts, num_samples=1, seed=config.seed),
        sampling=evaluation_sampling(config) if inputs.evaluation_prompts else rollout_sampling(config, inputs),
        describe=SampleRows(config, inputs.tokenizer, stops=inputs.stops, signal=signal_of(config, inputs)),
    )


def build_grade(
    config: RunConfig, inputs: Inputs
) -> Callable[[Sequence[Sequence[int]], Sequence[str]], list[bool]]:
    """A function that grades responses (token ids) against answers."""
    tokenizer = inputs.tokenizer

    def grade(responses: Sequence[Sequence[int]], answers: Sequence[str]) -> list[bool]:
        texts = [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in responses]
        return rewards.grade_batch(texts, list(answers), config.evaluation.grader)

    return grade
