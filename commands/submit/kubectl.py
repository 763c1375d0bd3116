"""Calls `kubectl`, which knows the user's clusters and logins, and reads the cluster that an overlay describes."""

import difflib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from commands.submit.request import UnreachableError

Object = dict[str, Any]
"""A Kubernetes object, or a part of one."""

CALL_TIMEOUT_S = 60.0
REQUEST_TIMEOUT = "--request-timeout=30s"
UNREACHABLE = (
    "connection to the server",
    "unable to connect",
    "connection refused",
    "no configuration has been provided",
    "i/o timeout",
    "context deadline exceeded",
    "no such host",
    "tls handshake",
)
LOG_LINE = re.compile(r"[IWEF]\d{4} \d\d:")
"""Of kubectl's libraries, which say each try of theirs."""
MAX_ERROR = 1000


class Kubectl:
    """One namespace of the cluster of the current context; without a name, the context's own."""

    def __init__(self, namespace: str | None) -> None:
        self._options = [] if namespace is None else [f"--namespace={namespace}"]

    def run(self, *arguments: str, text: str | None = None, timeout_s: float = CALL_TIMEOUT_S) -> str:
        """The output of one call; ValueError with kubectl's own words, UnreachableError if no cluster answers."""
        line = self.line(*arguments)
        try:
            done = subprocess.run(line, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"kubectl {arguments[0]}: no answer within {timeout_s:g} s") from error
        if done.returncode == 0:
            return done.stdout
        said = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
        words = " ".join(" ".join(said).split())[-MAX_ERROR:] or f"exit code {done.returncode}"
        is_unreachable = any(each in words.lower() for each in UNREACHABLE)
        raise (UnreachableError if is_unreachable else ValueError)(f"kubectl {arguments[0]}: {words}")

    def line(self, *arguments: str) -> list[str]:
        """The words of a call; ValueError if there is no kubectl."""
        program = shutil.which("kubectl")
        if program is None:
            raise ValueError("--to k8s: there is no kubectl on the PATH (nearest valid: install it, or --to ray)")
        return [program, *self._options, *arguments]

    def get(self, kind: str, name: str) -> Object | None:
        """An object; None if there is none of this name."""
        text = self.run("get", kind, name, "--ignore-not-found", "--output=json", REQUEST_TIMEOUT)
        return json.loads(text) if text.strip() else None

    def pods(self, labels: Mapping[str, str]) -> list[Object]:
        """The pods with these labels, the oldest first."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        found = self.run("get", "pods", f"--selector={selector}", "--output=json", REQUEST_TIMEOUT)
        return sorted(json.loads(found)["items"], key=lambda pod: pod["metadata"].get("creationTimestamp", ""))

    def apply(self, objects: Iterable[Object], *, is_trial: bool = False) -> None:
        """Make the objects, or change them to what is given; a trial only asks whether they would be taken.

        The server merges: kubectl's own way leaves a copy of each object, secrets too, in an annotation.
        """
        text = "\n".join(json.dumps(each) for each in objects)  # of a List the server checks no fields
        options = ["--server-side", "--force-conflicts", "--field-manager=poweropd"]
        options += ["--dry-run=server"] if is_trial else []
        self.run("apply", "--filename=-", *options, REQUEST_TIMEOUT, text=text)

    def patch(self, kind: str, name: str, changes: Object) -> None:
        """Change fields of an object."""
        self.run("patch", kind, name, "--type=merge", f"--patch={json.dumps(changes)}", REQUEST_TIMEOUT)

    def delete(self, kind: str, name: str, *, wait_s: float) -> None:
        """Delete an object with all that belongs to it, and wait so long until it is gone; 0 does not wait."""
        wait = [f"--timeout={wait_s:.0f}s", "--cascade=foreground"] if wait_s else ["--wait=false"]
        self.run("delete", kind, name, "--ignore-not-found", *wait, timeout_s=wait_s + CALL_TIMEOUT_S)

    def execute(self, pod: str, container: str, command: Sequence[str], *, timeout_s: float) -> str:
        """Run a command in a container; gives what it prints."""
        return self.run("exec", pod, f"--container={container}", "--", *command, timeout_s=timeout_s)

    def follow_log(self, pod: str, container: str, since: str | None) -> "subprocess.Popen[str]":
        """A process that prints a container's log as it comes, each line after its time; from a time on."""
        after = [] if since is None else [f"--since-time={since}"]
        line = self.line("logs", pod, f"--container={container}", "--follow", "--timestamps", *after)
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)


