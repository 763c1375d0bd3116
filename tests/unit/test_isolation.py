"""Where suspicious slots run: on one engine that does nothing else."""

from cluster.worker import Worker
from controller.rollouts import GENERATING, ISOLATED_AFTER, Isolation

SUSPICIOUS, OTHER = 1, 2


def isolation() -> Isolation:
    return Isolation(lambda slot: ISOLATED_AFTER if slot == SUSPICIOUS else 0)


def test_the_least_loaded_engine_is_reserved_while_a_suspicious_slot_may_start() -> None:
    busy, free = Worker("rollout-0", num_slots=2), Worker("rollout-1")
    chosen = isolation()
    chosen.reserve([OTHER], [busy, free])
    assert chosen.worker is None
    chosen.reserve([OTHER, SUSPICIOUS], [busy, free])
    assert chosen.worker is chosen.take() is free


def test_a_suspicious_slot_waits_for_the_end_of_the_stream_before_it_and_not_for_a_load_of_weights() -> None:
    worker = Worker("rollout-0")
    chosen = isolation()
    chosen.reserve([SUSPICIOUS], [worker])
    worker.uses[GENERATING] = 1  # every slot has come, and its end has not
    assert chosen.take() is None
    worker.uses[GENERATING] = 0
    worker.uses["load weights"] = 1
    assert chosen.take() is worker
