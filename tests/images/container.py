"""Programs in a root folder of their own, as a container engine starts them: chroot in private namespaces.

Mounts are made in the namespace of the program alone and are gone with its last process: outside, nothing is ever
mounted in the folder, so that it can be removed at any time.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PRIVATE = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
# $1 root, $2 user, $3 working directory, then SOURCE TARGET of each bind up to --, then the program.
# The way to the root itself becomes a mount, so that it can be read-only; the rest is mounted on it.
ENTER = """
set -e
root=$1 user=$2 cwd=$3
shift 3
mount --bind "$root" "$root"
[ -z "$SCRATCH" ] || mount -o remount,bind,ro "$root"
for folder in $SCRATCH; do mount -t tmpfs -o mode=1777 tmpfs "$root$folder"; done
mount -t proc proc "$root/proc"
mount --bind /sys "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount -t tmpfs -o mode=1777,size="$SHM" tmpfs "$root/dev/shm"
while [ "$1" != -- ]; do
	mount --bind "$1" "$root$2"
	shift 2
done
shift
[ "$NETWORK" = host ] || hostname "$NAME"
[ "$NETWORK" = host ] || ip link set lo up
until [ "$NETWORK" != bridge ] || ip route | grep -q default; do sleep 0.1; done
exec chroot --userspec="$user" "$root" /usr/bin/env -i --chdir="$cwd" "$@"
"""


@dataclass(frozen=True)
class Place:
    """Where and as whom a program runs."""

    root: Path
    user: str = "0:0"
    cwd: str = "/"
    environment: Mapping[str, str] = field(default_factory=dict)
    binds: Mapping[Path, str] = field(default_factory=dict)
    """Files and folders of this machine, and where they appear while the program runs."""
    scratch: Sequence[str] = ()
    """Folders that are empty at first and gone in the end. If there are any, all others are read-only."""
    network: str = "none"
    """`none` but a loopback device, `host`: this machine's, `bridge`: waits for a card that somebody plugs in."""
    name: str = "container"
    """What the program takes for the name of its machine."""
    shm_bytes: int = 4 * 2**30
    """Size of /dev/shm."""

    def within(self) -> dict[str, str]:
        """What ENTER reads from its environment."""
        scratch = " ".join(self.scratch)
        return {"NETWORK": self.network, "NAME": self.name, "SHM": str(self.shm_bytes), "SCRATCH": scratch}

    def variables(self) -> list[str]:
        """NAME=VALUE of the program's whole environment."""
        home = next(line.split(":")[5] for line in self._users() if line.split(":")[2] == self.user.split(":")[0])
        return [
            f"{name}={value}" for name, value in ({"PATH": PATH, "HOME": home} | dict(self.environment)).items()
        ]

    def _users(self) -> list[str]:
        return (self.root / "etc" / "passwd").read_text().splitlines()


def start(place: Place, line: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a program as the first process of its namespaces; output goes to a file."""
    binds = dict(place.binds)
    if place.network == "host":
        binds[Path("/etc/resolv.conf").resolve()] = "/etc/resolv.conf"
    for source, target in binds.items():
        _mount_point(source, place.root / target.removeprefix("/"))
    given = [word for source, target in binds.items() for word in (str(source), target)]
    unshare = [*PRIVATE, *([] if place.network == "host" else ["--net"])]
    enter = ["bash", "-c", ENTER, "_", str(place.root), place.user, place.cwd, *given, "--"]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*unshare, *enter, *place.variables(), *line],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | place.within(),
        )


def run(place: Place, line: Sequence[str], log: Path, *, timeout_s: float) -> str:
    """The output of a program, which must succeed."""
    process = start(place, line, log)
    try:
        code = process.wait(timeout_s)
    finally:
        end(process)
    text = log.read_text(errors="replace")
    assert code == 0, f"{' '.join(line)}: exit code {code}\n{text[-8000:]}"
    return text


def first_process(process: "subprocess.Popen[bytes]") -> int | None:
    """Id, on this machine, of the program that `start` started; None before its start and after its end."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(children[0]) if children else None


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a program and all it has started: they go with the first process of their namespace."""
    if process.poll() is None and (first := first_process(process)) is not None:
        os.kill(first, signal.SIGKILL)  # unshare's --kill-child is void once the program has another user
    process.kill()
    process.wait(60)


def run_beside(
    process: "subprocess.Popen[bytes]", place: Place, line: Sequence[str], *, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run one more program in the namespaces of one that was started, as `docker exec` does."""
    user, group = place.user.split(":")
    enter = ["nsenter", f"--target={first_process(process)}", "--mount", "--net", "--pid", "--root"]
    enter += [f"--setuid={user}", f"--setgid={group}", "/usr/bin/env", "-i", f"--chdir={place.cwd}"]
    return subprocess.run([*enter, *place.variables(), *line], capture_output=True, text=True, timeout=timeout_s)


def stop(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> int:
    """Tell the first process to end, as `docker stop` does; its exit code."""
    first = first_process(process)
    assert first is not None, "it has ended already"
    os.kill(first, signal.SIGTERM)
    return process.wait(timeout_s)


def _mount_point(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
