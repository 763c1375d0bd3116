"""The scaling study's formulas with closed-form numbers, and a point of it in simulated time."""

import pytest

from benchmarks.controller_workers import settings
from benchmarks.scaling_model import Limits, Network, Speeds, best, reduction_s, throughput, weight_sync
from benchmarks.scaling_study import point
from commands.plan.run import simulate
from controller.flow import LOOK_EVERY_S
from controller.slots import Slots

NETWORK = Network(nvlink=100e9, device_link=10e9, store=1e9, egress=4e9, hop_s=0.0, bucket_bytes=1e9)
SPEEDS = Speeds(
    prompt=0.0,
    mean=100.0,
    engine_step_s=0.01,
    sequence_s=0.0,
    max_num_seqs=10,
    prefill=1e12,
    load_s=0.0,
    teacher=2000.0,
    rank=1000.0,
    step_s=0.5,
    num_parameters=1e9,
    weight_bytes=0.0,
)


def test_one_node_sends_to_all_or_those_that_have_the_weights_help() -> None:
    flat = [weight_sync(2e9, num, NETWORK, "object_store").fetch_s for num in (1, 4, 64)]
    tree = [weight_sync(2e9, num, NETWORK, "tree").fetch_s for num in (1, 3, 63)]
    assert flat == [2.0, 2.0, 32.0]
    assert tree == [2.0, 4.0, 12.0]
    ring = weight_sync(2e9, 64, NETWORK, "nccl")
    assert (ring.publish_s, ring.fetch_s) == (2.0 + 0.2, 0.0)


def test_a_reduction_over_nodes_takes_the_slower_link() -> None:
    assert reduction_s(1e9, 1, NETWORK) == 0.0
    assert reduction_s(1e9, 8, NETWORK) == pytest.approx(6e9 * 7 / 8 / 100e9)
    assert reduction_s(1e9, 16, NETWORK) == pytest.approx(6e9 * 15 / 16 / 10e9)


def test_throughput_is_that_of_the_slowest_role() -> None:
    assert throughput(SPEEDS, 100, 100, 1, 64, NETWORK, "tree") == pytest.approx(6400 / (0.5 + 6.4))
    assert throughput(SPEEDS, 1, 100, 64, 64, NETWORK, "tree") == pytest.approx(1000)  # 10 sequences, 10 ms
    assert throughput(SPEEDS, 100, 1, 64, 6400, NETWORK, "tree") == pytest.approx(2000)


def test_devices_that_do_not_help_stay_idle_once_the_batch_may_not_grow() -> None:
    few = best(SPEEDS, 8, NETWORK, "nccl", Limits(max_batch=4096))
    many = best(SPEEDS, 1024, NETWORK, "nccl", Limits(max_batch=128))
    assert few.rollout + few.teacher + few.learner == 8
    assert many.rollout + many.teacher + many.learner < 512
    assert many.tokens_per_s < 128 * 100 / 0.5


@pytest.mark.timeout(120)
def test_a_point_is_simulated_near_to_what_the_rates_alone_give() -> None:
    row = point("0.6B from 4B", 8, "object_store", Network(), Limits())
    assert sum(row["workers"].values()) == 8
    assert 0.8 < row["tokens_per_s"] / row["paper_tokens_per_s"] < 1.1
    assert row["staleness_max"] <= 8
    assert row["controllers"] == 1


@pytest.mark.timeout(120)
def test_no_slot_is_looked_at_before_there_is_capacity_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    num_read: list[int] = []
    startable = Slots.startable

    def counting(self: Slots, limit: int | None = None) -> list[int]:
        found = startable(self, limit)
        num_read.append(len(found))
        return found

    monkeypatch.setattr(Slots, "startable", counting)
    config, rates = settings("rollout", 8, 4, 6)
    rows = simulate(config, rates)
    num_looks = sum(row["time/step_s"] for row in rows) / LOOK_EVERY_S + 3 * len(rows)  # each asks for one slot
    num_openings = 7 * 3 * config.batch_size  # each asks for the whole window
    assert sum(num_read) <= 6 * config.batch_size + num_looks + num_openings
