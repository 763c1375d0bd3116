"""Rates of a run, from its metrics rows and events: what `plan --from-run runs/NAME` goes by.

learner    seconds of a step over its tokens, by least squares
teacher    tokens over the seconds in which a worker had a call
rollout    seconds per token over the sequences in flight, by least squares; weight loads are taken off
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands.plan.prompts import LengthsConfig
from commands.plan.rates import RatesConfig
from commands.plan.timing import EngineRates
from commands.plan.workers import LearnerRates
from records.run_folder import RunFolder
from settings.run import RunConfig
from settings.run_files import load_config

Row = Mapping[str, Any]

MIN_STEPS = 8

NEEDED = ("work/rollout_held_s", "work/teacher_busy_s", "work/learner_tokens", "response_length/log_std")

IN_STEPS = 1e9
"""Prompt tokens per second of a student engine: their time is in that of the decode steps."""

DEFAULT_SLOPE = 0.01
"""Seconds that a further sequence adds to a step, over those of the step, where a run's rows cannot tell."""

MIN_SPREAD = 0.1
"""Standard deviation over mean of the sequences in flight, or of a batch's tokens, from which on rows can tell."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run's settings, and the rows and events that rates are fitted from."""

    config: RunConfig
    rows: Sequence[Row]
    events: Sequence[Row]

    @property
    def tokens_per_s(self) -> float:
        """Trained response tokens per second of the learner's time."""
        tokens = sum(row["work/learner_tokens"] for row in self.rows) - self.num_prompt_tokens
        return tokens / total(self.rows, "time/step_s")

    @property
    def num_responses(self) -> int:
        """Responses of all rows."""
        return len(self.rows) * self.config.batch_size * self.config.num_samples_per_prompt

    @property
    def num_prompt_tokens(self) -> float:
        """Prompt tokens of all responses."""
        mean = sum(row["response_length/mean"] for row in self.rows) / len(self.rows)
        return total(self.rows, "work/learner_tokens") - mean * self.num_responses


