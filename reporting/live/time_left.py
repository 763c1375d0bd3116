"""How long a run still takes, from its recent steps and the evaluations and checkpoints between them."""

from collections.abc import Mapping, Sequence
from typing import Any

WORK = ("time/rollout_wait_s", "time/score_wait_s", "time/train_s", "time/publish_s")


def time_left_s(
    rows: Sequence[Mapping[str, Any]], *, max_steps: int, evaluate_every: int, evaluation_s: float = 0.0
) -> float | None:
    """Seconds until the last step is trained and evaluated; None without a row that has times.

    `rows` are metrics rows of recent steps. A step's time includes the pauses before it. Those after a step that
    is evaluated count as often as evaluations are still to come, all others as often as steps are. `evaluation_s`
    is what the evaluation after the last step will take.
    """
    timed = [row for row in rows if row.get("time/step_s", 0) > 0]
    if not timed:
        return None
    left = max(0, max_steps - timed[-1]["step"])
    if left == 0:
        return evaluation_s
    follows = [evaluate_every > 0 and row["step"] > 1 and (row["step"] - 1) % evaluate_every == 0 for row in timed]
    plain = [row["time/step_s"] for row, is_after in zip(timed, follows, strict=True) if not is_after]
    work = _mean([_work_s(row) for row in timed])
    if not plain:  # an evaluation before every step
        return left * _mean([row["time/step_s"] for row in timed]) + evaluation_s
    pauses = [row["time/step_s"] - _work_s(row) for row, is_after in zip(timed, follows, strict=True) if is_after]
    to_come = sum(step % evaluate_every == 0 for step in range(timed[-1]["step"], max_steps)) if pauses else 0
    return left * max(work, _mean(plain)) + to_come * _mean(pauses) + evaluation_s


def _work_s(row: Mapping[str, Any]) -> float:
    return sum(row[key] for key in WORK)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def clock_text(seconds: float) -> str:
    """Seconds for people: `0:07`, `12:03`, `1:02:03`, `2 d 3:04:05`."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {text}" if days else text
