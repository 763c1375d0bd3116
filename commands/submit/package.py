"""The working directory that a Ray job is sent: found as Ray finds it, so that its size is known before.

Ray leaves out what .gitignore (and .rayignore) files say; here also run folders and this machine's own things.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from settings.files import files_of_settings

EXCLUDES = ["/runs"]
"""Left out whatever .gitignore says, as its patterns; Ray adds .git, .venv, venv and __pycache__."""

MAX_BYTES = 100 * 2**20
"""Ray's jobs API takes no larger body."""

NUM_NAMED = 3


@dataclass(frozen=True)
class Package:
    """The files that are sent, relative to the working directory, and their sizes in bytes."""

    root: Path
    sizes: dict[Path, int]

    @property
    def num_bytes(self) -> int:
        """Of all files, before they are packed."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        return f"{self.root}: {len(self.sizes)} files, {_mib(self.num_bytes)}"


def find_package(root: Path, *, max_bytes: int = MAX_BYTES) -> Package:
    """What Ray sends of the folder; ValueError naming its largest parts if that is too much."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[Path, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root)] = path.stat().st_size

    excludes = [*get_runtime_env_default_excludes(), *EXCLUDES]
    _dir_travel(root, [_get_excludes(root, excludes)], add, include_gitignore=True)
    package = Package(root, sizes)
    if package.num_bytes > max_bytes:
        raise ValueError(
            f"the working directory {root} is too large to send: {_mib(package.num_bytes)}, and Ray takes "
            f"{_mib(max_bytes)}; largest: {_largest(sizes)} (put data and models where every node has them, or "
            "name the folders in .gitignore)"
        )
    return package


def _largest(sizes: dict[Path, int]) -> str:
    """The folders of the second level, or files above it, that hold the most."""
    totals = Counter[Path]()
    for path, size in sizes.items():
        totals[Path(*path.parts[:2])] += size
    return ", ".join(f"{path} {_mib(size)}" for path, size in totals.most_common(NUM_NAMED))


def path_in_package(config: str | None, package: Package) -> str | None:
    """The settings file as the job finds it; ValueError if it, or a file that it extends, is not sent."""
    if config is None:
        return None
    root = package.root.resolve()
    for path in files_of_settings(config):
        if not path.is_relative_to(root) or path.relative_to(root) not in package.sizes:
            raise ValueError(
                f"--config: {path} is not sent with the working directory {package.root}, less what git ignores; "
                "put it there"
            )
    return str(Path(config).resolve().relative_to(root))


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
