"""Makes the RayJob of a run from the RayCluster of an overlay, with all that belongs to it.

Pure: it takes and gives objects. Labels and names of the cluster become those of the run, so that several runs of
one namespace do not share disruption budgets and network rules.
"""

import copy
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from commands.submit.kubectl import INSTANCE, Object, is_of_cluster, job_name, ray_cluster, with_instance
from commands.submit.request import Request

SETTINGS_PATH = "/etc/poweropd/settings.yaml"
RUN, RUNS_PATH = "poweropd.io/run", "poweropd.io/runs-path"
"""Annotations of a RayJob: what it takes to find its run again."""

GRACE_MARGIN_S = 60
"""Between the end of a drained run and the end of its pod."""

PLAIN = re.compile(r"[A-Za-z0-9_./=:,@%+-]+")
"""Words that pass two shells unchanged: KubeRay puts the entry point into a script, and Ray joins it again."""

MAX_SETTINGS_BYTES = 900_000
"""A ConfigMap holds 1 MiB, with all that describes it."""


def job_objects(objects: Sequence[Object], request: Request, *, priority_class: str | None = None) -> list[Object]:
    """What a run needs: the shared objects, then the run's own, its RayJob last. ValueError for what cannot be."""
    name = job_name(request.run_name)
    cluster = ray_cluster(objects, "of the run")
    old = cluster["metadata"]["name"]
    shared = [copy.deepcopy(each) for each in objects if each is not cluster and not is_of_cluster(each)]
    own = [with_instance(each, name) for each in objects if each is not cluster and is_of_cluster(each)]
    for each in own:
        each["metadata"]["name"] = name + each["metadata"]["name"].removeprefix(old)
    spec = with_instance(cluster["spec"], name)
    head = spec["headGroupSpec"]["template"]["spec"]
    groups = [head, *(group["template"]["spec"] for group in spec["workerGroupSpecs"])]
    for pod in groups:
        _ray(pod)["envFrom"] = [*_ray(pod).get("envFrom", []), {"secretRef": {"name": f"{name}-environment"}}]
        if priority_class is not None:
            pod["priorityClassName"] = priority_class
    _mount_settings(head, name)
    for pod in (head, *_pods_of(spec, "learner")):
        _drain_before_its_end(pod, request)
    job = _ray_job(name, spec, request)
    for key, given in with_instance(cluster["metadata"], name).items():
        if key in ("labels", "annotations"):  # such as that of a queue
            job["metadata"][key] = given | job["metadata"][key]
    return [*shared, *own, _settings(name, request), _environment(name, request), job]


def owned(objects: Sequence[Object], job: Object) -> list[Object]:
    """The run's own objects as a RayJob that is there owns them, so that they go with it."""
    uid = job["metadata"]["uid"]
    owner = {"apiVersion": job["apiVersion"], "kind": "RayJob", "name": job["metadata"]["name"], "uid": uid}
    own = [copy.deepcopy(each) for each in objects if is_of_cluster(each) and each["kind"] != "RayJob"]
    for each in own:
        each["metadata"]["ownerReferences"] = [{**owner, "blockOwnerDeletion": True}]
    return own


def entry_point(request: Request) -> str:
    """The command of the job: all settings are in the mounted file, so it holds nothing for a shell to read."""
    words = ["python", "/app/launch.py", "train", "--config", SETTINGS_PATH]
    words += _without(request.train, request.overrides)
    for word in words:
        if not PLAIN.fullmatch(word):
            raise ValueError(f"on Kubernetes an option of train is letters, digits and _./=:,@%+-, got {word!r}")
    return " ".join(words)


def _without(words: Sequence[str], part: Sequence[str]) -> list[str]:
    """The words without the first place where `part` stands word by word: these settings are in the file."""
    wanted = list(part)
    for start in range(len(words) - len(wanted) + 1 if wanted else 0):
        if list(words[start : start + len(wanted)]) == wanted:
            return [*words[:start], *words[start + len(wanted) :]]
    return list(words)


def _ray(pod: Object) -> Object:
    """The container of Ray, which KubeRay takes to be the first."""
    return pod["containers"][0]


