"""The command line of poweropd: wires prompts, rollouts, teachers and learner into a run.

    python launch.py train --config configs/demo.yaml --run-name first --objective.alpha 5
    python launch.py train --config configs/demo.yaml --run-name first --resume
    python launch.py train --config configs/demo.yaml --run-name first --resume=auto --retries 5
    python launch.py train --config configs/demo.yaml --dry-run
    python launch.py submit --config configs/demo.yaml --run-name first --runs-path /shared/runs --follow
    python launch.py submit --stop --run first
    python launch.py preflight --config configs/demo.yaml --json
    python launch.py eval --config configs/demo.yaml --model runs/first/export
    python launch.py eval --model runs/first/export --benchmarks gsm8k,math500 --n 8 --k 1,8
    python launch.py compare --config configs/compare.yaml
    python launch.py plan --config configs/plan.yaml
    python launch.py scale --run first --rollout 4 --teacher 2
    python launch.py report --run first --run second
    python launch.py status --run first --watch
    python launch.py export --run first --step 100 --dtype bfloat16 --push organisation/name
    python launch.py stop --run first
    python launch.py chaos --run first --every 30s --kill rollout,teacher,learner --duration 10m

Every setting of the configuration is an option: `--rollout.num_workers 2`.
Exit codes: 0 finished, 1 failed, 2 bad input (nothing was started), 3 drained and resumable.
"""

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.capacity import ray_cluster
from cluster.connection import is_local
from cluster.orphans import check_has_ended, end_left_over
from cluster.placement import plan
from commands.compare.plan import CompareConfig, PlannedRun, describe, plan_runs
from commands.dry_run import dry_run
from commands.parser import COMMANDS_ON_FOLDERS, REMOTE_COMMANDS, build_parser
from commands.preflight.resources import check_disk
from commands.retries import drain_on_signals
from commands.start_times import StartTimes
from commands.wiring import (
    build_evaluation,
    build_pools,
    check_engines,
    check_inputs,
    check_machines,
    check_placement,
    read_stops,
    start_pipeline,
)
from learner.served import check_objective
from records.checkpoint_store import check_checkpoints
from records.checkpoints import DamagedCheckpointError
from records.run_folder import RunFolder, own_version
from reporting.live.wandb import check_wandb
from reporting.model_card import write_model_card
from settings.checks import Checks, RefusedError
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FINISHED, one_line
from settings.load import load_settings
from settings.run import RunConfig
from settings.run_files import load_config

