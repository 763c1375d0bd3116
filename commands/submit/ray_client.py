"""Ray's jobs API in our words: which jobs a run has, how they ended, and calls with limits and one-line errors.

Import it after `jobs_api`: Ray reads its environment when it is imported. A run's jobs are called NAME, NAME.2,
NAME.3; the metadata of a job says which run it is of.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import requests
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster import ray_private
from cluster.connection import TOKEN_ADVICE
from commands.submit.request import JobState, UnreachableError
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FINISHED, one_line

RUN, SETTINGS = "poweropd_run", "poweropd_settings"
"""Keys of a job's metadata: the run's name, and a digest of its settings."""

ENDED = {"SUCCEEDED", "STOPPED", "FAILED"}
OWN_CODES = {FINISHED, FAILED, BAD_INPUT, DRAINED}
LOST = {"JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "JOB_SUPERVISOR_ACTOR_START_FAILURE"}
"""Ray's names for what happens to a job whose node, or whose head, was lost."""

DRAINED_AT = re.compile(r"drained\s+at\s+step\s+(\d+)")
FINISHED_AFTER = re.compile(r"finished\s+\d+\s+steps\s+in\s")
INTERRUPTED = re.compile(r"interrupted;\s+continue\s+with")
MAX_MESSAGE = 300


def jobs_of(run_name: str, jobs: Iterable[JobDetails]) -> list[JobDetails]:
    """The run's jobs, oldest first."""
    own = [job for job in jobs if job.submission_id and (job.metadata or {}).get(RUN) == run_name]
    return sorted(own, key=lambda job: job.start_time or 0)


def next_job_id(run_name: str, num_before: int, taken: Collection[str | None]) -> str:
    """NAME for a run without jobs, else NAME.2, NAME.3, ...: the first that no other job has."""
    number = num_before + 1
    while (name := run_name if number == 1 else f"{run_name}.{number}") in taken:
        number += 1
    return name


def id_of(job: JobDetails) -> str:
    """The name that it was submitted by."""
    return job.submission_id or ""


def is_ended(job: JobDetails) -> bool:
    """Whether the job has ended."""
    return status_of(job) in ENDED


def status_of(job: JobDetails) -> str:
    """Ray's word for it."""
    return getattr(job.status, "value", job.status)


def state_of(job: JobDetails, log: str = "", earlier: Sequence[JobState] = ()) -> JobState:
    """A job in our words; of one that was stopped the log says whether it drained."""
    code = exit_code(job, log)
    message = _message(job, code, log)
    return JobState(id_of(job), status_of(job), message, code, is_lost=is_lost(job), earlier=earlier)


def exit_code(job: JobDetails, log: str) -> int | None:
    """That of `launch.py train`; None while the job runs. Ray does not tell that of a job that was stopped."""
    match status_of(job):
        case "SUCCEEDED":
            return FINISHED
        case "FAILED":
            return job.driver_exit_code if job.driver_exit_code in OWN_CODES else FAILED
        case "STOPPED":
            if FINISHED_AFTER.search(log):
                return FINISHED
            return DRAINED if DRAINED_AT.search(log) or INTERRUPTED.search(log) else FAILED
    return None


def is_lost(job: JobDetails) -> bool:
    """True if a job was ended from outside, and not by a request: the run can continue where it is.

    Exit code 1 is not lost: the run failed, after as many retries as its entry point had.
    """
    if status_of(job) != "FAILED":
        return False
    if job.driver_exit_code is None:
        return getattr(job.error_type, "value", job.error_type) in LOST
    return job.driver_exit_code not in OWN_CODES


def _message(job: JobDetails, code: int | None, log: str) -> str:
    match status_of(job), code:
        case "PENDING", _:
            return "waits for Ray to start it"
        case "RUNNING", _:
            return "is running"
        case _, 0:
            return "finished"
        case _, 3:
            steps = DRAINED_AT.findall(log)
            where = f"drained at step {steps[-1]}, checkpoint saved" if steps else "drained"
            return f"{where}; submit the run again to continue"
        case "STOPPED", _:
            return "was killed before it had drained; submit the run again to continue from the newest checkpoint"
    return _failure(job)


def _failure(job: JobDetails) -> str:
    """Why a job failed: the last thing it said, else what Ray says."""
    text = job.message or "no reason is known"
    said, _, tail = text.partition(", last available logs")
    last = [line for line in tail.splitlines() if line.startswith(("error: ", "failed: "))]
    if job.driver_exit_code is not None and last:
        said = f"exit code {job.driver_exit_code}: {last[-1]}"
    return one_line(ValueError(said))[:MAX_MESSAGE]


# -- Ray's client -------------------------------------------------------------------------------------------


CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S, UPLOAD_TIMEOUT_S = 5.0, 30.0, 600.0
REASON_LENGTH = 200
SERVER_FAILS = re.compile(r"Request failed with status code 5\d\d")
"""How Ray's client begins when the server is there but not well: while a head starts, too."""

for noisy in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(noisy).setLevel(logging.WARNING)
logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)


def jobs_client(address: str) -> JobSubmissionClient:
    """Ray's client, which waits for no answer for ever."""

    def timeout_of(method: str) -> tuple[float, float]:
        return CONNECT_TIMEOUT_S, UPLOAD_TIMEOUT_S if method == "PUT" else ANSWER_TIMEOUT_S

    return ray_private.jobs_client(address, timeout_of)


@contextmanager
def reported(address: str) -> Iterator[None]:
    """Every failure of a call inside as one line: UnreachableError without an answer, else ValueError."""
    try:
        yield
    except AuthenticationError as error:
        raise ValueError(f"--address: {address} does not take this token: {TOKEN_ADVICE}") from error
    except (ConnectionError, KeyError, requests.RequestException) as error:
        raise UnreachableError(f"--address: no jobs API of a Ray cluster answers at {address}") from error
    except (RayError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1][:REASON_LENGTH]  # of a traceback, what went wrong
        if SERVER_FAILS.match(lines[0]):
            raise UnreachableError(f"the jobs API at {address} cannot answer: {reason}") from error
        raise ValueError(f"the jobs API at {address} refuses: {reason}") from error
