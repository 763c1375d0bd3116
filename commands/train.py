"""`launch.py train`: checks a run, starts its workers, trains to the end, and leaves report and model card."""

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.capacity import ray_cluster
from cluster.connection import is_local
from cluster.orphans import check_has_ended, end_left_over
from cluster.placement import plan
from commands.checks import (
    check_inputs,
    check_placement,
    check_resumed,
    check_unchanged,
    fingerprints_of,
    load_checked,
)
from commands.dry_run import dry_run
from commands.exit_codes import run_to_exit_code
from commands.preflight.ending import check_ending
from commands.preflight.resources import check_disk, check_nodes
from commands.retries import supervise
from commands.signals import StopSignals, current_task, stopped_by_signals
from records.checkpoint_store import check_checkpoints
from records.events import Events, record_data
from records.ownership import NotOwnerError, start_ticks
from records.run_folder import RunFolder, own_version
from records.timeline import Timeline
from reporting.live.output import on_trouble
from reporting.live.wandb import check_wandb
from reporting.model_card import write_model_card
from settings.checks import Checks
from settings.exit_codes import DRAINED, FINISHED
from settings.run import RunConfig

if TYPE_CHECKING:  # transformers and Ray take seconds to import
    from cluster.pool import Pool
    from inputs.inputs import Inputs

logger = logging.getLogger(__name__)


def train_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Train, with `--retries` in processes of their own; returns the exit code."""
    with stopped_by_signals() as signals:
        config = load_checked(arguments.config, options)
        if arguments.retries and not arguments.dry_run:
            return supervise(RunFolder.named(config), arguments, options)
        try:
            return check_and_train(config, arguments, signals)
        except BaseException:
            if not signals.have_come:
                raise
            has_begun = RunFolder.named(config).path.is_dir()
            to_continue = "continue with --resume" if has_begun else "nothing is written yet: start it again"
            print(f"interrupted; {to_continue}", file=sys.stderr)
            return DRAINED


def check_and_train(config: RunConfig, arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Check everything, start everything, train. ValueError means bad input and that nothing runs."""
    times = StartTimes("imports")
    checks = Checks(force=arguments.force)
    resume = arguments.resume == "yes" or (arguments.resume == "auto" and RunFolder.named(config).path.is_dir())
    folder = RunFolder.of(config, resume=resume)
    check_has_ended(folder)
    check_wandb(config.logging)
    if config.export.push_to is not None:
        from commands.export import check_push  # the hub's library

        check_push(config.export.push_to, "export.push_to")
    inputs, demands = check_inputs(config, checks), check_placement(config, checks)
    check_checkpoints(config, folder, resume=resume)
    if resume:
        check_resumed(config, folder, inputs.shapes.get("student"))
    fingerprints = fingerprints_of(config, inputs)
    changed = check_unchanged(folder, fingerprints, checks) if resume else []
    described = "\n".join(f"# {line}" for line in inputs.data_report.lines())
    if arguments.dry_run:
        print(described)
        dry_run(config, demands)
        return FINISHED
    check_disk(config, folder, inputs.shapes.get("student"), checks)
    check_ending(config, folder, inputs.stops, checks)
    if local := is_local(config.cluster):
        check_nodes(config, demands, inputs.shapes, checks)
    times.end("inputs")
    with ray_cluster(config, demands):
        from controller.remote_control import check_name_is_free

        if not local:
            check_nodes(config, demands, inputs.shapes, checks)
        check_name_is_free(config.run_name)
        folder.open(config)
        events = Events(folder.events, folder.owner)
        print(described)
        try:
            record_data(folder, events, {**inputs.data_report.as_json(), "seed": config.seed})
            end_left_over(folder, events)
            folder.write_fingerprints(fingerprints)
        except NotOwnerError as error:
            raise ValueError(f"run_name: {error}") from error
        if changed:
            events.add("inputs_changed", changed=changed, reason="--force")
        events.add("prepared", seconds=times.end("ray"))
        command = shlex.join(["python", *sys.argv])
        events.add("run_started", command=command, is_resumed=resume, version=own_version())
        signals.check()

        async def trained() -> int:
            stop: list[Callable[[], object]] = [current_task().cancel]
            signals.then(lambda: stop[-1]())
            note_output(events)
            return await train(config, inputs, folder, events, checks, resume=resume, stop=stop)

        code = run_to_exit_code(trained(), note=lambda reason: events.add("run_failed", reason=reason))
        draw_report(folder)
        return code


