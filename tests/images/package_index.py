"""This machine's configuration of pip, for a root that has none: one file, and the files and folders it names."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CERTIFICATE = "/run/secrets/ca"
LEFT_OUT = {"cert", "constraint", "require-virtualenv", "user", "target", "prefix", "cache-dir"}
SEARCHED = {"index-url", "extra-index-url", "find-links"}


def pip_settings() -> dict[str, str]:
    """What pip has been told here, by files and by PIP_* variables, which win."""
    pip = [sys.executable, "-m", "pip"]
    lines = subprocess.run(
        [*pip, "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    named = [line.partition("=")[::2] for line in lines]
    named.sort(key=lambda each: each[0].startswith(":env:"))
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, value in named}


def write_configuration(path: Path, settings: dict[str, str]) -> dict[str, Path]:
    """Write pip.conf; returns it and the certificates it names as the secrets `pip` and `ca` of a build."""
    certificates = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    kept = {name: value for name, value in settings.items() if name not in LEFT_OUT}
    secrets = {"pip": path}
    if certificates:
        kept["cert"], secrets["ca"] = CERTIFICATE, Path(certificates)
    path.touch(mode=0o600)
    path.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items()))
    return secrets


def local_folders(settings: dict[str, str]) -> Iterator[Path]:
    """Folders of this machine in which pip looks for packages; of an index the one above, which has its files."""
    for name in SEARCHED & settings.keys():
        for place in settings[name].split():
            path = Path(place.removeprefix("file://"))
            if "://" not in place.removeprefix("file://") and path.is_dir():
                yield path.parent if path.name == "simple" else path


def cache_folder() -> Path | None:
    """Where pip keeps what it has fetched, if it does."""
    pip = [sys.executable, "-m", "pip", "cache", "dir"]
    done = subprocess.run(pip, capture_output=True, text=True)
    folder = Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else None
    return folder if folder is not None and folder.is_dir() else None
