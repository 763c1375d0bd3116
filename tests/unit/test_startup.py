"""What a start costs: phases of the benchmark, and libraries that nobody needs while a run starts."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.vllm import collection_paused
from benchmarks.startup import phases

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "ray", "pandas", "datasets", "matplotlib")


def event(time: float, name: str, **details: Any) -> dict[str, Any]:
    return {"time": time, "event": name, **details}


EVENTS = [
    event(1009.75, "prepared", seconds={"imports": 1.0, "inputs": 4.0, "ray": 4.5}),
    event(1010.0, "run_started"),
    event(1010.25, "workers_placed"),
    event(1018.0, "worker_started", worker="learner-0"),
    event(1020.0, "worker_started", worker="rollout-0"),
    event(1021.0, "worker_started", worker="rollout-1"),
    event(1022.5, "weights_loaded", worker="rollout-0"),
    event(1050.0, "worker_started", worker="rollout-2"),
    event(1060.0, "weights_loaded", worker="rollout-0"),
]
TIMELINE = [
    {"worker": "rollout-0", "stage": "generate", "start": 1022.5, "end": 1024.0},
    {"worker": "teacher-0", "stage": "score", "start": 1024.0, "end": 1026.0},
    {"worker": "learner-0", "stage": "train", "start": 1027.0, "end": 1028.5},
    {"worker": "teacher-0", "stage": "score", "start": 1028.0, "end": 1029.0},
]


def test_the_phases_of_a_start_follow_one_another_and_their_sum_is_the_whole() -> None:
    found = phases(EVENTS, TIMELINE, {"time_s": 1028.75}, began=1000.0)
    consecutive = {
        **{"imports_s": 1.0, "inputs_s": 4.0, "ray_s": 4.5, "before_s": 0.5, "placed_s": 0.25},
        **{"engines_s": 10.75, "weights_s": 1.5, "batch_s": 4.5, "train_s": 1.5, "record_s": 0.25},
    }
    beside = {
        **{"started_learner_s": 7.75, "started_rollout_s": 10.75},
        **{"first_rollouts_s": 1.5, "first_scores_s": 3.5, "first_step_s": 28.75},
    }
    assert found == pytest.approx(consecutive | beside)
    assert sum(consecutive.values()) == found["first_step_s"]


def test_no_garbage_is_collected_during_an_import_and_what_it_made_is_left_alone_afterwards() -> None:
    assert gc.isenabled()
    num_frozen = gc.get_freeze_count()
    try:
        with collection_paused():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > num_frozen
    finally:
        gc.unfreeze()


def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def heavy_of(program: str) -> str:
    program += f"; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_command_begins_and_a_worker_is_placed_without_the_heavy_libraries() -> None:
    assert heavy_of("import launch") == "[]"
    assert heavy_of("import actors.rollout_worker, actors.teacher_worker, actors.vllm") == "[]"