async def train(
    config: RunConfig,
    inputs: "Inputs",
    folder: RunFolder,
    events: Events,
    checks: Checks,
    *,
    resume: bool,
    stop: list[Callable[[], object]],
) -> int:
    """Start the workers, run the pipeline, close everything; returns the exit code. The last of `stop` ends it."""
    from commands.preflight.record import PreflightRecord
    from commands.wiring import build_pools, start_pipeline
    from controller.context import RunContext
    from controller.remote_control import remote_control
    from reporting.live.boards import Dashboards
    from reporting.summary import summarise

    started = time.monotonic()
    folder.on_late(events.add_late)
    pools = build_pools(config, inputs, events, tolerated=checks.force, folder=folder)
    context = RunContext.of(config, pools, folder, events)
    preflight = PreflightRecord(context, checks)
    timeline = timeline_of(folder, pools.values())
    boards = Dashboards(config, folder, events)
    view = boards.view
    has_started = has_ended = False
    try:
        async with (
            remote_control(
                context, is_local=is_local(config.cluster), stop=lambda: stop[-1](), monitor=boards.monitor
            ) as control,
            boards.following(control.status),
        ):
            view.say(f"run folder {folder.path}; starting {'; '.join(map(str, plan(config)))}")
            view.say(preflight.begin())
            pipeline = await start_pipeline(context, inputs, resume=resume)
            has_started = True
            folder.accept(config)
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
        await _hand_over(config, folder, events, summary)
        view.say(f"finished {summary['steps']} steps in {summary['wall_s']} s; student in {folder.export}")
        return FINISHED
    finally:
        preflight.close()
        closing = [pool.close(gracefully=has_started) for pool in pools.values()]
        await asyncio.gather(boards.close(has_failed=not has_ended), *closing)
        timeline.close()


async def _hand_over(config: RunConfig, folder: RunFolder, events: Events, summary: dict[str, Any]) -> None:
    """A finished student gets its model card, and is uploaded if that is wanted; the accuracy is printed."""
    from reporting.summary import accuracy_table

    write_model_card(folder, config, folder.export, step=summary["steps"], name=config.export.push_to)
    if config.export.push_to is not None:
        from commands.export import push_export

        await push_export(folder.export, config.export, events)
    if (accuracy := accuracy_table(summary)).rows:
        Console().print(accuracy)


def timeline_of(folder: RunFolder, pools: Iterable["Pool"]) -> Timeline:
    """The timeline of a run, which its pools write."""
    timeline = Timeline(folder.timeline, folder.owner)
    for pool in pools:
        pool.timeline = timeline
    return timeline


def note_output(events: Events) -> None:
    """From now on, while this loop runs, output that fails is an event."""
    loop = asyncio.get_running_loop()

    def note(event: str, stream: str, reason: str) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it the events
            loop.call_soon_threadsafe(partial(events.add, event, stream=stream, reason=reason))

    on_trouble(note)


def draw_report(folder: RunFolder) -> None:
    """Write the run's report, if its folder is still this process's; a failure is only logged."""
    try:
        from commands.report import write_report

        if folder.owner.is_held:
            write_report([folder], folder.report)
    except Exception as error:
        logger.error("the report could not be drawn", exc_info=error)


class StartTimes:
    """Where the time goes before workers are placed: seconds by phase; a new object ends the first.

    >>> times = StartTimes("imports")
    >>> times.end("inputs")
    {'imports': 0.81, 'inputs': 4.1}
    """

    def __init__(self, first: str, *, began: float | None = None) -> None:
        """`began` is when the first phase began, by default this process; seconds since the epoch."""
        self._since = _began() if began is None else began
        self.seconds: dict[str, float] = {}
        self.end(first)

    def end(self, phase: str) -> dict[str, float]:
        """A phase ends now, and the next one begins; returns the seconds of all that have ended."""
        now = time.time()
        self.seconds[phase], self._since = round(now - self._since, 3), now
        return dict(self.seconds)


def _began() -> float:
    """When this process began, to a hundredth of a second: psutil's answer is off by up to one."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None, "this process is alive"
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
