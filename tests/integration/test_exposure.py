"""What of ours listens where, and who is answered: a local Ray, a training, a cluster that was started by hand."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.connection import connected
from records.files import read_rows
from settings.cluster import ClusterConfig
from settings.exit_codes import BAD_INPUT, DRAINED
from tests.integration.listening import Listener, grpc_codes, http_status, listeners
from tests.integration.namespaces import HEAD, ROOT, NodeOptions, driver, ray_nodes, until

pytestmark = [pytest.mark.timeout(400), pytest.mark.isolated]

ANYONE_MAY_READ = {200: "metrics", 401: "refused"}


class Idle:
    """An actor that only is there."""

    def ping(self) -> None:
        """Answer."""


def an_actor_answers() -> Any:
    """Start an actor, whose process listens too, and return its handle."""
    actor: Any = ray.remote(Idle)
    handle = actor.remote()
    ray.get(handle.ping.remote(), timeout=60)
    return handle


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a token."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return folder


def test_a_local_ray_listens_on_loopback_only_and_asks_for_a_token_that_its_user_alone_can_read(
    home: Path,
) -> None:
    token = home / ".ray" / "auth_token"
    with connected(ClusterConfig(num_cpus=2, object_store_gib=0.1), lambda nodes, is_local: None):
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
        actor = an_actor_answers()
        time.sleep(5)  # metrics ports come late
        found = listeners()
        assert len(found) > 8, (found, actor)
        assert {each for each in found if not each.is_loopback} == set()
        address = ray.get_runtime_context().gcs_address
        assert address.startswith("127.0.0.1:")
        assert grpc_codes(address, token.read_text())["gcs_server"] == "OK"
        assert grpc_codes(address, None)["gcs_server"] == "UNAUTHENTICATED"
        assert grpc_codes(address, "0" * 64)["gcs_server"] == "UNAUTHENTICATED"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.slow
def test_the_dashboard_is_on_loopback_too_and_elsewhere_only_if_asked(home: Path) -> None:
    small = ClusterConfig(num_cpus=1, object_store_gib=0.1)
    for host, is_loopback in (("127.0.0.1", True), (HEAD, False)):
        config = small.model_copy(update={"dashboard": True, "dashboard_host": host})
        with connected(config, lambda nodes, is_local: None):
            until(lambda: any(each.port == 8265 for each in listeners()), "the dashboard", timeout_s=60)
            beyond = {each for each in listeners() if not each.is_loopback}
            assert {each.port for each in beyond} == (set() if is_loopback else {8265}), beyond
            assert http_status(f"{host}:8265", "/api/jobs/") == 401


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("transport", ["object_store", "gloo"])
def test_a_whole_training_listens_on_loopback_only(home: Path, tmp_path: Path, transport: str) -> None:
    script = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "data"], check=True, timeout=60)
    settings = {
        **{"runs_path": tmp_path, "run_name": "seen", "data.train_path": tmp_path / "data" / "train.jsonl"},
        **{"evaluation.data_path": "null", "max_steps": 20000, "batch_size": 8, "learner.num_workers": 2},
        **{"cluster.num_cpus": 4, "weights.transport": transport},
    }
    command = [sys.executable, "launch.py", "train", "--config=configs/demo.yaml"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    secrets = {"HF_TOKEN": "hf_" + "q" * 34, "WANDB_API_KEY": "w" * 40}
    found: set[Listener] = set()
    with (tmp_path / "log").open("w") as log:
        environment = os.environ | secrets
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def has_trained() -> bool:
        found.update(listeners())
        metrics = tmp_path / "seen" / "metrics.jsonl"
        return metrics.is_file() and len(read_rows(metrics)) >= 3

    try:
        until(has_trained, "three steps", process, timeout_s=800)
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == DRAINED, (tmp_path / "log").read_text()
    finally:
        process.kill()
    processes = {each.process for each in found}
    assert "raylet" in processes
    assert [name for name in processes if "Learner" in name], processes
    assert [name for name in processes if "Rollout" in name], processes
    assert {each for each in found if not each.is_loopback} == set()
    secrets["the token"] = (home / ".ray" / "auth_token").read_text()
    assert secrets_in([tmp_path / "seen", tmp_path / "log", Path("/tmp/ray")], secrets) == []


def secrets_in(places: Sequence[Path], secrets: Mapping[str, str]) -> list[str]:
    """Files in these places that hold one of the secrets."""
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    assert len(files) > 20, files
    contents = ((file, file.read_bytes()) for file in files)
    return [
        f"{file}: {name}" for file, text in contents for name, value in secrets.items() if value.encode() in text
    ]


def test_a_cluster_answers_nobody_without_its_token(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_nodes(tmp_path, {"head": NodeOptions(num_cpus=2)}) as address:
        token = (tmp_path / "token").read_text()
        with driver(address, 1):
            actor = an_actor_answers()
            time.sleep(5)
            open_to_all = {each for each in listeners() if not each.is_loopback}
            assert {6379, 44217, 44227} <= {each.port for each in open_to_all}, actor
            services: set[str] = set()
            for each in open_to_all:
                services |= refusals_of(each, token)
            assert services >= {"gcs_server", "raylet", "raylet, objects", "a worker or a driver"}
        commands_are_refused(address, tmp_path, monkeypatch)


def refusals_of(listener: Listener, token: str) -> set[str]:
    """The services that refuse strangers at a port; fails if one answers, but for metrics, which all may read."""
    status = http_status(listener.reached_at)
    if status is not None:
        assert status in ANYONE_MAY_READ, listener
        return {ANYONE_MAY_READ[status]}
    there = {name for name, code in grpc_codes(listener.reached_at, token).items() if code != "UNIMPLEMENTED"}
    for wrong in (None, "0" * 64):
        codes = grpc_codes(listener.reached_at, wrong)
        assert "OK" not in codes.values(), (listener, codes)
        assert {codes[name] for name in there} <= {"UNAUTHENTICATED", "UNAVAILABLE"}, (listener, codes)
    return there


def commands_are_refused(address: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and one clear line from every command without a token, and from one with a wrong token."""
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    (path / "train.jsonl").write_text('{"id": "0", "problem": "1+1", "answer": "2"}\n')
    train = [
        "train",
        "--config=configs/demo.yaml",
        f"--data.train_path={path}/train.jsonl",
        f"--runs-path={path}/r",
    ]
    train += ["--evaluation.data_path=null", f"--cluster.address={address}"]
    there = ["--run=any", f"--address={address}"]
    lines = [train, *([name, *there] for name in ("status", "stop")), ["scale", *there, "--rollout=2"]]
    for token in (None, "0" * 64):
        environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"}
        environment |= {} if token is None else {"RAY_AUTH_TOKEN": token}
        for line in lines if token is None else lines[1:2]:
            command = [sys.executable, "launch.py", *line]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
            assert done.returncode == BAD_INPUT, (line, done.stdout, done.stderr)
            assert (done.stdout, done.stderr.count("\n")) == ("", 1), (line, done.stdout, done.stderr)
            assert done.stderr.startswith("error: "), done.stderr
            assert f"the Ray at {address} was not joined: " in done.stderr
            assert ("no authentication token" if token is None else "not take the token") in done.stderr, done
    assert not (path / "r").exists()
