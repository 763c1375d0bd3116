"""The manifests against KubeRay's definitions and Kubernetes' schemas: no unknown field, at any depth."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from commands.submit.rayjob import job_objects
from tests.unit.kuberay import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    check,
    crd_folder,
    rendered,
    request,
    with_component,
)

INVALID = (jsonschema.ValidationError, kubernetes_validate.ValidationError)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_of_an_overlay_is_strictly_valid(overlay: str) -> None:
    for each in rendered(overlay):
        check(each)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_strictly_valid_on_the_base(component: str, tmp_path: Path) -> None:
    objects = with_component(tmp_path, component)
    assert objects != rendered(K8S / "base")
    for each in objects:
        check(each)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rayjob_of_a_run_and_all_that_goes_with_it_are_strictly_valid(overlay: str) -> None:
    for each in job_objects(rendered(overlay), request(), priority_class="high"):
        check(each)


def test_the_strict_schemas_of_kuberay_are_where_their_variable_says() -> None:
    if crd_folder() is None:
        pytest.skip("KubeRay's schemas are not here: POWEROPD_KUBERAY_CRDS names their folder")
    check(cluster := next(each for each in rendered("cpu-kind") if each["kind"] == "RayCluster"))
    with pytest.raises(INVALID):
        check({**cluster, "spec": {**cluster["spec"], "rayVersions": "2"}})


def places(each: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every object whose fields a schema names."""
    if isinstance(each, list):
        for number, below in enumerate(each):
            yield from places(below, (*path, number))
    elif isinstance(each, dict) and not {*path} & FREE:
        yield path
        for key, below in each.items():
            yield from places(below, (*path, key))


FREE = {
    "annotations",
    "labels",
    "limits",
    "requests",
    "matchLabels",
    "nodeSelector",
    "rayStartParams",
    "resources",
}
"""Of these, users choose the keys."""


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "PodDisruptionBudget", "NetworkPolicy", "Secret"])
def test_a_misspelt_field_is_refused_at_any_depth(kind: str) -> None:
    objects = [*rendered("cpu-kind"), *job_objects(rendered("cpu-kind"), request())]
    each = next(each for each in objects if each["kind"] == kind)
    check(each)
    found = [path for path in places(each) if path[:1] not in (("metadata",), ("data",), ("stringData",))]
    for path in found if len(found) < 12 else found[:: len(found) // 12]:
        wrong = copy.deepcopy(each)
        place: Any = wrong
        for step in path:
            place = place[step]
        place["replicaz"] = 1
        with pytest.raises(INVALID):
            check(wrong)
