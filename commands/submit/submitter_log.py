"""Prints what a job prints, from the pod that submitted it."""

import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable

from commands.submit.kubectl import Kubectl
from commands.submit.request import UnreachableError

logger = logging.getLogger(__name__)

SILENT_S = 15.0
"""After so long without a line it is looked whether the job goes on: a connection may hang."""
LAST_LINES_S = 10.0
"""So long the log of an ended job may take to come."""


class SubmitterLog:
    """The log of a RayJob, whose submitter is another pod after each retry; no line is printed twice."""

    def __init__(self, kubectl: Kubectl, job: str) -> None:
        self._kubectl = kubectl
        self._job = job
        self._since: dict[str, str] = {}  # pod -> time of the last line that was printed

    def print_news(self, has_ended: Callable[[], bool]) -> None:
        """Print until the pod ends or the connection is lost; at once if there is no pod yet."""
        try:
            pods = self._kubectl.pods({"job-name": self._job})
        except UnreachableError as error:
            logger.warning("%s", error)
            return
        for pod in pods:
            if pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed"):
                self._print_pod(pod["metadata"]["name"], pod["spec"]["containers"][0]["name"], has_ended)

    def _print_pod(self, pod: str, container: str, has_ended: Callable[[], bool]) -> None:
        process = self._kubectl.follow_log(pod, container, self._since.get(pod))
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        try:
            self._print_lines(pod, lines, has_ended)
        finally:
            process.kill()
            process.wait()
            reader.join()

    def _print_lines(self, pod: str, lines: "queue.Queue[str | None]", has_ended: Callable[[], bool]) -> None:
        """Print the lines of a pod as they come, until they end, or the job did and no more of them come."""
        until: float | None = None
        while until is None or time.monotonic() < until:
            try:
                line = lines.get(timeout=SILENT_S if until is None else LAST_LINES_S)
            except queue.Empty:
                until = until or (time.monotonic() + LAST_LINES_S if has_ended() else None)
                continue
            if line is None:
                return
            moment, _, text = line.partition(" ")
            if moment > self._since.get(pod, ""):
                self._since[pod] = moment
                print(text, end="", flush=True)


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    """Put the lines of a process into the queue, and None at their end."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
