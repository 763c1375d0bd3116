"""Which process on which host: a pid alone may belong to another process by now."""

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

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
