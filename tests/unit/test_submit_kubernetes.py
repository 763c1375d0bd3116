"""Runs on Kubernetes, with the real kubectl and a small API server in this process: the test is KubeRay."""

import copy
import json
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.submit.kubectl import job_name, namespace_of
from commands.submit.kubernetes import KubernetesPlace, state_of
from commands.submit.rayjob import drain_script, entry_point, job_objects
from commands.submit.request import UnreachableError
from tests.unit.kuberay import K8S, Object, rendered, request
from tests.unit.kubernetes_api import Cluster, kubernetes_api

OVERLAY = K8S / "overlays" / "cpu-kind"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    monkeypatch.setenv("HOME", str(tmp_path))  # where kubectl keeps what it has asked for
    with kubernetes_api(tmp_path) as (made, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield made


def place(**options: Any) -> KubernetesPlace:
    return KubernetesPlace(OVERLAY, None, None, poll_s=0.05, **options)


def submitted(cluster: Cluster) -> None:
    """The job as `submit` leaves it, without the seconds that all its calls of kubectl take."""
    job = copy.deepcopy(job_objects(rendered("cpu-kind"), request())[-1])
    cluster.store("rayjobs", job)


def operator(cluster: Cluster, phase: str, **status: Any) -> None:
    """What KubeRay says of the job now."""
    job = cluster.objects["rayjobs", "first"]
    job["status"] = {**job.get("status", {}), "jobDeploymentStatus": phase, **status}


def running(cluster: Cluster) -> None:
    """The job's cluster is there, and the job runs."""
    operator(cluster, "Running", jobStatus="RUNNING", rayClusterName="first-abcde")
    labels = {"ray.io/cluster": "first-abcde", "ray.io/node-type": "head"}
    head = cluster.add("pods", "Pod", "first-abcde-head", status={"phase": "Running"})
    head["metadata"]["labels"] = labels
    head["spec"] = {"containers": [{"name": "ray-head"}]}


def drained(cluster: Cluster) -> None:
    operator(cluster, "Failed", jobStatus="FAILED", message="Job entrypoint command failed with exit code 3, last")


def submitter(cluster: Cluster, name: str, phase: str, *lines: str) -> Object:
    pod = cluster.add("pods", "Pod", name, status={"phase": phase})
    pod["metadata"]["labels"] = {"job-name": "first"}
    pod["spec"] = {"containers": [{"name": "ray-job-submitter"}]}
    cluster.logs[name] = [f"2026-01-01T00:00:0{number}.000000000Z {line}" for number, line in enumerate(lines)]
    return pod


def test_a_submitted_run_is_there_with_all_that_it_needs_and_what_is_its_own_goes_with_it(
    cluster: Cluster,
) -> None:
    state = place().submit(request())
    assert (state.job, state.status) == ("first", "PENDING")
    assert "was submitted" in state.message
    job = cluster.objects["rayjobs", "first"]
    assert job["spec"]["entrypoint"].startswith(
        "python /app/launch.py train --config /etc/poweropd/settings.yaml "
    )
    assert job["spec"]["backoffLimit"] == 3
    assert cluster.objects["configmaps", "first-settings"]["data"] == {"settings.yaml": "max_steps: 3\n"}
    assert cluster.objects["secrets", "first-environment"]["stringData"] == {"HF_TOKEN": "hf_of-somebody"}
    trials = [each for each in cluster.calls if each.endswith("?")]
    assert len(trials) == len(job_objects(rendered("cpu-kind"), request()))
    assert cluster.calls[: len(trials)] == trials, (
        "nothing is made before the cluster has taken all of it on trial"
    )

    cluster.remove("rayjobs", "first")
    left = {f"{plural}/{name}" for plural, name in cluster.objects}
    shared = {
        "secrets/poweropd-token",
        "serviceaccounts/poweropd-worker",
        "persistentvolumeclaims/poweropd-shared",
        "configmaps/poweropd-demo",
    }
    assert left == shared


def test_a_running_run_is_not_submitted_again_and_one_that_ended_is(cluster: Cluster) -> None:
    place().submit(request())
    running(cluster)
    calls = len(cluster.calls)
    state = place().submit(request(settings="max_steps: 4\n"))
    assert state.status == "RUNNING"
    assert "is running, nothing was submitted" in state.message
    assert len(cluster.calls) == calls

    drained(cluster)
    uid = cluster.objects["rayjobs", "first"]["metadata"]["uid"]
    state = place().submit(request(settings="max_steps: 4\n"))
    assert (state.status, "again" in state.message) == ("PENDING", True)
    assert cluster.objects["rayjobs", "first"]["metadata"]["uid"] != uid
    assert cluster.objects["configmaps", "first-settings"]["data"] == {"settings.yaml": "max_steps: 4\n"}
    assert "--resume=auto" in cluster.objects["rayjobs", "first"]["spec"]["entrypoint"]
    assert "DELETE persistentvolumeclaims/poweropd-shared" not in cluster.calls


def test_stop_forbids_retries_first_and_then_drains_the_run(cluster: Cluster) -> None:
    submitted(cluster)
    running(cluster)

    def finish(pod: str, command: list[str]) -> str:
        assert cluster.objects["rayjobs", "first"]["spec"]["backoffLimit"] == 0
        threading.Timer(0.5, drained, [cluster]).start()
        return "first finishes the step in progress\n"

    cluster.on_exec = finish
    state = place().stop("first", grace_s=60)
    assert (state.status, state.exit_code) == ("STOPPED", 3)
    command = ["python", "/app/launch.py", "stop", "--run", "first", "--runs-path", "/shared/runs"]
    assert cluster.execs == [("first-abcde-head", command)]
    assert place().stop("first", grace_s=60) == state  # it has ended: nothing is done
    assert len(cluster.execs) == 1


def test_stop_asks_again_while_the_run_cannot_be_asked_yet(cluster: Cluster) -> None:
    submitted(cluster)
    running(cluster)
    answers: list[Callable[[], str]] = [lambda: "ok", lambda: refuse("no run named first is running")]

    def refuse(words: str) -> str:
        raise ValueError(words)

    def answer(pod: str, command: list[str]) -> str:
        said = answers.pop()()
        drained(cluster)
        return said

    cluster.on_exec = answer
    assert place().stop("first", grace_s=60).status == "STOPPED"
    assert len(cluster.execs) == 2


def test_a_run_that_has_not_started_or_does_not_end_in_time_is_deleted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(cluster)
    operator(cluster, "Initializing")
    state = place().stop("first", grace_s=60)
    assert state.status == "STOPPED"
    assert ("rayjobs", "first") not in cluster.objects

    monkeypatch.setattr("commands.submit.kubernetes.END_MARGIN_S", 0.5)
    submitted(cluster)
    running(cluster)
    state = place().stop("first", grace_s=0.5)
    assert (state.status, ("rayjobs", "first") in cluster.objects) == ("STOPPED", False)
    assert place().state("first") is None


def test_follow_prints_each_line_once_across_the_submitters_of_retries(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(cluster)
    running(cluster)
    first = submitter(cluster, "first-one", "Running", "step 1", "step 2")

    def go_on() -> None:
        time.sleep(0.8)
        operator(cluster, "Retrying", failed=1, message="lost")
        first["status"]["phase"] = "Failed"
        time.sleep(0.8)
        operator(cluster, "Running")
        second = submitter(cluster, "first-two", "Running", "resumed")
        time.sleep(0.8)
        cluster.logs["first-two"].append("2026-01-01T00:00:09.000000000Z done")
        time.sleep(0.3)
        second["status"]["phase"] = "Succeeded"
        operator(cluster, "Complete", jobStatus="SUCCEEDED", message="Job finished successfully.")

    thread = threading.Thread(target=go_on)
    thread.start()
    state = place().follow("first")
    thread.join()
    assert (state.status, state.exit_code) == ("SUCCEEDED", 0)
    assert capsys.readouterr().out.splitlines() == ["step 1", "step 2", "resumed", "done"]


def test_a_dry_run_shows_what_would_be_sent_without_secrets_or_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    monkeypatch.setenv("KUBECONFIG", "/dev/null")
    text = place().describe(request())
    assert "hf_of-somebody" not in text
    assert "\n    max_steps: 3\n" in text, "settings are shown as they are"
    objects = [*yaml.safe_load_all(text)]
    assert [each["kind"] for each in objects][-3:] == ["ConfigMap", "Secret", "RayJob"]


def test_mistakes_are_one_line_each_and_nothing_is_made(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nearest valid: .*overlays/cpu-kind\)$"):
        KubernetesPlace(OVERLAY.with_name("cpu-kin"), None, None).submit(request())
    with pytest.raises(ValueError, match=r"run_name: .* got 'Big_Run' \(nearest valid: big-run\)"):
        place().submit(request(run_name="Big_Run"))
    with pytest.raises(ValueError, match="no RayJob other is there"):
        place().stop("other", grace_s=1)
    with pytest.raises(ValueError, match=r"got '\$\(id\)'"):
        place().submit(request(train=("--force", "$(id)")))
    with pytest.raises(ValueError, match="at most 900000 bytes"):
        place().submit(request(settings="#" * 900_001))
    cluster.add("rayjobs", "RayJob", "theirs")
    with pytest.raises(ValueError, match="none of these runs"):
        place().submit(request(run_name="theirs"))
    cluster.remove("secrets", "poweropd-token")
    with pytest.raises(
        ValueError, match=r"no secret poweropd-token .*kubectl create secret generic poweropd-token"
    ):
        place().submit(request())
    assert cluster.calls == []


def test_without_kubectl_or_a_cluster_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    nowhere = {"clusters": [{"name": "gone", "cluster": {"server": "http://127.0.0.1:9"}}], "kind": "Config"}
    nowhere |= {
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": ""}}],
        "current-context": "gone",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(nowhere))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(
        UnreachableError, match=r"^kubectl get: The connection to the server 127.0.0.1:9 was refused"
    ):
        place().submit(request())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no kubectl on the PATH"):
        place().state("first")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, ("PENDING", None)),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, ("SUCCEEDED", 0)),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, ("STOPPED", None)),
        ({"jobDeploymentStatus": "Failed", "message": "it failed with exit code 1, last"}, ("FAILED", 1)),
        ({"jobDeploymentStatus": "Failed", "message": "it failed with exit code 3, last"}, ("STOPPED", 3)),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, ("FAILED", None)),
        ({"jobDeploymentStatus": "Retrying", "message": "failed with exit code 3"}, ("PENDING", None)),
        ({"jobDeploymentStatus": "Suspended"}, ("SUSPENDED", None)),
    ],
)
def test_kuberays_words_in_ours(status: Object, expected: tuple[str, int | None]) -> None:
    state = state_of({"metadata": {"name": "first"}, "status": status})
    assert (state.status, state.exit_code) == expected


