"""Runs on Kubernetes: each is a RayJob of KubeRay, with a cluster of its own from a kustomize overlay."""

import logging
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.submit.kubectl import Kubectl, Object, as_yaml, job_name, namespace_of, rendered
from commands.submit.rayjob import RUN, RUNS_PATH, job_objects, owned
from commands.submit.request import JobState, Request, UnreachableError
from settings.exit_codes import DRAINED

logger = logging.getLogger(__name__)

JOB = "rayjobs.ray.io"
POLL_S = 5.0
GONE_WITHIN_S = 900.0
"""A deleted job takes its cluster with it, whose pods may drain."""
STOP_CALL_S = 120.0
UNREACHABLE_S = 600.0
"""Maximum time for which a cluster that was reached before may be out of reach."""
END_MARGIN_S = 120.0
"""From the end of a run until KubeRay has seen it."""

STATUSES = {
    "": "PENDING",
    "Initializing": "PENDING",
    "Waiting": "PENDING",
    "Retrying": "PENDING",
    "Running": "RUNNING",
    "Suspending": "SUSPENDED",
    "Suspended": "SUSPENDED",
    "Complete": "SUCCEEDED",
    "Failed": "FAILED",
    "ValidationFailed": "FAILED",
}
"""KubeRay's words for a RayJob."""
ENDED = {"SUCCEEDED", "STOPPED", "FAILED"}
EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
"""In what Ray says of a job that failed."""


