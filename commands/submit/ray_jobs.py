"""Runs as jobs of a Ray cluster, through Ray's own client of its jobs API. Import it after `jobs_api`.

The job's process is `launch.py train` on the head, unless the entry point asks for resources of its own.
"""

import asyncio
import hashlib
import logging
import math
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobSubmissionClient
from ray.util.state import list_actors

from cluster.connection import NAMESPACE
from cluster.mailbox import actor_name
from cluster.ray_private import sent_files
from commands.submit.ray_client import (
    RUN,
    SETTINGS,
    id_of,
    is_ended,
    jobs_client,
    jobs_of,
    next_job_id,
    reported,
    state_of,
    status_of,
)
from commands.submit.ray_job_log import LogFollower
from commands.submit.request import JobState, Request, UnreachableError
from settings.exit_codes import DRAINED
from settings.files import files_of_settings

NAME_TIMEOUT_S = 10.0
"""Maximum time for the named actor of an ended run to disappear."""
STOP_MARGIN_S = 60.0
"""Maximum time for a job to end after its grace time: Ray kills it then."""
POLL_S = 1.0
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"

logger = logging.getLogger(__name__)


class RayJobs:
    """The jobs of one Ray cluster; a `Place`."""

    def __init__(
        self,
        address: str,
        *,
        root: Path,
        num_cpus: float | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """`address` as `jobs_api` gives it; `root` is the working directory that is sent.

        `num_cpus` and `resources` are reserved for the run's own process, which then need not be on the head.
        """
        self._address, self._root = address, root
        self._num_cpus, self._resources = num_cpus, dict(resources or {})

    # -- submitting --

    def submit(self, request: Request) -> JobState:
        """Start the run, or find the job of this run that is running with these settings."""
        package = find_package(self._root)
        entry_point = shlex.join(_entry_point(request, path_in_package(request.config, package)))
        all_jobs = self._all_jobs()
        own = jobs_of(request.run_name, all_jobs)
        if going := [job for job in own if not is_ended(job)]:
            return self._found(going[-1], request)
        self._check_name_is_free(request.run_name, [job for job in all_jobs if job not in own])
        job_id = next_job_id(request.run_name, len(own), {job.submission_id for job in all_jobs})
        try:
            self._send(request, entry_point, job_id)
        except ValueError:
            now = self._newest(request.run_name)
            if now is None or now.submission_id != job_id:
                raise
            return self._found(now, request)  # another process submitted the run meanwhile
        return JobState(job_id, "PENDING", f"submitted to {self._address}", None)

    def _send(self, request: Request, entry_point: str, job_id: str) -> None:
        runtime_env = {"working_dir": str(self._root), "excludes": EXCLUDES, "env_vars": _variables(request)}
        with reported(self._address):
            self._client.submit_job(
                entrypoint=entry_point,
                submission_id=job_id,
                runtime_env=runtime_env,
                metadata={RUN: request.run_name, SETTINGS: _digest(request)},
                entrypoint_num_cpus=self._num_cpus,
                entrypoint_resources=self._resources or None,
            )

    def _found(self, job: JobDetails, request: Request) -> JobState:
        if (job.metadata or {}).get(SETTINGS) != _digest(request):
            raise ValueError(
                f"run_name: {request.run_name} is running as job {job.submission_id} with other settings; choose "
                f"another name, or stop it first (launch.py submit --stop --run {request.run_name})"
            )
        return JobState(id_of(job), status_of(job), "is running already; nothing was changed", None)

    def _check_name_is_free(self, run_name: str, others: Sequence[Any]) -> None:
        """ValueError if the run is running, but not as a job of its own, or if another job has its name."""
        if any(job.submission_id == run_name and not is_ended(job) for job in others):
            raise ValueError(
                f"run_name: a job named {run_name} that is not of this run is running at {self._address}; choose "
                "another name"
            )
        name = actor_name(run_name)
        filters: list[Any] = [("name", "=", name), ("ray_namespace", "=", NAMESPACE), ("state", "=", "ALIVE")]
        deadline = time.monotonic() + NAME_TIMEOUT_S
        while True:
            with reported(self._address):
                found = list_actors(address=self._address, filters=filters)
            if not found:
                return
            if time.monotonic() > deadline:
                raise ValueError(
                    f"run_name: a run named {run_name} is running at {self._address} already, and not as a job of "
                    "its own; choose another name"
                )
            time.sleep(POLL_S)

    def describe(self, request: Request) -> str:
        """What would be sent, in lines."""
        package = find_package(self._root)
        entry_point = _entry_point(request, path_in_package(request.config, package))
        pinned = {**({} if self._num_cpus is None else {"CPU": self._num_cpus}), **self._resources}
        where = ", ".join(f"{name} {amount:g}" for name, amount in pinned.items()) or "none: it runs on the head"
        lines = {
            "jobs API": self._address,
            "job": f"{request.run_name}, or the next free one of {request.run_name}.2, {request.run_name}.3, ...",
            "entry point": shlex.join(entry_point),
            "its resources": where,
            "variables": ", ".join(sorted(_variables(request))),
            "working directory": str(package),
        }
        return "\n".join(f"{name}: {text}" for name, text in lines.items())

    # -- a run that is there --

    def state(self, run_name: str) -> JobState | None:
        """The newest job of a run, with those before it; None if there is none."""
        jobs = jobs_of(run_name, self._all_jobs())
        if not jobs:
            return None
        *before, newest = jobs
        return self._state_of(newest, earlier=[self._state_of(job) for job in before])

    def follow(self, run_name: str) -> JobState:
        """Print the log of the newest job until it ends."""
        job = self._wanted(run_name)
        job_id = id_of(job)
        follower = LogFollower(
            lambda: self._client.tail_job_logs(job_id),
            lambda: self._find(job_id),
            has_ended=lambda found: found is None or is_ended(found),
        )
        found = asyncio.run(follower.run())
        if found is None:
            reason = "the cluster does not know it any more; its head was probably started anew"
            return JobState(job_id, "FAILED", reason, None, is_lost=True)
        return self._state_of(found)

    def stop(self, run_name: str, *, grace_s: float) -> JobState:
        """Let the run finish its step and save; its grace time is what it was submitted with."""
        job = self._wanted(run_name)
        if is_ended(job):
            raise ValueError(f"--run: {run_name} is not running: its newest job {job.submission_id} has ended")
        variables = (job.runtime_env or {}).get("env_vars") or {}
        grace_s = float(variables.get(GRACE_VARIABLE, grace_s))
        with reported(self._address):
            self._client.stop_job(id_of(job))
        given = f"it has {grace_s:g} s, as it was submitted, to finish its step and save"
        print(f"{job.submission_id}: told to stop; {given}", flush=True)
        deadline = time.monotonic() + grace_s + STOP_MARGIN_S
        while not is_ended(job) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            try:
                job = self._newest(run_name) or job
            except UnreachableError as error:
                logger.warning("%s", error)
        return self._state_of(job)

    def _wanted(self, run_name: str) -> JobDetails:
        all_jobs = self._all_jobs()
        if own := jobs_of(run_name, all_jobs):
            return own[-1]
        known = sorted({(job.metadata or {}).get(RUN, "") for job in all_jobs} - {""})
        raise ValueError(
            f"--run: no job of a run named {run_name} at {self._address} (runs: {', '.join(known) or 'none'})"
        )

    def _find(self, job_id: str) -> JobDetails | None:
        return next((job for job in self._all_jobs() if job.submission_id == job_id), None)

    def _newest(self, run_name: str) -> JobDetails | None:
        return next(reversed(jobs_of(run_name, self._all_jobs())), None)

    def _all_jobs(self) -> list[JobDetails]:
        with reported(self._address):
            return self._client.list_jobs()

    def _state_of(self, job: JobDetails, earlier: Sequence[JobState] = ()) -> JobState:
        log = ""
        if status_of(job) == "STOPPED" or job.driver_exit_code == DRAINED:  # what the run said last
            try:
                with reported(self._address):
                    log = self._client.get_job_logs(id_of(job))
            except ValueError as error:
                logger.warning("the log of %s cannot be read: %s", job.submission_id, error)
        return state_of(job, log, earlier)

    @cached_property
    def _client(self) -> JobSubmissionClient:
        return jobs_client(self._address)


def _entry_point(request: Request, config: str | None) -> list[str]:
    named = [] if config is None else ["--config", config]
    return ["python", "launch.py", "train", *named, *request.train]


def _variables(request: Request) -> dict[str, str]:
    return {**request.environment, GRACE_VARIABLE: str(math.ceil(request.grace_s))}


def _digest(request: Request) -> str:
    return hashlib.sha256(request.settings.encode()).hexdigest()


# -- the working directory that is sent: found as Ray finds it, so that its size is known before -------------


EXCLUDES = ["/runs"]
"""Left out whatever .gitignore says, as its patterns; Ray adds .git, .venv, venv and __pycache__."""

MAX_BYTES = 100 * 2**20
"""Ray's jobs API takes no larger body."""

NUM_NAMED = 3


@dataclass(frozen=True)
class Package:
    """The files that are sent, relative to the working directory, and their sizes in bytes."""

    root: Path
    sizes: dict[Path, int]

    @property
    def num_bytes(self) -> int:
        """Of all files, before they are packed."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        return f"{self.root}: {len(self.sizes)} files, {_mib(self.num_bytes)}"


def find_package(root: Path, *, max_bytes: int = MAX_BYTES) -> Package:
    """What Ray sends of the folder; ValueError naming its largest parts if that is too much."""
    sizes = sent_files(root, EXCLUDES)
    package = Package(root, sizes)
    if package.num_bytes > max_bytes:
        raise ValueError(
            f"the working directory {root} is too large to send: {_mib(package.num_bytes)}, and Ray takes "
            f"{_mib(max_bytes)}; largest: {_largest(sizes)} (put data and models where every node has them, or "
            "name the folders in .gitignore)"
        )
    return package


def _largest(sizes: dict[Path, int]) -> str:
    """The folders of the second level, or files above it, that hold the most."""
    totals = Counter[Path]()
    for path, size in sizes.items():
        totals[Path(*path.parts[:2])] += size
    return ", ".join(f"{path} {_mib(size)}" for path, size in totals.most_common(NUM_NAMED))


def path_in_package(config: str | None, package: Package) -> str | None:
    """The settings file as the job finds it; ValueError if it, or a file that it extends, is not sent."""
    if config is None:
        return None
    root = package.root.resolve()
    for path in files_of_settings(config):
        if not path.is_relative_to(root) or path.relative_to(root) not in package.sizes:
            raise ValueError(
                f"--config: {path} is not sent with the working directory {package.root}, less what git ignores; "
                "put it there"
            )
    return str(Path(config).resolve().relative_to(root))


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