# -- the cluster of a kustomize overlay ----------------------------------------------------------------------


INSTANCE = "app.kubernetes.io/instance"
"""The label of all that belongs to one cluster, nodes and rules alike; its value is the cluster's name."""


def rendered(overlay: Path, kubectl: Kubectl) -> list[Object]:
    """The objects of an overlay, one RayCluster among them; ValueError naming --overlay."""
    check_overlay(overlay)
    try:
        text = kubectl.run("kustomize", str(overlay))
    except ValueError as error:
        raise ValueError(f"--overlay {overlay}: {error}") from error
    objects = [each for each in yaml.safe_load_all(text) if each]
    ray_cluster(objects, overlay)
    return objects


class _Readable(yaml.SafeDumper):
    """Texts of several lines, such as settings, as they are, and what is there twice, twice."""

    def ignore_aliases(self, data: object) -> bool:
        """Always."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def as_yaml(objects: Sequence[Object]) -> str:
    """The objects for people, and for `kubectl apply`."""
    return yaml.dump_all(objects, Dumper=_Readable, sort_keys=False, width=110)


def check_overlay(overlay: Path) -> None:
    """ValueError with the nearest overlay if the folder holds none."""
    if (overlay / "kustomization.yaml").is_file():
        return
    folder = overlay.parent
    names = sorted(each.parent.name for each in folder.glob("*/kustomization.yaml"))
    near = difflib.get_close_matches(overlay.name, names, n=1, cutoff=0.0)
    nearest = f" (nearest valid: {folder / near[0]})" if near else ""
    raise ValueError(f"--overlay: {overlay} holds no kustomization.yaml{nearest}")


def namespace_of(overlay: Path) -> str | None:
    """The namespace that an overlay says, if it says one."""
    file = overlay / "kustomization.yaml"
    said = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return said.get("namespace") if isinstance(said, dict) else None


def ray_cluster(objects: Sequence[Object], overlay: Path | str) -> Object:
    """The one RayCluster among the objects; ValueError if there are more, or none."""
    found = [each for each in objects if each["kind"] == "RayCluster"]
    if len(found) != 1:
        raise ValueError(f"--overlay {overlay} must hold one RayCluster, got {len(found)}")
    return found[0]


def is_of_cluster(each: Object) -> bool:
    """True for what belongs to one cluster alone; other objects of an overlay are shared by all its runs."""
    return INSTANCE in each["metadata"].get("labels", {})


def with_instance(value: Any, name: str) -> Any:
    """A copy in which every label and selector of a cluster is that of the cluster of this name."""
    match value:
        case dict():
            return {key: name if key == INSTANCE else with_instance(each, name) for key, each in value.items()}
        case list():
            return [with_instance(each, name) for each in value]
    return value


NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 47
"""KubeRay adds up to 16 characters to the name of a job, and a DNS label has 63."""


def job_name(run_name: str) -> str:
    """The name of a run's RayJob, which is the run's own; ValueError with the nearest name if it cannot be one."""
    if NAME.fullmatch(run_name) and len(run_name) <= MAX_NAME:
        return run_name
    near = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")
    near = (near if near[:1].isalpha() else f"run-{near}")[:MAX_NAME].rstrip("-")
    raise ValueError(
        f"run_name: on Kubernetes it must be lower-case letters, digits and '-', a letter first, {MAX_NAME} at "
        f"most, got {run_name!r} (nearest valid: {near})"
    )
