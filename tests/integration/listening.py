"""Which sockets wait for connections in this network namespace, and what a stranger gets from them."""

import ipaddress
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

import grpc
import psutil

METHODS = {
    "gcs_server": "NodeInfoGcsService/GetAllNodeInfo",
    "raylet": "NodeManagerService/GetNodeStats",
    "raylet, objects": "ObjectManagerService/Pull",
    "a worker or a driver": "CoreWorkerService/GetCoreWorkerStats",
    "dashboard agent": "ReporterService/GetTraceback",
    "Ray client": "RayletDriver/ClusterInfo",
}
"""One call that each of Ray's gRPC services knows."""


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket, and the process that has it."""

    address: str
    port: int
    process: str

    @property
    def is_loopback(self) -> bool:
        """True if no other machine can connect."""
        ip = ipaddress.ip_address(self.address)
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return (mapped or ip).is_loopback

    @property
    def reached_at(self) -> str:
        """HOST:PORT for a client on this machine."""
        host = self.address.removeprefix("::ffff:")
        return f"{'127.0.0.1' if host in ('::', '0.0.0.0') else host}:{self.port}"


def listeners() -> set[Listener]:
    """All listening TCP sockets of the namespace, IPv4 and IPv6, with the names of their processes."""
    found = [each for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    return {Listener(str(each.laddr[0]), int(each.laddr[1]), _name(each.pid)) for each in found if each.laddr}


def _name(pid: int | None) -> str:
    try:
        return "unknown" if pid is None else psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return "ended"


def http_status(where: str, path: str = "/metrics") -> int | None:
    """Status of a GET without a token; None if it is no HTTP server."""
    try:
        with urllib.request.urlopen(f"http://{where}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return None


def grpc_codes(where: str, token: str | None) -> dict[str, str]:
    """What each of Ray's services answers there to an empty request, by the names of `METHODS`."""
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        return {name: _code(channel, f"/ray.rpc.{method}", token) for name, method in METHODS.items()}


def _code(channel: grpc.Channel, method: str, token: str | None) -> str:
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    try:
        call(b"", timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name  # pyright: ignore[reportAttributeAccessIssue]
    return "OK"
