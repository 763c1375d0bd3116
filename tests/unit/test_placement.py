"""What each role asks of the cluster, and what is said when the cluster cannot give it."""

from typing import Any

import pytest

from cluster.placement import Demand, bundle, check_all_fit, check_some_node_fits, plan
from settings.engine import MAX_WORKERS, ResourcesConfig
from settings.run import RunConfig


def config(**sections: Any) -> RunConfig:
    """A configuration with some sections."""
    teacher = {"model_path": "t", **sections.pop("teacher", {})}
    return RunConfig.model_validate(
        {"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": teacher, **sections}
    )


def test_the_plan_asks_for_learner_teacher_and_rollout_workers_in_this_order() -> None:
    demands = plan(config(rollout={"num_workers": 3, "resources": {"num_cpus": 0.5}}, learner={"num_workers": 2}))
    assert demands == [
        Demand("learner", 2, {"CPU": 1.0}, is_one_group=True),
        Demand("teacher", 1, {"CPU": 1.0}),
        Demand("rollout", 3, {"CPU": 0.5}, strategy="spread"),
    ]
    assert str(demands[2]) == "rollout: 3 x (0.5 CPU)"


def test_a_tensor_parallel_engine_reserves_all_its_devices_in_one_bundle() -> None:
    resources = {"num_cpus": 2, "num_gpus": 1, "custom": {"teachers": 1}}
    demands = plan(config(teacher={"resources": resources, "engine": {"tensor_parallel_size": 4}}))
    assert demands[1] == Demand("teacher", 1, {"CPU": 2.0, "GPU": 4.0, "teachers": 1.0})
    assert str(demands[1]) == "teacher: 1 x (2 CPU, 4 GPU, 1 teachers)"


def test_a_pipeline_reserves_the_devices_of_each_stage_and_stays_in_its_group_of_nodes() -> None:
    resources = {"num_cpus": 2, "num_gpus": 1, "custom": {"teachers": 1}}
    engine = {"tensor_parallel_size": 4, "pipeline_parallel_size": 3}
    [_, demand, _] = plan(config(teacher={"resources": resources, "engine": engine}))
    stage = {"GPU": 4.0, "teachers": 1.0}
    assert demand.groups == [[{"CPU": 2.0, **stage}, stage, stage]]
    assert str(demand) == "teacher: 1 x (2 CPU, 4 GPU, 1 teachers) + 2 x (4 GPU, 1 teachers)"


def test_memory_is_reserved_in_bytes_and_told_in_gib() -> None:
    assert bundle("rollout", ResourcesConfig(memory_gib=1.5)) == {"CPU": 1.0, "memory": 1.5 * 2**30}
    demands = plan(config(rollout={"num_workers": 2, "resources": {"memory_gib": 1.5}}))
    assert str(demands[2]) == "rollout: 2 x (1 CPU, 1.5 GiB memory)"
    with pytest.raises(ValueError, match="missing") as error:
        check_all_fit(demands, [{"CPU": 8.0, "memory": 2.0 * 2**30}])
    assert "1 GiB memory missing (3 wanted, 2 there)" in str(error.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"teacher": {"resources": {"num_gpus": 0.5}, "engine": {"tensor_parallel_size": 2}}},
            "teacher.resources.num_gpus must be 1 where an engine has several devices, got 0.5",
        ),
        (
            {"rollout": {"resources": {"num_gpus": 1}, "engine": {"pipeline_parallel_size": 2}}},
            "rollout.engine.pipeline_parallel_size must be 1, got 2: new weights reach",
        ),
        (
            {"teacher": {"engine": {"pipeline_parallel_size": 2}}},
            "teacher.resources.num_gpus must be 1 with engine.pipeline_parallel_size 2, got 0",
        ),
        (
            {"learner": {"num_workers": 2, "resources": {"num_gpus": 0.5}}},
            "learner.resources.num_gpus must be whole with several ranks",
        ),
        (
            {"rollout": {"resources": {"num_gpus": 1.5}}},
            "rollout.resources.num_gpus must be whole above 1, got 1.5",
        ),
        (
            {"rollout": {"resources": {"custom": {"GPU": 1}}}},
            "rollout.resources.custom: GPU is no custom resource (nearest valid: num_gpus)",
        ),
    ],
)
def test_what_no_cluster_could_do_is_one_line_that_names_the_field(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"num_gpus|pipeline|custom") as error:
        plan(config(**sections))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_worker_that_reserves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout\.resources must reserve something, got nothing"):
        bundle("rollout", ResourcesConfig(num_cpus=0))


def test_fractions_add_up_without_rounding_errors() -> None:
    check_all_fit([Demand("rollout", 10, {"GPU": 0.1})], [{"GPU": 1.0}])


def test_a_shortage_says_what_is_missing_and_how_many_workers_would_fit() -> None:
    demands = [Demand("learner", 1, {"CPU": 1.0}), Demand("rollout", 4, {"CPU": 2.0})]
    with pytest.raises(ValueError, match="missing") as error:
        check_all_fit(demands, [{"CPU": 6.0}])
    assert str(error.value) == (
        "rollout.num_workers: the cluster cannot place this run: 3 CPU missing (9 wanted, 6 there); wanted "
        "learner: 1 x (1 CPU); rollout: 4 x (2 CPU) (nearest valid rollout.num_workers here: 2)"
    )


def test_a_shortage_of_capacity_on_single_nodes_is_named_too() -> None:
    with pytest.raises(ValueError, match="cannot place this run: no node has capacity") as error:
        check_all_fit([Demand("rollout", 2, {"CPU": 2.0})], [{"CPU": 3.0}, {"CPU": 1.0}])
    assert "nearest valid rollout.num_workers here: 1" in str(error.value)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("amount", "is_one_group", "fitting"), [(1.0, True, 64), (0.01, True, 6400), (0.01, False, 6400)]
)
def test_how_many_of_the_most_workers_would_fit_is_told_at_once(
    amount: float, is_one_group: bool, fitting: int
) -> None:
    demand = Demand("learner", MAX_WORKERS, {"CPU": amount}, is_one_group=is_one_group)
    with pytest.raises(ValueError, match=rf"nearest valid learner.num_workers here: {fitting}\)"):
        check_all_fit([demand], [{"CPU": 64.0}])


def test_a_worker_larger_than_every_node_can_never_be_placed() -> None:
    demands = [Demand("teacher", 1, {"CPU": 1.0, "GPU": 8.0})]
    with pytest.raises(ValueError, match="no node can ever hold") as error:
        check_some_node_fits(demands, [{"CPU": 64.0, "GPU": 4.0}, {"CPU": 8.0}])
    assert str(error.value) == (
        "teacher.resources: no node can ever hold one teacher worker: 8 GPU wanted, the largest node has 4"
    )


def test_too_few_workers_for_now_is_no_reason_to_refuse_a_growing_cluster() -> None:
    check_some_node_fits([Demand("rollout", 100, {"CPU": 1.0})], [{"CPU": 2.0}])
