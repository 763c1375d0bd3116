"""Who may write into a run folder: the process that opened it last, and no other.

A driver may be frozen or cut off while another one resumes its run. When it wakes up it must not add to the
ledger. `owner.json` names the last one that opened the folder by a random token. Whoever writes compares it first,
in an order that leaves no gap:

    the new owner   puts its token into owner.json, then replaces every file of rows by a copy of itself
    a writer        opens the file of rows, then compares the token, then writes

A writer that saw its own token opened the file before it was replaced, so what it writes late goes nowhere.
"""

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

FILE = "owner.json"


class NotOwnerError(RuntimeError):
    """Another process has taken over the run folder: this one must write nothing more."""


class Ownership:
    """This process's claim to a run folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self.token: str | None = None
        """What `owner.json` holds while this process may write; None before `take`."""

    def take(self, rows: tuple[Path, ...] = ()) -> None:
        """Become the owner of the folder, and shut an earlier one out of these files of rows."""
        self.token = secrets.token_hex(16)
        owner = {"token": self.token, **this_process()}
        _replace(self._file, json.dumps(owner).encode() + b"\n")
        for path in rows:
            if path.is_file():
                _replace(path, path.read_bytes())

    @property
    def is_held(self) -> bool:
        """True if nobody else has opened the folder since. A folder that was never taken is anyone's."""
        return self.token is None or token_of(self._file.parent) == self.token

    def check(self) -> None:
        """NotOwnerError if another process has opened the folder since."""
        if not self.is_held:
            raise NotOwnerError(_lost_text(self._file.parent))


def owner_of(folder: Path) -> dict[str, Any] | None:
    """Token, host, pid and start time of the last owner; None if the folder names none."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # a power failure may leave it empty
        return None


def token_of(folder: Path) -> str | None:
    """The token of the last owner."""
    owner = owner_of(folder)
    return None if owner is None else owner["token"]


def _lost_text(folder: Path) -> str:
    owner = owner_of(folder)
    who = f"process {owner['pid']} on {owner['host']}" if owner else "someone (it has no owner.json any more)"
    return f"the run folder {folder} was taken over by {who}; this process writes nothing more to it"


def _replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of `path`; another process may be doing the same."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# -- which process on which host: a pid alone may belong to another process by now ---------------------------

SAME_START_S = 1.0
"""Start times of one process may be read this far apart: they are computed from the machine's clock."""


def this_process() -> dict[str, Any]:
    """Host, pid and start time (seconds since 1970) of this process, as JSON values."""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": round(started, 2)}


def is_alive_here(identity: Mapping[str, Any]) -> bool:
    """True if the process is alive (also: frozen) on this host, and is not the calling one.

    What another host says of itself cannot be seen from here: False. An identity without a start time is believed.
    """
    pid = identity["pid"]
    if identity["host"] != socket.gethostname() or pid == os.getpid():
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        started = process.create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(identity.get("started", started) - started) <= SAME_START_S
