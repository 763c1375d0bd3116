"""`launch.py preflight`: every check of a run in the order of its cost, collected, and shown."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from cluster.capacity import ray_cluster
from cluster.connection import is_local
from cluster.placement import Demand
from commands.preflight.resources import check_disk
from commands.preflight.table import show
from records.run_folder import RunFolder
from settings.checks import CHECKS, Checks, RefusedError
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RunConfig


def preflight(
    config: RunConfig,
    checks: Checks,
    *,
    read: Callable[[], Any],
    place: Callable[[], list[Demand]],
    check_machines: Callable[[Any, Sequence[Demand]], None],
    check_engines: Callable[[Any], Coroutine[Any, Any, None]],
    starts_engines: bool,
    is_json: bool,
) -> int:
    """Make all checks and print them; exit code 2 if one failed that was not forced.

    `read` reads the inputs (RefusedError if it cannot), `place` says which workers there are, `check_machines`
    looks at the nodes of a connected Ray or at this machine, `check_engines` starts the workers and scores.
    Engines are started only if nothing failed before.
    """
    phases: dict[str, float] = {}
    inputs = None
    with _timed(phases, "models and data"):
        try:
            inputs = read()
        except RefusedError as error:
            _skip_missing(checks, str(error), but=("disk", "placement"))
    demands = place()
    with _timed(phases, "disk"):
        check_disk(config, _run_folder(config, checks), inputs and inputs.shapes.get("student"), checks)
    if inputs is not None:
        score = (lambda: check_engines(inputs)) if starts_engines else None
        _with_ray(config, checks, demands, phases, lambda: check_machines(inputs, demands), score)
    _skip_missing(checks, "not made after these errors" if checks.errors else "not made: --dry-run")
    if is_json:
        seconds = {name: round(value, 3) for name, value in phases.items()}
        print(json.dumps({"run_name": config.run_name, **checks.report(), "seconds": seconds}))
    else:
        show(checks, console=Console(), phases=phases)
    return BAD_INPUT if checks.errors else FINISHED


def _with_ray(
    config: RunConfig,
    checks: Checks,
    demands: Sequence[Demand],
    phases: dict[str, float],
    check_machines: Callable[[], None],
    check_engines: Callable[[], Coroutine[Any, Any, None]] | None,
) -> None:
    """Look at the nodes, and start the engines if all is well; a Ray of our own is started for engines alone."""
    local = is_local(config.cluster)
    if local:
        with _timed(phases, "nodes"):
            check_machines()
        if checks.errors or check_engines is None:
            return
    start = time.monotonic()
    with checks.guard("placement", is_hard=True), ray_cluster(config, demands):
        phases["Ray"] = time.monotonic() - start
        if not local:
            with _timed(phases, "nodes"):
                check_machines()
        if not checks.errors and check_engines is not None:
            with _timed(phases, "engines"):
                asyncio.run(check_engines())


def _run_folder(config: RunConfig, checks: Checks) -> RunFolder:
    """The run's folder, which may be there already; that it cannot be written is an error of `paths`."""
    folder = RunFolder.named(config)
    with checks.guard("paths", is_hard=True):
        RunFolder.of(config, resume=folder.path.is_dir())
    return folder


def _skip_missing(checks: Checks, reason: str, but: Sequence[str] = ()) -> None:
    for key in CHECKS:
        if key not in but:
            checks.skip(key, reason)


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        phases[name] = time.monotonic() - start
