"""Which node the bundles of a placement group go to: shared devices, strategies, node groups, pipelines."""

import pytest

from cluster.nodes import Node, place
from cluster.placement import Demand, check_all_fit, check_some_node_fits, place_all


def cluster(*totals: dict[str, float]) -> list[Node]:
    """Nodes a, b, c, ... with these resources."""
    return [Node(name, total) for name, total in zip("abcdef", totals, strict=False)]


def where(demand: Demand, nodes: list[Node]) -> dict[str, list[str]]:
    """The workers by node after placing all of the demand's, which must fit."""
    assert place_all(demand, nodes) == demand.count
    return {node.name: node.workers for node in nodes}


def test_learner_teacher_and_rollout_share_one_device() -> None:
    demands = [
        Demand(role, 1, {"GPU": share}) for role, share in (("learner", 0.3), ("teacher", 0.3), ("rollout", 0.4))
    ]
    check_all_fit(demands, [{"GPU": 1.0}])
    with pytest.raises(ValueError, match=r"0.1 GPU missing \(1.1 wanted, 1 there\)"):
        check_all_fit([*demands[:2], Demand("rollout", 1, {"GPU": 0.5})], [{"GPU": 1.0}])


def test_a_share_of_a_device_is_free_on_one_device_or_not_at_all() -> None:
    with pytest.raises(ValueError, match="no node has capacity"):
        check_all_fit([Demand("rollout", 3, {"GPU": 0.6})], [{"GPU": 2.0}])
    shared, whole = Demand("teacher", 2, {"GPU": 0.6}), Demand("rollout", 1, {"GPU": 1.0})
    with pytest.raises(ValueError, match="cannot place"):
        check_all_fit([shared, whole], [{"GPU": 2.0}])
    check_all_fit([Demand("teacher", 2, {"GPU": 0.5}), Demand("rollout", 1, {"GPU": 1.0})], [{"GPU": 2.0}])


def test_spread_workers_take_the_node_with_the_fewest_and_packed_ones_join_the_others() -> None:
    nodes = cluster({"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 4.0})
    assert where(Demand("teacher", 3, {"CPU": 1.0}), nodes) == {
        "a": ["teacher-0", "teacher-1", "teacher-2"],
        "b": [],
        "c": [],
    }
    spread = where(Demand("rollout", 4, {"CPU": 1.0}, strategy="spread"), nodes)
    assert {name: [w for w in workers if "rollout" in w] for name, workers in spread.items()} == {
        "a": ["rollout-2"],
        "b": ["rollout-1"],
        "c": ["rollout-0", "rollout-3"],
    }


def test_ranks_are_placed_together_on_few_nodes_on_one_or_on_many() -> None:
    def ranks(strategy: str, *cpus: float) -> dict[str, list[str]]:
        demand = Demand("learner", 4, {"CPU": 1.0}, strategy=strategy, is_one_group=True)  # pyright: ignore[reportArgumentType]
        return where(demand, cluster(*({"CPU": num} for num in cpus)))

    assert ranks("pack", 2, 3, 3) == {"a": ["learner-3"], "b": ["learner-0", "learner-1", "learner-2"], "c": []}
    assert ranks("strict_pack", 3, 5) == {"a": [], "b": [f"learner-{i}" for i in range(4)]}
    assert ranks("spread", 4, 4) == {"a": ["learner-0", "learner-2"], "b": ["learner-1", "learner-3"]}


def test_ranks_that_cannot_all_be_placed_take_nothing() -> None:
    nodes = cluster({"CPU": 2.0}, {"CPU": 1.0})
    assert place([{"CPU": 1.0}] * 4, nodes, strategy="pack", role="learner") is None
    assert [node.free["CPU"] for node in nodes] == [2.0, 1.0]
    with pytest.raises(ValueError, match=r"nearest valid learner.num_workers here: 3"):
        check_all_fit([Demand("learner", 4, {"CPU": 1.0}, is_one_group=True)], [n.total for n in nodes])


def test_ranks_that_no_single_node_holds_together_are_refused_with_strict_pack() -> None:
    demand = Demand("learner", 4, {"GPU": 1.0}, strategy="strict_pack", is_one_group=True)
    with pytest.raises(ValueError, match="strict_pack") as error:
        check_some_node_fits([demand], [{"GPU": 2.0}, {"GPU": 2.0}])
    assert str(error.value) == (
        "cluster.learner_strategy strict_pack: no node can ever hold all 4 ranks: 4 GPU wanted, the largest node "
        "has 2"
    )


def test_nodes_with_special_resources_are_left_to_those_who_ask_for_them() -> None:
    nodes = cluster({"CPU": 8.0, "GPU": 8.0}, {"CPU": 4.0, "teacher": 1.0}, {"CPU": 2.0})
    assert where(Demand("rollout", 2, {"CPU": 1.0}, strategy="spread"), nodes)["c"] == ["rollout-0", "rollout-1"]
    assert where(Demand("teacher", 1, {"CPU": 1.0, "teacher": 1.0}), nodes)["b"] == ["teacher-0"]


def test_the_devices_of_a_pipeline_stage_are_on_one_node_and_stages_on_several() -> None:
    stage = {"GPU": 4.0}
    demand = Demand("teacher", 2, {"CPU": 1.0, **stage}, further_stages=(stage,))
    nodes = cluster({"CPU": 2.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 6.0}, {"CPU": 2.0, "GPU": 8.0})
    assert where(demand, nodes) == {
        "a": ["teacher-1 stage 0"],
        "b": ["teacher-1 stage 1"],
        "c": ["teacher-0 stage 0", "teacher-0 stage 1"],
    }
    with pytest.raises(ValueError, match="no node can ever hold one teacher worker: 4 GPU wanted"):
        check_some_node_fits([demand], [{"CPU": 2.0, "GPU": 3.0}] * 8)
