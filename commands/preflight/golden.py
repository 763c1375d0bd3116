"""What engines and learner say of the golden sequence: started as for a run, scored, compared.

learner --publish v0--> rollout engines      each engine against the learner's forward
teacher-0, teacher-1, ...                    each replica against the first
"""

import math
from collections.abc import Mapping
from typing import Any

from cluster.pool import Pool
from cluster.replica_check import disagreement
from cluster.waiting import together, wait_for
from controller.learner_group import LearnerGroup
from settings.checks import Checks, Finding
from settings.run import RunConfig
from transport.weights import GOLDEN_LIMITS


async def start_and_load(config: RunConfig, pools: Mapping[str, Pool], learner: LearnerGroup) -> dict[str, Any]:
    """Place and start every worker, and load the learner's weights into the student engines; what was measured.

    Frozen models answer the question of their pools as they start.
    """
    for pool in pools.values():
        await pool.place()
    await together([learner.setup(), *(pool.start() for role, pool in pools.items() if role != "learner")])
    published = await learner.publish(0, 0)
    loads = [
        wait_for(
            worker.handle.load_weights.remote(published.manifest, published.source),
            timeout_s=config.cluster.load_timeout_s,
            what=f"{worker.name} loading the learner's weights",
        )
        for worker in pools["rollout"].workers
    ]
    for worker, report in zip(pools["rollout"].workers, await together(loads), strict=True):
        worker.golden_difference = report.golden_difference
    golden = published.manifest.golden_log_probs
    return {"learner_mean": round(sum(golden) / len(golden), 6), "num_tokens": len(golden) + 1}


def record_replicas(checks: Checks, pools: Mapping[str, Pool], roles: Mapping[str, Any]) -> None:
    """Enter how far the answers of the workers of each frozen model lie apart."""
    findings, details = list[Finding](), dict[str, Any]()
    for role in roles:
        answer = pools[role].replica_check
        if answer is None or not answer.differences:
            continue
        first = next(iter(answer.differences))
        worst, difference = max(answer.differences.items(), key=lambda each: _size(each[1]))
        details[role] = {
            "limit": answer.limit,
            "mean": _json(answer.mean),
            "differences": _all(answer.differences),
        }
        if not difference <= answer.limit:
            text = disagreement(worst, first, difference, answer.limit).partition(" (check")[0]
            remedy = (
                "give every node the same model files, and every worker the same precision and engine settings"
            )
            findings.append(Finding("error", text, remedy))
        elif len(answer.differences) == 1:
            findings.append(Finding("ok", f"{role} has one worker"))
        else:
            num = len(answer.differences)
            findings.append(Finding("ok", f"{num} workers of {role} agree within {difference:.2g}"))
    if findings:
        checks.record("replicas", findings, details)
    else:
        checks.skip("replicas", "no frozen model has answered")


def record_golden(
    checks: Checks, pool: Pool, *, dtype: str, limit: float | None, details: Mapping[str, Any] | None = None
) -> None:
    """Enter how far every student engine's log-probs lie from the learner's, and the means of all paths."""
    limit = GOLDEN_LIMITS[dtype] if limit is None else limit
    found = {worker.name: worker.golden_difference for worker in pool.workers}
    differences = {name: value for name, value in found.items() if value is not None}
    numbers = {"limit": limit, "dtype": dtype, "differences": _all(differences), **(details or {})}
    if not differences:
        checks.record("golden", [Finding("warning", "no student engine has loaded weights yet")], numbers)
        return
    worst, largest = max(differences.items(), key=lambda each: _size(each[1]))
    if not largest <= limit:
        text = (
            f"{worst}'s log-probs of the golden sequence differ from the learner's by {largest:.3g} on average, "
            f"limit {limit:g} for {dtype}"
        )
        remedy = "set the same precision for learner and engine; this architecture may differ between the two"
        checks.record("golden", [Finding("error", text, remedy)], numbers)
        return
    text = f"{len(differences)} engines reproduce the learner's log-probs within {largest:.2g}, limit {limit:g}"
    checks.record("golden", [Finding("ok", text)], numbers)


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _all(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _json(value) for name, value in values.items()}


def _json(value: float | None) -> float | None:
    """A number that JSON has; None for none, for infinity, and for what is no number."""
    return round(value, 6) if value is not None and math.isfinite(value) else None
