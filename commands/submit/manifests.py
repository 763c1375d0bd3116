"""The cluster that a kustomize overlay describes."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from commands.submit.kubectl import Kubectl, Object

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
