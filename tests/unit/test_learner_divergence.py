"""A divergence taken chunk by chunk equals the whole one in value and gradient, and bad positions stay out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewards
from learner.collate import PackedBatch, collate
from learner.divergence import TeacherHead, known_top_k
from learner.log_probs import HeadLimits, head_values
from learner.loss import Objective, WindowCounts
from learner.student import StudentModel
from settings.objective import ImportanceConfig, ObjectiveConfig
from tests.unit.test_learner_scene import STOPS, VOCAB_SIZE, scored_table, tiny_qwen3

# Shapes: T positions, H hidden size of student and teacher, V vocabulary, K the teacher's top-k tokens.
T, H, K = 75, 64, 8
LENGTHS = [(3, 5), (8, 20), (2, 9), (30, 40), (1, 1)]
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "reverse_kl"},
    {"name": "forward_kl"},
    {"name": "jsd", "beta": 0.5},
    {"name": "power_full", "alpha": 1.0},
    {"name": "veto", "direction": "forward"},
    {"name": "lsm", "k": K},
    {"name": "lsm", "k": K, "support": "teacher+sampled"},
    {"name": "eopd", "k": K},
    {"name": "aopd", "k": K},
]
every_objective = pytest.mark.parametrize(
    "given", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values()))
)


def objective(given: dict[str, Any]) -> Objective:
    parameters = {key: value for key, value in given.items() if key != "name"}
    parameters = rewards.validate("objective", given["name"], parameters)
    importance = ImportanceConfig.model_validate({"name": "truncated", "low": 0.0, "high": 2.0})
    built = Objective(ObjectiveConfig.model_validate({"name": given["name"], **parameters}), importance)
    built.begin_step(1, 10)
    return built


def scene() -> tuple[PackedBatch, TeacherHead, Tensor]:
    """A micro-batch that holds both signals of one teacher, its head, and the student's hidden states."""
    (batch,) = collate([scored_table(LENGTHS)], stop_mode="raw", stops=STOPS, max_tokens=1000)
    generator = torch.Generator().manual_seed(0)
    hidden_TH, student_TH = torch.randn(2, T, H, generator=generator).unbind()
    head = TeacherHead(torch.randn(VOCAB_SIZE, H, generator=generator) / H**0.5)
    logits_TV = head.logits(hidden_TH)
    top_TK = logits_TV.log_softmax(-1).topk(K)
    fields = {field: getattr(batch, field) for field in PackedBatch.__dataclass_fields__}
    fields |= {"teacher_hidden_TH": hidden_TH, "teacher_topk_ids_TK": top_TK.indices}
    batch = PackedBatch(**fields | {"teacher_topk_logp_TK": top_TK.values})
    return head.with_log_probs(batch, chunk_tokens=16), head, student_TH


@every_objective
@pytest.mark.parametrize("chunk_tokens", [1, 8, 100])
def test_value_and_gradient_equal_those_of_the_whole(given: dict[str, Any], chunk_tokens: int) -> None:
    batch, teacher_head, student_TH = scene()
    weight_VH = torch.randn(VOCAB_SIZE, H, generator=torch.Generator().manual_seed(1)) / H**0.5
    leaves = [student_TH.requires_grad_(), weight_VH.requires_grad_()]
    loss = objective(given)
    divergence = loss.divergence(batch, teacher_head if "k" not in given else None)
    assert divergence is not None
    logp_T, _, value_T, _ = head_values(
        leaves[0],
        leaves[1],
        None,
        batch.target_ids_T,
        divergence,
        limits=HeadLimits(VOCAB_SIZE, chunk_tokens=chunk_tokens),
    )
    logits_TV = nn.functional.linear(*leaves)
    whole_T = divergence(logits_TV, torch.arange(T))
    torch.testing.assert_close(value_T, whole_T, rtol=1e-5, atol=1e-6)
    naive_T = logits_TV.log_softmax(-1).gather(1, batch.target_ids_T[:, None])[:, 0]
    counts = WindowCounts(T, len(LENGTHS), 1)
    ours = loss.micro_batch_loss(batch, logp_T, logp_T.detach(), value_T, counts=counts)
    theirs = loss.micro_batch_loss(batch, naive_T, logp_T.detach(), whole_T, counts=counts)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-6)
    naive_gradients = torch.autograd.grad(theirs.loss, leaves)
    for gradient, naive in zip(torch.autograd.grad(ours.loss, leaves), naive_gradients, strict=True):
        assert (gradient - naive).norm() <= 1e-5 * naive.norm()


@every_objective
def test_the_loss_is_the_mean_of_reward_and_divergence_parts(given: dict[str, Any]) -> None:
    batch, _, _ = scene()
    logp_T, value_T = torch.rand(2, T, generator=torch.Generator().manual_seed(2)).mul(-9).unbind()
    loss = objective(given)
    result = loss.micro_batch_loss(batch, logp_T, logp_T, value_T, counts=WindowCounts(T, 5, 1))
    reward_part = -(result.importance_T * result.reward_T * logp_T).sum()
    assert bool(result.reward_T.any()) == (given["name"] in ("eopd", "aopd"))
    torch.testing.assert_close(result.loss, (reward_part + value_T.sum()) / T)


