"""The command line of poweropd: wires prompts, rollouts, teachers and learner into a run.

    python launch.py train --config configs/demo.yaml --run-name first --objective.alpha 5
    python launch.py train --config configs/demo.yaml --run-name first --resume
    python launch.py train --config configs/demo.yaml --run-name first --resume=auto --retries 5
    python launch.py train --config configs/demo.yaml --dry-run
    python launch.py eval --config configs/demo.yaml --model runs/first/export
    python launch.py compare --config configs/compare.yaml
    python launch.py plan --config configs/plan.yaml
    python launch.py scale --run first --rollout 4 --teacher 2
    python launch.py status --run first --watch
    python launch.py stop --run first

Every setting of the configuration is an option: `--rollout.num_workers 2`.
Exit codes: 0 finished, 1 failed, 2 bad input (nothing was started), 3 drained and resumable.
"""

import argparse
import asyncio
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

import rewards
from cluster.command_line import BAD_INPUT, DRAINED, FAILED, FINISHED, REMOTE_COMMANDS, build_parser
from cluster.comparison import CompareConfig, PlannedRun, describe, plan_runs
from cluster.config import RunConfig
from cluster.connection import is_local
from cluster.draining import drain_on_signals
from cluster.dry_run import check_local_machine, dry_run, ray_cluster
from cluster.orphans import check_has_ended, end_left_over
from cluster.placement import plan
from cluster.run_folder import RunFolder
from cluster.settings import load_config, load_settings
from learner.served import check_objective, signal_kind

logger = logging.getLogger("launch")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run one command, and return its exit code."""
    arguments, overrides = build_parser(__doc__).parse_known_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in ("launch", "cluster", "actors"):
        logging.getLogger(name).setLevel(arguments.log_level.upper())
    try:
        if arguments.command in REMOTE_COMMANDS:
            from cluster.commands_remote import run_remote_command

            return run_remote_command(arguments, overrides)
        if arguments.command == "compare":
            return compare_command(load_settings(CompareConfig, arguments.config, overrides), arguments)
        if arguments.command == "plan":
            from cluster.simulation.command import plan_command

            return plan_command(arguments, overrides, lambda *given: check_objective(load_config(*given)))
        config = check_objective(load_config(arguments.config, overrides))
        if arguments.command == "eval":
            return evaluate_command(config, arguments)
        if arguments.retries and not arguments.dry_run:
            from cluster.supervised import supervise

            return supervise(RunFolder.named(config), arguments, overrides, Path(__file__).resolve())
        return train_command(config, arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


# -- train ------------------------------------------------------------------------------------------------


def train_command(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Check everything, start everything, train. ValueError means bad input and that nothing runs."""
    from actors.inputs import read_inputs

    exists = RunFolder.named(config).path.is_dir()
    resume = arguments.resume == "yes" or (arguments.resume == "auto" and exists)
    folder = RunFolder.of(config, resume=resume)
    check_has_ended(folder)
    inputs = read_inputs(config)
    signal_of(config, inputs)
    special_token_ids(config, inputs)
    demands = plan(config)
    check_local_machine(config, demands)
    if arguments.dry_run:
        dry_run(config, demands)
        return FINISHED
    with ray_cluster(config, demands):
        from cluster.controller import check_name_is_free
        from cluster.events import Events

        check_name_is_free(config.run_name)
        folder.open(config)
        end_left_over(folder, Events(folder.events, folder.owner))
        return run_to_exit_code(train(config, inputs, folder, resume=resume))


