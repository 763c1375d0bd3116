"""What a killed driver leaves behind: found, proved to be of that run, and ended when the run is resumed.

Every process that Ray starts, and every one below it, has a log file of its Ray session open for writing. The name
of the session says whose it is where the run started its own Ray; in a cluster, which others use too, the worker's
number in the name of its log file does: the cluster remembers the actors of every job. `cluster.json` in the run
folder holds session and job.
"""

import logging
import os
import re
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import psutil

from records.events import Events
from records.files import has
from records.ownership import is_alive_here, owner_of
from records.run_folder import RunFolder

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Maximum time of the search on the other nodes."""

EVERY_PROCESS = r".+"


def check_has_ended(folder: RunFolder) -> None:
    """ValueError if a driver that the folder names is alive on this host, be it frozen, or still starting."""
    for driver in (_last_cluster(folder), owner_of(folder.path)):
        if driver is not None and is_alive_here(driver):
            raise ValueError(
                f"--resume: the run is still running: pid {driver['pid']} (nearest valid: launch.py stop --run "
                f"{folder.path.name}, and then --resume)"
            )


def end_left_over(folder: RunFolder, events: Events) -> None:
    """End what the last driver of the folder left, here and on the nodes of its cluster; each is an event.

    To be called while connected, by the owner of the folder, before the folder names it as the new driver.
    ValueError or NotOwnerError, and nothing is ended, if that driver is alive or another one owns the folder.
    """
    cluster = _last_cluster(folder)
    if cluster is None or not has(cluster, session=str) or "is_local" not in cluster:
        return
    check_has_ended(folder)
    folder.owner.check()  # so what was read is an earlier owner's: a later one takes the folder before it writes
    for node, ended in _end_everywhere(cluster).items():
        for process in ended:
            events.add("orphan_ended", node=node, **process, reason=f"left by the driver {cluster['pid']}")


def _last_cluster(folder: RunFolder) -> dict[str, Any] | None:
    """What the last driver said of its cluster; None if that is lost: what it left is not found then."""
    try:
        return folder.read_cluster()
    except ValueError as error:
        logger.warning("what the last driver left is not looked for: %s", error)
        return None


def _end_everywhere(cluster: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    import ray

    from cluster.ray_actors import on_every_node
    from cluster.ray_private import workers_of_job

    session, host = cluster["session"], socket.gethostname()
    if cluster["is_local"]:
        return {host: end_orphans(session, EVERY_PROCESS)} if cluster["host"] == host else {}
    if ray.get_runtime_context().get_session_name() != session:
        logger.info("what the last driver left is in another cluster: %s", cluster["address"])
        return {}
    workers = workers_of_job(cluster["job_id"]) if has(cluster, job_id=str) else []
    return on_every_node(end_orphans, session, log_of(workers), timeout_s=TIMEOUT_S) if workers else {}


def log_of(worker_ids: Collection[str]) -> str:
    """The log files of these workers, as a pattern of `worker-WORKER-JOB-PID.out`; the job is not always named."""
    return rf"worker-({'|'.join(map(re.escape, worker_ids))})-[0-9a-f]+-\d+\.(out|err)"


def end_orphans(session: str, log_file: str) -> list[dict[str, Any]]:
    """Kill every process of this node that writes such a log file of that Ray session; pid and name of each."""
    ended = list[dict[str, Any]]()
    for process in processes_of(session, log_file):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name = process.name()
            process.kill()  # refuses a pid that is another process's by now
            ended.append({"pid": process.pid, "name": name})
    return ended


def processes_of(session: str, log_file: str) -> list[psutil.Process]:
    """The processes of this node, but the calling one, that write such a log file of a Ray session.

    Only this user's processes can be looked into, so none of another user is among them.
    """
    path, found = re.compile(rf".*/{re.escape(session)}/logs/{log_file}"), list[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile, or is another user's
            if process.pid != os.getpid() and _writes_to(process, path):
                found.append(process)
    return found


def _writes_to(process: psutil.Process, path: re.Pattern[str]) -> bool:
    """True if the process has such a file open for writing: whoever only reads a log is not of the run."""
    files: list[Any] = process.open_files()
    return any(file.mode != "r" and path.fullmatch(file.path) for file in files)
