"""Veto: distillation towards a target between teacher and student (arXiv 2601.07155).

The target is `Q = softmax(log t + beta * log p)` with the student detached: a token to which the student gives
no mass has none in the target. Beta falls over training, because at 1 the optimum is no longer finite.

Shapes: B sequences, T tokens, N positions, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from rewards.log_probs import masked_log_probs, zero_where_infinite
from rewards.teacher import Teacher, kl_terms, student_log_probs, teacher_log_probs


def veto_reverse(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    beta: float | None = None,
    beta_start: float = 0.8,
    beta_end: float = 0.0,
    schedule: str = "linear",
    direction: str = "reverse",
    logprob_floor: float | None = None,
    step: int | None = None,
    max_steps: int | None = None,
) -> Tensor:
    """Return `teacher_logp - (1 - beta) * student_logp` per token: detached, 0 outside the mask.

    Derived: the gradient of KL(p || Q) is the expectation over p of ((1 - beta) log p - log t) times the
    gradient of log p, so that this reward is exact in expectation; the target's normaliser is a baseline.
    `direction` is a parameter of the objective `veto`, of which only the reverse one can be sampled.
    """
    weight = 1.0 - _beta(beta, beta_start, beta_end, schedule, step, max_steps)
    teacher_BT = masked_log_probs(teacher_logp_BT, response_mask_BT, floor=logprob_floor)
    student_BT = masked_log_probs(student_logp_BT, response_mask_BT, floor=logprob_floor)
    return zero_where_infinite(teacher_BT - weight * student_BT, teacher_BT, student_BT)


def veto(
    student_logits_NV: Tensor,
    teacher: Teacher,
    *,
    beta: float | None = None,
    beta_start: float = 0.8,
    beta_end: float = 0.0,
    direction: str = "forward",
    schedule: str = "linear",
    step: int | None = None,
    max_steps: int | None = None,
) -> Tensor:
    """Return KL(Q || p) (forward) or KL(p || Q) (reverse) per position, differentiable in p only.

    `beta` is short for `beta_start`.
    """
    beta_now = _beta(beta, beta_start, beta_end, schedule, step, max_steps)
    log_p_NV = student_log_probs(student_logits_NV)
    log_q_NV = log_target(teacher_log_probs(teacher, log_p_NV), log_p_NV, beta_now)
    if direction == "forward":
        return kl_terms(log_q_NV, log_p_NV).sum(-1)
    return kl_terms(log_p_NV, log_q_NV).sum(-1)


def log_target(log_t_NV: Tensor, log_p_NV: Tensor, beta: float) -> Tensor:
    """Return log Q over the given tokens: `log_softmax(log t + beta * log p)`, detached."""
    pull_NV = beta * log_p_NV.detach() if beta > 0.0 else 0.0
    return (log_t_NV.detach() + pull_NV).log_softmax(-1)


def _beta(
    beta: float | None, beta_start: float, beta_end: float, schedule: str, step: int | None, max_steps: int | None
) -> float:
    start = beta_start if beta is None else beta
    return scheduled_beta(start, beta_end, schedule, step=step, max_steps=max_steps)


def scheduled_beta(
    beta_start: float, beta_end: float, schedule: str, *, step: int | None = None, max_steps: int | None = None
) -> float:
    """Return beta at an optimizer step, counted from 0: linear from start to end, or constantly its start.

    Without a step the schedule stands at its start.

    >>> scheduled_beta(0.8, 0.0, "linear", step=5, max_steps=10)
    0.4
    """
    if schedule == "constant" or step is None:
        return beta_start
    if max_steps is None:
        raise ValueError(f"max_steps must be given with step {step}: a linear schedule ends there")
    progress = min(max(step / max(max_steps, 1), 0.0), 1.0)
    return beta_start + (beta_end - beta_start) * progress
