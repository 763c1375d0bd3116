"""The status of a run (`controller/status.py`) as text for people; without Ray."""

from collections.abc import Mapping
from typing import Any

from reporting.advisor import flow_line
from reporting.live.monitor import clock_text
from reporting.live.terminal import facts


def as_text(status: Mapping[str, Any]) -> str:
    """The status of a run for people."""
    lines = [f"run {status['run']}: {status['state']}"]
    for role, pool in status["pools"].items():
        lines.append(f"{role}: {pool['wanted']} wanted")
        lines += [f"  {_worker_line(worker)}" for worker in pool["workers"]]
    if "slots" in status:
        slots, queues = status["slots"], status["queues"]
        to_score = ", ".join(f"{number} for {role}" for role, number in queues["to_score"].items())
        lines.append(
            f"step {slots['version']} of {slots['max_steps']}; slots: window {slots['window']}, "
            f"{slots['open']} open ({queues['in_flight']} in flight, queued {to_score}, {queues['scored']} scored)"
        )
    if "waits" in status:
        staleness, waits = status["staleness"], status["waits"]
        rates = ", ".join(f"{role} {rate:,.0f}" for role, rate in status["throughput"].items())
        lines += [
            f"last step: {rates} tok/s; staleness mean {staleness['mean']:.2f}, "
            f"max {staleness['max']:.0f} of {staleness['bound']}",
            f"last {waits['steps']} steps: the learner waited {waits['rollout_wait_s']:.2f} s for rollouts, "
            f"{waits['score_wait_s']:.2f} s for scores",
        ]
    if status.get("flow"):
        lines.append(flow_line(status["flow"]))
    if status.get("balanced"):
        lines.append(f"last balanced: {status['balanced']}")
    told = {
        "start": "",
        "learner": "last step: ",
        "accuracy": "accuracy: ",
        "health": "",
        "newest": "newest event: ",
    }
    lines += [f"{told[name]}{text}" for name, text in facts(status) if name in told]
    if status.get("left_s") is not None:
        lines.append(f"about {clock_text(status['left_s'])} left")
    if status.get("advice"):
        lines.append(status["advice"]["text"])
    return "\n".join(lines)


def _worker_line(worker: Mapping[str, Any]) -> str:
    parts = [f"{worker['name']:<16} {worker['state']:<9}"]
    parts += [f"on {worker['node']}"] if worker["node"] else []
    parts += [f"v{worker['version']}"] if worker["version"] is not None else []
    parts += [f"{worker['slots']} slots"] if worker["slots"] else []
    parts += [f"{worker['tokens']} tokens in {worker['calls']} calls"] if worker["calls"] else []
    return "  ".join(parts).rstrip()