def _pods_of(spec: Object, group: str) -> list[Object]:
    return [each["template"]["spec"] for each in spec["workerGroupSpecs"] if each["groupName"] == group]


def _metadata(name: str, job: str) -> Object:
    return {"name": name, "labels": {"app.kubernetes.io/part-of": "poweropd", INSTANCE: job}}


def _settings(name: str, request: Request) -> Object:
    if (size := len(request.settings.encode())) > MAX_SETTINGS_BYTES:
        raise ValueError(f"--config: on Kubernetes settings have at most {MAX_SETTINGS_BYTES} bytes, got {size}")
    data = {Path(SETTINGS_PATH).name: request.settings}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(f"{name}-settings", name), "data": data}


def _environment(name: str, request: Request) -> Object:
    """The variables of the job as a secret: a RayJob is read by more people, and runs through a shell."""
    metadata = _metadata(f"{name}-environment", name)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(request.environment)}


def _mount_settings(head: Object, name: str) -> None:
    """Settings for the head alone, where the run's own process is."""
    mount = {"name": "settings", "mountPath": str(Path(SETTINGS_PATH).parent), "readOnly": True}
    _ray(head).setdefault("volumeMounts", []).append(mount)
    head.setdefault("volumes", []).append({"name": "settings", "configMap": {"name": f"{name}-settings"}})


def _drain_before_its_end(pod: Object, request: Request) -> None:
    """Before a pod ends (evicted, deleted, suspended by a queue), its run finishes the step and saves."""
    ends = {"exec": {"command": ["/bin/bash", "-c", drain_script(request)]}}
    _ray(pod)["lifecycle"] = {"preStop": ends}
    pod["terminationGracePeriodSeconds"] = round(request.grace_s) + GRACE_MARGIN_S


def drain_script(request: Request) -> str:
    """Stops the run of this node's own Ray and waits for its end; nothing else, whatever runs by the same name.

    The session tells: a later cluster of the run has another. The head's service may be gone already, so the
    address is the one in the run folder.
    """
    runs_path = shlex.quote(request.runs_path)
    run = f"{runs_path}/{request.run_name}/cluster.json"
    return f"""\
session=$(basename "$(readlink /tmp/ray/session_latest)")
goes_on() {{ [ -n "$session" ] && grep -qs "$session" {run}; }}
goes_on || exit 0
python /app/launch.py stop --run {request.run_name} --runs-path {runs_path} || exit 0
for second in $(seq {round(request.grace_s)}); do goes_on || exit 0; sleep 1; done
"""


def _ray_job(name: str, spec: Object, request: Request) -> Object:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": f"{request.grace_s:g}"}
    metadata = _metadata(name, name)
    metadata["annotations"] = {RUN: request.run_name, RUNS_PATH: request.runs_path}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": entry_point(request),
            "entrypointResources": json.dumps(
                {"head": 0.01}
            ),  # on the head, which the autoscaler never takes away
            "jobId": name,
            "runtimeEnvYAML": f"env_vars: {json.dumps(variables)}\n",
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _submitter(name, spec),
            "backoffLimit": request.retries,  # each a new cluster, on which --resume=auto continues
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            "suspend": False,  # Kueue sets it; the run then drains, and continues when it is taken back
            "rayClusterSpec": spec,
        },
    }


def _submitter(name: str, spec: Object) -> Object:
    """The pod that hands the job to the head and prints its log: KubeRay says its command."""
    head = spec["headGroupSpec"]["template"]["spec"]
    account = spec["workerGroupSpecs"][0]["template"]["spec"].get("serviceAccountName", "default")
    ray = _ray(head)
    container = {
        "name": "ray-job-submitter",
        "image": ray["image"],
        "imagePullPolicy": ray["imagePullPolicy"],
        "securityContext": ray["securityContext"],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "securityContext": {key: value for key, value in head["securityContext"].items() if "fsGroup" not in key},
        "containers": [container],
    }
    for key in ("priorityClassName", "tolerations", "imagePullSecrets"):
        if key in head:
            pod[key] = head[key]
    return {"metadata": {"labels": _metadata(name, name)["labels"]}, "spec": pod}
