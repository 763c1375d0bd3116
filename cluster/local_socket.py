"""A run's answers to processes of its user on the same machine: they need no Ray, and leave nothing behind.

    a line {"kind": "status"}  ->  a line with the answer        (as through the named actor, `cluster/mailbox.py`)

The socket has a name and no file (Linux's abstract ones), so it ends with its process however that ends. It has no
permissions of its own: both sides ask the kernel who the other is, and talk to the same user and to root alone.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from cluster.mailbox import ANSWER_TIMEOUT_S, MAX_REQUEST_BYTES, read_request
from cluster.waiting import wait_for

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 50
IDLE_S = 60.0
"""A connection on which nothing comes for so long is closed."""

Answer = Callable[[Any], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def listening(answer: Answer, after_answer: Callable[[], object]) -> AsyncIterator[str | None]:
    """Answer requests meanwhile; yields the socket's name, or None where there are no such sockets.

    `after_answer` is called once an answer was sent.
    """
    if sys.platform != "linux":
        yield None
        return
    name = f"poweropd-{secrets.token_hex(8)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    talks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(talks) >= MAX_CONNECTIONS or not _is_trusted(writer.get_extra_info("socket")):
            writer.close()
            return
        talk = asyncio.create_task(_talk(reader, writer, answer, after_answer))
        talks.add(talk)
        talk.add_done_callback(talks.discard)

    server = await asyncio.start_unix_server(connected, sock=listener, limit=MAX_REQUEST_BYTES)
    try:
        yield name
    finally:
        server.close()
        for talk in talks:
            talk.cancel()
        if talks:
            await asyncio.wait(talks)


async def _talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, after_answer: Callable[[], object]
) -> None:
    """Answer line after line; whatever comes, the others are served on."""
    try:
        is_open = True
        while is_open:
            try:
                line = await wait_for(reader.readline(), timeout_s=IDLE_S, what="a request")
                is_open = bool(line)
                given = await answer(read_request(line)) if is_open else None
            except ValueError as error:
                given = {"error": str(error)}
            if given is not None:
                writer.write(json.dumps(given).encode() + b"\n")
                await wait_for(writer.drain(), timeout_s=IDLE_S, what="the end of an answer")
                after_answer()
    except (OSError, TimeoutError) as error:  # it is gone, or says nothing more
        logger.debug("a connection ends: %s", error)
    finally:
        writer.close()


@contextmanager
def connection_to(name: str) -> Iterator[socket.socket]:
    """A connection to the run that listens at this name; OSError if there is none, or it is another user's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(f"\0{name}")
        if not _is_trusted(connection):
            raise PermissionError(f"the socket {name} is another user's")
        yield connection


def ask_here(connection: socket.socket, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request; OSError if none comes."""
    connection.sendall(json.dumps(dict(request)).encode() + b"\n")
    with connection.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the run closed the connection")
    return json.loads(line)


def _is_trusted(connection: socket.socket) -> bool:
    """Whether the other side is a process of this user, or of root."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.getuid())
