"""Services of docker/compose.yaml as containers without Docker: what `docker compose config` says is carried out.

Each has a network card on a bridge of their own; a service's name leads to its first container. Of the compose
file commands, environment, secrets, volumes, /dev/shm, health checks and the order of starting count, no more.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.images.build import Image
from tests.images.container import Place, end, first_process, run_beside, start, stop
from tests.unit.validators import ROOT, validator

FILE = ROOT / "docker" / "compose.yaml"
SUBNET = "10.79.0"
SWITCH = f"{SUBNET}.254"
SCRATCH = ("/tmp", "/home/poweropd")
START_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Container:
    """One container of a service."""

    name: str
    place: Place
    process: "subprocess.Popen[bytes]"
    log: Path
    healthcheck: list[str]

    def run(self, line: Sequence[str], *, timeout_s: float) -> str:
        """The output of one more program in it, which must succeed."""
        done = run_beside(self.process, self.place, line, timeout_s=timeout_s)
        assert done.returncode == 0, f"{self.name}: {line}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def wait_until_healthy(self) -> None:
        """Return when the service's health check passes."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while run_beside(self.process, self.place, self.healthcheck, timeout_s=30).returncode:
            text = self.log.read_text(errors="replace")
            assert self.process.poll() is None, f"{self.name} has ended\n{text}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy\n{text}"
            time.sleep(0.5)


def services(profile: str, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of a profile, as docker compose understands them, each secret with its file."""
    line = [validator("docker-compose"), "--file", str(FILE), "--profile", profile, "config", "--format=json"]
    done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    composed = json.loads(done.stdout)
    for service in composed["services"].values():
        service["secrets"] = {
            composed["secrets"][each["source"]]["file"]: each["target"] for each in service["secrets"]
        }
    return composed["services"]


@contextmanager
def compose_up(
    image: Image, folder: Path, *, scale: Mapping[str, int], environment: Mapping[str, str]
) -> Iterator[dict[str, Container]]:
    """The containers of the CPU profile, healthy, by service and number; told to end in the end.

    `environment` is that of `docker compose`; it names the token's file and the folder for /shared.
    """
    found = services("cpu", environment)
    names = [(service, number) for service in found for number in range(1, scale.get(service, 1) + 1)]
    hosts = folder / "hosts"
    addresses = {
        f"{service}-{number}": f"{SUBNET}.{each}" for each, (service, number) in enumerate(names, start=1)
    }
    first = [f"{addresses[f'{service}-1']} {service}" for service in found]
    hosts.write_text("\n".join(["127.0.0.1 localhost", *(f"{a} {n}" for n, a in addresses.items()), *first, ""]))
    with ExitStack() as stack:
        switch = stack.enter_context(_bridge())
        up = dict[str, Container]()
        for service, number in sorted(names, key=lambda each: bool(found[each[0]].get("depends_on"))):
            for needed in found[service].get("depends_on", {}):
                up[f"{needed}-1"].wait_until_healthy()
            name = f"{service}-{number}"
            up[name] = container = _container(image, folder, name, found[service], hosts)
            stack.callback(end, container.process)
            _plug_in(switch, container, addresses[name])
        for container in up.values():
            container.wait_until_healthy()
        yield up
        for container in reversed(up.values()):
            stop(container.process, timeout_s=60)


def _container(image: Image, folder: Path, name: str, service: Mapping[str, Any], hosts: Path) -> Container:
    binds = {hosts: "/etc/hosts"}
    binds |= {Path(volume["source"]): volume["target"] for volume in service["volumes"]}
    binds |= {Path(file): target for file, target in service["secrets"].items()}
    given = {variable: value for variable, value in service["environment"].items() if value is not None}
    place = replace(
        image.place(given, scratch=SCRATCH, binds=binds, network="bridge"),
        name=name,
        shm_bytes=int(service["shm_size"]),
    )
    log = folder / f"{name}.log"
    process = start(place, [*image.entrypoint, *service["command"]], log)
    return Container(name, place, process, log, service["healthcheck"]["test"][1:])


@contextmanager
def _bridge() -> Iterator[Sequence[str]]:
    """A bridge in a network of its own; gives the words before a command that is to run there."""
    holder = subprocess.Popen(["unshare", "--net", "--kill-child", "sleep", "infinity"])
    try:
        time.sleep(0.5)
        switch = ["nsenter", f"--target={holder.pid}", "--net"]
        _ip(switch, "link add switch type bridge")
        _ip(switch, f"address add {SWITCH}/24 dev switch")
        _ip(switch, "link set switch up")
        yield switch
    finally:
        holder.kill()
        holder.wait()


def _plug_in(switch: Sequence[str], container: Container, address: str) -> None:
    """Give a container its network card; its program has waited for the route."""
    deadline = time.monotonic() + 30
    while (pid := first_process(container.process)) is None:
        assert time.monotonic() < deadline, container.name
        time.sleep(0.05)
    port = f"port{address.rpartition('.')[2]}"
    _ip(switch, f"link add {port} type veth peer name eth0 netns {pid}")
    _ip(switch, f"link set {port} master switch up")
    inside = ["nsenter", f"--target={pid}", "--net"]
    _ip(inside, f"address add {address}/24 dev eth0")
    _ip(inside, "link set eth0 up")
    _ip(inside, f"route add default via {SWITCH}")


def _ip(where: Sequence[str], line: str) -> None:
    subprocess.run([*where, "ip", *line.split()], check=True, timeout=30)
