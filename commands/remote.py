"""`launch.py scale`, `status` and `stop`: another process, on this machine or another, talks to a run.

A run of the same user on this machine is asked through its socket, which needs no Ray. Where another one is:
`--address`, else what `cluster.json` in its folder says, else RAY_ADDRESS, else the Ray of this machine. Every
mistake is one ValueError, and nothing is changed then. Ray is imported when authentication is on.
"""

import argparse
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from cluster.connection import NAMESPACE, attached
from cluster.local_socket import ask_here, connection_to
from cluster.mailbox import ANSWER_TIMEOUT_S, PREFIX, actor_name, checked_count
from records.files import has
from records.ownership import is_alive_here
from records.run_folder import RunFolder
from reporting.live.terminal import LiveView
from reporting.status_text import as_text
from settings.exit_codes import FINISHED
from settings.run import checked_run_name

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 2.0


def run_remote_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Carry out `scale`, `status` or `stop`; returns the exit code 0, ValueError for bad input."""
    checked_run_name(arguments.run, "--run")
    if arguments.command == "scale":
        request: dict[str, Any] = {"kind": "scale", "counts": read_counts(options)}
    elif options:
        takes = (
            "--run, --watch, --json, --address" if arguments.command == "status" else "--run, --json, --address"
        )
        raise ValueError(f"unexpected argument {options[0]!r}; {arguments.command} takes {takes}")
    else:
        request = {"kind": arguments.command}
    with _reached_anyhow(arguments) as asked:
        answer = asked(request)
        if arguments.command == "status" and arguments.watch:
            _watch(asked, arguments, request, answer)
        else:
            _show(answer, as_json=arguments.json)
    return FINISHED


Asked = Callable[[Mapping[str, Any]], dict[str, Any]]
"""The run's answer to a request; ValueError with its error, or if it does not answer."""


def _watch(
    asked: Asked, arguments: argparse.Namespace, request: Mapping[str, Any], answer: Mapping[str, Any]
) -> None:
    """Show the status again and again until Ctrl-C, or until the run does not answer any more.

    On a terminal it is the live view of the run itself.
    """
    console = Console()
    is_live = console.is_terminal and not arguments.json
    with Live(console=console, auto_refresh=False) if is_live else nullcontext() as live:
        try:
            while True:
                if live is None:
                    _show(answer, as_json=arguments.json)
                else:
                    live.update(LiveView(answer), refresh=True)
                time.sleep(WATCH_EVERY_S)
                answer = asked(request)
        except ValueError as error:
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            logger.info("interrupted")


def read_counts(options: Sequence[str]) -> dict[str, int]:
    """The worker count by role of `--rollout 4 --teacher=2`; ValueError naming the option that is wrong."""
    counts: dict[str, int] = {}
    items = iter(options)
    for item in items:
        option, equals, value = item.partition("=")
        role = option.removeprefix("--")
        if not option.startswith("--") or not role:
            raise ValueError(f"unexpected argument {item!r}; workers are given as --rollout 4 --teacher 2")
        text = value if equals else next(items, "")
        if not text or text.startswith("--"):
            raise ValueError(f"{option}: a number of workers is missing")
        if role in counts:
            raise ValueError(f"{option}: given twice")
        counts[role] = _read_count(option, text)
    if not counts:
        raise ValueError("scale: no pool is named; workers are given as --rollout 4 --teacher 2")
    return counts


def _read_count(option: str, text: str) -> int:
    try:
        count: Any = int(text)
    except ValueError:
        count = text  # or too many digits
    return checked_count(option, count)


