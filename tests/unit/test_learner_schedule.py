"""The learning rate of every step, as numbers."""

import pytest

from learner.schedule import learning_rate
from settings.learner import LearnerConfig


def rates(*, max_steps: int, **fields: object) -> list[float]:
    config = LearnerConfig.model_validate({"learning_rate": 1.0, **fields})
    return [learning_rate(config, step=step, max_steps=max_steps) for step in range(max_steps + 1)]


def test_the_first_warm_up_step_already_trains() -> None:
    assert rates(max_steps=5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_to_the_final_fraction_at_max_steps() -> None:
    expected = [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    found = rates(max_steps=6, warmup_steps=2, lr_schedule="linear", lr_final_fraction=0.2)
    assert found == pytest.approx(expected)


def test_cosine_is_halfway_in_the_middle() -> None:
    found = rates(max_steps=4, lr_schedule="cosine")
    assert found == pytest.approx([1.0, 0.85355339, 0.5, 0.14644661, 0.0])


def test_constant_stays_at_the_peak() -> None:
    assert rates(max_steps=3) == [1.0] * 4


def test_the_rate_stays_at_its_end_beyond_max_steps() -> None:
    config = LearnerConfig(learning_rate=1.0, lr_schedule="linear", lr_final_fraction=0.1)
    assert learning_rate(config, step=50, max_steps=10) == pytest.approx(0.1)
