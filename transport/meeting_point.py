"""Where the processes of a group find each other: a key-value store at one address and nowhere else.

Left to itself torch's store listens on every interface of the machine, to whoever connects.
"""

import socket
from datetime import timedelta
from typing import Any


def open_store(address: str, port: int, *, is_host: bool, world_size: int, timeout_s: float) -> Any:
    """A store at `address`; blocks, up to the limit, until the process that `is_host` has opened it."""
    import torch.distributed

    store: Any = torch.distributed.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s), "wait_for_workers": False}
    if is_host:
        options["master_listen_fd"] = _listener(address, port).detach()
    return store(address, port, world_size, is_master=is_host, **options)


def _listener(address: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(socket.SOMAXCONN)
    return listener
