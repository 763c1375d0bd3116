"""Facts of both distributions, and the closed-form baseline: the same expected gradient with less variance."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rewards
from learner.collate import PackedBatch, collate
from learner.divergence import TeacherHead
from learner.facts import (
    BASELINE,
    BASELINE_VARIANCE,
    RAW_VARIANCE,
    STUDENT_MASS,
    BatchFacts,
    gradient_variance,
    reverse_kl_fact,
    student_mass_fact,
    teacher_entropy_fact,
)
from learner.log_probs import HeadLimits
from learner.loss import Objective, WindowCounts
from learner.student import LogProbHead
from settings.objective import ImportanceConfig, ObjectiveConfig
from tests.examples import examples
from tests.unit.test_learner_scene import STOPS, scored_table

# Shapes: V vocabulary, T positions, H hidden size.
V, T, H = 6, 7, 4


def brute_force(log_p_V: Tensor, advantage_V: Tensor) -> tuple[Tensor, Tensor]:
    """Expectation and variance of the gradient with respect to the logits, by enumeration and autograd."""
    gradients = []
    for token in range(len(log_p_V)):
        logits_V = log_p_V.clone().requires_grad_()
        value = advantage_V[token] * logits_V.log_softmax(-1)[token]
        gradients.append(torch.autograd.grad(value, logits_V)[0])
    gradients_VV, p_V1 = torch.stack(gradients), log_p_V.exp()[:, None]
    mean_V = (p_V1 * gradients_VV).sum(0)
    return mean_V, (p_V1 * (gradients_VV - mean_V).square()).sum()


@given(seed=st.integers(0, 2**20), spread=st.floats(0.0, 6.0), shift=st.floats(-3.0, 3.0))
@examples(40)
def test_the_variance_is_that_of_all_tokens_enumerated_and_a_baseline_keeps_the_expectation(
    seed: int, spread: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_p_NV = (spread * torch.randn(3, V, generator=generator, dtype=torch.float64)).log_softmax(-1)
    advantage_NV = torch.randn(3, V, generator=generator, dtype=torch.float64)
    found_N = gradient_variance(log_p_NV, advantage_NV)
    for position in range(3):
        mean_V, variance = brute_force(log_p_NV[position], advantage_NV[position])
        torch.testing.assert_close(found_N[position], variance, rtol=1e-9, atol=1e-12)
        shifted_V, _ = brute_force(log_p_NV[position], advantage_NV[position] + shift)
        torch.testing.assert_close(mean_V, shifted_V, rtol=1e-9, atol=1e-12)


def scene() -> tuple[PackedBatch, TeacherHead, Tensor, Tensor]:
    """A micro-batch with the teacher's hidden states, its head, the student's hidden states and head."""
    (batch,) = collate([scored_table([(2, 3), (1, 4)])], stop_mode="raw", stops=STOPS, max_tokens=100)
    generator = torch.Generator().manual_seed(0)
    hidden_TH, student_TH = torch.randn(2, T, H, generator=generator).unbind()
    teacher_VH, student_VH = torch.randn(2, V, H, generator=generator).unbind()
    ids_T = batch.target_ids_T % V
    batch = replace(batch, teacher_hidden_TH=hidden_TH, target_ids_T=ids_T, teacher_target_ids_T=ids_T)
    head = TeacherHead(teacher_VH)
    return head.with_log_probs(batch, chunk_tokens=3), head, student_TH, student_VH


def evaluated(
    facts: BatchFacts, student_TH: Tensor, student_VH: Tensor, batch: PackedBatch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probs with gradient, entropies, and facts by name, as the log-prob head gives them."""
    embeddings = torch.nn.Linear(H, V, bias=False)
    embeddings.weight = torch.nn.Parameter(student_VH)
    head = LogProbHead(embeddings, HeadLimits(V, chunk_tokens=2))
    logp_T, entropy_T, value_T, facts_TF = head(student_TH, batch.target_ids_T, None, facts)
    assert not value_T.any()
    assert not facts_TF.requires_grad
    return logp_T, entropy_T, facts.named(facts_TF)


OBJECTIVES: list[dict[str, Any]] = [
    {"name": "power", "alpha": 2.0},
    {"name": "power", "alpha": 0.5, "rescale": "inv_alpha"},
    {"name": "log_ratio"},
    {"name": "veto_reverse", "beta_start": 0.6},
]


