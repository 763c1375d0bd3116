"""What the manifests say agrees with the rest of the project and with itself."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.nodes import Node
from cluster.placement import check_all_fit, check_some_node_fits, plan
from commands.submit.rayjob import job_objects
from settings.load import to_yaml
from settings.run_files import load_config
from tests.unit.kuberay import (
    K8S,
    OVERLAYS,
    Object,
    amount,
    cluster_of,
    groups_of,
    job,
    pods,
    rendered,
    request,
)
from tests.unit.validators import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKERS = ("rollout", "teacher", "learner")
NODE_GROUPS = [f"--{role}.resources.custom.{role}=1" for role in WORKERS]


def ray_containers(cluster: Object) -> Iterator[tuple[str, Object, Object]]:
    """Group, pod and container of each node's Ray."""
    for name, group in groups_of(cluster).items():
        pod = group["template"]["spec"]
        yield name, pod, pod["containers"][0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_groups_and_their_ray_resources_are_those_that_runs_ask_for(overlay: str) -> None:
    groups = groups_of(cluster_of(rendered(overlay)))
    assert [*groups] == ["head", *WORKERS]
    assert groups["head"]["resources"]["head"] == "1"
    assert groups["head"]["resources"]["CPU"] == "0"
    for role in WORKERS:
        assert groups[role]["resources"][role] == "8"
        others = {"head", *WORKERS} - {role}
        assert not others & {*groups[role]["resources"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_node_has_one_image_of_this_version_and_the_pinned_ray(overlay: str) -> None:
    cluster = cluster_of(rendered(overlay))
    kind = "cpu" if overlay.startswith("cpu") else "gpu"
    images = {
        container["image"]
        for group in groups_of(cluster).values()
        for key in ("initContainers", "containers")
        for container in group["template"]["spec"].get(key, [])
    }
    assert images == {f"poweropd:{PROJECT['version']}-{kind}"}
    assert f"ray[default]=={cluster['rayVersion']}" in PROJECT["dependencies"]


def test_each_group_has_an_image_entry_of_its_own_in_the_base() -> None:
    images = [container["image"] for _, _, container in ray_containers(cluster_of(rendered(K8S / "base")))]
    assert images == [f"poweropd-{group}" for group in ("head", *WORKERS)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_replicas_lie_within_their_limits_and_the_learner_is_of_fixed_size(overlay: str) -> None:
    cluster = cluster_of(rendered(overlay))
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        is_fixed = group["groupName"] == "learner"
        assert (group["minReplicas"] == group["maxReplicas"]) is is_fixed
        assert ("idleTimeoutSeconds" in group) is not is_fixed
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"  # autoscaler v2 takes no other


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_object_store_shared_memory_and_limits_leave_space_for_each_other(overlay: str) -> None:
    cluster = cluster_of(rendered(overlay))
    for name, pod, container in ray_containers(cluster):
        group = groups_of(cluster)[name]
        [path] = [each["name"] for each in container["volumeMounts"] if each["mountPath"] == "/dev/shm"]
        [volume] = [each["emptyDir"] for each in pod["volumes"] if each["name"] == path]
        assert volume["medium"] == "Memory"
        shared, limit = amount(volume["sizeLimit"]), amount(container["resources"]["limits"]["memory"])
        store = amount(group["rayStartParams"]["object-store-memory"])
        assert store <= shared / 2, "vLLM and NCCL need shared memory too"
        assert shared + store <= limit
        assert amount(group["resources"]["memory"]) + shared <= limit, (
            "what Ray counts and /dev/shm are one memory"
        )
        requested = container["resources"]["requests"]
        assert amount(requested["memory"]) <= limit
        assert amount(requested["cpu"]) <= amount(container["resources"]["limits"]["cpu"])
        assert not {"num-cpus", "num-gpus", "memory", "resources"} & {*group["rayStartParams"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_unprivileged_and_ray_is_probed(overlay: str) -> None:
    for each in (*rendered(overlay), job(overlay)):
        if each["kind"] not in ("RayCluster", "RayJob"):
            continue
        for _, pod in pods(each):
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] == 1000
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in (*pod.get("initContainers", []), *pod["containers"]):
                own = container["securityContext"]
                assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
                assert {"requests", "limits"} == {*container["resources"]}
        for _, pod, container in ray_containers(cluster_of([each])):
            assert pod["securityContext"]["fsGroup"] == 1000
            probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
            assert probes == [{"path": "/api/healthz", "port": 52365}] * 3


def test_the_token_of_kubernetes_goes_to_the_autoscaler_alone() -> None:
    cluster = cluster_of(rendered("cpu-kind"))
    [mount] = cluster["autoscalerOptions"]["volumeMounts"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    mounts = {each["name"] for _, _, container in ray_containers(cluster) for each in container["volumeMounts"]}
    assert mount["name"] not in mounts
    head = groups_of(cluster)["head"]["template"]["spec"]
    assert mount["name"] in {each["name"] for each in head["volumes"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_token_is_named_and_never_a_value(overlay: str) -> None:
    for objects in (rendered(overlay), job_objects(rendered(overlay), request())):
        assert cluster_of(objects)["authOptions"] == {"mode": "token", "secretName": "poweropd-token"}
        assert not [each for each in objects if each["kind"] == "Secret" and "token" in each["metadata"]["name"]]
        assert "auth_token" not in yaml.safe_dump(objects)
        assert "RAY_AUTH_TOKEN" not in yaml.safe_dump(objects)


@pytest.mark.parametrize("is_job", [False, True])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_and_rules_select_the_pods_that_kuberay_makes(overlay: str, is_job: bool) -> None:
    objects = job_objects(rendered(overlay), request()) if is_job else rendered(overlay)
    cluster = cluster_of(objects)
    name = "first" if is_job else "poweropd"
    labels = {
        group: spec["template"]["metadata"]["labels"]
        | {"ray.io/group": "headgroup" if group == "head" else group, "ray.io/is-ray-node": "yes"}
        | {"ray.io/node-type": "head" if group == "head" else "worker", "ray.io/cluster": "any"}
        for group, spec in groups_of(cluster).items()
    }
    if is_job:
        [submitter] = [each["spec"]["submitterPodTemplate"] for each in objects if each["kind"] == "RayJob"]
        labels["submitter"] = submitter["metadata"]["labels"]

    def chosen(selector: Object) -> set[str]:
        wanted = selector["matchLabels"].items()
        return {group for group, has in labels.items() if wanted <= has.items()}

    budgets = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"}
    assert {*budgets} == {f"{name}-{group}" for group in ("head", *WORKERS)}
    for group in ("head", *WORKERS):
        budget = budgets[f"{name}-{group}"]
        assert chosen(budget["selector"]) == {group}
        # Without a scale subresource of their owner, Kubernetes takes a whole number of pods alone.
        assert {*budget} == {"minAvailable", "selector"}
        assert type(budget["minAvailable"]) is int
    assert budgets[f"{name}-head"]["minAvailable"] == 1
    learners = groups_of(cluster)["learner"]["replicas"]
    assert budgets[f"{name}-learner"]["minAvailable"] == learners, "an evicted learner stops the run"
    for group in ("rollout", "teacher"):
        assert budgets[f"{name}-{group}"]["minAvailable"] <= groups_of(cluster)[group]["minReplicas"]

    rules = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    assert chosen(rules[f"{name}-nodes"]["podSelector"]) == {*labels}
    assert chosen(rules[f"{name}-head"]["podSelector"]) == {"head"}
    [inside] = rules[f"{name}-nodes"]["ingress"]
    assert [chosen(peer["podSelector"]) for peer in inside["from"]] == [{*labels}]
    [outside] = rules[f"{name}-head"]["ingress"]
    assert outside["ports"] == [{"port": 8265, "protocol": "TCP"}]
    others = [peer["podSelector"]["matchLabels"] for peer in outside["from"]]
    assert others == [{"poweropd-client": "true"}, {"app.kubernetes.io/name": "kuberay-operator"}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_node_sees_the_shared_volume_at_the_same_path(overlay: str) -> None:
    objects = rendered(overlay)
    [claim] = [each for each in objects if each["kind"] == "PersistentVolumeClaim"]
    for _, pod, container in ray_containers(cluster_of(objects)):
        [name] = [each["name"] for each in container["volumeMounts"] if each["mountPath"] == "/shared"]
        [volume] = [each for each in pod["volumes"] if each["name"] == name]
        assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    modes = claim["spec"]["accessModes"]
    assert modes == (["ReadWriteOnce"] if overlay == "cpu-kind" else ["ReadWriteMany"])


def test_gpus_of_the_single_node_are_eight_at_most_and_gpu_nodes_are_asked_for_by_workers() -> None:
    most = 0
    for overlay in ("gpu-single-node", "gpu-multi-node"):
        for name, pod, container in ray_containers(cluster_of(rendered(overlay))):
            gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
            assert (gpus > 0) is (name != "head")
            assert ("nodeSelector" in pod) is (name != "head")
            if overlay == "gpu-single-node":
                group = groups_of(cluster_of(rendered(overlay)))[name]
                most += gpus * group.get("maxReplicas", 1)
            if gpus:
                assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
                assert container["resources"]["requests"]["nvidia.com/gpu"] == gpus
    assert most == 8


RUNS = {
    "cpu-kind": "docker/k8s/overlays/cpu-kind/demo.yaml",
    "gpu-single-node": "configs/qwen3/0.6b_from_4b.yaml",
    "gpu-multi-node": "configs/qwen3/0.6b_from_4b_two_nodes.yaml",
}
"""A configuration for each overlay."""


def ray_nodes(cluster: Object) -> Iterator[tuple[str, dict[str, float]]]:
    """Group and Ray resources of each node that is there at the start."""
    for name, group in groups_of(cluster).items():
        resources = {key: amount(value) for key, value in group["resources"].items()}
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        if gpus := int(limits.get("nvidia.com/gpu", 0)):
            resources["GPU"] = gpus
        for _ in range(group.get("replicas", 1)):
            yield name, resources


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_workers_of_its_configuration_fit_on_the_nodes_of_their_groups(overlay: str) -> None:
    demands = plan(load_config(str(ROOT / RUNS[overlay]), NODE_GROUPS))
    nodes = [*ray_nodes(cluster_of(rendered(overlay)))]
    check_all_fit(demands, [node for _, node in nodes])
    for demand in demands:
        role = "rollout" if demand.role == "evaluation" else demand.role
        check_some_node_fits([demand], [node for name, node in nodes if name == role])
        assert not [name for name, node in nodes if name != role and Node("", node).fits(demand.bundle)]


def test_the_demos_settings_lie_on_the_shared_volume() -> None:
    config = load_config(str(ROOT / RUNS["cpu-kind"]), NODE_GROUPS)
    text = to_yaml(config)
    assert "examples/arithmetic" not in text
    [made] = groups_of(cluster_of(rendered("cpu-kind")))["head"]["template"]["spec"]["initContainers"]
    assert "--out /shared/demo/data" in made["args"][0]
    assert str(config.data.train_path).startswith("/shared/demo/data/")
    assert config.student.model_path.startswith("/shared/demo/models/")
    assert config.runs_path == "/shared/runs"


def test_the_settings_that_a_job_gets_are_those_that_were_submitted(tmp_path: Path) -> None:
    config = load_config(str(ROOT / RUNS["cpu-kind"]), [*NODE_GROUPS, "--max-steps", "7"])
    objects = job_objects(rendered("cpu-kind"), request(settings=to_yaml(config)))
    [settings] = [each["data"] for each in objects if each["metadata"]["name"] == "first-settings"]
    (tmp_path / "settings.yaml").write_text(settings["settings.yaml"])
    assert load_config(str(tmp_path / "settings.yaml"), []) == config
