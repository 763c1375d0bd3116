"""A real Prometheus with docker/prometheus/kubernetes.yml picks the Ray pods out of what an API server lists."""

import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from tests.integration.namespaces import ROOT, until
from tests.unit.validators import validator

pytestmark = pytest.mark.timeout(120)

FOLDER = ROOT / "docker" / "prometheus"
HEAD_PORTS = {"gcs": 6379, "dashboard": 8265, "metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}


def pod(
    name: str, ip: str, ports: Mapping[str, int], *, group: str | None, phase: str = "Running"
) -> dict[str, Any]:
    """A pod as the API server lists it; of Ray if it has a group."""
    labels = {"app": name} if group is None else {"ray.io/cluster": "poweropd", "ray.io/group": group}
    container = [{"name": "c", "ports": [{"name": key, "containerPort": port} for key, port in ports.items()]}]
    return {
        "metadata": {"name": name, "namespace": "training", "uid": name, "resourceVersion": "1", "labels": labels},
        "spec": {"nodeName": "machine", "containers": container},
        "status": {"phase": phase, "podIP": ip, "hostIP": "10.1.0.1"},
    }


PODS = [
    pod("head", "10.0.0.1", HEAD_PORTS, group="headgroup"),
    pod("rollout-a", "10.0.0.2", {"metrics": 8080}, group="rollout"),
    pod("rollout-ended", "10.0.0.3", {"metrics": 8080}, group="rollout", phase="Failed"),
    pod("somebody-else", "10.0.0.4", {"metrics": 8080}, group=None),
]


class Api(BaseHTTPRequestHandler):
    """Lists the pods, and tells of no change."""

    def do_GET(self) -> None:
        """Answer a list at once; leave a watch without a word for some seconds."""
        request = urlparse(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if "watch" in parse_qs(request.query):
            time.sleep(5)
        else:
            found = PODS if request.path == "/api/v1/pods" else []
            answer = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": found}
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any, **__: Any) -> None:
        """Say nothing."""


@contextmanager
def api_server() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def targets(address: str) -> list[dict[str, Any]]:
    """What Prometheus scrapes; empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"{address}/api/v1/targets?state=active", timeout=10) as answer:
            return json.loads(answer.read())["data"]["activeTargets"]
    except OSError:
        return []


def test_every_metrics_port_of_a_ray_pod_is_scraped_and_no_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text(encoding="utf-8"), encoding="utf-8")
    with api_server() as api, (tmp_path / "log").open("w") as log:
        text = (FOLDER / "kubernetes.yml").read_text(encoding="utf-8")
        assert text.count("- role: pod\n") == 1
        (tmp_path / "kubernetes.yml").write_text(
            text.replace("role: pod\n", f"role: pod\n        api_server: {api}\n")
        )
        line = [validator("prometheus"), f"--config.file={tmp_path / 'kubernetes.yml'}"]
        line += [f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={address}"]
        server = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: targets(f"http://{address}"), "the targets", server, timeout_s=60)
            found = targets(f"http://{address}")
        finally:
            server.terminate()
            server.wait(30)
    assert sorted(each["labels"]["instance"] for each in found) == [
        *("10.0.0.1:44217", "10.0.0.1:44227", "10.0.0.1:8080", "10.0.0.2:8080")
    ]
    worker = next(each["labels"] for each in found if each["labels"]["instance"] == "10.0.0.2:8080")
    assert worker == {
        **{"job": "ray", "instance": "10.0.0.2:8080", "namespace": "training", "pod": "rollout-a"},
        **{"group": "rollout", "ray_io_cluster": "poweropd"},
    }
