"""The manifests against KubeRay's definitions and Kubernetes' schemas: no unknown field, at any depth."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from commands.submit.rayjob import job_objects
from tests.unit.kuberay import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    UNKNOWN_HERE,
    Object,
    check,
    crd_folder,
    job,
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


PLACES: dict[str, Callable[[Object], Any]] = {
    "top": lambda each: each,
    "spec": lambda each: each["spec"],
    "autoscaler": lambda each: each["spec"]["autoscalerOptions"],
    "token": lambda each: each["spec"]["authOptions"],
    "fault tolerance": lambda each: each["spec"]["gcsFaultToleranceOptions"]["storage"],
    "head": lambda each: each["spec"]["headGroupSpec"],
    "group": lambda each: each["spec"]["workerGroupSpecs"][1],
    "pod metadata": lambda each: each["spec"]["workerGroupSpecs"][2]["template"]["metadata"],
    "pod": lambda each: each["spec"]["workerGroupSpecs"][0]["template"]["spec"],
    "container": lambda each: each["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0],
    "probe": lambda each: each["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["livenessProbe"],
    "volume": lambda each: each["spec"]["headGroupSpec"]["template"]["spec"]["volumes"][1]["emptyDir"],
    "security": lambda each: each["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"][
        "seccompProfile"
    ],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_misspelt_field_of_the_cluster_is_refused_at_any_depth(place: str) -> None:
    cluster = copy.deepcopy(next(each for each in rendered("cpu-kind") if each["kind"] == "RayCluster"))
    check(cluster)
    PLACES[place](cluster)["replicaz"] = 1
    with pytest.raises(INVALID):
        check(cluster)


@pytest.mark.parametrize("field", ["entrypoints", "backofLimit", "rayClusterSpecs"])
def test_a_misspelt_field_of_a_job_is_refused(field: str) -> None:
    each = job("cpu-kind")
    each["spec"][field] = 1
    with pytest.raises(INVALID):
        check(each)


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy", "PersistentVolumeClaim"])
def test_a_misspelt_field_of_kubernetes_own_objects_is_refused(kind: str) -> None:
    each = copy.deepcopy(next(each for each in rendered("gpu-multi-node") if each["kind"] == kind))
    each["spec"]["minAvailabel"] = 1
    with pytest.raises(INVALID):
        check(each)


def test_wrong_types_and_missing_fields_are_refused() -> None:
    each = copy.deepcopy(next(each for each in rendered("cpu-kind") if each["kind"] == "RayCluster"))
    each["spec"]["workerGroupSpecs"][0]["replicas"] = "one"
    with pytest.raises(INVALID):
        check(each)
    each["spec"]["workerGroupSpecs"][0]["replicas"] = 1
    del each["spec"]["headGroupSpec"]
    with pytest.raises(INVALID):
        check(each)


def test_only_kinds_of_other_operators_are_not_checked() -> None:
    component = K8S / "components" / "pod-monitor" / "podmonitor.yaml"
    assert {each["kind"] for each in yaml.safe_load_all(component.read_text())} == UNKNOWN_HERE
    for overlay in OVERLAYS:
        assert not {each["kind"] for each in rendered(overlay)} & UNKNOWN_HERE
