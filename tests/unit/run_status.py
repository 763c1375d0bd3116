"""Sample statuses of a run, as the controller answers them."""

from typing import Any

ADVICE = (
    "teacher-bound: 62 % of the learner's time is waiting for scores; add one teacher worker or raise "
    "teacher.max_batch_tokens (a slot waits 2.1 s for it, it is busy 97 % of the time)"
)


def worker(name: str, state: str = "healthy", **values: Any) -> dict[str, Any]:
    """One worker of a pool."""
    default = {"name": name, "state": state, "node": "node-a", "node_id": "a", "pid": 7, "restarts": 0}
    return default | {"version": None, "slots": 0, "calls": 0, "tokens": 0} | values


def pool(*workers: dict[str, Any], planned: int | None = None) -> dict[str, Any]:
    """One pool."""
    planned = len(workers) if planned is None else planned
    return {"wanted": len(workers), "planned": planned, "workers": list(workers)}


def running_status() -> dict[str, Any]:
    """In the middle of a run of which one rollout worker has died and comes back."""
    nothing: dict[str, Any] = {}
    return {
        "run": "demo",
        "state": "running",
        "pools": {
            "rollout": pool(
                worker("rollout-0", version=37), worker("rollout-1", "restarting", pid=None), worker("rollout-2")
            ),
            "teacher": pool(worker("teacher-0"), worker("teacher-1", "suspect")),
            "learner": pool(worker("learner-0")),
        },
        "slots": {"version": 37, "max_steps": 160, "batch_size": 32, "window": 96, "open": 80, "startable": 3},
        "queues": {"in_flight": 41, "to_score": {"teacher": 17}, "scored": 9, "capacity": 64},
        "rates": {"rollout": 12345.6, "teacher": 45678.9, "learner": 2345.0},
        "throughput": {"rollout": 12345.6, "teacher": 45678.9, "learner": 2345.0},
        "staleness": {"mean": 1.25, "max": 3.0, "bound": 4},
        "waits": {"steps": 20, "rollout_wait_s": 1.5, "score_wait_s": 31.0},
        "flow": {
            "wait": {"rollout": 0.1, "teacher": 2.1, "learner": 0.4},
            "backpressure": {"rollout": 0.0, "teacher": 0.3, "learner": 0.05},
            "busy": {"rollout": 0.95, "teacher": 0.97, "learner": 0.31},
        },
        "advice": {"limit": "teacher", "share": 0.62, "text": ADVICE},
        "balanced": None,
        "staleness_bound": 4,
        "max_steps": 160,
        **{"started": 1000.0, "progressed": 1123.0, "usual_step_s": 2.5},
        "checkpoint": {"step": 20, "every_steps": 20},
        "elapsed_s": 125.0,
        "waiting": None,
        "left_s": 402.0,
        "since_step_s": 2.0,
        "metrics": {
            **{"reward/mean": -0.0123, "kl/reverse": 0.4567, "grad_norm": 0.789, "lr": 2e-3, "loss": 0.01},
            **{"response_length/mean": 12.3, "truncated_frac": 0.005, "prompts_given_up": 1},
        },
        "health": {
            "recent_s": 600.0,
            "recent": {"deaths": {"rollout": 1}, "restarts": nothing, "suspects": nothing, "given_up": nothing},
            "total": {
                **{"deaths": {"rollout": 2}, "restarts": {"rollout": 1}, "suspects": {"teacher": 1}},
                "given_up": nothing,
            },
            "newest": "rollout-1 has died: ping: ActorDiedError",
            "newest_age_s": 8.0,
        },
        "evaluating": [{"model": "student", "step": 30, "seconds": 4.0}],
        "evaluations": [
            {"model": "teacher", "benchmark": "arithmetic", "step": 0, "k": 8, "avg_at_k": 0.9825},
            {"model": "student", "benchmark": "arithmetic", "step": 20, "k": 8, "avg_at_k": 0.53125},
        ],
    }


def starting_status() -> dict[str, Any]:
    """Before the first step: one of two rollout workers has started its engine."""
    health = {"recent_s": 600.0, "recent": {}, "total": {}, "newest": None, "newest_age_s": None}
    return {
        "run": "demo",
        "state": "starting",
        "pools": {
            "rollout": pool(worker("rollout-0", "starting"), worker("rollout-1", "starting", pid=None), planned=2),
            "teacher": pool(worker("teacher-0", "starting", pid=None)),
            "learner": pool(worker("learner-0", "starting", pid=None)),
        },
        **{"started": 1000.0, "progressed": 1000.0, "usual_step_s": None},
        "checkpoint": {"step": 0, "every_steps": 20},
        **{"max_steps": 160, "elapsed_s": 42.0, "left_s": None, "since_step_s": None, "metrics": {}},
        **{"health": health, "evaluating": [], "evaluations": []},
        "waiting": {
            "phase": "starting engines",
            "text": "rollout (1 of 2), teacher (0 of 1), learner (0 of 1)",
            "seconds": 31.0,
        },
    }