def test_names_that_kubernetes_takes_are_kept_and_others_refused_with_the_nearest() -> None:
    for name in ("a", "demo-2", "x" * 47):
        assert job_name(name) == name
    nearest = {"Demo": "demo", "1st": "run-1st", "a.b_c": "a-b-c", "x" * 60: "x" * 47, "-": "run"}
    for name, near in nearest.items():
        with pytest.raises(ValueError, match=rf"\(nearest valid: {near}\)$"):
            job_name(name)
        assert job_name(near) == near


def test_labels_of_the_cluster_are_the_jobs_and_an_overlay_may_say_its_namespace(tmp_path: Path) -> None:
    objects = copy.deepcopy(rendered("cpu-kind"))
    [cluster] = [each for each in objects if each["kind"] == "RayCluster"]
    cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "training"
    cluster["metadata"]["annotations"] = {"owner": "somebody"}
    metadata = job_objects(objects, request())[-1]["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert metadata["labels"]["app.kubernetes.io/instance"] == "first"
    assert {"owner", "poweropd.io/run", "poweropd.io/runs-path"} == {*metadata["annotations"]}

    assert namespace_of(OVERLAY) is None
    (tmp_path / "kustomization.yaml").write_text("namespace: training\n")
    assert namespace_of(tmp_path) == "training"


def test_settings_that_are_in_the_file_are_not_in_the_command() -> None:
    overrides = ("--data.train_path", "a b;c", "--max-steps=3")
    train = (*overrides, "--run-name", "first", "--resume=auto", "--retries", "3", "--force", "golden")
    command = entry_point(request(train=train, overrides=overrides))
    said = "--run-name first --resume=auto --retries 3 --force golden"
    assert command == f"python /app/launch.py train --config /etc/poweropd/settings.yaml {said}"


def test_a_run_drains_before_the_pods_of_its_head_and_learner_end() -> None:
    spec = job_objects(rendered("cpu-kind"), request())[-1]["spec"]["rayClusterSpec"]
    pods = {each["groupName"]: each["template"]["spec"] for each in spec["workerGroupSpecs"]}
    pods["head"] = spec["headGroupSpec"]["template"]["spec"]
    for name, pod in pods.items():
        is_kept = name in ("head", "learner")
        assert ("lifecycle" in pod["containers"][0]) is is_kept
        assert (pod["terminationGracePeriodSeconds"] > 900) is is_kept


def test_the_script_of_a_pods_end_stops_the_run_of_its_own_cluster_alone(tmp_path: Path) -> None:
    """Run by bash, with `python` a stand-in that ends the run."""
    folder, ray, bin_folder = tmp_path / "runs" / "first", tmp_path / "ray", tmp_path / "bin"
    for each in (folder, ray / "session_own", bin_folder):
        each.mkdir(parents=True)
    (ray / "session_latest").symlink_to(ray / "session_own")
    cluster, asked = folder / "cluster.json", tmp_path / "asked"
    stand_in = bin_folder / "python"
    stand_in.write_text(f'#!/bin/bash\necho "$@" >> {asked}\n(sleep 1; rm {cluster}) > /dev/null 2>&1 &\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IEXEC)
    script = drain_script(request(runs_path=str(tmp_path / "runs"))).replace("/tmp/ray", str(ray))

    def seconds() -> float:
        start = time.monotonic()
        line = ["/bin/bash", "-c", script]
        subprocess.run(line, env={"PATH": f"{bin_folder}:/usr/bin:/bin"}, check=True, timeout=60)
        return time.monotonic() - start

    seconds()  # no run
    cluster.write_text('{"session": "session_of_a_later_cluster"}')
    seconds()
    assert not asked.exists()
    cluster.write_text('{"session": "session_own"}')
    assert seconds() >= 1, "it waits for the end of the run"
    assert not cluster.exists()
    said = f"/app/launch.py stop --run first --runs-path {tmp_path / 'runs'}\n"
    assert asked.read_text() == said
