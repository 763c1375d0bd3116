"""Values of both distributions at each position that carry no gradient, taken where the logits are.

A fact is computed chunk by chunk next to the log-probs, for all positions of a micro-batch, and only if the run
needs it. Facts whose name has a slash are metrics: their mean over the trained tokens is reported.

Shapes: N or C positions of one chunk, V shared vocabulary, K the teacher's top tokens, F facts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from learner.collate import PackedBatch
from learner.divergence import BatchTeacher, TeacherHead, shared
from rewards import BASELINES, DIVERGENCES, TOKEN_REWARDS, Teacher, TeacherLogits
from rewards.teacher import student_log_probs, teacher_entropy, teacher_log_probs

REVERSE_KL, TEACHER_ENTROPY = "reverse_kl", "teacher_entropy"
BASELINE, RAW_VARIANCE, BASELINE_VARIANCE = "baseline/mean", "gradient_variance/raw", "gradient_variance/baseline"
STUDENT_MASS = "topk/student_mass"

MASS_TOP_K = 16
"""Top tokens of a teacher that sent whole distributions, for `topk/student_mass`."""


@dataclass(frozen=True, eq=False)
class StudentValues:
    """The student's log-probs of the targets and its entropies, and what else was asked for."""

    logp_T: Tensor
    entropy_T: Tensor
    divergence_T: Tensor | None = None
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """value_T of each fact by name, without gradient."""


@dataclass(frozen=True)
class Fact:
    """One or more values per position: `function(logits_CV, teacher)` returns one tensor_C for each name."""

    names: tuple[str, ...]
    function: Callable[[Tensor, Teacher], Sequence[Tensor]]


class BatchFacts:
    """The facts of one micro-batch, in the form that the log-prob head takes."""

    def __init__(self, facts: Sequence[Fact], batch: PackedBatch, teacher_head: TeacherHead | None) -> None:
        self._facts = facts
        self._teacher = BatchTeacher(batch, teacher_head)
        self.names = [name for fact in facts for name in fact.names]

    @property
    def num_facts(self) -> int:
        """F."""
        return len(self.names)

    @torch.no_grad()
    def __call__(self, logits_CV: Tensor, positions_C: Tensor) -> Tensor:
        """Return facts_CF, in the order of `names`."""
        teacher = self._teacher.at(positions_C, vocab_size=logits_CV.shape[-1])
        logits_CV = shared(logits_CV, teacher)
        return torch.stack([values_C for fact in self._facts for values_C in fact.function(logits_CV, teacher)], 1)

    def named(self, facts_TF: Tensor) -> dict[str, Tensor]:
        """Return value_T of each fact by name."""
        return dict(zip(self.names, facts_TF.unbind(1), strict=True))


def reverse_kl_fact() -> Fact:
    """KL(student || teacher)."""
    return Fact((REVERSE_KL,), lambda logits_CV, teacher: [DIVERGENCES["reverse_kl"](logits_CV, teacher)])


def teacher_entropy_fact() -> Fact:
    """Entropy of the teacher in nats."""
    return Fact((TEACHER_ENTROPY,), lambda _, teacher: [teacher_entropy(teacher)])


def student_mass_fact() -> Fact:
    """The student's probability of the teacher's top tokens: those it sent, or MASS_TOP_K of all."""
    return Fact((STUDENT_MASS,), lambda logits_CV, teacher: [_student_mass(logits_CV, teacher)])


def baseline_fact(
    objective: str, parameters: Mapping[str, Any], scheduled: Mapping[str, int], *, is_diagnosed: bool
) -> Fact:
    """The reward that the student expects; `is_diagnosed`: and the gradient's variance without and with it.

    `parameters` are those of the objective, validated; `scheduled` the step, for objectives with a schedule.
    """
    known = {parameter.name for parameter in BASELINES[objective].parameters}
    shared_parameters = {name: value for name, value in parameters.items() if name in known}
    baseline = partial(BASELINES[objective], **shared_parameters, **scheduled)
    if not is_diagnosed:
        return Fact((BASELINE,), lambda logits_CV, teacher: [baseline(logits_CV, teacher)])
    reward = partial(TOKEN_REWARDS[objective], **parameters, **scheduled)

    def with_variances(logits_CV: Tensor, teacher: Teacher) -> Sequence[Tensor]:
        log_p_CV = student_log_probs(logits_CV)
        log_t_CV = teacher_log_probs(teacher, log_p_CV)
        reward_CV = reward(log_t_CV, log_p_CV, torch.ones_like(log_p_CV, dtype=torch.bool))
        baseline_C = baseline(logits_CV, teacher)
        centred_CV = reward_CV - baseline_C[:, None]
        return baseline_C, gradient_variance(log_p_CV, reward_CV), gradient_variance(log_p_CV, centred_CV)

    return Fact((BASELINE, RAW_VARIANCE, BASELINE_VARIANCE), with_variances)


@torch.no_grad()
def gradient_variance(log_p_NV: Tensor, advantage_NV: Tensor) -> Tensor:
    """Return variance_N of the policy gradient of one sampled token per position, from every token's advantage.

    With the student's distribution p and advantages A, fixed numbers as in the loss, a token y gives the gradient
    `A(y) * (onehot(y) - p)` in the logits. The mean squared distance from its expectation is

        sum of p * A**2 * |onehot(y) - p|**2  -  sum of (p * (A - mean))**2,        mean = sum of p * A,

    where `|onehot(y) - p|**2 = 1 - 2 * p(y) + sum of p**2`. A baseline shifts A and the mean alike: it leaves the
    expectation as it is and changes the first sum alone. Rounding may not take the result below 0.
    """
    p_NV = log_p_NV.exp()
    mean_N1 = (p_NV * advantage_NV).sum(-1, keepdim=True)
    distance_NV = 1.0 - 2.0 * p_NV + p_NV.square().sum(-1, keepdim=True)
    second_moment_N = (p_NV * advantage_NV.square() * distance_NV).sum(-1)
    squared_mean_N = (p_NV * (advantage_NV - mean_N1)).square().sum(-1)
    return (second_moment_N - squared_mean_N).clamp(min=0.0)


def _student_mass(logits_CV: Tensor, teacher: Teacher) -> Tensor:
    if isinstance(teacher, TeacherLogits):
        ids_CK = teacher.logits_NV.topk(min(MASS_TOP_K, teacher.logits_NV.shape[-1])).indices
        is_known_CK = torch.ones_like(ids_CK, dtype=torch.bool)
    else:
        ids_CK, is_known_CK = teacher.ids_NK, teacher.log_probs_NK > -inf
    log_p_CK = logits_CV.gather(1, ids_CK) - logits_CV.logsumexp(-1, keepdim=True)
    return torch.where(is_known_CK, log_p_CK.exp(), 0.0).sum(-1)