class KubernetesPlace:
    """A Kubernetes cluster as the place of runs, reached with `kubectl`.

    A run's job has the run's name. What was made for it goes with the job; volume and token stay.
    """

    def __init__(
        self,
        overlay: Path,
        namespace: str | None,
        priority_class: str | None,
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._overlay = overlay
        self._kubectl = Kubectl(namespace or namespace_of(overlay))
        self._priority_class = priority_class
        self._poll_s = poll_s

    def submit(self, request: Request) -> JobState:
        """Start the run as a RayJob, or find the one that is running; the message says which."""
        name = job_name(request.run_name)
        before = self._job(name, request.run_name)
        if before is not None and (state := state_of(before)).status not in ENDED:
            return replace(state, message=f"{name} is running, nothing was submitted: {state.message}")
        objects = self._objects(request)
        self._check_token(objects[-1])
        self._kubectl.apply(objects, is_trial=True)
        if before is not None:
            logger.info("deleting the ended job %s and what is left of its cluster", name)
            self._kubectl.delete(JOB, name, wait_s=GONE_WITHIN_S)
        self._kubectl.apply(objects)
        job = self._kubectl.get(JOB, name)
        if job is None:
            raise ValueError(f"{name} was deleted while it was submitted")
        self._kubectl.apply(owned(objects, job))
        how = "again, and continues from its newest checkpoint" if before else "as a RayJob"
        return replace(state_of(job), message=f"{name} was submitted {how}")

    def state(self, run_name: str) -> JobState | None:
        """The job of a run; None if there is none."""
        job = self._job(job_name(run_name), run_name)
        return None if job is None else state_of(job)

    def follow(self, run_name: str) -> JobState:
        """Print what the job prints until it ends, across lost connections and new clusters."""
        name, last = job_name(run_name), ""
        log = SubmitterLog(self._kubectl, name)
        while True:
            state = self._known_in_time(run_name)
            if (news := f"{state.status} {state.message}") != last:
                logger.info("%s: %s", name, news)
                last = news
            log.print_news(lambda: self._has_ended(run_name))
            if state.status in ENDED:
                return state
            time.sleep(self._poll_s)

    def stop(self, run_name: str, *, grace_s: float) -> JobState:
        """Let the run finish its step and save, and wait for its end, which no retry follows.

        A run that has not started yet, or is still there after `grace_s`, is deleted; its folder stays.
        """
        name = job_name(run_name)
        state = self._known(run_name)
        if state.status in ENDED:
            return state
        self._kubectl.patch(JOB, name, {"spec": {"backoffLimit": 0}})
        until = time.monotonic() + grace_s
        while self._known_in_time(run_name).status == "RUNNING" and not self._asked_to_stop(run_name):
            if time.monotonic() > until:
                break
            time.sleep(self._poll_s)
        until = max(until, time.monotonic()) + END_MARGIN_S
        while (state := self._known_in_time(run_name)).status == "RUNNING" and time.monotonic() < until:
            logger.info("%s: waiting for its end, at most %.0f s more", name, until - time.monotonic())
            time.sleep(self._poll_s)
        if state.status in ENDED:
            return state
        logger.warning("%s is %s: it is deleted; its run continues from its newest checkpoint", name, state.status)
        self._kubectl.delete(JOB, name, wait_s=0)
        message = f"{name} was {state.status} and is deleted; nothing after its newest checkpoint is kept"
        return JobState(name, "STOPPED", message, None)

    def describe(self, request: Request) -> str:
        """All objects that `submit` would make, as YAML; the values of secrets are left out."""
        objects = self._objects(request)
        for each in objects:
            if each["kind"] == "Secret":
                each["stringData"] = dict.fromkeys(each["stringData"], "(not shown)")
        return as_yaml(objects)

    def _objects(self, request: Request) -> list[Object]:
        objects = rendered(self._overlay, self._kubectl)
        return job_objects(objects, request, priority_class=self._priority_class)

    def _job(self, name: str, run_name: str) -> Object | None:
        """The RayJob of a run; ValueError if one of this name is not ours."""
        job = self._kubectl.get(JOB, name)
        if job is not None and job["metadata"].get("annotations", {}).get(RUN) != run_name:
            raise ValueError(f"run_name: a RayJob {name} is there that is none of these runs; choose another name")
        return job

    def _known(self, run_name: str) -> JobState:
        state = self.state(run_name)
        if state is None:
            raise ValueError(f"--run: no RayJob {run_name} is there")
        return state

    def _known_in_time(self, run_name: str) -> JobState:
        """The same, also if the cluster cannot be reached for a while."""
        until = time.monotonic() + UNREACHABLE_S
        while True:
            try:
                return self._known(run_name)
            except UnreachableError as error:
                if time.monotonic() > until:
                    raise
                logger.warning("%s; tried again", error)
                time.sleep(self._poll_s)

    def _has_ended(self, run_name: str) -> bool:
        try:
            state = self.state(run_name)
        except UnreachableError as error:
            logger.warning("%s", error)
            return False
        return state is None or state.status in ENDED

    def _check_token(self, job: Object) -> None:
        """ValueError with the command that makes the secret of the token if it is missing."""
        name = job["spec"]["rayClusterSpec"].get("authOptions", {}).get("secretName")
        if name is not None and self._kubectl.get("secret", name) is None:
            raise ValueError(
                f"there is no secret {name} with Ray's token (make it: kubectl create secret generic {name} "
                f"--from-file=auth_token=<(openssl rand -hex 32 | tr -d '\\n'))"
            )

    def _asked_to_stop(self, run_name: str) -> bool:
        """Ask the run, in the pod of its head, to finish; False if it could not be asked yet."""
        job = self._kubectl.get(JOB, job_name(run_name)) or {}
        cluster = job.get("status", {}).get("rayClusterName", "")
        heads = self._kubectl.pods({"ray.io/cluster": cluster, "ray.io/node-type": "head"}) if cluster else []
        if not heads:
            logger.info("%s: its head is not there yet", run_name)
            return False
        runs_path = job["metadata"]["annotations"][RUNS_PATH]
        command = ["python", "/app/launch.py", "stop", "--run", run_name, "--runs-path", runs_path]
        head = heads[-1]
        container = head["spec"]["containers"][0]["name"]
        try:
            said = self._kubectl.execute(head["metadata"]["name"], container, command, timeout_s=STOP_CALL_S)
        except ValueError as error:
            logger.info("%s: not stopped yet: %s", run_name, error)
            return False
        logger.info("%s: %s", run_name, " ".join(said.split()))
        return True


def state_of(job: Object) -> JobState:
    """What KubeRay says of a RayJob, in our words."""
    status: dict[str, Any] = job.get("status", {})
    phase = status.get("jobDeploymentStatus", "")
    words = STATUSES.get(phase, "PENDING")
    message = status.get("message") or status.get("reason") or phase or "not seen by KubeRay's operator yet"
    found = EXIT_CODE.search(message) if words == "FAILED" else None
    code = int(found[1]) if found else None
    if words in ENDED and (status.get("jobStatus") == "STOPPED" or code == DRAINED):
        words = "STOPPED"
    elif words == "SUCCEEDED":
        code = 0
    if phase == "Retrying":
        message = f"tried again on a new cluster ({status.get('failed', 0)} failed): {message}"
    return JobState(job["metadata"]["name"], words, " ".join(message.split())[:500], code)


# -- the log, from the pod that submitted the job ------------------------------------------------------------

SILENT_S = 15.0
"""Time without a line after which the job is looked at: a connection may hang."""
LAST_LINES_S = 10.0
"""Maximum time for the log of an ended job to come."""


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
