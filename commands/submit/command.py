"""`launch.py submit`: sends a run to a cluster as a job, follows it, stops it, says how it is doing.

Everything that can be known here is checked before anything is sent. Data and models need not be on this machine.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from cluster.connection import jobs_api
from commands.checks import load_checked
from commands.parser import GRACE_S
from commands.submit.request import JobState, Place, Request, UnreachableError, read_environment
from settings.exit_codes import DRAINED, FAILED, FINISHED
from settings.load import to_yaml
from settings.run import checked_run_name

INTERRUPTED = 130
"""Exit code after Ctrl-C while following: the job continues."""
DEFAULT_OVERLAY = "docker/k8s/overlays/cpu-kind"
GROUPS = ("rollout", "teacher", "learner")
AGAIN_PAUSE_S, AGAIN_GIVE_UP_S = 5.0, 900.0
"""A cluster whose head was lost is asked so often, and for so long, to take the run again."""

ONLY_RAY = {"address": "--address", "entrypoint_num_cpus": "--entrypoint-num-cpus"} | {
    "entrypoint_resources": "--entrypoint-resources"
}
ONLY_K8S = {"overlay": "--overlay", "namespace": "--namespace", "priority_class": "--priority-class"}

ROOT = Path(__file__).resolve().parents[2]
"""The folder of launch.py, which a job works in."""


def submit_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Carry it out; returns the exit code. ValueError means a mistake, and that nothing was sent."""
    check_options(arguments, options)
    if arguments.log_level == "warning":  # what is waited for, and since when, is said here
        logging.getLogger("commands.submit").setLevel(logging.INFO)
    if arguments.run is None:
        request = build_request(arguments, options)
        place = choose_place(arguments)
        if arguments.dry_run:
            described = place.describe(request)
            print(described if isinstance(described, str) else yaml.safe_dump(described, sort_keys=False))
            return FINISHED
        state = place.submit(request)
        print(f"{state.job}: {state.message}", flush=True)
        if arguments.follow:
            return follow(place, request.run_name, request, retries=arguments.retries)
        print(f"python launch.py submit --follow --run {request.run_name} shows how it is doing")
        return FINISHED
    place, name = choose_place(arguments), checked_run_name(arguments.run, "--run")
    if arguments.stop:
        return stop(place, name, grace_s=arguments.grace or GRACE_S)
    if arguments.follow:
        return follow(place, name, None, retries=0)
    return show(place, name)


# -- checks -----------------------------------------------------------------------------------------------