logger = logging.getLogger("launch")
LOGGERS = (
    "launch",
    "actors",
    "cluster",
    "commands",
    "controller",
    "evaluation",
    "inputs",
    "records",
    "reporting",
    "transport",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run one command, and return its exit code."""
    try:
        return run_command(argv)
    except (OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def run_command(argv: Sequence[str] | None) -> int:
    """The exit code of a command that could start; ValueError, or OSError of a file, for bad input."""
    arguments, overrides = build_parser(__doc__).parse_known_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(arguments.log_level.upper())
    if arguments.command in REMOTE_COMMANDS | COMMANDS_ON_FOLDERS:
        return run_without_settings(arguments, overrides)
    if arguments.command == "compare":
        return compare_command(load_settings(CompareConfig, arguments.config, overrides), arguments)
    if arguments.command == "plan":
        from commands.plan.command import plan_command

        return plan_command(arguments, overrides, load_checked)
    if arguments.command == "eval":
        return evaluate_command(arguments, overrides)
    if arguments.command == "submit":
        from commands.submit.command import submit_command

        root = Path(__file__).resolve().parent
        return submit_command(arguments, overrides, load_checked, root=root, here=os.environ)
    config = load_checked(arguments.config, overrides)
    if arguments.command == "preflight":
        return preflight_command(config, arguments)
    if arguments.retries and not arguments.dry_run:
        from commands.retries import supervise

        return supervise(RunFolder.named(config), arguments, overrides, Path(__file__).resolve())
    return train_command(config, arguments)


def load_checked(path: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run with its objective checked; ValueError with one line per mistake."""
    return check_objective(load_config(path, overrides))


def run_without_settings(arguments: argparse.Namespace, options: list[str]) -> int:
    """Run a command that takes no settings: on a run that goes on, or on the folder of one."""
    if arguments.command == "chaos":
        from commands.chaos.command import chaos_command

        return chaos_command(arguments, options)
    if arguments.command == "export":
        return export_command(arguments, options)
    if arguments.command == "report":
        from commands.report import report_command

        return report_command(arguments, options)
    from commands.remote import run_remote_command

    return run_remote_command(arguments, options)


# -- train ------------------------------------------------------------------------------------------------


def train_command(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Check everything, start everything, train. ValueError means bad input and that nothing runs."""
    times = StartTimes("imports")
    checks = Checks(force=arguments.force)
    resume = arguments.resume == "yes" or (arguments.resume == "auto" and RunFolder.named(config).path.is_dir())
    folder = RunFolder.of(config, resume=resume)
    check_has_ended(folder)
    check_wandb(config.logging)
    if config.export.push_to is not None:
        from commands.export import check_push

        check_push(config.export.push_to, "export.push_to")
    inputs, demands = check_inputs(config, checks), check_placement(config, checks)
    described = "\n".join(f"# {line}" for line in inputs.data_report.lines())
    if arguments.dry_run:
        print(described)
        dry_run(config, demands)
        return FINISHED
    check_checkpoints(config, folder, resume=resume)
    check_disk(config, folder, inputs.shapes.get("student"), checks)
    if local := is_local(config.cluster):
        check_machines(config, inputs, demands, checks)
    times.end("inputs")
    with ray_cluster(config, demands):
        from controller.remote_control import check_name_is_free
        from records.events import Events, record_data

        if not local:
            check_machines(config, inputs, demands, checks)
        check_name_is_free(config.run_name)
        folder.open(config)
        events = Events(folder.events, folder.owner)
        print(described)
        record_data(folder, events, inputs.data_report.as_json())
        end_left_over(folder, events)
        events.add("prepared", seconds=times.end("ray"))
        code = run_to_exit_code(train(config, inputs, folder, checks, resume=resume))
        draw_report(folder)
        return code


async def train(config: RunConfig, inputs: Any, folder: RunFolder, checks: Checks, *, resume: bool) -> int:
    """Start the workers, run the pipeline, close everything; returns the exit code."""
    from commands.preflight.record import PreflightRecord
    from controller.remote_control import remote_control
    from records.events import Events
    from records.timeline import Timeline
    from reporting.live.boards import Dashboards
    from reporting.summary import accuracy_table, summarise

    started = time.monotonic()
    events = Events(folder.events, folder.owner)
    folder.on_late(events.add_late)
    pools = build_pools(config, inputs, events, tolerated=checks.force)
    preflight = PreflightRecord(config, pools, checks, folder=folder, events=events)
    timeline = Timeline(folder.timeline, folder.owner)
    for pool in pools.values():
        pool.timeline = timeline
    command = shlex.join(["python", *sys.argv])
    events.add("run_started", command=command, is_resumed=resume, version=own_version())
    boards = Dashboards(config, folder, events)
    view = boards.view
    stop = drain_on_signals()
    has_started = has_ended = False
    try:
        local = is_local(config.cluster)
        async with (
            remote_control(
                config, pools, folder, events, is_local=local, stop=lambda: stop[-1](), monitor=boards.monitor
            ) as control,
            boards.following(control.status),
        ):
            view.say(f"run folder {folder.path}; starting {'; '.join(map(str, plan(config)))}")
            view.say(preflight.begin())
            pipeline = await start_pipeline(config, inputs, folder, pools, events, resume=resume)
            has_started = True
            preflight.note_started()
            pipeline.on_step(preflight.note_step)
            pipeline.on_step(boards.step)
            stop.append(pipeline.stop)
            control.attach(pipeline)
            await pipeline.run()
        summary = summarise(folder, wall_s=time.monotonic() - started)
        folder.write_summary(summary)
        boards.summary(summary)
        has_ended = True
        if not pipeline.slots.done:
            view.say(f"drained at step {pipeline.slots.version}; continue with --resume")
            return DRAINED
        write_model_card(folder, config, folder.export, step=summary["steps"], name=config.export.push_to)
        if config.export.push_to is not None:
            from commands.export import push_export

            await push_export(folder.export, config.export, events)
        if (accuracy := accuracy_table(summary)).rows:
            Console().print(accuracy)
        view.say(f"finished {summary['steps']} steps in {summary['wall_s']} s; student in {folder.export}")
        return FINISHED
    finally:
        preflight.close()
        closing = [pool.close(gracefully=has_started) for pool in pools.values()]
        await asyncio.gather(boards.close(has_failed=not has_ended), *closing)
        timeline.close()


def draw_report(folder: RunFolder) -> None:
    """Write the run's report, if its folder is still this process's; a failure is only logged."""
    try:
        from commands.report import write_report

        if folder.owner.is_held:
            write_report([folder], folder.report)
    except Exception as error:
        logger.error("the report could not be drawn", exc_info=error)


# -- preflight --------------------------------------------------------------------------------------------


def preflight_command(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Make every check of a run, also with its engines, and show what was found."""
    from commands.preflight.command import preflight

    checks = Checks(force=arguments.force, collects=True)
    return preflight(
        config,
        checks,
        read=lambda: check_inputs(config, checks),
        place=lambda: check_placement(config, checks),
        check_machines=lambda inputs, demands: check_machines(config, inputs, demands, checks),
        check_engines=lambda inputs: check_engines(config, inputs, checks),
        starts_engines=not arguments.dry_run,
        is_json=arguments.json,
    )


# -- eval -------------------------------------------------------------------------------------------------


def evaluate_command(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluate one model folder with rollout workers, or go on with what was interrupted."""
    from commands.evaluate import prepare
    from inputs.inputs import read_inputs

    checks = Checks(force=arguments.force)
    planned = prepare(
        arguments,
        overrides,
        load=load_checked,
        read_inputs=lambda config: read_inputs(config, with_training=False, checks=checks),
    )
    if planned is None:
        return FINISHED
    with ray_cluster(planned.config, planned.demands):
        return run_to_exit_code(evaluate(planned), to_continue="the same command goes on with it")


async def evaluate(planned: Any) -> int:
    """Start rollout workers on the model as it is, and evaluate."""
    from commands.evaluate import run_evaluation
    from records.events import Events

    config, inputs = planned.config, planned.inputs
    pool = build_pools(config, inputs, Events(), roles=["rollout"])["rollout"]
    try:
        await pool.place()
        await pool.start()
        await pool.call("serve_own_weights", timeout_s=config.cluster.load_timeout_s)
        await run_evaluation(planned, build_evaluation(config, inputs, k=planned.k), pool)
        return FINISHED
    finally:
        await pool.close()


# -- export -----------------------------------------------------------------------------------------------


def export_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Write the student of a checkpoint as a Hugging Face folder. ValueError means that nothing was written."""
    from commands.export import PushError, push, read_request

    if options:
        raise ValueError(f"unexpected argument {options[0]!r}; see launch.py export --help")
    request = read_request(arguments)
    stops = read_stops(request.config)
    from learner.export import export_checkpoint

    config, out = request.config, request.out
    try:
        found = request.store.fetch(request.step)
        export_checkpoint(config, found.path, found.manifest, out=out, stops=stops, dtype=request.dtype)
        write_model_card(request.folder, config, out, step=request.step, name=request.push_to)
        print(f"step {request.step} of {arguments.run} is in {out}")
        if request.push_to is not None:
            print(f"uploaded to {push(out, request.push_to, private=request.private)}")
    except (DamagedCheckpointError, PushError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    return FINISHED


# -- compare ----------------------------------------------------------------------------------------------


def compare_command(config: CompareConfig, arguments: argparse.Namespace) -> int:
    """Check every run, train what is not finished yet, and write table and figures of what is."""
    runs = plan_runs(config, load_checked)
    train = [sys.executable, str(Path(__file__).resolve()), "train", "--log-level", arguments.log_level]

    def command_of(run: PlannedRun) -> list[str]:
        return [*train, "--config", config.base, *run.options, "--resume=auto"]

    if arguments.dry_run:
        for run in runs:
            print(f"# {run.config.run_name} ({describe(run)})\n{shlex.join(command_of(run))}")
        return FINISHED
    from commands.compare.results import write_results
    from commands.compare.runs import run_all
    from rewards.sampled import sampled_reward

    def reward_of(run: PlannedRun, teacher_p: Any, student_p: Any) -> Any:
        objective, max_steps = run.config.objective, run.config.max_steps
        return sampled_reward(objective.name, objective.parameters, teacher_p, student_p, max_steps=max_steps)

    all_local = all(is_local(run.config.cluster) for run in runs)
    code = FINISHED if arguments.results_only else run_all(runs, command_of, is_local=all_local)
    write_results(config, runs, reward_of=reward_of)
    return code


# -- shared -----------------------------------------------------------------------------------------------


def run_to_exit_code(coroutine: Any, *, to_continue: str = "continue with --resume") -> int:
    """Run to the end; an error is logged, its message printed, and the exit code is 1."""
    try:
        return asyncio.run(coroutine)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"interrupted; {to_continue}", file=sys.stderr)
        return DRAINED
    except BaseException as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, RefusedError):
            print(f"error: {one_line(cause)}", file=sys.stderr)
            return BAD_INPUT
        logger.error("the run failed", exc_info=error)
        print(f"failed: {type(cause).__name__}: {cause}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