def test_a_position_whose_value_is_not_finite_is_dropped_and_leaves_finite_gradients() -> None:
    batch, teacher_head, student_TH = scene()
    student_TH.requires_grad_()
    loss = objective({"name": "reverse_kl"})
    exact = loss.divergence(batch, teacher_head)
    assert exact is not None

    def divergence(logits_CV: Tensor, positions_C: Tensor) -> Tensor:
        return exact(logits_CV, positions_C) / (positions_C != 3)

    logp_T, entropy_T, value_T, _ = head_values(
        student_TH,
        teacher_head.weight_VH,
        None,
        batch.target_ids_T,
        divergence,
        limits=HeadLimits(VOCAB_SIZE, chunk_tokens=8),
    )
    result = loss.micro_batch_loss(batch, logp_T, entropy_T, value_T, counts=WindowCounts(T, 5, 1))
    assert (~result.is_trained_T).nonzero().flatten().tolist() == [3]
    (gradient_TH,) = torch.autograd.grad(result.loss, student_TH)
    assert gradient_TH.isfinite().all()
    assert not gradient_TH[3].any()
    assert gradient_TH[2].any()


def test_a_divergence_without_positions_gives_attached_zero_gradients() -> None:
    student = StudentModel(tiny_qwen3(), HeadLimits(VOCAB_SIZE, chunk_tokens=16))
    ids_1, none = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    *_, value_T = student(ids_1, ids_1, none, none, lambda logits_CV, positions_C: logits_CV.sum(-1))
    value_T.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


def test_an_id_beyond_the_students_head_gets_no_probability() -> None:
    ids_CK = torch.tensor([[70, 5, 9], [3, 99, 4]])
    teacher = known_top_k(ids_CK, torch.tensor([[-0.5, -1.0, -2.0]] * 2), vocab_size=VOCAB_SIZE)
    assert teacher.ids_NK.tolist() == [[5, 5, 9], [3, 3, 4]]
    assert teacher.log_probs_NK.tolist() == [[-math.inf, -1.0, -2.0], [-0.5, -math.inf, -2.0]]
    logits = torch.randn(2, VOCAB_SIZE, requires_grad=True)
    for direction in ("reverse", "forward"):
        value_C = rewards.DIVERGENCES["lsm"](logits, teacher, k=3, direction=direction)
        known = rewards.TeacherTopK(torch.tensor([[5, 9], [3, 4]]), torch.tensor([[-1.0, -2.0], [-0.5, -2.0]]))
        expected_C = rewards.DIVERGENCES["lsm"](logits, known, k=2, direction=direction)
        torch.testing.assert_close(value_C, expected_C)
        assert torch.autograd.grad(value_C.sum(), logits)[0].isfinite().all()


def test_a_smaller_teacher_head_is_compared_on_the_ids_that_both_have() -> None:
    batch, teacher_head, student_TH = scene()
    small = TeacherHead(teacher_head.weight_VH[:50])
    logits_TV = student_TH @ teacher_head.weight_VH.t()
    loss = objective({"name": "reverse_kl"})
    value_T = loss.divergence(batch, small)(logits_TV, torch.arange(T))  # pyright: ignore[reportOptionalCall]
    teacher = rewards.TeacherLogits(small.logits(batch.teacher_hidden_TH))
    torch.testing.assert_close(value_T, rewards.DIVERGENCES["reverse_kl"](logits_TV[:, :50], teacher))


@pytest.mark.parametrize("sampled", [62, 63])
def test_a_head_scores_the_teachers_own_stop_token_under_cross_eos(sampled: int) -> None:
    table = scored_table([(2, 3)], ends_with=sampled, stop_mode="cross_eos")
    (batch,) = collate([table], stop_mode="cross_eos", stops=STOPS, max_tokens=100)
    hidden_TH = torch.ones(3, 1)
    weight_VH = torch.zeros(VOCAB_SIZE, 1)
    weight_VH[63] = 9.0  # the teacher is sure of its own stop token
    scored = TeacherHead(weight_VH).with_log_probs(replace(batch, teacher_hidden_TH=hidden_TH), chunk_tokens=2)
    assert scored.target_ids_T[-1] == sampled
    log_probs_V = weight_VH[:, 0].log_softmax(0)
    torch.testing.assert_close(scored.teacher_logp_T[-1], log_probs_V[63], rtol=0, atol=1e-6)
    student_T = torch.log(torch.tensor([0.5, 0.5, 0.6]))
    result = objective({"name": "power", "alpha": 1.0}).micro_batch_loss(
        scored, student_T, student_T, counts=WindowCounts(3, 1, 1)
    )
    assert result.reward_T[-1].item() == pytest.approx(log_probs_V[63].exp().item() - 0.6, abs=1e-6)


@pytest.mark.parametrize("support", ["teacher", "teacher+sampled"])
def test_a_sampled_token_of_the_support_has_one_log_prob_whatever_the_teacher_sent(support: str) -> None:
    """Under cross_eos it is that of the teacher's own stop token, which the position's logits do not tell."""
    student_NV = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    logits_NV = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    top = logits_NV.log_softmax(-1).topk(K)
    lowest_N = logits_NV.argmin(-1)
    given = {
        "k": K,
        "support": support,
        "sampled_ids_N": lowest_N,
        "sampled_teacher_logp_N": torch.tensor([-0.1, -3.0]),
    }
    whole = rewards.DIVERGENCES["lsm"](student_NV, rewards.TeacherLogits(logits_NV), **given)
    of_top = rewards.DIVERGENCES["lsm"](student_NV, rewards.TeacherTopK(top.indices, top.values), **given)
    torch.testing.assert_close(whole, of_top)


def test_log_probs_of_the_targets_follow_from_the_hidden_states() -> None:
    batch, teacher_head, _ = scene()
    log_probs_TV = teacher_head.logits(batch.teacher_hidden_TH).log_softmax(-1)
    torch.testing.assert_close(batch.teacher_logp_T, log_probs_TV.gather(1, batch.target_ids_T[:, None])[:, 0])
