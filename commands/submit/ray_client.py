"""Ray's own client of the jobs API, with limits to its patience and errors of one line.

Import it after `jobs_api`: Ray reads its environment when it is imported.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from cluster.connection import TOKEN_ADVICE
from commands.submit.request import UnreachableError

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S, UPLOAD_TIMEOUT_S = 5.0, 30.0, 600.0
REASON_LENGTH = 200
SERVER_FAILS = re.compile(r"Request failed with status code 5\d\d")
"""How Ray's client begins when the server is there but not well: while a head starts, too."""

for noisy in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(noisy).setLevel(logging.WARNING)
logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)


class JobsClient(JobSubmissionClient):
    """Ray's client, which waits for no answer for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        answer_s = UPLOAD_TIMEOUT_S if method == "PUT" else ANSWER_TIMEOUT_S
        return super()._do_request(method, endpoint, timeout=(CONNECT_TIMEOUT_S, answer_s), **options)


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
