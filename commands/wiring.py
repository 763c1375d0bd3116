"""Makes the parts of a run out of its configuration and inputs, and connects them: the only place that knows all.

    inputs --> pools of workers (build_pools) --> learner, prompts, checkpoints, evaluation --> Pipeline

`launch.py` decides what is started and when; everything else is told what it needs here.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import rewards
from actors.vllm import collection_paused
from cluster.capacity import check_local_machine
from cluster.connection import is_local
from cluster.placement import Demand, plan
from commands.preflight.resources import check_nodes
from learner.served import signal_kind
from records.run_folder import RunFolder
from settings.checks import Checks, Finding
from settings.run import RunConfig
from settings.teachers import field_of


def build_pools(
    config: RunConfig,
    inputs: Any,
    events: Any,
    *,
    roles: Sequence[str] | None = None,
    tolerated: Collection[str] = (),
) -> dict[str, Any]:
    """The pools of a run by role, by default all; nothing is placed yet.

    `tolerated`: of the checks `golden` and `replicas`, those whose limits engines may exceed.
    """
    from actors.engine_settings import scorer_settings, student_settings
    from actors.reference_worker import ReferenceWorker
    from actors.rollout_worker import RolloutWorker
    from actors.teacher_worker import TeacherWorker
    from actors.vllm import open_engine
    from cluster.pool import Pool
    from cluster.ray_actors import WorkerSpec
    from learner.rank import LearnerRank

    signal = signal_of(config, inputs)
    scored = replace(signal, has_outcome=config.outcome.rl_coef > 0, has_reference="reference" in config.scorers)
    labels = {"stop_mode": config.objective.stop_mode, "stops": inputs.stops}

    def rollout(index: int) -> WorkerSpec:
        limit = math.inf if "golden" in tolerated else config.preflight.golden_limit
        settings = replace(student_settings(config, inputs), golden_limit=limit)
        return WorkerSpec(RolloutWorker, (settings, open_engine))

    def teacher(role: str) -> WorkerSpec:
        grade = build_grade(inputs) if scored.has_outcome else None
        settings = scorer_settings(config, inputs, role, signal)
        return WorkerSpec(TeacherWorker, (settings, open_engine), labels | {"grade": grade})

    def reference(index: int) -> WorkerSpec:
        settings = scorer_settings(config, inputs, "reference")
        return WorkerSpec(ReferenceWorker, (settings, open_engine), labels | {"signal": scored})

    def learner(index: int) -> WorkerSpec:
        settings = {"rank": index, "world_size": config.learner.num_workers, "stops": inputs.stops}
        golden = {"golden_token_ids": inputs.golden_token_ids, "vocab_size": inputs.num_head_rows}
        tokens = {"signal": scored, "special_token_ids": special_token_ids(config, inputs)}
        place = {"is_local": is_local(config.cluster)}
        return WorkerSpec(LearnerRank, (config,), settings | golden | tokens | place, is_async=False)

    build: dict[str, Callable[[int], WorkerSpec]]
    build = {"rollout": rollout, "evaluation": rollout, "reference": reference, "learner": learner}
    build |= {role: lambda index, role=role: teacher(role) for role in config.teacher_of_role}
    given: dict[str, Any] = {"config": config.cluster, "health": config.health, "events": events}
    return {
        d.role: Pool(
            d, build[d.role], replica_check=build_replica_check(config, inputs, d.role, tolerated), **given
        )
        for d in plan(config)
        if d.role in (roles or build)
    }


def build_replica_check(config: RunConfig, inputs: Any, role: str, tolerated: Collection[str] = ()) -> Any:
    """What every worker of a pool that scores must answer; None for other pools."""
    from cluster.replica_check import ReplicaCheck

    if role not in config.scorers:
        return None
    dtype, timeout_s = config.dtype_of(config.scorers[role].engine), config.cluster.score_timeout_s
    return ReplicaCheck(
        inputs.golden_token_ids,
        dtype=dtype,
        timeout_s=timeout_s,
        limit=config.preflight.golden_limit,
        is_enforced="replicas" not in tolerated,
    )


def build_learner(config: RunConfig, pools: dict[str, Any], events: Any) -> Any:
    """The learner as a group of ranks; nothing is set up yet."""
    from controller.learner_group import LearnerGroup

    broadcasts = build_broadcasts(config, pools, events) if config.weights.is_broadcast else None
    return LearnerGroup(
        pools["learner"], config.cluster, transport=config.weights.transport, broadcasts=broadcasts
    )


def build_broadcasts(config: RunConfig, pools: dict[str, Any], events: Any) -> Any:
    """The group that weights are broadcast in; it is formed when the first version is published."""
    from controller.broadcasts import WeightBroadcast

    return WeightBroadcast(
        config.weights.transport,
        learner=pools["learner"],
        engines=pools["rollout"],
        events=events,
        timeout_s=config.weights.broadcast_timeout_s,
    )


async def start_pipeline(
    config: RunConfig, inputs: Any, folder: RunFolder, pools: dict[str, Any], events: Any, *, resume: bool
) -> Any:
    """Place and start all workers, restore a checkpoint if resuming, and connect the stages."""
    from actors.engine_settings import rollout_sampling
    from cluster.autoscaling import RayCluster
    from cluster.waiting import together
    from controller.checkpointing import Checkpointer
    from controller.pipeline import Pipeline
    from controller.recovery import Progress, restore
    from inputs.prompts import PromptSource
    from records.checkpoint_store import CheckpointStore

    turn = asyncio.Lock()
    await together(pool.place(turn) for pool in pools.values())
    events.add("workers_placed")
    learner = build_learner(config, pools, events)
    await together([learner.setup(), *(pool.start() for role, pool in pools.items() if role != "learner")])
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
        config, learner=learner, store=store, folder=folder, events=events, saved=progress.saved_version
    )
    return Pipeline(
        config,
        pools=pools,
        learner=learner,
        prompts=prompts,
        sampling=rollout_sampling(config),
        evaluation=build_evaluation(config, inputs),
        folder=folder,
        events=events,
        progress=progress,
        restore=restore_newest,
        token_bytes=signal_of(config, inputs).token_bytes,
        cluster=RayCluster(may_grow=config.balance.request_nodes and not is_local(config.cluster)),
        checkpointer=checkpointer,
        samples=build_samples(config, inputs, pools, folder, events),
    )


def check_inputs(config: RunConfig, checks: Checks) -> Any:
    """Read the inputs and make every check that needs no node; returns the inputs.

    RefusedError at the first error; also where errors are collected, if something could not be read.
    """
    with collection_paused():
        from inputs.inputs import read_inputs

    inputs = read_inputs(config, checks=checks)
    with checks.guard("padded_rows", is_hard=True):
        signal_of(config, inputs)
    with checks.guard("tokenizer", is_hard=True):
        special_token_ids(config, inputs)
    return inputs


def check_placement(config: RunConfig, checks: Checks) -> list[Demand]:
    """The workers to place, all of which this machine must be able to hold if it is the only one."""
    demands = list[Demand]()
    with checks.guard("placement", is_hard=True):
        demands = plan(config)
        check_local_machine(config, demands)
    return demands


def check_machines(config: RunConfig, inputs: Any, demands: Sequence[Demand], checks: Checks) -> None:
    """Check files and memory of the nodes of the connected Ray, or of this machine; RefusedError as above."""
    holds_head = signal_of(config, inputs).kind == "full"
    check_nodes(config, demands, inputs.shapes, checks, holds_teacher_head=holds_head)


async def check_engines(config: RunConfig, inputs: Any, checks: Checks) -> None:
    """Start every worker, score the golden sequence along every path, enter what was found, and end them."""
    from ray.exceptions import RayError

    from commands.preflight.golden import record_golden, record_replicas, start_and_load
    from records.events import Events, reason_of

    events = Events()
    pools = build_pools(config, inputs, events, tolerated=("golden", "replicas"))
    limit = config.preflight.golden_limit
    try:
        details = await start_and_load(config, pools, build_learner(config, pools, events))
        record_golden(checks, pools["rollout"], dtype=config.engine_dtype, limit=limit, details=details)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        text = f"the workers could not be started: {reason_of(error)}"
        checks.record("golden", [Finding("error", text, is_hard=True)])
    finally:
        record_replicas(checks, pools, config.scorers)
        await asyncio.gather(*(pool.close() for pool in pools.values()))


def build_evaluation(config: RunConfig, inputs: Any, *, k: Sequence[int] = ()) -> Any:
    """The held-out evaluation, or None without benchmarks; results at each of `k`, by default `evaluation.k`."""
    import pyarrow as pa

    from actors.engine_settings import evaluation_sampling
    from evaluation.evaluation import Evaluation, Grading
    from evaluation.metrics import Measures
    from evaluation.results import EvaluatedProblem
    from inputs.prompts import evaluation_requests

    if not inputs.benchmarks:
        return None
    problems, requests = [], []
    for benchmark in inputs.benchmarks:
        given = {"num_samples": config.evaluation.num_samples, "seed": config.seed, "benchmark": benchmark.name}
        requests.append(evaluation_requests(benchmark.prompts, first_slot=len(problems), **given))
        problems += [EvaluatedProblem(benchmark.name, p.prompt_id, p.text, p.answer) for p in benchmark.problems]
    return Evaluation(
        problems=problems,
        requests=pa.concat_tables(requests),
        sampling=evaluation_sampling(config),
        grading=Grading(
            build_decode(inputs),
            lambda texts, answers: [verdict.value for verdict in rewards.grade_verdicts(texts, answers)],
            rewards.extract_answer,
            rewards.equality_classes,
        ),
        measures=Measures(rewards.avg_at_k, rewards.pass_at_k, rewards.pass_at_k_unbiased, rewards.maj_at_k),
        k=tuple(k) or (config.evaluation.k,),
    )


def build_decode(inputs: Any) -> Callable[[Sequence[Sequence[int]]], list[str]]:
    """A function that turns responses (token ids) into text, without special tokens."""
    tokenizer = inputs.tokenizer

    def decode(responses: Sequence[Sequence[int]]) -> list[str]:
        return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in responses]

    return decode


def build_samples(config: RunConfig, inputs: Any, pools: dict[str, Any], folder: RunFolder, events: Any) -> Any:
    """What keeps a few responses before and after training, or None without."""
    from actors.engine_settings import evaluation_sampling, rollout_sampling
    from controller.samples import Samples
    from inputs.prompts import evaluation_requests
    from learner.sample_rows import SampleRows

    if not config.logging.samples:
        return None
    source = inputs.evaluation_prompts or inputs.prompts
    prompts = [source[index] for index in range(min(config.logging.samples, len(source)))]
    return Samples(
        config,
        pools=pools,
        requests=evaluation_requests(prompts, num_samples=1, seed=config.seed),
        sampling=evaluation_sampling(config) if inputs.evaluation_prompts else rollout_sampling(config),
        describe=SampleRows(config, inputs.tokenizer, stops=inputs.stops, signal=signal_of(config, inputs)),
        folder=folder,
        events=events,
    )


def build_grade(inputs: Any) -> Callable[[Sequence[Sequence[int]], Sequence[str]], list[bool]]:
    """A function that grades responses (token ids) against answers."""
    decode = build_decode(inputs)

    def grade(responses: Sequence[Sequence[int]], answers: Sequence[str]) -> list[bool]:
        return rewards.grade_batch(decode(responses), list(answers))

    return grade


def signal_of(config: RunConfig, inputs: Any) -> Any:
    """What the teacher must return for the objective; ValueError if the models do not allow it."""
    from actors.engine_settings import teacher_signal

    return teacher_signal(config, inputs, kind=signal_kind(config), k=config.objective.parameters.get("k", 0))


def read_stops(config: RunConfig) -> Any:
    """Stop tokens of student and teachers, from their folders alone; ValueError naming one that cannot be read."""
    from inputs.tokenizers import check_model_folder, load_tokenizer, stop_ids
    from transport.stop_tokens import StopTokens

    def read(field: str, path: str, trusts: bool) -> tuple[int, ...]:
        check_model_folder(path, field)
        tokenizer = load_tokenizer(path, field, trust_remote_code=trusts)
        return stop_ids(path, tokenizer, field=field, trust_remote_code=trusts)

    student, teachers = config.student, config.teacher_of_role
    of_role = {
        role: read(f"{field_of(role)}.model_path", each.model_path, each.trust_remote_code)
        for role, each in teachers.items()
    }
    own = read("student.model_path", student.model_path, student.trust_remote_code)
    return StopTokens(own, of_role["teacher"], of_role)


def special_token_ids(config: RunConfig, inputs: Any) -> list[int]:
    """Every token id of the texts in `masks.special_tokens`; ValueError for a text without one."""
    found: list[int] = []
    for text in config.masks.special_tokens:
        ids = inputs.tokenizer.encode(text, add_special_tokens=False)
        if not ids or inputs.tokenizer.unk_token_id in ids:
            raise ValueError(f"masks.special_tokens: the student's tokenizer has no token for {text!r}")
        found += ids
    return found
