"""A run folder as a run leaves it, written without running anything: for tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

from records.files import append_row
from records.run_folder import RunFolder
from settings.load import save_config
from settings.run import RunConfig
from tests.unit import metric_rows

BEGIN = 1_795_000_000.0
STEP_S = 2.0
CHECKS = [
    {"key": "vocabulary", "status": "ok", "message": "", "findings": []},
    {"key": "template", "status": "forced", "message": "the chat templates differ", "findings": []},
]


def write_run(
    runs_path: Path, name: str, *, steps: int = 30, alpha: float = 5.0, max_steps: int | None = None
) -> RunFolder:
    """A whole, finished run: two rollout workers, a teacher that died once, a learner."""
    path = runs_path / name
    path.mkdir(parents=True)
    folder = RunFolder(path)
    save_config(run_config(runs_path, name, alpha=alpha, max_steps=max_steps or steps), path / "config.yaml")
    write_json(path / "environment.json", {"git_commit": "abc123", "git_is_dirty": True})
    write_json(path / "preflight.json", {"checks": CHECKS})
    for step in range(1, steps + 1):
        folder.add_step(metrics_row(step, steps), [f"{step}-0-p-0"])
    for row in (
        {"step": 0, "model": "teacher", "avg_at_k": 0.98},
        {"step": 0, "model": "student_before", "avg_at_k": 0.4},
        {"step": steps // 2, "model": "student", "avg_at_k": 0.7},
        {"step": steps, "model": "student_after", "avg_at_k": 0.9},
    ):
        folder.add_evaluation({"benchmark": "arithmetic", "k": 8, "n": 8, "pass_at_k": 1.0, **row})
    write_events(folder, steps)
    write_timeline(folder, steps)
    write_samples(folder, steps)
    folder.write_summary({"steps": steps, "wall_s": 80.0})
    return folder


def run_config(runs_path: Path, name: str, *, alpha: float, max_steps: int) -> RunConfig:
    """A small configuration on CPUs."""
    values: dict[str, Any] = {
        "run_name": name,
        "runs_path": str(runs_path),
        "max_steps": max_steps,
        "student": {"model_path": "models/student"},
        "data": {"train_path": "train.jsonl"},
        "objective": {"name": "power", "alpha": alpha},
        "teacher": {"model_path": "models/teacher", "resources": {"num_cpus": 0.5}},
        "rollout": {"num_workers": 2, "resources": {"num_cpus": 1.5}},
        "learner": {"resources": {"num_cpus": 1}},
    }
    return RunConfig.model_validate(values)


def metrics_row(step: int, steps: int) -> dict[str, Any]:
    """A row with every key that a run writes; rewards, distances and stages as in a run that learns."""
    done = step / steps
    row = metric_rows.metrics_row(
        step,
        **{"time_s": BEGIN + 40 + step * STEP_S, "tokens_trained": 1000.0, "queue__rollouts": 1},
        **{"kl__reverse": 0.2 * math.exp(-3 * done), "grad_norm": 0.5 - 0.4 * done, "truncated_frac": 0.1},
        **{"response_length__mean": 20 + step % 5, "staleness__mean": 1.0, "staleness__max": 2.0},
        **{"staleness__lag_0": 250.0, "staleness__lag_1": 500.0, "staleness__lag_2": 250.0},
        **{"time__rollout_wait_s": 0.3, "time__score_wait_s": 1.0, "time__train_s": 0.5, "time__publish_s": 0.1},
        **{"time__step_s": STEP_S, "busy__teacher": 0.9, "queued__teacher": 0.9, "wasted__cut_off": 3},
    )
    row |= dict.fromkeys(("wasted/refused", "wasted/given_up", "wasted/skipped", "wasted/fall_back"), 0)
    row |= {f"reward/p{q}": (q - 50) / 500 for q in (5, 25, 50, 75, 95)}
    row |= {f"reward/position_{tenth}": 0.01 * tenth - 0.03 for tenth in range(10)}
    return row | ({"grad_norm/log_ratio": 4.0} if step % 10 == 1 else {})


def write_events(folder: RunFolder, steps: int) -> None:
    """All start at 30 s and end 10 s after the last step; the teacher is dead from 60 to 70 s."""
    end = 50 + steps * STEP_S
    add = folder.events
    event(add, 0, "run_started", command="launch.py train --config configs/demo.yaml", is_resumed=False)
    for worker in ("learner-0", "rollout-0", "rollout-1", "teacher-0"):
        event(add, 30, "worker_started", worker=worker, seconds=20.0, life=1)
    event(add, 60, "worker_died", worker="teacher-0", reason="ActorDiedError: killed")
    event(add, 75, "worker_started", worker="teacher-0", seconds=5.0, life=2)
    for worker in ("learner-0", "rollout-0", "rollout-1", "teacher-0"):
        event(add, end, "worker_retired", worker=worker, reason="run end")


def event(path: Path, after_s: float, name: str, **details: Any) -> None:
    """Append an event, so many seconds after the begin."""
    append_row(path, {"time": BEGIN + after_s, "event": name, **details})


def write_timeline(folder: RunFolder, steps: int) -> None:
    """Every worker busy in every step."""
    stages = {"learner-0": "train", "rollout-0": "generate", "rollout-1": "generate", "teacher-0": "score"}
    for step in range(steps):
        for worker, stage in stages.items():
            start = BEGIN + 40 + step * STEP_S
            row = {"worker": worker, "stage": stage, "start": start, "end": start + 1.5, "busy_s": 1.2, "num": 3}
            append_row(folder.timeline, row)


def write_samples(folder: RunFolder, steps: int) -> None:
    """Two problems, before and after."""
    row: dict[str, Any] = {
        **{"prompt": "12+3", "finish_reason": "stop", "num_tokens": 7, "value": "reward"},
        **{"tokens": ["1", "2", "+", "3", "=", "15", "<|im_end|>"]},
        **{"values": [0.5, -0.5, 0.0, 0.1, None, -0.05, 0.3], "is_trained": [True] * 6 + [False]},
        **{"student_logp": [-0.1] * 7, "teacher_logp": [-0.2] * 7},
    }
    for when, step in (("before", 0), ("after", steps)):
        for problem in range(2):
            append_row(folder.samples, {"when": when, "step": step, "problem_id": f"p{problem}", **row})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