def read_run(path: str) -> MeasuredRun:
    """Read a run's folder, without its first steps; ValueError if it is none or lacks what is needed."""
    folder = RunFolder(Path(path))
    settings = folder.path / "config.yaml"
    if not settings.is_file():
        raise ValueError(f"from_run: {path} is no run folder (it has no config.yaml)")
    try:
        rows = [row for row in folder.valid_metrics() if not row.get("skipped")]
        events = folder.event_rows()
    except (
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:  # rows that are none of ours
        raise ValueError(f"from_run: a file of {path} is broken: {type(error).__name__}: {error}") from error
    rows = rows[min(5, len(rows) // 4) :]
    if len(rows) < MIN_STEPS:
        raise ValueError(f"from_run: {path} must have trained {MIN_STEPS + 4} steps or more")
    missing = [key for key in NEEDED if key not in rows[0]]
    if missing:
        raise ValueError(f"from_run: the metrics of {path} lack {', '.join(missing)}: it is of an older version")
    return MeasuredRun(load_config(str(settings)), rows, events)


def fit_rates(run: MeasuredRun) -> RatesConfig:
    """The rates that a run had."""
    lengths = fit_lengths(run)
    return RatesConfig(
        rollout=fit_rollout(run, lengths), teacher=fit_teacher(run), learner=fit_learner(run), lengths=lengths
    )


def fit_lengths(run: MeasuredRun) -> LengthsConfig:
    """Lengths with the run's mean and spread."""
    most, num = run.config.rollout.max_response_tokens, len(run.rows)
    mean = total(run.rows, "response_length/mean") / num
    within = np.mean([row["response_length/log_std"] ** 2 for row in run.rows])
    between = np.var([row["response_length/log_mean"] for row in run.rows])
    spread = min(float(np.sqrt(within + between)), 5.0)
    prompt = max(0, round(run.num_prompt_tokens / run.num_responses))
    median = mean * float(np.exp(-(spread**2) / 2))
    lengths = LengthsConfig(prompt=prompt, median=min(max(1.0, median), most), spread=spread, max=most)
    for _ in range(8):  # the limit cuts the tail off, so that the mean of what is drawn is smaller
        median = lengths.median * mean / lengths.mean
        lengths = lengths.model_copy(update={"median": min(max(1.0, median), most)})
    return lengths


def fit_learner(run: MeasuredRun) -> LearnerRates:
    """Seconds of a step, of a token, and of publishing."""
    ranks = run.config.learner.num_workers
    tokens = np.array([row["work/learner_tokens"] / ranks for row in run.rows])
    seconds = np.array([row["time/train_s"] for row in run.rows])
    fixed_s, token_s = fit_line(tokens, seconds, np.ones(len(tokens)), default_slope=None)
    publish_s = total(run.rows, "time/publish_s") / len(run.rows)
    return LearnerRates(step_s=fixed_s, tokens_per_s=1 / token_s, publish_s=publish_s)


def fit_teacher(run: MeasuredRun) -> EngineRates:
    """Tokens per second of a busy engine, over all that score."""
    tokens = sum(total(run.rows, f"work/{role}_tokens") for role in run.config.scorers)
    busy_s = sum(total(run.rows, f"work/{role}_busy_s") for role in run.config.scorers)
    return EngineRates(prefill_tokens_per_s=tokens / busy_s)


def fit_rollout(run: MeasuredRun, lengths: LengthsConfig) -> EngineRates:
    """Seconds of a decode step, alone and for each further sequence, and of weight loads."""
    fetch_s, load_s = _loads(run)
    most = run.config.rollout.engine.max_num_seqs
    per_slot = run.config.num_samples_per_prompt * _running_share(run.config.num_samples_per_prompt, lengths)
    points: list[tuple[float, float, float]] = []
    for rows in _chunks(run.rows):
        held_s, busy_s = total(rows, "work/rollout_held_s"), total(rows, "work/rollout_busy_s")
        tokens = total(rows, "work/rollout_tokens")
        if not (held_s > 0 and tokens > 0):
            continue
        num = per_slot * total(rows, "work/rollout_held_squared_s") / held_s
        loading = min(0.9, load_s * total(rows, "workers/rollout") / busy_s)
        decoding_s = per_slot * held_s * (1 - loading) * min(1.0, most / num)
        points.append((min(num, most), decoding_s / tokens, tokens))
    num, token_s, weight = map(np.array, zip(*points, strict=True))
    first_s, further_s = fit_line(num - 1, token_s, weight, default_slope=DEFAULT_SLOPE)
    return EngineRates(
        step_s=first_s,
        sequence_s=further_s,
        max_num_seqs=most,
        prefill_tokens_per_s=IN_STEPS,
        fetch_s=fetch_s,
        load_s=load_s,
    )


def fit_line(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, *, default_slope: float | None
) -> tuple[float, float]:
    """Intercept and slope, none negative, of a line through the weighted means.

    Where x hardly varies, or the slope would be negative or the intercept not positive: a slope of `default_slope`
    times the intercept, or a line through 0 if it is None.
    """
    mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
    variance = np.average((x - mean_x) ** 2, weights=weight)
    if variance > (MIN_SPREAD * mean_x) ** 2:
        slope = np.average((x - mean_x) * (y - mean_y), weights=weight) / variance
        if slope > 0 and mean_y - slope * mean_x > 0:
            return float(mean_y - slope * mean_x), float(slope)
    if default_slope is None:
        return 0.0, float(mean_y / mean_x)
    intercept = mean_y / (1 + default_slope * mean_x)
    return float(intercept), float(default_slope * intercept)


def total(rows: Sequence[Row], key: str) -> float:
    """Sum of a metric."""
    return sum(row[key] for row in rows)


def _loads(run: MeasuredRun) -> tuple[float, float]:
    """Mean seconds of a weight load while decoding continues, and while it waits."""
    loads = [event for event in run.events if event["event"] == "weights_loaded"]
    if not loads:
        return 0.0, total(run.rows, "time/load_s") / len(run.rows)
    seconds, *stopped = (total(loads, key) / len(loads) for key in ("seconds", "pause_s", "load_s", "verify_s"))
    return max(0.0, seconds - sum(stopped)), sum(stopped)


def _running_share(num_samples: int, lengths: LengthsConfig) -> float:
    """Share of a group's samples that run while its slot is in flight, which is until the longest ends."""
    drawn = np.array(lengths.draw(1000 * num_samples, seed=0)).reshape(-1, num_samples)
    return float(drawn.mean() / drawn.max(axis=1).mean())


def _chunks(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Some dozen groups of consecutive rows: tokens count when a slot ends, so single steps are uneven."""
    size = max(1, len(rows) // 12)
    return [rows[first : first + size] for first in range(0, len(rows) - size + 1, size)]
