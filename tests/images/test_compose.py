"""The containers of the compose file are a cluster: a run trains on it, each worker on a node of its group."""

import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from records.files import read_rows
from tests.images.build import Image
from tests.images.composed import compose_up
from tests.unit.validators import ROOT

GROUPS = ("rollout", "teacher", "learner")
STORE_BYTES = 200_000_000


def test_a_run_trains_on_the_services_of_the_compose_file_each_worker_on_its_group(
    image: Image, tmp_path: Path
) -> None:
    environment = {
        "POWEROPD_SHARED": str(_shared(tmp_path)),
        "POWEROPD_TOKEN_FILE": str(_token(tmp_path)),
        "POWEROPD_OBJECT_STORE_BYTES": str(STORE_BYTES),
        "POWEROPD_SHM_SIZE": str(2 * STORE_BYTES),
    }
    settings = {
        **{"run-name": "tiny", "runs-path": "/shared/runs", "max-steps": 3, "batch-size": 16},
        **{"student.model_path": "/shared/models/student", "teacher.model_path": "/shared/models/teacher"},
        **{"data.train_path": "/shared/data/train.jsonl", "evaluation.data_path": "null"},
        **{"cluster.address": "auto", "rollout.num_workers": 2},
        **{f"{group}.resources.custom.{group}": 1 for group in GROUPS},
    }
    train = ["python", "launch.py", "train", "--config", "configs/demo.yaml"]
    train += [f"--{name}={value}" for name, value in settings.items()]
    with compose_up(image, tmp_path, scale={"rollout": 2}, environment=environment) as containers:
        assert containers.keys() == {"head-1", "rollout-1", "rollout-2", "teacher-1", "learner-1"}
        text = containers["head-1"].run(train, timeout_s=600)
    assert "finished 3 steps" in " ".join(text.split())
    run = tmp_path / "shared" / "runs" / "tiny"
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    started = {
        row["worker"]: row["node"] for row in read_rows(run / "events.jsonl") if row["event"] == "worker_started"
    }
    assert {worker.partition("-")[0] for worker in started} == {*GROUPS}
    assert {worker: node.partition("-")[0] for worker, node in started.items()} == {
        worker: worker.partition("-")[0] for worker in started
    }
    assert {node for worker, node in started.items() if worker.startswith("rollout")} == {"rollout-1", "rollout-2"}


def _shared(folder: Path) -> Path:
    """A folder for /shared with models and data, which belongs to the user of the image."""
    shared = folder / "shared"
    shutil.copytree(ROOT / "examples" / "arithmetic" / "models", shared / "models")
    problems = ROOT / "examples" / "arithmetic" / "problems.py"
    subprocess.run([sys.executable, problems, "--out", shared / "data"], check=True, timeout=60)
    (shared / "runs").mkdir()
    for path in (shared, *shared.rglob("*")):
        shutil.chown(path, 1000, 1000)
    return shared


def _token(folder: Path) -> Path:
    """A file with a token, as the documents say it has to be."""
    token = folder / "ray_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    shutil.chown(token, 1000, 1000)
    return token
