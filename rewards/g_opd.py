"""G-OPD: the log-ratio split into a reward and a KL penalty towards a reference (arXiv 2602.12125).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from rewards.log_probs import masked_log_probs, zero_where_infinite


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
