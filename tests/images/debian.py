"""A clean Debian in a folder, in place of the image that the Dockerfile starts from."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.images.container import PRIVATE

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]


def release_of(image: str) -> str:
    """The release of an image of Debian: bookworm."""
    match = re.match(r"debian:([a-z]+)-", image)
    assert match is not None, f"{image} is not Debian by name and date"
    return match[1]


def bootstrap(root: Path, release: str, log: Path) -> None:
    """Make the smallest Debian of this release, from the mirror that this machine's own apt sources name."""
    sources = subprocess.run(SOURCES, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    main = [line.split() for line in sources if line.endswith(" main")]
    mirror = next((uri for uri, name, _ in main if "-" not in name), None)
    assert mirror is not None, "apt names no mirror of Debian here"
    program, environment = debootstrap(root.parent)
    line = [str(program), "--variant=minbase", f"--keyring={KEYRING}", release, str(root), mirror]
    with log.open("wb") as output:
        done = subprocess.run(
            [*PRIVATE, *line], env=os.environ | environment, stdout=output, stderr=output, timeout=900
        )
    assert done.returncode == 0, log.read_text(errors="replace")[-4000:]
    used = {(mirror, release, "main")} | {
        (uri, name, part) for uri, name, part in main if name.startswith(release)
    }
    (root / "etc/apt/sources.list").write_text("".join(f"deb {' '.join(each)}\n" for each in sorted(used)))
    (root / "etc/resolv.conf").write_text("")


def debootstrap(folder: Path) -> tuple[Path, dict[str, str]]:
    """Debian's program, and what it needs in its environment; if it is not here it is fetched, not installed."""
    if found := shutil.which("debootstrap"):
        return Path(found), {}
    unpacked = folder / "debootstrap"
    if not unpacked.exists():
        unpacked.mkdir()
        subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "debootstrap"],
            cwd=unpacked,
            timeout=300,
            check=True,
        )
        package = next(unpacked.glob("debootstrap_*.deb"))
        subprocess.run(["dpkg", "-x", package, unpacked], timeout=60, check=True)
    return unpacked / "usr/sbin/debootstrap", {"DEBOOTSTRAP_DIR": str(unpacked / "usr/share/debootstrap")}