async def train(config: RunConfig, inputs: Any, folder: RunFolder, *, resume: bool) -> int:
    """Start the workers, run the pipeline, close everything; returns the exit code."""
    from cluster.controller import controlled
    from cluster.events import Events
    from cluster.progress import ProgressView
    from cluster.scalars import ScalarWriter
    from cluster.summary import accuracy_table, summarise

    started = time.monotonic()
    events = Events(folder.events, folder.owner)
    pools = build_pools(config, inputs, events)
    view = ProgressView(config)
    scalars = ScalarWriter(config.logging, folder=folder.tensorboard, run_name=config.run_name)
    stop = drain_on_signals()
    has_started = False
    try:
        local = is_local(config.cluster)
        async with controlled(
            config, pools, folder, events, is_local=local, stop=lambda: stop[-1]()
        ) as controller:
            with view:
                view.say(f"run folder {folder.path}; starting {'; '.join(map(str, plan(config)))}")
                pipeline = await start_pipeline(config, inputs, folder, pools, events, resume=resume)
                has_started = True
                pipeline.on_step(view.step)
                pipeline.on_step(scalars.write)
                stop.append(pipeline.stop)
                controller.attach(pipeline)
                await pipeline.run()
        summary = summarise(folder, wall_s=time.monotonic() - started)
        folder.write_summary(summary)
        if not pipeline.slots.done:
            view.say(f"drained at step {pipeline.slots.version}; continue with --resume")
            return DRAINED
        Console().print(accuracy_table(summary))
        view.say(f"finished {summary['steps']} steps in {summary['wall_s']} s; student in {folder.export}")
        return FINISHED
    finally:
        scalars.close()
        await asyncio.gather(*(pool.close(gracefully=has_started) for pool in pools.values()))


def build_pools(config: RunConfig, inputs: Any, events: Any) -> dict[str, Any]:
    """The pools of a run by role; nothing is placed yet."""
    from actors.inputs import scorer_settings, student_settings
    from actors.reference_worker import ReferenceWorker
    from actors.rollout_worker import RolloutWorker
    from actors.teacher_worker import TeacherWorker
    from actors.vllm import open_engine
    from cluster.pool import Pool, WorkerSpec
    from learner.rank import LearnerRank

    signal = signal_of(config, inputs)
    scored = replace(signal, has_outcome=config.outcome.rl_coef > 0, has_reference="reference" in config.scorers)
    labels = {"stop_mode": config.objective.stop_mode, "stops": inputs.stops}

    def rollout(index: int) -> WorkerSpec:
        return WorkerSpec(RolloutWorker, (student_settings(config, inputs), open_engine))

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
        return WorkerSpec(LearnerRank, (config,), settings | golden | tokens, is_async=False)

    build: dict[str, Callable[[int], WorkerSpec]]
    build = {"rollout": rollout, "reference": reference, "learner": learner}
    build |= {role: lambda index, role=role: teacher(role) for role in config.teacher_of_role}
    return {d.role: Pool(d, build[d.role], config=config.cluster, events=events) for d in plan(config)}


def build_broadcasts(config: RunConfig, pools: dict[str, Any], events: Any) -> Any:
    """The group that weights are broadcast in; it is formed when the first version is published."""
    from cluster.broadcasts import Broadcasts

    return Broadcasts(
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
    from actors.inputs import rollout_sampling
    from actors.prompts import PromptSource
    from cluster.autoscaling import RayCluster
    from cluster.learner_group import LearnerGroup
    from cluster.pipeline import Pipeline
    from cluster.resume import Progress, restore
    from cluster.waiting import together
    from learner.checkpoint import newest_checkpoint

    for pool in pools.values():
        await pool.place()
    broadcasts = build_broadcasts(config, pools, events) if config.weights.is_broadcast else None
    learner = LearnerGroup(
        pools["learner"], config.cluster, transport=config.weights.transport, broadcasts=broadcasts
    )
    await together([learner.setup(), *(pool.start() for role, pool in pools.items() if role != "learner")])
    prompts = PromptSource(
        inputs.prompts,
        seed=config.seed,
        num_samples=config.num_samples_per_prompt,
        num_slots=config.max_steps * config.batch_size,
    )
    progress = Progress()
    if resume:
        progress = await restore(learner, newest_checkpoint(folder.checkpoints), folder, events)
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
        token_bytes=signal_of(config, inputs).token_bytes,
        cluster=RayCluster(may_grow=config.balance.request_nodes and not is_local(config.cluster)),
    )


# -- eval -------------------------------------------------------------------------------------------------