@contextmanager
def _reached_anyhow(arguments: argparse.Namespace) -> Iterator[Asked]:
    """A run on this machine is asked directly, which needs no Ray and leaves nothing there; others through Ray."""
    cluster = None if arguments.address else _cluster_of(RunFolder(Path(arguments.runs_path) / arguments.run))
    with ExitStack() as stack:
        name = cluster.get("socket") if cluster is not None and _is_alive(cluster) else None
        try:
            connection = stack.enter_context(connection_to(name)) if isinstance(name, str) else None
        except OSError as error:
            logger.info("the run is asked through Ray: %s", error)
            connection = None
        if connection is not None:
            yield partial(_asked_here, connection, arguments.run)
        else:
            actor = stack.enter_context(reached(arguments))
            yield partial(ask, actor, arguments.run)


def _asked_here(connection: socket.socket, run_name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return checked_answer(ask_here(connection, request))
    except OSError as error:
        raise ValueError(f"--run: {run_name} does not answer ({error}); has it ended?") from error


@contextmanager
def reached(arguments: argparse.Namespace) -> Iterator[Any]:
    """The named actor of the run, while connected to its Ray; ValueError if there is no such run."""
    folder = RunFolder(Path(arguments.runs_path) / arguments.run)
    address = arguments.address or address_of(folder) or os.environ.get("RAY_ADDRESS") or "auto"
    with ExitStack() as stack:
        try:
            ray = stack.enter_context(attached(address))
        except ConnectionError as error:
            raise ValueError(
                f"--run: no run named {arguments.run} in {arguments.runs_path} is running "
                f"({_listed(arguments)}), and {error}"
            ) from error
        try:
            actor = ray.get_actor(actor_name(arguments.run), namespace=NAMESPACE)
        except ValueError:
            named = ray.util.list_named_actors(all_namespaces=True)
            names = [each["name"] for each in named if each["namespace"] == NAMESPACE]
            runs = sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
            raise ValueError(
                f"--run: no run named {arguments.run} is running at {address} (running: "
                f"{', '.join(runs) or 'none'})"
            ) from None
        yield actor


def address_of(folder: RunFolder) -> str | None:
    """Address of the Ray of a running run, from its folder; None if the folder does not tell.

    ValueError if the folder tells that the run's process has ended without a word.
    """
    cluster = _cluster_of(folder)
    if cluster is None:
        return None
    if cluster["host"] == socket.gethostname() and not _is_alive(cluster):
        raise ValueError(
            f"--run: {folder.path.name} is not running: its process {cluster['pid']} has ended (nearest valid: "
            f"launch.py train --resume with its configuration)"
        )
    return cluster["address"]


def _is_alive(driver: Mapping[str, Any]) -> bool:
    return driver["pid"] == os.getpid() or is_alive_here(driver)


def _cluster_of(folder: RunFolder) -> dict[str, Any] | None:
    """What `cluster.json` of a run says; None if it is not there. ValueError naming it if it is broken."""
    try:
        cluster = folder.read_cluster()
    except ValueError as error:
        raise ValueError(f"--run: {error}") from error
    if cluster is not None and not has(cluster, address=str):
        raise ValueError(f"--run: {folder.cluster} does not say the address of a run")
    return cluster


def _listed(arguments: argparse.Namespace) -> str:
    """The running runs of the folder, for an error."""
    path = Path(arguments.runs_path)
    folders = [RunFolder(each.parent) for each in sorted(path.glob("*/cluster.json"))]
    runs = [f.path.name for f in folders if (c := _cluster_of(f)) and _is_alive(c)]
    return f"running: {', '.join(runs) or 'none'}"


def ask(actor: Any, run_name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The run's answer; ValueError with its error, or if it does not answer."""
    import ray
    from ray.exceptions import RayError

    try:
        answer: dict[str, Any] = ray.get(actor.ask.remote(dict(request)), timeout=ANSWER_TIMEOUT_S + 10)
    except (RayError, TimeoutError) as error:
        raise ValueError(f"--run: {run_name} does not answer ({type(error).__name__}); has it ended?") from error
    return checked_answer(answer)


def checked_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer; ValueError with the run's error if it is one."""
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer


def _show(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer), flush=True)
    else:
        print("\n".join(answer["lines"]) if "lines" in answer else as_text(answer), flush=True)
