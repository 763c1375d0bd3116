"""Every key of `metrics.jsonl`, declared once: its unit, its meaning, and where people see it.

TensorBoard and Weights & Biases show every key; the other places are named with each. The scheme of
names is in `records/metric.py`.

>>> metric = declared("throughput/teacher-code")
>>> metric.key, metric.unit, metric.variable("throughput/teacher-code")
('throughput/{role}', 'tokens/s', 'teacher-code')
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from records.learner_metrics import LEARNER_METRICS
from records.metric import Metric, each

POOLS = each("rollout", "teacher")
ALL = each("rollout", "teacher", "learner")

METRICS = (
    Metric("step", "steps", "Optimizer steps taken, with this one.", prometheus="step"),
    Metric("weight_version", "versions", "Version of the weights after the step.", prometheus="weight_version"),
    Metric("time_s", "s", "Unix time of the row."),
    *LEARNER_METRICS,
    Metric(
        "throughput/{role}",
        "tokens/s",
        "Tokens per second of a pool; `teacher` is all teachers together.",
        members=ALL,
        line="tok/s rollout {throughput/rollout:,.0f} teacher {throughput/teacher:,.0f} "
        "learner {throughput/learner:,.0f}",
        status="rates",
        prometheus="throughput_tokens_per_second",
        report="Throughput by pool",
    ),
    Metric(
        "time/{stage}_s",
        "s",
        "Seconds of the step, of the learner's stages, and of the newest load of weights by an engine.",
        members={
            "step": "from one step to the next",
            "rollout_wait": "the learner waits for rollouts",
            "score_wait": "the learner waits for scores",
            "train": "the learner trains",
            "publish": "the learner publishes its weights",
            "update": "the whole load",
            "fetch": "of the load: fetching bytes",
            "check": "of the load: checksums",
            "pause": "of the load: requests are preempted",
            "load": "of the load: parameters are replaced",
            "verify": "of the load: golden log-probs",
            "stopped": "of the load: the engine makes no token",
        },
        line="waits {time/rollout_wait_s:.2f}+{time/score_wait_s:.2f} s  train {time/train_s:.2f} s  "
        "publish {time/publish_s:.2f} s",
        status="waits",
        prometheus="stage_seconds",
        report="Time per step by stage",
    ),
    Metric("weights/bytes", "bytes", "Size of the newest version."),
    Metric("weights/difference_bytes", "bytes", "Size of its differences; 0 without `weights.delta`."),
    Metric("weights/bytes_fetched", "bytes", "Bytes that the newest load fetched; 0 if its node had them."),
    Metric(
        "queue/{queue}",
        "slots",
        "Length of a queue.",
        members={
            "in_flight": "slots that are generated now",
            "rollouts": "rollouts that wait for any scorer",
            "teacher": "rollouts that wait for that scorer",
            "scored": "scored slots that wait for the learner",
        },
        prometheus="queue_length",
    ),
    Metric("workers/{role}", "workers", "Healthy workers of a pool.", members=POOLS),
    Metric(
        "wait/{role}_s",
        "s",
        "Mean seconds that a slot waited for a worker of the pool, or for the learner.",
        members=ALL,
        status="flow",
        prometheus="wait_seconds",
    ),
    Metric(
        "backpressure/{role}_s",
        "s",
        "Seconds of the step in which the full queue before the pool held its producers up; before the learner, "
        "in which rollout workers had nothing to do because no slot may start.",
        members=each("teacher", "learner"),
        status="flow",
        prometheus="backpressure_seconds_total",
    ),
    Metric(
        "busy/{role}",
        "share of time",
        "Worker-time with any work; of the learner, that of training and publishing.",
        members=ALL,
        status="flow",
        prometheus="busy_frac",
        report="Use of the pools",
    ),
    Metric(
        "used/{role}",
        "share of capacity",
        "Of rollout workers the sequences in flight, of scorers the calls in progress, as a share of what may be.",
        members=POOLS,
    ),
    Metric(
        "queued/{role}", "share of time", "Time in which something waited for a worker of the pool.", members=POOLS
    ),
    Metric("slots/{role}", "slots/s", "Slots that the pool finished.", members=POOLS),
    Metric("work/{role}_tokens", "tokens", "Tokens that the pool got done since the row before.", members=ALL),
    Metric("work/{role}_busy_s", "s", "Seconds with any work, summed over workers.", members=POOLS),
    Metric(
        "work/{role}_held_s", "s", "Integral over time of the slots or calls that workers hold.", members=POOLS
    ),
    Metric("work/{role}_held_squared_s", "s", "Integral over time of the square of that number.", members=POOLS),
    Metric(
        "prompts_given_up",
        "prompts",
        "Prompts given up since the start.",
        live="{prompts_given_up:.0f} prompts given up",
        hidden_at_zero=True,
        status="metrics",
        prometheus="prompts_given_up",
    ),
    Metric(
        "wasted/{cause}",
        "tokens",
        "Response tokens generated and not trained on, since the start.",
        members={
            "lost": "rollouts lost with a worker or a table, generated again",
            "refused": "rollouts that no teacher could score, generated again",
            "given_up": "last attempts at prompts that were given up",
            "skipped": "steps without a finite gradient",
            "fall_back": "steps and rollouts voided by a fall-back or a continuation",
            "cut_off": "attempts (not tokens) that ended before the response did",
        },
    ),
)

BY_KEY = {metric.key: metric for metric in METRICS}

OLD_KEYS = {
    "reward/positive_frac": "reward/frac_gt_0",
    "reward/negative_frac": "reward/frac_lt_0",
    "importance/zero_frac": "importance/frac_eq_0",
    "stop/frac": "stop/present_frac",
}
"""Keys of rows that earlier versions wrote, and what they are called now."""


def with_current_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that any version wrote, under the keys of this one."""
    return {OLD_KEYS.get(key, key): value for key, value in row.items()}


@cache
def declared(key: str) -> Metric | None:
    """The declaration of a key: its own, or that of its family; None without one."""
    return next((metric for metric in METRICS if metric.matches(key)), None)


def required_keys() -> list[str]:
    """The keys that every row of a real run has, in the order of the table."""
    return [key for metric in METRICS for key in metric.required]
