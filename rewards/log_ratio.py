"""Log-ratio rewards: plain on-policy distillation, its clipped and squashed forms, and G-OPD (arXiv 2602.12125).

Shapes: B sequences, T tokens. `student_logp_BT` is under the current student. Every reward is detached and 0
outside the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_probs import log_difference, masked_log_probs, zero_where_infinite


def log_ratio(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    logprob_floor: float | None = None,
) -> Tensor:
    """Return `teacher_logp - student_logp`, the single-sample estimate of minus the reverse KL.

    Without a floor, a token with a log-prob of -inf has no reward: it is 0 here, and the caller masks and
    counts it (`Entry.needs_finite_teacher`, `drop_non_finite`). With `logprob_floor` both log-probs are raised
    to it first. NaN stays NaN.
    """
    teacher_BT = masked_log_probs(teacher_logp_BT, response_mask_BT, floor=logprob_floor)
    student_BT = masked_log_probs(student_logp_BT, response_mask_BT, floor=logprob_floor)
    return zero_where_infinite(log_difference(teacher_BT, student_BT), teacher_BT, student_BT)


def log_clip(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> Tensor:
    """Return the log-ratio clipped to [low, high]; a teacher log-prob of -inf gives `low`."""
    clipped_BT = extended_log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT).clamp(min=low, max=high)
    return torch.where(response_mask_BT.bool(), clipped_BT, 0.0)


def log_tanh(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    temperature: float = 5.0,
) -> Tensor:
    """Return `tanh(log-ratio / temperature)`, in [-1, 1]; it is not multiplied back by the temperature."""
    return torch.tanh(extended_log_ratio(teacher_logp_BT, student_logp_BT, response_mask_BT) / temperature)


def g_opd_reward(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    reference_logp_BT: Tensor,
    lambda_: float = 1.25,
    logprob_floor: float | None = None,
) -> Tensor:
    """Return `lambda * (teacher - reference) - (student - reference)`: detached, 0 outside the mask.

    The reference is the initial student or the teacher's base model. Lambda 1 is the plain log-ratio, 1.25 is
    ExOPD, which extrapolates beyond the teacher. A log-prob of -inf without a floor gives 0, to be masked and
    counted by the caller.
    """
    teacher_BT, student_BT, reference_BT = (
        masked_log_probs(logp_BT, response_mask_BT, floor=logprob_floor)
        for logp_BT in (teacher_logp_BT, student_logp_BT, reference_logp_BT)
    )
    extrapolation_BT = (lambda_ - 1.0) * (teacher_BT - reference_BT)
    reward_BT = teacher_BT - student_BT + extrapolation_BT
    return zero_where_infinite(reward_BT, teacher_BT, student_BT, reference_BT)


def extended_log_ratio(teacher_logp_BT: Tensor, student_logp_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return the log-ratio with its infinities, for objectives that have a finite limit there."""
    return log_difference(
        masked_log_probs(teacher_logp_BT, response_mask_BT),
        masked_log_probs(student_logp_BT, response_mask_BT),
    )
