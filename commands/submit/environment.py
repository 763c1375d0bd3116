"""The variables that a job gets: `--env NAME=VALUE`, or `--env NAME` for the value of this environment.

Whoever holds the cluster's token can read them, so a value that looks like a secret is at least not typed into a
command line, which every user of the machine can list.
"""

import re
from collections.abc import Mapping, Sequence

from settings.secrets import is_secret_name, is_secret_text

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