def enumerated(given_objective: dict[str, Any], *, baseline: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Expectation over tokens of the gradient at every position, every token's reward_TV, and the facts.

    Each token is put at every position at once: each position is an experiment of its own.
    """
    batch, teacher_head, student_TH, student_VH = scene()
    name, parameters = given_objective["name"], {k: v for k, v in given_objective.items() if k != "name"}
    parameters = rewards.validate("objective", name, parameters)
    objective = ObjectiveConfig.model_validate({"name": name, "baseline": baseline, **parameters})
    loss = Objective(objective, ImportanceConfig(name="none"))
    loss.begin_step(2, 10)
    mean_TH, rewards_TV, named = torch.zeros(T, H), torch.zeros(T, V), {}
    for token in range(V):
        ids_T = torch.full((T,), token)
        sampled = replace(batch, target_ids_T=ids_T, teacher_target_ids_T=ids_T)
        sampled = teacher_head.with_log_probs(sampled, chunk_tokens=3)
        leaf_TH = student_TH.clone().requires_grad_()
        facts = loss.facts(sampled, teacher_head, is_diagnosed=True)
        assert facts is not None
        logp_T, entropy_T, named = evaluated(facts, leaf_TH, student_VH, sampled)
        result = loss.micro_batch_loss(sampled, logp_T, entropy_T, counts=WindowCounts(1, 1, 1), facts=named)
        mean_TH += logp_T.detach().exp()[:, None] * torch.autograd.grad(result.loss, leaf_TH)[0]
        rewards_TV[:, token] = result.reward_T
    return mean_TH, rewards_TV, named


@pytest.mark.parametrize("given_objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
def test_the_expected_gradient_is_the_same_with_and_without_baseline_and_its_variance_is_exact(
    given_objective: dict[str, Any],
) -> None:
    without_TH, _, _ = enumerated(given_objective, baseline="none")
    with_TH, rewards_TV, named = enumerated(given_objective, baseline="closed_form")
    torch.testing.assert_close(with_TH, without_TH, rtol=1e-4, atol=1e-5)
    _, _, student_TH, student_VH = scene()
    log_p_TV = (student_TH @ student_VH.t()).log_softmax(-1)
    torch.testing.assert_close(named[BASELINE], (log_p_TV.exp() * rewards_TV).sum(-1), rtol=1e-4, atol=1e-5)
    for position in range(T):
        log_p_V, rewards_V = log_p_TV[position].double(), rewards_TV[position].double()
        _, raw = brute_force(log_p_V, rewards_V)
        _, centred = brute_force(log_p_V, rewards_V - named[BASELINE][position].double())
        assert named[RAW_VARIANCE][position].item() == pytest.approx(raw.item(), rel=1e-3, abs=1e-5)
        assert named[BASELINE_VARIANCE][position].item() == pytest.approx(centred.item(), rel=1e-3, abs=1e-5)


def test_facts_taken_in_chunks_are_those_of_the_whole() -> None:
    batch, teacher_head, student_TH, student_VH = scene()
    facts = BatchFacts([reverse_kl_fact(), teacher_entropy_fact(), student_mass_fact()], batch, teacher_head)
    _, _, named = evaluated(facts, student_TH, student_VH, batch)
    log_p_TV = (student_TH @ student_VH.t()).log_softmax(-1)
    log_t_TV = teacher_head.logits(batch.teacher_hidden_TH).log_softmax(-1)
    torch.testing.assert_close(named["reverse_kl"], (log_p_TV.exp() * (log_p_TV - log_t_TV)).sum(-1))
    torch.testing.assert_close(named["teacher_entropy"], -(log_t_TV.exp() * log_t_TV).sum(-1))
    torch.testing.assert_close(named[STUDENT_MASS], torch.ones(T))  # fewer than MASS_TOP_K ids: all of them


def test_the_students_mass_on_the_top_k_tokens_leaves_unknown_ids_out() -> None:
    batch, _, student_TH, student_VH = scene()
    ids_TK = torch.tensor([[1, 3]] * T)
    ids_TK[2] = torch.tensor([V + 5, 4])
    log_probs_TK = torch.full((T, 2), -1.0)
    batch = replace(batch, teacher_topk_ids_TK=ids_TK, teacher_topk_logp_TK=log_probs_TK)
    loss = Objective(ObjectiveConfig(name="log_ratio"), ImportanceConfig(name="none"))
    facts = loss.facts(batch, None)
    assert facts is not None
    _, _, named = evaluated(facts, student_TH, student_VH, batch)
    p_TV = (student_TH @ student_VH.t()).softmax(-1)
    expected_T = p_TV[:, 1] + p_TV[:, 3]
    expected_T[2] = p_TV[2, 4]
    torch.testing.assert_close(named[STUDENT_MASS], expected_T)
