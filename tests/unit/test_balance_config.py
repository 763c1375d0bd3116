"""Settings of the balance: what is refused in one line, and which limits follow."""

import pytest

from cluster.balancer import num_fitting
from settings.cluster import limits_of
from settings.run import RunConfig
from settings.run_files import load_config

REQUIRED = ["--student.model_path", "s", "--data.train_path", "d", "--teacher.model_path", "t"]
ENABLED = ["--balance.enabled", "true"]


def load(*overrides: str) -> RunConfig:
    """A configuration with the balance switched on."""
    return load_config(None, [*REQUIRED, *ENABLED, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--balance.teacher.min_workers", "0"],
            "teacher.min_workers must be >= 1, got 0 (nearest valid: 1)",
        ),
        (
            ["--balance.teacher.min_workers=3", "--balance.teacher.max_workers=2"],
            "balance.teacher.min_workers must be <= balance.teacher.max_workers (2), got 3 (nearest valid: 2)",
        ),
        (
            ["--rollout.num_workers=5", "--balance.rollout.max_workers=4"],
            "rollout.num_workers must be within balance.rollout.min_workers and max_workers (1..4), got 5 "
            "(nearest valid: 4)",
        ),
        (
            ["--balance.rollout.min_workers=2", "--balance.rollout.max_workers=4"],
            "rollout.num_workers must be within balance.rollout.min_workers and max_workers (2..4), got 1 "
            "(nearest valid: 2)",
        ),
        (
            ["--rollout.num_workers=5", "--balance.max_total=4"],
            "balance.max_total must be >= 6 (5 rollout + 1 teacher workers at the start), got 4 (nearest ",
        ),
        (["--balance.teachers.code.max_workers=4"], "balance.teachers.code: there is no such teacher"),
        (["--max-staleness=0"], "balance.enabled must be false with max_staleness 0, whose stages take turns"),
        (["--balance.every_s=0"], "balance.every_s must be > 0"),
        (["--balance.enable=true"], "balance.enable: unknown key; did you mean balance.enabled?"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        load(*overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_maximum_that_is_not_given_is_what_the_total_leaves_or_the_number_at_the_start() -> None:
    config = load("--rollout.num_workers=3", "--balance.teacher.max_workers=9", "--balance.teacher.min_workers=1")
    limits = limits_of(config.balance, config.workers_of_role)
    assert (limits.low, limits.high, limits.max_total) == (
        {"rollout": 1, "teacher": 1},
        {"rollout": 3, "teacher": 9},
        None,
    )
    config = load("--rollout.num_workers=3", "--balance.max_total=8", "--balance.rollout.min_workers=2")
    limits = limits_of(config.balance, config.workers_of_role)
    assert (limits.high, limits.max_total) == ({"rollout": 7, "teacher": 6}, 8)


def test_further_teachers_and_the_reference_have_limits_of_their_own() -> None:
    config = RunConfig.model_validate(
        {
            **{"student": {"model_path": "s"}, "data": {"train_path": "d"}},
            **{"teacher": {"model_path": "t", "sources": ["a"]}, "reference": {"model_path": "r"}},
            "teachers": {"code": {"model_path": "t", "sources": ["b"]}},
            "balance": {
                "enabled": True,
                "teachers": {"code": {"max_workers": 4}},
                "reference": {"max_workers": 2},
            },
        }
    )
    limits = limits_of(config.balance, config.workers_of_role)
    assert limits.high == {"rollout": 1, "teacher": 1, "teacher-code": 4, "reference": 2}


def test_capacity_is_what_the_scarcest_resource_allows() -> None:
    free = {"CPU": 7.5, "GPU": 2.0, "memory": 1e9}
    assert num_fitting({"CPU": 1.0}, free) == 7
    assert num_fitting({"CPU": 1.0, "GPU": 1.0}, free) == 2
    assert num_fitting({"CPU": 0.1}, {"CPU": 0.3}) == 3
    assert num_fitting({"CPU": 1.0, "teacher": 1.0}, free) == 0