def evaluate_command(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Evaluate one model folder on the held-out problems with the rollout workers."""
    from actors.inputs import read_inputs

    if config.evaluation.data_path is None:
        raise ValueError("evaluation.data_path: required for eval, but not set")
    if arguments.model is not None:
        student = config.student.model_copy(update={"model_path": arguments.model})
        config = config.model_copy(update={"student": student})
    inputs = read_inputs(config, with_training=False)
    demands = [demand for demand in plan(config) if demand.role == "rollout"]
    check_local_machine(config, demands)
    if arguments.dry_run:
        dry_run(config, demands)
        return FINISHED
    with ray_cluster(config, demands):
        return run_to_exit_code(evaluate(config, inputs))


async def evaluate(config: RunConfig, inputs: Any) -> int:
    """Start rollout workers on the model as it is, evaluate, print one JSON row."""
    from cluster.events import Events

    pool = build_pools(config, inputs, Events())["rollout"]
    evaluation = build_evaluation(config, inputs)
    assert evaluation is not None, "evaluate_command checked evaluation.data_path"
    try:
        await pool.place()
        await pool.start()
        await pool.call("serve_own_weights", timeout_s=config.cluster.load_timeout_s)
        result = await evaluation.run(pool, config.cluster)
        print(json.dumps({"model": config.student.model_path, **result.row()}))
        return FINISHED
    finally:
        await pool.close()


def build_evaluation(config: RunConfig, inputs: Any) -> Any:
    """The held-out evaluation, or None without held-out data."""
    from actors.inputs import evaluation_sampling
    from actors.prompts import evaluation_requests
    from cluster.evaluation import Evaluation

    if not inputs.evaluation_prompts:
        return None

    return Evaluation(
        config.evaluation,
        requests=evaluation_requests(
            inputs.evaluation_prompts, num_samples=config.evaluation.num_samples, seed=config.seed
        ),
        sampling=evaluation_sampling(config),
        grade=build_grade(inputs),
        avg_at_k=rewards.avg_at_k,
        pass_at_k=rewards.pass_at_k,
    )


# -- compare ----------------------------------------------------------------------------------------------


def compare_command(config: CompareConfig, arguments: argparse.Namespace) -> int:
    """Check every run, train what is not finished yet, and write table and figures of what is."""
    runs = plan_runs(config, lambda path, options: check_objective(load_config(path, options)))
    train = [sys.executable, str(Path(__file__).resolve()), "train", "--log-level", arguments.log_level]

    def command_of(run: PlannedRun) -> list[str]:
        return [*train, "--config", config.base, *run.options, "--resume=auto"]

    if arguments.dry_run:
        for run in runs:
            print(f"# {run.config.run_name} ({describe(run)})\n{shlex.join(command_of(run))}")
        return FINISHED
    from cluster.comparison_results import write_results
    from cluster.comparison_runs import run_all
    from rewards.sampled import sampled_reward

    def reward_of(run: PlannedRun, teacher_p: Any, student_p: Any) -> Any:
        objective, max_steps = run.config.objective, run.config.max_steps
        return sampled_reward(objective.name, objective.parameters, teacher_p, student_p, max_steps=max_steps)

    all_local = all(is_local(run.config.cluster) for run in runs)
    code = FINISHED if arguments.results_only else run_all(runs, command_of, is_local=all_local)
    write_results(config, runs, reward_of=reward_of)
    return code


# -- shared -----------------------------------------------------------------------------------------------


def build_grade(inputs: Any) -> Callable[[Sequence[Sequence[int]], Sequence[str]], list[bool]]:
    """A function that grades responses (token ids) against answers."""
    tokenizer = inputs.tokenizer

    def grade(responses: Sequence[Sequence[int]], answers: Sequence[str]) -> list[bool]:
        texts = [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in responses]
        return rewards.grade_batch(texts, list(answers))

    return grade


def signal_of(config: RunConfig, inputs: Any) -> Any:
    """What the teacher must return for the objective; ValueError if the models do not allow it."""
    from actors.inputs import teacher_signal

    return teacher_signal(config, inputs, kind=signal_kind(config), k=config.objective.parameters.get("k", 0))


def special_token_ids(config: RunConfig, inputs: Any) -> list[int]:
    """Every token id of the texts in `masks.special_tokens`; ValueError for a text without one."""
    found: list[int] = []
    for text in config.masks.special_tokens:
        ids = inputs.tokenizer.encode(text, add_special_tokens=False)
        if not ids or inputs.tokenizer.unk_token_id in ids:
            raise ValueError(f"masks.special_tokens: the student's tokenizer has no token for {text!r}")
        found += ids
    return found


def run_to_exit_code(coroutine: Any) -> int:
    """Run to the end; an error is logged, its message printed, and the exit code is 1."""
    try:
        return asyncio.run(coroutine)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; continue with --resume", file=sys.stderr)
        return DRAINED
    except BaseException as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        logger.error("the run failed", exc_info=error)
        print(f"failed: {type(cause).__name__}: {cause}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
