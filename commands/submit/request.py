"""What `launch.py submit` sends, what a place that runs jobs can do, and the variables that a job gets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from settings.secrets import is_secret_name, is_secret_text


@dataclass(frozen=True)
class Request:
    """A run to be submitted. Its name identifies it: a running run is not submitted twice."""

    run_name: str
    train: Sequence[str]
    """Options of `launch.py train` that say the whole run but its settings file: `overrides`, --run-name, --force,
    --resume=auto and --retries."""
    config: str | None
    """The settings file, as it was given."""
    settings: str
    """All settings of the run as one YAML text, overrides included."""
    overrides: Sequence[str]
    """The settings that were given as options."""
    runs_path: str
    """Folder of all runs, as the job sees it; absolute."""
    retries: int
    """Times that the entry point continues after a crash, from the newest checkpoint."""
    environment: Mapping[str, str]
    """Variables of the job."""
    grace_s: float
    """Maximum time for the run to finish its step and save when it is stopped."""


@dataclass(frozen=True)
class JobState:
    """How a submitted run is doing."""

    job: str
    """Name of the job, unlike that of any other."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; of Kubernetes also SUSPENDED."""
    message: str
    exit_code: int | None
    """Of `launch.py train`, where the place tells; None while the job runs."""
    is_lost: bool = False
    """True if the job ended although its run did not: its node or the head was lost, or its process killed. The
    same run may be submitted again."""
    earlier: Sequence["JobState"] = ()
    """The run's jobs before this one, oldest first, as far as the place remembers them."""


class UnreachableError(ValueError):
    """The place does not answer; it may do so later."""


class Place(Protocol):
    """Somewhere jobs run. Every mistake is one ValueError in one line; nothing is changed then."""

    def submit(self, request: Request) -> JobState:
        """Start the run, or find the job of this run that is running; the state's message says which."""
        ...

    def state(self, run_name: str) -> JobState | None:
        """The newest job of a run; None if there is none."""
        ...

    def follow(self, run_name: str) -> JobState:
        """Print what the job prints until it ends, across its restarts."""
        ...

    def stop(self, run_name: str, *, grace_s: float) -> JobState:
        """Let the run finish its step and save; returns when the job has ended."""
        ...

    def describe(self, request: Request) -> Any:
        """What `submit` would send, as data or text, without sending it."""
        ...


# -- variables: `--env NAME=VALUE`, or `--env NAME` for the value of this environment ----------------------
# Whoever holds the cluster's token can read them, so a value that looks like a secret is at least not typed into a
# command line, which every user of the machine can list.


NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN = {
    "RAY_JOB_STOP_WAIT_TIME_S": "--grace sets it",
    "RAY_ADDRESS": "the job is told its cluster",
    "RAY_AUTH_TOKEN": "the nodes have the token of their cluster",
}
"""Variables that are not given this way, and why."""


def read_environment(given: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """The job's variables by name; `here` is the environment of this process. ValueError without any value."""
    read: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        _check_name(name)
        if name in read:
            raise ValueError(f"--env {name}: given twice")
        if not equals:
            if name not in here:
                raise ValueError(f"--env {name}: not set in this environment; export it, or give {name}=VALUE")
            value = here[name]
        elif is_secret_name(name) or is_secret_text(value):
            raise ValueError(
                f"--env {name} looks like a secret, and command lines are public; export {name} and give "
                f"--env {name} alone, which takes the value from this environment"
            )
        read[name] = value
    return read


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        # What was given may be a value: it is not shown.
        raise ValueError("--env must be NAME=VALUE or NAME, with a NAME of letters, digits and '_'")
    if name in OWN:
        raise ValueError(f"--env {name}: {OWN[name]}")
