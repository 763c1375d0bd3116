"""Where a run stands, as the JSON values that `launch.py status --json` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cluster.pool import Pool
from controller.slots import Slots
from reporting.advisor import advise, flow_means


def pools_status(pools: Mapping[str, Pool]) -> dict[str, Any]:
    """The workers of every pool by role, how many are wanted, and how many the run starts with."""
    return {
        role: {
            "wanted": len(pool.wanted),
            "planned": pool.demand.count,
            "workers": [
                {
                    "name": worker.name,
                    "state": worker.state.value,
                    "node": worker.node or None,
                    "node_id": worker.node_id or None,
                    "pid": worker.pid or None,
                    "restarts": max(0, worker.num_lives - 1),
                    "version": worker.version
                    if role in ("rollout", "evaluation") and worker.version >= 0
                    else None,
                    "slots": worker.num_slots,
                    "calls": worker.num_calls,
                    "tokens": worker.outstanding_tokens,
                }
                for worker in pool.workers
            ],
        }
        for role, pool in pools.items()
    }


def progress_status(slots: Slots, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Slots, and what the metrics rows of recent steps (oldest first) say."""
    advice = advise(rows)
    status: dict[str, Any] = {
        "slots": {
            "version": slots.version,
            "max_steps": slots.max_steps,
            "batch_size": slots.batch_size,
            "window": (1 + slots.batches_ahead) * slots.batch_size,
            "open": slots.num_open,
            "startable": len(slots.startable()),
        },
        "frontier": asdict(slots.frontier()),
        "staleness_bound": slots.max_staleness,
        "advice": None if advice is None else asdict(advice),
    }
    if rows:
        last = rows[-1]
        rates = {key.removeprefix("throughput/"): last[key] for key in last if key.startswith("throughput/")}
        status["throughput"] = rates
        staleness = {"mean": last["staleness/mean"], "max": last["staleness/max"], "bound": slots.max_staleness}
        status["staleness"] = staleness
        waits = {name: sum(row[f"time/{name}"] for row in rows) for name in ("rollout_wait_s", "score_wait_s")}
        status["waits"] = {"steps": len(rows), **waits}
        status["flow"] = flow_means(rows)
    return status
