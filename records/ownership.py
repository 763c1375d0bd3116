"""Who may write into a run folder: the process that opened it last, and no other.

A driver may be frozen or cut off while another one resumes its run. When it wakes up it must not add to the
ledger. `owner.json` names the last one that opened the folder by a random token. Whoever writes compares it first,
in an order that leaves no gap:

    the new owner   puts its token into owner.json, removes the files that others have ready to put in the place of
                    one, then replaces every file of rows by a copy of itself
    a writer        opens the file of rows, then compares the token, then writes
    a replacer      writes the new file beside the old one, then compares the token, then renames it

A writer that saw its own token opened the file before it was replaced, so what it writes late goes nowhere. A
replacer that saw its own token had its file ready before it was removed, so it finds nothing to rename.
`owner.json` itself is replaced only if it still names the owner that was there when the folder was looked at.
"""

import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from records.files import NUMBER, has, naming, read_json

FILE = "owner.json"
_READY = re.compile(r"\..+\.[0-9a-f]{8}")
"""What is ready to take the place of a file has its name and the beginning of a token."""


class NotOwnerError(RuntimeError):
    """Another process has taken over the run folder: this one must write nothing more."""


class Ownership:
    """This process's claim to a run folder.

    >>> owner = Ownership(folder)
    >>> owner.look()     # whoever opens the folder from here on is not locked out
    >>> owner.take()
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self.token: str | None = None
        """What `owner.json` holds while this process may write; None before `take`."""
        self._seen: tuple[str | None] | None = None

    def look(self) -> None:
        """Note who owns the folder now: `take` succeeds only while that is so."""
        self._seen = (token_of(self._file.parent),)

    def take(self, rows: tuple[Path, ...] = ()) -> None:
        """Become the owner of the folder, and shut an earlier one out of these files of rows.

        A last row that a crash cut off is dropped. NotOwnerError if another process was faster.
        """
        (earlier,) = self._seen or (token_of(self._file.parent),)
        self.token = secrets.token_hex(16)
        owner = {"token": self.token, **this_process()}
        self._replace(self._file, json.dumps(owner).encode() + b"\n", expected=earlier)
        for path in self._file.parent.iterdir():
            if _READY.fullmatch(path.name) and path.suffix != self._suffix:
                path.unlink(missing_ok=True)
        for path in rows:
            self.check()
            if path.is_file():
                content = path.read_bytes()
                self.replace(path, content[: content.rfind(b"\n") + 1])
        self.check()

    @property
    def is_held(self) -> bool:
        """True if nobody else has opened the folder since. A folder that was never taken is anyone's."""
        return self.token is None or token_of(self._file.parent) == self.token

    def check(self) -> None:
        """NotOwnerError if another process has opened the folder since."""
        if not self.is_held:
            raise NotOwnerError(_lost_text(self._file.parent))

    def replace(self, path: Path, content: bytes) -> None:
        """Put a new file in the place of one of the folder, whole; NotOwnerError if the folder is another's."""
        self._replace(path, content, expected=self.token)

    def replace_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """The same with indented JSON."""
        self.replace(path, json.dumps(content, indent=2).encode() + b"\n")

    @property
    def _suffix(self) -> str:
        return f".{(self.token or secrets.token_hex(4))[:8]}"

    def _replace(self, path: Path, content: bytes, *, expected: str | None) -> None:
        ready = path.with_name(f".{path.name}{self._suffix}")
        try:
            with naming(path), ready.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self.token is not None and token_of(self._file.parent) != expected:
                raise NotOwnerError(_lost_text(self._file.parent))
            os.replace(ready, path)
        except FileNotFoundError as error:
            if self.is_held:
                raise
            raise NotOwnerError(_lost_text(self._file.parent)) from error
        finally:
            with suppress(OSError):
                ready.unlink(missing_ok=True)


def owner_of(folder: Path) -> dict[str, Any] | None:
    """Token, host, pid and start of the last owner; None if the folder names none."""
    try:
        owner = read_json(folder / FILE)
    except ValueError as error:  # a power failure may leave it empty
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        return None
    return owner if owner is not None and is_process(owner) and has(owner, token=str) else None


def token_of(folder: Path) -> str | None:
    """The token of the last owner."""
    owner = owner_of(folder)
    return None if owner is None else owner["token"]


def _lost_text(folder: Path) -> str:
    owner = owner_of(folder)
    who = f"process {owner['pid']} on {owner['host']}" if owner else "someone (it has no owner.json any more)"
    return f"the run folder {folder} was taken over by {who}; this process writes nothing more to it"


# -- which process on which host: a pid alone may belong to another process by now ---------------------------

SAME_START_S = 1.0
"""Without a boot, start times of one process may be read this far apart: they are computed from the clock."""


def is_process(identity: Mapping[str, Any]) -> bool:
    """Whether it names a process, as `identity_of` does, or less of it, as earlier versions did."""
    is_named = has(identity, host=str, pid=int) and 0 < identity["pid"] < 2**31
    return is_named and has({"started": 0.0, **identity}, started=NUMBER)


def this_process() -> dict[str, Any]:
    """What tells this process from every other one, as JSON values."""
    return identity_of(os.getpid())


def identity_of(pid: int) -> dict[str, Any]:
    """Host, pid and start time (seconds since 1970) of a process of this host, as JSON values.

    On Linux also what no step of the clock changes: the boot of the machine with the namespace of its pids, and
    the ticks from the boot to the start of the process.
    """
    known = {"host": socket.gethostname(), "pid": pid, "started": round(psutil.Process(pid).create_time(), 2)}
    boot, ticks = _boot(), start_ticks(pid)
    return known if boot is None or ticks is None else known | {"boot": boot, "ticks": ticks}


def is_alive_here(identity: Mapping[str, Any]) -> bool:
    """True if the process is alive (also: frozen) on this host, and is not the calling one.

    What another host says of itself cannot be seen from here: False. An identity without any start is believed.
    """
    pid = identity["pid"]
    if pid == os.getpid():
        return False
    if "boot" in identity:
        return identity["boot"] == _boot() and start_ticks(pid) == identity.get("ticks", -1)
    if identity["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        started = process.create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(identity.get("started", started) - started) <= SAME_START_S


def start_ticks(pid: int) -> int | None:
    """Ticks from the machine's boot to the start of a living process; None if there is none, or off Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _boot() -> str | None:
    """What pids are numbers of: this boot of the machine, and the namespace of the process; None off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
