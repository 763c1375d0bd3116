"""How much space the disks that a run writes to have left, read again and again while it goes on."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from records.disk import space
from records.run_folder import RunFolder
from settings.run import RunConfig

logger = logging.getLogger(__name__)

EVERY_S = 15.0


class DiskWatch:
    """Holds the newest reading of every folder. A disk is asked in a thread: one behind a network may hang.

    >>> watch.spaces
    {'run': {'free': 52428800, 'size': 1073741824}}
    """

    def __init__(self, folders: Mapping[str, Path], *, read: Callable[[Path], dict[str, int]] = space) -> None:
        self._folders = folders
        self._read = read
        self.spaces: dict[str, dict[str, int]] = {}

    async def run(self) -> None:
        """Read for ever."""
        while True:
            await self.read()
            await asyncio.sleep(EVERY_S)

    async def read(self) -> None:
        """Read every folder; one that cannot be read has no reading then."""
        for name, path in self._folders.items():
            try:
                self.spaces[name] = await asyncio.to_thread(self._read, path)
            except OSError as error:
                self.spaces.pop(name, None)
                logger.warning("the free space of %s cannot be read: %s", path, error)


def written_folders(config: RunConfig, folder: RunFolder) -> dict[str, Path]:
    """The folders of a run that grow: its own, and that of its checkpoints where it is another one."""
    checkpoints = config.checkpoint.path
    if checkpoints is None or config.checkpoint.url is not None:
        return {"run": folder.path}
    return {"run": folder.path, "checkpoints": Path(checkpoints)}
