"""`launch.py preflight`: every check of a run in the order of its cost, collected, and shown."""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.capacity import ray_cluster
from cluster.connection import is_local
from cluster.placement import Demand
from commands.checks import check_inputs, check_placement, load_checked
from commands.preflight.ending import check_ending
from commands.preflight.resources import check_disk, check_nodes
from commands.preflight.table import show
from records.events import Events, reason_of
from records.run_folder import RunFolder
from settings.checks import CHECKS, Checks, Finding, RefusedError
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RunConfig

if TYPE_CHECKING:  # transformers takes seconds to import
    from inputs.inputs import Inputs


def preflight_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Make all checks and print them; exit code 2 if one failed that was not forced.

    Engines are started only if nothing failed before.
    """
    config = load_checked(arguments.config, options)
    checks = Checks(force=arguments.force, collects=True)
    phases: dict[str, float] = {}
    inputs = None
    with _timed(phases, "models and data"):
        try:
            inputs = check_inputs(config, checks)
        except RefusedError as error:
            _skip_missing(checks, str(error), but=("disk", "placement"))
    demands = check_placement(config, checks)
    folder = _run_folder(config, checks)
    with _timed(phases, "disk"):
        check_disk(config, folder, inputs and inputs.shapes.get("student"), checks)
    if inputs is not None:
        with _timed(phases, "export"):
            check_ending(config, folder, inputs.stops, checks)
        _with_ray(config, inputs, demands, checks, phases, starts_engines=not arguments.dry_run)
    _skip_missing(checks, "not made after these errors" if checks.errors else "not made: --dry-run")
    if arguments.json:
        seconds = {name: round(value, 3) for name, value in phases.items()}
        print(json.dumps({"run_name": config.run_name, **checks.report(), "seconds": seconds}))
    else:
        show(checks, console=Console(), phases=phases)
    return BAD_INPUT if checks.errors else FINISHED


def _with_ray(
    config: RunConfig,
    inputs: "Inputs",
    demands: Sequence[Demand],
    checks: Checks,
    phases: dict[str, float],
    *,
    starts_engines: bool,
) -> None:
    """Look at the nodes, and start the engines if all is well; a Ray of our own is started for engines alone."""
    local = is_local(config.cluster)
    if local:
        with _timed(phases, "nodes"):
            check_nodes(config, demands, inputs.shapes, checks)
        if checks.errors or not starts_engines:
            return
    start = time.monotonic()
    with checks.guard("placement", is_hard=True), ray_cluster(config, demands):
        phases["Ray"] = time.monotonic() - start
        if not local:
            with _timed(phases, "nodes"):
                check_nodes(config, demands, inputs.shapes, checks)
        if starts_engines and not checks.errors:
            with _timed(phases, "engines"):
                asyncio.run(check_engines(config, inputs, checks))


async def check_engines(config: RunConfig, inputs: "Inputs", checks: Checks) -> None:
    """Start every worker, score the golden sequence along every path, enter what was found, and end them."""
    from ray.exceptions import RayError

    from commands.preflight.golden import record_golden, record_replicas, start_and_load
    from commands.wiring import build_learner, build_pools

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
