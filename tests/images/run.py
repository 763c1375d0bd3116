"""Runs docker/Dockerfile's steps for the CPU image in a clean Debian root, then the tests of what came of it.

    make image-test
    make image-test ARGS="--keep /var/tmp/image"     # leave the root there, and use it again if it is complete

There is no container engine in this: a folder for each stage, chroot and private namespaces for each program. It
takes root on Linux with apt, and 8 GB in the folder for temporary files (TMPDIR).
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.images.build import IMAGE, Builder, Image
from tests.images.package_index import cache_folder, local_folders, pip_settings, write_configuration

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("apt-get", "chroot", "dpkg", "ip", "nsenter", "unshare", "wget")
NEEDED_GB = 8
TARGET = "cpu"


def main() -> int:
    """Build, test, clean up; pytest's exit code, or 2 if this machine cannot do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="build here, and leave it")
    parser.add_argument("--only-build", action="store_true", help="run no tests")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="poweropd-image-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is below `finally` is done
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if reason := why_not(folder):
            print(f"error: {reason}", file=sys.stderr)
            return 2
        started = time.monotonic()
        image = built(folder)
        print(f"{time.monotonic() - started:6.0f} s  in all; {size_gb(Path(image)):.1f} GB", flush=True)
        os.environ[IMAGE] = str(folder / "image.json")
        tests = ["-q", "-x", "-p", "no:cacheprovider", "--timeout=900", str(Path(__file__).parent)]
        return 0 if arguments.only_build else int(pytest.main(tests))
    finally:
        if arguments.keep is None:
            remove(folder)


def why_not(folder: Path) -> str | None:
    """What is missing here, in one line."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    free_gb = shutil.disk_usage(folder).free / 1e9
    if os.geteuid() != 0:
        return "it takes root: chroot and namespaces"
    if missing:
        return f"these programs are not here: {', '.join(missing)}"
    if free_gb < NEEDED_GB and not (folder / "image.json").exists():
        return f"it takes {NEEDED_GB} GB in {folder}, {free_gb:.1f} are free: set TMPDIR"
    return None


def built(folder: Path) -> str:
    """Build the image below the folder, unless it is there; the path of its root."""
    description = folder / "image.json"
    if not description.exists():
        for left_over in ("system", "packages-cpu", "node", "cpu"):
            shutil.rmtree(folder / left_over, ignore_errors=True)
        settings = pip_settings()
        cache = cache_folder()
        builder = Builder(
            folder,
            ROOT,
            args={"TORCH_INDEX_URL": os.environ.get("TORCH_INDEX_URL", "")},
            secrets=write_configuration(folder / "pip.conf", settings),
            caches={"/root/.cache/pip": cache} if cache else {},
            binds={path: str(path) for path in local_folders(settings)},
        )
        builder.build(TARGET).write(description)
    return Image.read(description).root


def size_gb(root: Path) -> float:
    """Size of a root's files."""
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sum(file.lstat().st_size for file in files) / 1e9


def remove(folder: Path) -> None:
    """Remove a folder in which nothing is mounted."""
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {folder}/" in line]
    assert not mounted, f"{folder} stays, something is mounted there: {mounted}"
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
