"""Builds a target of docker/Dockerfile without a container engine: in folders instead of layers."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.images.container import PATH, Place, run
from tests.images.context import context_files
from tests.images.debian import bootstrap, release_of
from tests.images.dockerfile import Instruction, Stage, expand, pairs, read_stages, words

PROXIES = ("http_proxy", "https_proxy", "no_proxy")
RUN_TIMEOUT_S = 3600
IMAGE = "POWEROPD_TEST_IMAGE"
"""The variable that names the description of the image to test."""


@dataclass(frozen=True)
class Image:
    """A folder with all files of an image, and what else its instructions said."""

    root: str
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    cwd: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def place(self, environment: Mapping[str, str] | None = None, **changes: Any) -> Place:
        """Where a program of a container of this image runs: without network, and as the image's user."""
        return replace(Place(Path(self.root), self.user, self.cwd, self.env | dict(environment or {})), **changes)

    def write(self, path: Path) -> None:
        """Write all but the files."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Image":
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))


class Builder:
    """Builds stages below a folder.

    `args` are the values of ARG lines, `secrets` and `caches` what RUN lines mount by their id or target, `binds`
    folders of this machine that RUN lines find at the same path.
    """

    def __init__(
        self,
        folder: Path,
        context: Path,
        *,
        args: Mapping[str, str],
        secrets: Mapping[str, Path],
        caches: Mapping[str, Path],
        binds: Mapping[Path, str],
    ) -> None:
        self.folder, self.context = folder, context
        self.stages = read_stages(context / "docker" / "Dockerfile")
        self.args, self.secrets, self.caches, self.binds = args, secrets, caches, binds
        self.built: dict[str, Image] = {}

    def build(self, target: str) -> Image:
        """Build a stage and those it needs; AssertionError with a program's output if one fails."""
        if target not in self.built:
            stage = self.stages[target]
            image = self._base(stage)
            for instruction in stage.instructions:
                if source := instruction.flag("from"):
                    self.build(source)
                started = time.monotonic()
                image = self._follow(image, instruction)
                if (took := time.monotonic() - started) > 1:
                    self._say(took, f"{target}: {instruction.name} {instruction.text}")
            self.built[target] = replace(image, args={})
        return self.built[target]

    def _base(self, stage: Stage) -> Image:
        """The stage's own copy of what it starts from."""
        root, started = self.folder / stage.name, time.monotonic()
        if stage.base in self.stages:
            image = replace(self.build(stage.base), root=str(root))
            started = time.monotonic()
            _copy(Path(self.built[stage.base].root), root)
        else:
            bootstrap(root, release_of(stage.base), self.folder / "debootstrap.log")
            image = Image(str(root), {"PATH": PATH})
        self._say(time.monotonic() - started, f"{stage.name}: FROM {stage.base.partition('@')[0]}")
        return image

    def _follow(self, image: Image, instruction: Instruction) -> Image:
        text = instruction.text
        known = image.env | image.args
        match instruction.name:
            case "ARG":
                name, _, default = text.partition("=")
                return replace(image, args=image.args | {name: self.args.get(name, default)})
            case "ENV":
                return replace(image, env=image.env | pairs(text, known))
            case "LABEL":
                return replace(image, labels=image.labels | pairs(text, known))
            case "USER":
                return replace(image, user=text)
            case "ENTRYPOINT":
                return replace(image, entrypoint=words(text))
            case "HEALTHCHECK":
                return replace(image, healthcheck=words(text.removeprefix("CMD ")))
            case "WORKDIR":
                Path(image.root, expand(text, known).removeprefix("/")).mkdir(parents=True, exist_ok=True)
                return replace(image, cwd=expand(text, known))
            case "COPY":
                self._copy_in(image, instruction)
            case "RUN":
                self._run(image, instruction)
            case _:
                raise ValueError(f"not understood: {instruction}")
        return image

    def _run(self, image: Image, instruction: Instruction) -> None:
        proxies = {
            name: os.environ[name] for each in PROXIES for name in (each, each.upper()) if name in os.environ
        }
        mounts = self._mounts(instruction)
        binds = (dict(self.binds) | mounts) if mounts else {}
        made = [
            path for target in binds.values() if not (path := Path(image.root, target.removeprefix("/"))).exists()
        ]
        place = Place(
            Path(image.root), image.user, image.cwd, image.env | image.args | proxies, binds, network="host"
        )
        run(place, ["/bin/sh", "-c", instruction.text], self.folder / "run.log", timeout_s=RUN_TIMEOUT_S)
        for path in made:  # empty again: what was mounted on them went with the program
            path.rmdir() if path.is_dir() else path.unlink()

    def _mounts(self, instruction: Instruction) -> dict[Path, str]:
        """What a RUN line mounts, as far as it was given."""
        mounts = dict[Path, str]()
        for mount in instruction.mounts():
            match mount["type"]:
                case "secret":
                    source = self.secrets.get(mount["id"])
                    target = mount.get("target", f"/run/secrets/{mount['id']}")
                case "cache":
                    source, target = self.caches.get(mount["target"]), mount["target"]
                case _:
                    raise ValueError(f"not understood: {mount}")
            if source is not None:
                mounts[source] = target
        return mounts

    def _copy_in(self, image: Image, instruction: Instruction) -> None:
        source, target = instruction.text.split()
        into = Path(image.root, target.removeprefix("/"))
        if stage := instruction.flag("from"):
            _copy(Path(self.built[stage].root, source.removeprefix("/")), into, hard_links=True)
            return
        files = context_files(self.context)
        if source != ".":
            assert Path(source) in files, f"{source} is not in the build context"
            assert target.endswith("/"), instruction
            _copy_file(self.context / source, into / Path(source).name)
            return
        for file in files:
            _copy_file(self.context / file, into / file)

    def _say(self, seconds: float, what: str) -> None:
        print(f"{seconds:6.0f} s  {what}", flush=True)


def _copy(source: Path, target: Path, *, hard_links: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    how = ["--archive", *(["--link"] if hard_links else ["--reflink=auto"])]
    subprocess.run(["cp", *how, "--no-target-directory", source, target], check=True)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file with its mode and time; it is root's then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    os.chown(target, 0, 0)