def check_options(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """ValueError for options that do not go together, or whose value is none."""
    foreign = ONLY_K8S if arguments.to == "ray" else ONLY_RAY
    for name, option in foreign.items():
        if getattr(arguments, name):
            reason = "; Ray's jobs have no priorities" if name == "priority_class" else ""
            other = "k8s" if arguments.to == "ray" else "ray"
            raise ValueError(f"{option} is an option of --to {other}, not of --to {arguments.to}{reason}")
    if arguments.retries < 0:
        raise ValueError(f"--retries must be >= 0, got {arguments.retries} (nearest valid: 0)")
    if arguments.grace is not None and not 1 <= arguments.grace < float("inf"):
        raise ValueError(f"--grace must be >= 1 second, got {arguments.grace:g} (nearest valid: 1)")
    if (cpus := arguments.entrypoint_num_cpus) is not None and not 0 <= cpus < float("inf"):
        raise ValueError(f"--entrypoint-num-cpus must be >= 0, got {cpus:g} (nearest valid: 0)")
    asked = [name for name in ("stop", "status", "follow") if getattr(arguments, name)]
    if arguments.run is None:
        if needs_run := [f"--{name}" for name in asked if name != "follow"]:
            raise ValueError(f"{needs_run[0]} takes the name of the run: --run NAME")
    elif len(asked) != 1:
        raise ValueError("--run NAME takes one of --follow, --stop and --status; to submit a run give --run-name")
    elif options or arguments.config or arguments.dry_run or arguments.retries or arguments.env:
        given = options[0] if options else "--config, --dry-run, --retries or --env"
        raise ValueError(f"--{asked[0]} --run NAME submits nothing: {given} has no effect on a run that is there")


def build_request(arguments: argparse.Namespace, options: Sequence[str]) -> Request:
    """The run to be sent, checked; ValueError naming what is wrong."""
    groups = [f"--{role}.resources.custom.{role}=1" for role in GROUPS] if arguments.node_groups else []
    overrides = [*groups, *options]
    config = load_checked(arguments.config, overrides)
    for field, path in {"runs_path": config.runs_path, "checkpoint.path": config.checkpoint.path}.items():
        if path is not None and not Path(path).is_absolute():
            raise ValueError(
                f"{field} must be an absolute path that every node has, such as /shared/runs, got {path!r}: "
                "what a job writes into its own working directory is lost with it"
            )
    forced = [word for key in arguments.force for word in ("--force", key)]
    overrides = without_name(overrides)
    train = ["--run-name", config.run_name, *overrides, *forced, "--log-level", arguments.log_level]
    return Request(
        run_name=config.run_name,
        train=[*train, "--resume=auto", "--retries", str(arguments.retries)],
        config=arguments.config,
        settings=to_yaml(config),
        overrides=overrides,
        runs_path=config.runs_path,
        retries=arguments.retries,
        environment=read_environment(arguments.env, os.environ),
        grace_s=arguments.grace or GRACE_S,
    )


def without_name(overrides: Sequence[str]) -> list[str]:
    """The options but the run's name, which the entry point has at its beginning."""
    kept: list[str] = []
    words = iter(overrides)
    for word in words:
        option, equals, _ = word.partition("=")
        if option not in ("--run-name", "--run_name"):
            kept.append(word)
        elif not equals:
            next(words, None)
    return kept


def choose_place(arguments: argparse.Namespace) -> Place:
    """Where the run goes."""
    if arguments.to == "k8s":
        from commands.submit.kubernetes import KubernetesPlace

        overlay = Path(arguments.overlay) if arguments.overlay else ROOT / DEFAULT_OVERLAY
        return KubernetesPlace(overlay, arguments.namespace, arguments.priority_class)
    resources = read_resources(arguments.entrypoint_resources)
    address = jobs_api(arguments.address, needs_token=not arguments.dry_run)
    from commands.submit.ray_jobs import RayJobs

    return RayJobs(address, root=ROOT, num_cpus=arguments.entrypoint_num_cpus, resources=resources)


def read_resources(given: Sequence[str]) -> dict[str, float]:
    """The amounts of `NAME=AMOUNT` by name; ValueError for one that is none."""
    read: dict[str, float] = {}
    for item in given:
        name, _, text = item.partition("=")
        try:
            amount = float(text)
        except ValueError:
            amount = 0.0
        if not name or not 0 < amount < float("inf"):
            raise ValueError(f"--entrypoint-resources must be NAME=AMOUNT with an AMOUNT > 0, got {item!r}")
        read[name] = amount
    return read


# -- a run that is there ----------------------------------------------------------------------------------


def follow(place: Place, run_name: str, request: Request | None, *, retries: int) -> int:
    """Print what the run prints until it ends; a job that is lost as a whole is submitted again.

    That happens up to `retries` times. A run that finished, failed, was refused or drained is not: only
    `is_lost` counts.
    """
    num_again = 0
    try:
        while True:
            state = place.follow(run_name)
            if not state.is_lost or request is None or num_again == retries:
                return report(run_name, state)
            num_again += 1
            say(f"{state.job} was lost ({state.message}); submitted again, {num_again} of {retries}")
            state = submit_again(place, request)
            say(f"{state.job}: {state.message}")
    except KeyboardInterrupt:
        say(f"not followed any more; the run continues (launch.py submit --stop --run {run_name} ends it)")
        return INTERRUPTED
    except UnreachableError as error:
        say(f"failed: {error}; the run may be running: launch.py submit --status --run {run_name}")
        return FAILED


def submit_again(
    place: Place, request: Request, *, pause_s: float = AGAIN_PAUSE_S, give_up_s: float = AGAIN_GIVE_UP_S
) -> JobState:
    """Submit a run whose job was lost, as soon as the place answers; UnreachableError if it never does."""
    deadline = time.monotonic() + give_up_s
    while True:
        try:
            return place.submit(request)
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(pause_s)


def stop(place: Place, run_name: str, *, grace_s: float) -> int:
    """Let the run finish its step and save; 0 once it has, or had finished before."""
    state = place.stop(run_name, grace_s=grace_s)
    code = report(run_name, state)
    return FINISHED if code in (FINISHED, DRAINED) else FAILED


def show(place: Place, run_name: str) -> int:
    """Print the jobs of a run, oldest first, and how the run is doing."""
    state = place.state(run_name)
    if state is None:
        raise ValueError(f"--run: no job of a run named {run_name}")
    for each in (*state.earlier, state):
        code = "" if each.exit_code is None else f", exit code {each.exit_code}"
        print(f"{each.job}  {each.status}{code}  {each.message}")
    jobs = len(state.earlier) + 1
    print(f"{run_name}: {state.message} ({'1 job' if jobs == 1 else f'{jobs} jobs'})")
    return FINISHED


def report(run_name: str, state: JobState) -> int:
    """Say how a job ended; the exit code of the run."""
    say(f"{run_name}: {state.message} ({state.job} {state.status})")
    return exit_code_of(state)


def exit_code_of(state: JobState) -> int:
    """0 finished, 1 failed, 2 refused, 3 drained and resumable, as of `launch.py train`."""
    if state.exit_code is not None:
        return state.exit_code
    return {"SUCCEEDED": FINISHED, "STOPPED": DRAINED, "SUSPENDED": DRAINED}.get(state.status, FAILED)


def say(line: str) -> None:
    """A word of this command, apart from what the job prints."""
    print(line, file=sys.stderr, flush=True)
