"""Manifests as kustomize renders them, and schemas that refuse a field they do not know, at every depth."""

import gzip
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from commands.submit.rayjob import job_objects
from commands.submit.request import Request
from tests.unit.validators import ROOT, run, validator

K8S = ROOT / "docker" / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in K8S.glob("components/*/kustomization.yaml"))
KUBERNETES = "1.37"
OF_KUBERAY = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
UNKNOWN_HERE = {"PodMonitor"}
"""Kinds of other operators, of which no schema is here."""

Object = dict[str, Any]


@cache
def _rendered(folder: Path) -> str:
    return run(validator("kustomize"), "build", str(folder))


def rendered(folder: Path | str) -> list[Object]:
    """The objects of a folder, or of the overlay of this name."""
    path = K8S / "overlays" / folder if isinstance(folder, str) else folder
    return [each for each in yaml.safe_load_all(_rendered(path)) if each]


def with_component(tmp_path: Path, name: str) -> list[Object]:
    """The base with one component."""
    text = {
        "resources": [_from(tmp_path, K8S / "base")],
        "components": [_from(tmp_path, K8S / "components" / name)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return rendered(tmp_path)


def _from(folder: Path, path: Path) -> str:
    return os.path.relpath(path, folder)


def crd_folder() -> Path | None:
    """Where KubeRay's own schemas are; None if they are not here."""
    named = os.environ.get("POWEROPD_KUBERAY_CRDS")
    folder = Path(named) if named else ROOT.parent / "shared" / "kuberay"
    if named and not folder.is_dir():
        raise ValueError(f"POWEROPD_KUBERAY_CRDS: no such folder: {named}")
    return folder if folder.is_dir() else None


@cache
def kuberay_schema(kind: str) -> Object:
    """The strict schema of a kind of KubeRay, version v1; the test is skipped where it is not here."""
    folder = crd_folder()
    if folder is None:
        pytest.skip("KubeRay's schemas are not here: POWEROPD_KUBERAY_CRDS names their folder")
    packed = folder / f"{OF_KUBERAY[kind]}.yaml.gz"
    data = gzip.decompress(packed.read_bytes()) if packed.is_file() else packed.with_suffix("").read_bytes()
    versions = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"]
    strict = _strict({**schema, "required": ["apiVersion", "kind", "metadata", "spec"]})
    strict["properties"]["metadata"] = {"type": "object"}  # that of every object: Kubernetes' schemas check it
    return strict


def _strict(schema: Any) -> Any:
    """The same schema, but an object holds what is named for it and nothing else: what Kubernetes would drop.

    `x-kubernetes-validations` are rules in a language of their own (on changes and on which fields go together):
    those that concern us are tests of their own.
    """
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object"
    if (
        is_object
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        strict["additionalProperties"] = False
    return strict


def check(each: Object) -> None:
    """Raise jsonschema's or kubernetes_validate's error for a field that there is not, or a wrong one."""
    if each["kind"] in OF_KUBERAY:
        jsonschema.Draft202012Validator(kuberay_schema(each["kind"])).validate(each)
        for metadata, spec in pods(each):
            check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node", **metadata}, "spec": spec})
        check({"apiVersion": "v1", "kind": "ConfigMap", "metadata": each["metadata"]})
    elif each["kind"] not in UNKNOWN_HERE:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def pods(each: Object) -> Iterator[tuple[Object, Object]]:
    """Metadata and spec of every pod template of a RayCluster or RayJob."""
    spec = each["spec"]
    cluster = spec["rayClusterSpec"] if each["kind"] == "RayJob" else spec
    templates = [cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    if "submitterPodTemplate" in spec:
        templates.append(spec["submitterPodTemplate"])
    for template in templates:
        yield template.get("metadata", {}), template["spec"]


def cluster_of(objects: list[Object]) -> Object:
    """The spec of the one RayCluster, also where it is in a RayJob."""
    [found] = [each for each in objects if each["kind"] in OF_KUBERAY]
    return found["spec"]["rayClusterSpec"] if found["kind"] == "RayJob" else found["spec"]


def groups_of(cluster: Object) -> dict[str, Object]:
    """The groups by name; the head's is `head`."""
    return {"head": cluster["headGroupSpec"]} | {each["groupName"]: each for each in cluster["workerGroupSpecs"]}


UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}


def amount(quantity: str | int | float) -> float:
    """A Kubernetes quantity as a number: `500m` is 0.5."""
    text = str(quantity)
    unit = next((each for each in UNITS if text.endswith(each)), "")
    return float(text.removesuffix(unit)) * UNITS.get(unit, 1)


def request(**changes: Any) -> Request:
    """What is submitted, but for the changes."""
    given = {
        "run_name": "first",
        "train": ("--run-name", "first", "--resume=auto", "--retries", "3"),
        "config": "configs/demo.yaml",
        "settings": "max_steps: 3\n",
        "overrides": (),
        "runs_path": "/shared/runs",
        "retries": 3,
        "environment": {"HF_TOKEN": "hf_of-somebody"},
        "grace_s": 900.0,
    }
    return Request(**(given | changes))


def job(overlay: str, **changes: Any) -> Object:
    """The RayJob of a run on an overlay."""
    return job_objects(rendered(overlay), request(**changes), priority_class="high")[-1]
