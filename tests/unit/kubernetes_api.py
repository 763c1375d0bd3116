"""A small Kubernetes API over HTTP, so that the real kubectl runs against it: objects in memory, logs and exec.

It knows the kinds of this project, merges patches plainly, and nothing acts on the objects by itself: a test plays
KubeRay's operator, by setting the status of a job.
"""

import base64
import hashlib
import json
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
KINDS = {
    ("", "v1"): {
        "pods": "Pod",
        "secrets": "Secret",
        "configmaps": "ConfigMap",
        "serviceaccounts": "ServiceAccount",
    }
    | {"persistentvolumeclaims": "PersistentVolumeClaim"},
    ("ray.io", "v1"): {"rayjobs": "RayJob"},
    ("policy", "v1"): {"poddisruptionbudgets": "PodDisruptionBudget"},
    ("networking.k8s.io", "v1"): {"networkpolicies": "NetworkPolicy"},
}
NAMESPACE = "training"
WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def takes_field_validation(group: str, version: str) -> Object:
    """What kubectl wants to see before it leaves the check of fields to the server."""
    options = {"parameters": [{"name": "fieldValidation", "in": "query"}]}
    paths = {
        plural: {
            "patch": options
            | {"x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind}}
        }
        for plural, kind in KINDS[group, version].items()
    }
    return {"paths": {f"/{plural}/{{name}}": path for plural, path in paths.items()}}


@dataclass
class Cluster:
    """What the API holds, and what was done to it."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    """By plural and name."""
    calls: list[str] = field(default_factory=list)
    """What changed something: `POST rayjobs/first`; a trial has a question mark."""
    logs: dict[str, list[str]] = field(default_factory=dict)
    """Lines of each pod; a pod that is Running keeps printing."""
    on_exec: Callable[[str, list[str]], str] = lambda pod, command: ""
    """Runs a command in a pod; gives its output."""
    execs: list[tuple[str, list[str]]] = field(default_factory=list)

    def add(self, plural: str, kind: str, name: str, **more: Any) -> Object:
        """Put an object there, as a controller would."""
        each = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **more}
        return self.store(plural, each)

    def store(self, plural: str, each: Object) -> Object:
        """Keep a new object."""
        metadata = each["metadata"]
        metadata |= {"uid": str(uuid.uuid4()), "namespace": NAMESPACE, "resourceVersion": "1"}
        self.objects[plural, metadata["name"]] = each
        return each

    def remove(self, plural: str, name: str) -> None:
        """Delete an object, and what it owns."""
        uid = self.objects.pop((plural, name))["metadata"]["uid"]
        for (kind, dependent), each in list(self.objects.items()):
            if uid in [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]:
                self.remove(kind, dependent)


def merged(old: Any, changes: Any) -> Any:
    """A JSON merge patch; directives of strategic patches are left out."""
    if not isinstance(changes, dict):
        return changes
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in changes.items():
        if value is None:
            new.pop(key, None)
        elif not key.startswith("$"):
            new[key] = merged(new.get(key), value)
    return new


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nothing is printed."""

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        words = parts.path.strip("/").split("/")
        if "namespaces" not in words:
            return self._discover("/".join(words))
        if words[-2:-1] == ["namespaces"]:
            return self._answer(200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": words[-1]}})
        plural, *rest = words[words.index("namespaces") + 2 :]
        if rest[1:] == ["log"]:
            return self._log(rest[0], query)
        if rest[1:] == ["exec"]:
            return self._exec(rest[0], query["command"])
        return self._object(plural, rest[0] if rest else None, query)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_one

    def _discover(self, path: str) -> None:
        groups = [
            {"name": group, "versions": [v := {"groupVersion": f"{group}/{version}", "version": version}]}
            | {"preferredVersion": v}
            for group, version in KINDS
            if group
        ]
        answers: dict[str, Object] = {
            "api": {"kind": "APIVersions", "versions": ["v1"]},
            "apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        }
        documents: dict[str, Object] = {}
        for (group, version), kinds in KINDS.items():
            listed = [
                {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind}
                | {"verbs": ["get", "list", "create", "patch", "delete"]}
                for plural, kind in kinds.items()
            ]
            name = f"{group}/{version}" if group else version
            answer = {"kind": "APIResourceList", "groupVersion": name, "resources": listed}
            place = f"apis/{name}" if group else f"api/{version}"
            answers[place] = answer
            answers[f"openapi/v3/{place}"] = takes_field_validation(group, version)
            documents[place] = {"serverRelativeURL": f"/openapi/v3/{place}"}
        answers["openapi/v3"] = {"paths": documents}
        if path in answers:
            return self._answer(200, answers[path])
        return self._refuse(404, "NotFound", f"no {path}")

    def _object(self, plural: str, name: str | None, query: dict[str, list[str]]) -> None:
        cluster, is_trial = self.cluster, "dryRun" in query
        size = int(self.headers.get("Content-Length") or 0)
        body = yaml.safe_load(self.rfile.read(size) or b"{}")
        if self.command == "GET" and name is None:
            return self._answer(200, self._listed(plural, query))
        name = str(name or body["metadata"]["name"])
        found = cluster.objects.get((plural, name))
        if self.command != "GET":
            cluster.calls.append(f"{self.command} {plural}/{name}{'?' if is_trial else ''}")
        if self.command == "POST" or (found is None and "apply-patch" in self.headers.get("Content-Type", "")):
            return self._answer(201, body if is_trial else cluster.store(plural, body))
        if found is None:
            return self._refuse(404, "NotFound", f'{plural} "{name}" not found')
        if self.command == "PATCH":
            changed = merged(found, body)
            if not is_trial:
                cluster.objects[plural, name] = changed
            return self._answer(200, changed)
        if self.command == "DELETE":
            cluster.remove(plural, name)
            return self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        return self._answer(200, found)

    def _listed(self, plural: str, query: dict[str, list[str]]) -> Object:
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
        items = [
            each
            for (kind, _), each in self.cluster.objects.items()
            if kind == plural and wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        kind = next(kinds[plural] for kinds in KINDS.values() if plural in kinds)
        return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}

    def _log(self, pod: str, query: dict[str, list[str]]) -> None:
        """The lines from a time on, and those that follow while the pod is Running."""
        since, sent = query.get("sinceTime", [""])[0], 0
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        is_last = False
        while not is_last:
            found = self.cluster.objects.get(("pods", pod))
            is_last = found is None or found["status"]["phase"] != "Running"
            lines = self.cluster.logs.get(pod, [])
            for line in lines[sent:]:
                if line[:19] >= since[:19]:  # whole seconds, as Kubernetes
                    data = f"{line}\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            sent = len(lines)
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")

    def _exec(self, pod: str, command: list[str]) -> None:
        """A command over a WebSocket: first the output's channel, then that of its end."""
        key = self.headers["Sec-WebSocket-Key"].encode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key + WEBSOCKET).digest()).decode())
        self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
        self.end_headers()
        self.cluster.execs.append((pod, command))
        try:
            output = self.cluster.on_exec(pod, command)
            status: Object = {"status": "Success"}
        except ValueError as error:
            cause = {"reason": "ExitCode", "message": "2"}
            status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [cause]}}
            status["message"], output = f"command terminated with exit code 2: {error}", ""
        for channel, data in ((1, output.encode()), (3, json.dumps(status).encode())):
            self._frame(0x82, bytes([channel]) + data)
        self._frame(0x88, struct.pack(">H", 1000))
        self.close_connection = True

    def _frame(self, kind: int, data: bytes) -> None:
        size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack(">H", len(data))
        self.wfile.write(bytes([kind]) + size + data)
        self.wfile.flush()

    def _refuse(self, code: int, reason: str, message: str) -> None:
        self._answer(
            code,
            {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
            | {"code": code},
        )

    def _answer(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def kubernetes_api(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """A cluster, and the kubeconfig that leads to it; Ray's token is there."""
    cluster = Cluster()
    cluster.add("secrets", "Secret", "poweropd-token")
    handler = type("ClusterHandler", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = folder / "kubeconfig"
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "anything"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
    }
    path.write_text(yaml.safe_dump(config))
    try:
        yield cluster, path
    finally:
        server.shutdown()
        server.server_close()
