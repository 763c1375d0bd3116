"""REOPOLD: the log-ratio of a relaxed teacher, with a floor, on a part of the tokens (arXiv 2603.11137).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import math

from torch import Tensor

from rewards.log_ratio import extended_log_ratio
from rewards.masks import entropy_top_mask


def reopold_floor(lambda_: float) -> float:
    """Return log(lambda) / (1 - lambda): the bound from mixing a share lambda of the student into the teacher.

    By concavity `log(lambda + (1 - lambda) * exp(R))` is at least `(1 - lambda) * R`, and at least log(lambda).
    """
    return math.log(lambda_) / (1.0 - lambda_)


def reopold_reward(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    lambda_: float = 0.3,
    entropy_top: float = 0.2,
    switch_step: int = 500,
) -> Tensor:
    """Return the log-ratio, raised to the floor: detached, 0 outside the mask.

    A teacher log-prob of -inf gives the floor, and a student log-prob of -inf gives 0. `entropy_top` and
    `switch_step` belong to the mask that goes with this reward, `reopold_mask`.
    """
    log_ratio_BT = extended_log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT)
    return log_ratio_BT.clamp(min=reopold_floor(lambda_)).masked_fill(log_ratio_BT == math.inf, 0.0)


def reopold_mask(
    response_mask_BT: Tensor,
    *,
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    step: int = 0,
    student_entropy_BT: Tensor | None = None,
    entropy_threshold: Tensor | float | None = None,
    lambda_: float = 0.3,
    entropy_top: float = 0.2,
    switch_step: int = 500,
) -> Tensor:
    """Return the tokens to train on; they are also the denominator.

    Before `switch_step`: those whose log-ratio is not below the floor. From then on: the share `entropy_top`
    of the highest student entropy, in the window (see `entropy_top_mask` for `entropy_threshold`).
    """
    if step < switch_step:
        log_ratio_BT = extended_log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT)
        return response_mask_BT.bool() & (log_ratio_BT >= reopold_floor(lambda_))
    if student_entropy_BT is None:
        raise ValueError(f"student_entropy_BT must be given from switch_step {switch_step} on, at step {step}")
    return entropy_top_mask(
        response_mask_BT,
        student_entropy_BT=student_entropy_BT,
        entropy_threshold=entropy_threshold,
        top_fraction=entropy_top,
    )
