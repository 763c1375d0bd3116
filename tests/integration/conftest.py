"""What the tests of this folder share: a local Ray, whole runs, and namespaces for those that are `isolated`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connection import connected, prepare_environment
from records.files import read_rows
from settings.cluster import ClusterConfig
from tests.integration import real_run
from tests.integration.real_run import MODELS, ROOT, STEPS, SYNCHRONOUS, DrainedRun

prepare_environment()  # before a test module imports ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of 16 logical CPUs whose workers import our packages and the tests' own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(ClusterConfig(num_cpus=16, object_store_gib=0.2), lambda nodes, is_local: None):
            yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's problems in `data`, and a place for runs."""
    folder = tmp_path_factory.mktemp("runs")
    real_run.write_problems(folder)
    return folder


@pytest.fixture(scope="session")
def demo_run(workspace: Path) -> Path:
    """The demo as a new user starts it, `make demo ARGS=...`: synchronous, float32, its batches kept."""
    given = SYNCHRONOUS | real_run.EVALUATED | {"runs_path": workspace}
    line = ["make", "--old-file=install", "demo", f"ARGS={' '.join(real_run.options(**given))}"]
    done = real_run.run(line)
    assert done.returncode == 0
    [folder] = workspace.glob("demo-*")
    assert "student after" in done.stdout
    assert str(folder / "export") in done.stdout.replace("\n", "")
    return folder


@pytest.fixture(scope="session")
def resumed_run(workspace: Path, demo_run: Path) -> Path:
    """The demo's run, as if killed in its last step, and resumed: back to step 5, then on to the end."""
    folder = workspace / "resumed"
    shutil.copytree(demo_run, folder)
    shutil.rmtree(folder / "export")
    shutil.rmtree(folder / "checkpoints" / f"step_{STEPS}")
    assert real_run.run(real_run.command(workspace, "resumed", "--resume", **SYNCHRONOUS)).returncode == 0
    return folder


@pytest.fixture(scope="session")
def wide_run(workspace: Path) -> Path:
    """An asynchronous run: two workers of each kind, ZeRO-3, differences of weights, an evaluation worker."""
    settings: dict[str, Any] = {
        "max_steps": 8,
        "batch_size": 8,
        "num_samples_per_prompt": 2,
        "max_staleness": 2,
        "batches_ahead": 1,
        "rollout.num_workers": 2,
        "teacher.num_workers": 2,
        "learner.num_workers": 2,
        "learner.zero_stage": 3,
        "learner.dtype": "bfloat16",
        "learner.micro_batch_tokens": 256,
        "objective.normaliser": "zscore",
        "evaluation.every_steps": 4,
        "evaluation.num_workers": 1,
        "checkpoint.every_steps": 2,
        "weights.delta": "true",
    }
    assert real_run.run(real_run.command(workspace, "wide", **settings)).returncode == 0
    return workspace / "wide"


@pytest.fixture(scope="session")
def drained_run(workspace: Path) -> DrainedRun:
    """A run on whole distributions, by force with a teacher of other words; Ctrl-C ends it after six steps."""
    teacher = workspace / "other-teacher"
    shutil.copytree(MODELS / "teacher", teacher)
    real_run.exchange_words(teacher / "tokenizer.json")
    settings: dict[str, Any] = {
        "max_steps": 500,
        "batch_size": 32,
        "max_staleness": 2,
        "batches_ahead": 1,
        "teacher.model_path": teacher,
        "objective.name": "reverse_kl",
        "importance.name": "none",
        "learner.micro_batch_tokens": 256,
        "learner.warmup_steps": 2,
        "checkpoint.every_steps": 0,
        "evaluation.max_problems": 2,
        "logging.save_batches": "true",
    }
    path = workspace / "drained"
    line = real_run.command(workspace, path.name, "--force", "tokenizer", **settings)
    return DrainedRun(path, *real_run.interrupted(line, lambda: len(read_rows(path / "metrics.jsonl")) >= 6))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `isolated` in namespaces of its own."""
    from tests.integration.namespaces import INSIDE, run_isolated

    if pyfuncitem.get_closest_marker("isolated") is None or INSIDE in os.environ:
        return None
    run_isolated(pyfuncitem.nodeid)
    return True
