"""The learning rate of every step, as numbers."""

import pytest

from learner.schedule import learning_rate
from settings.learner import LearnerConfig


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1.0] * 4),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        ({"lr_schedule": "cosine"}, [1.0, 0.85355339, 0.5, 0.14644661, 0.0]),
        (
            {"warmup_steps": 2, "lr_schedule": "linear", "lr_final_fraction": 0.2},
            [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2],
        ),
    ],
)
def test_the_rate_warms_up_and_falls_to_its_end_at_max_steps(
    fields: dict[str, object], expected: list[float]
) -> None:
    config = LearnerConfig.model_validate({"learning_rate": 1.0, **fields})
    max_steps = len(expected) - 1
    rates = [learning_rate(config, step=step, max_steps=max_steps) for step in range(max_steps + 1)]
    assert rates == pytest.approx(expected)
    assert learning_rate(config, step=50, max_steps=max_steps) == pytest.approx(expected[-1])
