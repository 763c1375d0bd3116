"""Published test vectors of distributions over the vocabulary: values and gradients."""

import math
from typing import Any

import torch
from torch import Tensor

from rewards import (
    BASELINES,
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
    SURROGATES,
    TOKEN_REWARDS,
    TeacherLogits,
    TeacherTopK,
    aggregate,
)
from rewards.support import choose_support, student_top_k_advantage, top_k_forward_kl
from rewards.teacher import entropy, student_log_probs, teacher_entropy, teacher_log_probs
from rewards.veto import log_target
from tests.unit.reward_vectors import CASES, Case, Results, Run, all_kept, vector_test

SAMPLED = [0, 4, 3]
"""Sampled tokens of the cases that do not name them (`fixtures` of the file)."""


def logits_of(case: Case, dtype: torch.dtype) -> tuple[Tensor, TeacherLogits]:
    """Return the student's logits, which ask for a gradient, and the teacher; one position may come flat."""
    student, teacher = (
        torch.tensor(case["inputs"][side], dtype=dtype).reshape(-1, 6)
        for side in ("student_logits", "teacher_logits")
    )
    return student.requires_grad_(), TeacherLogits(teacher)


def top_k_of(teacher: TeacherLogits, k: int) -> TeacherTopK:
    log_probs, ids = teacher.logits_NV.log_softmax(-1).topk(k)
    return TeacherTopK(ids, log_probs)


def sampled(values_NV: Tensor, case: Case) -> Tensor:
    ids_N = torch.tensor(case["inputs"]["token"]).reshape(-1, 1)
    return values_NV.gather(-1, ids_N)


def gradient(value_N: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(value_N.sum(), student, retain_graph=True)[0]


def expected_gradient(weights_NV: Tensor, reward_NV: Tensor, student: Tensor) -> Tensor:
    """Return the mean of the policy gradient of sampled tokens, each with its probability as weight."""
    logp_NV = student.log_softmax(-1)
    loss_NV = SURROGATES["policy_gradient"](logp_NV, reward_NV, all_kept(logp_NV))
    return gradient(weights_NV.detach() * loss_NV, student)


def run_divergence(name: str, *params: str) -> Run:
    def run(case: Case, dtype: torch.dtype) -> Results:
        student, teacher = logits_of(case, dtype)
        chosen = {param: case["params"][param] for param in params}
        value = DIVERGENCES[name](student, teacher, **chosen)
        return {
            "per_position": value,
            "token_mean": value.mean(),
            "grad_per_position": gradient(value, student),
        }

    return run


def run_power_full(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    alpha = case["params"]["alpha"]
    log_p, log_t = student.log_softmax(-1), teacher.logits_NV.log_softmax(-1)
    reward = TOKEN_REWARDS["power"](log_t, log_p, all_kept(log_p), alpha=alpha)
    value = DIVERGENCES["power_full"](student, teacher, alpha=alpha)
    grad = gradient(value, student)
    rtol, atol = (1e-9, 1e-15) if dtype == torch.float64 else (2e-5, 1e-7)
    torch.testing.assert_close(expected_gradient(log_p.exp(), reward, student), grad, rtol=rtol, atol=atol)
    return {
        "per_position": value,
        "per_position_over_alpha": DIVERGENCES["power_full"](student, teacher, alpha=alpha, rescale="inv_alpha"),
        "grad_per_position": grad,
        "baseline": BASELINES["power"](student, teacher, alpha=alpha),
    }


def run_local_support(name: str, **params: Any) -> Run:
    """Both kinds of teacher payload have to give the same."""

    def run(case: Case, dtype: torch.dtype) -> Results:
        student, teacher = logits_of(case, dtype)
        k = case["params"]["k"]
        log_p = student_log_probs(student)
        chosen = choose_support(log_p, teacher, k=k)
        value = DIVERGENCES[name](student, teacher, k=k, **params)
        torch.testing.assert_close(DIVERGENCES[name](student, top_k_of(teacher, k), k=k, **params), value)
        return {
            "support": chosen.ids_NS,
            "per_position": value,
            "token_mean": value.mean(),
            "grad_per_position": gradient(value, student),
            "student_mass": chosen.log_p_NS.exp().sum(-1),
            "teacher_mass": chosen.log_t_NS.exp().sum(-1),
        }

    return run


def run_tail_bucket(case: Case, dtype: torch.dtype) -> Results:
    results = {
        direction: run_local_support("lsm", tail="bucket", direction=direction)(case, dtype)
        for direction in ("reverse", "forward")
    }
    values = {direction: result["per_position"] for direction, result in results.items()}
    return {"support": results["reverse"]["support"], **values}


def run_student_top_k(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    k = case["params"]["k"]
    log_p = student_log_probs(student)
    chosen = choose_support(log_p, teacher, k=k, support="student")
    advantage = student_top_k_advantage(chosen)
    value = DIVERGENCES["student_top_k"](student, teacher, k=k)
    torch.testing.assert_close(value, -(advantage * chosen.log_p_NS).sum(-1))
    return {"support": chosen.ids_NS, "advantage": advantage}


def run_veto(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    beta = case["params"]["beta"]
    log_p, log_t = student.log_softmax(-1), teacher.logits_NV.log_softmax(-1)
    results: Results = {"target_log_prob": log_target(log_t, log_p, beta)}
    for direction in ("forward", "reverse"):
        value = DIVERGENCES["veto"](student, teacher, beta=beta, direction=direction)
        results[direction] = value
        results[f"{direction}_grad_per_position"] = gradient(value, student)
    reward = TOKEN_REWARDS["veto_reverse"](log_t, log_p, all_kept(log_p), beta=beta)
    torch.testing.assert_close(TOKEN_REWARDS["veto"](log_t, log_p, all_kept(log_p), beta=beta), reward)
    results["expected_policy_gradient"] = expected_gradient(log_p.exp(), reward, student)
    results["reverse_grad"] = results["reverse_grad_per_position"]
    results["sampled_reverse_reward"] = reward.gather(-1, torch.tensor(SAMPLED[: len(student)]).unsqueeze(-1))
    return results


def run_entropies(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    return {"student": entropy(student.log_softmax(-1)), "teacher": teacher_entropy(teacher)}


def run_eopd(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    params = {name: case["params"][name] for name in ("alpha", "tau", "k")}
    logp, logt = sampled(student.log_softmax(-1), case), sampled(teacher.logits_NV.log_softmax(-1), case)
    mask = all_kept(logp)
    reward = TOKEN_REWARDS["eopd"](logt, logp, mask, **params)
    opd_term = SURROGATES["policy_gradient"](logp, reward, mask)
    direct = DIVERGENCES["eopd"](student, teacher, **params)
    return {
        "gate": teacher_entropy(teacher) > params["tau"],
        "opd_term": opd_term,
        "fkl_topk": top_k_forward_kl(student, teacher, k=params["k"]),
        "loss": aggregate(opd_term + direct.unsqueeze(-1), mask),
    }


def run_tip_weight(case: Case, dtype: torch.dtype) -> Results:
    """The product is of the case alone: TIP is a mask here, and what is checked is its two factors."""
    student, teacher = logits_of(case, dtype)
    jsd = DIVERGENCES["jsd"](student, teacher, beta=0.5)
    entropies = entropy(student.log_softmax(-1)) / math.log(student.shape[-1])
    weight = entropies ** case["params"]["alpha"] * (jsd / math.log(2.0)) ** case["params"]["gamma"]
    return {"jsd": jsd, "weight": weight, "probability": weight / weight.sum()}


def run_vopd(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    log_p = student.log_softmax(-1)
    reward = TOKEN_REWARDS["log_ratio"](teacher.logits_NV.log_softmax(-1), log_p, torch.ones_like(log_p))
    advantage = reward - BASELINES["log_ratio"](student, teacher).unsqueeze(-1)
    return {
        "advantage": sampled(advantage, case),
        "expected_advantage": (log_p.exp() * advantage).sum(-1),
    }


def run_one_token(case: Case, dtype: torch.dtype) -> Results:
    student, teacher = logits_of(case, dtype)
    logp, logt = sampled(student.log_softmax(-1), case), sampled(teacher.logits_NV.log_softmax(-1), case)
    mask = all_kept(logp)
    reward = TOKEN_REWARDS["power"](logt, logp, mask, alpha=case["params"]["alpha"])
    loss = aggregate(SURROGATES["policy_gradient"](logp, reward, mask), mask)
    return {"reward": reward, "loss": loss, "grad": gradient(loss, student)}


def run_truncated_sampling(case: Case, dtype: torch.dtype) -> Results:
    """Only the kept tokens are sampled: an importance weight makes the kept mass a constant factor."""
    student, teacher = logits_of(case, dtype)
    log_p = student_log_probs(student).detach()
    mask = all_kept(log_p)
    kept = choose_support(log_p, teacher, k=case["params"]["top_k"], support="student").ids_NS
    log_behaviour = torch.full_like(log_p, -torch.inf).scatter(-1, kept, log_p.gather(-1, kept)).log_softmax(-1)
    behaviour = log_behaviour.exp()
    reward = TOKEN_REWARDS["power"](teacher_log_probs(teacher, log_p), log_p, mask, alpha=case["params"]["alpha"])
    weight = IMPORTANCE_WEIGHTS["truncated"](log_p, log_behaviour, mask)
    return {
        "behaviour": behaviour,
        "ratio_on_support": weight.gather(-1, kept),
        "expected_grad_no_correction": expected_gradient(behaviour, reward, student),
        "expected_grad_with_is": expected_gradient(behaviour, weight * reward, student),
        "full_expected_grad": expected_gradient(log_p.exp(), reward, student),
    }


RUN_OF_PATTERN: dict[str, Run] = {
    r"full_reverse_kl": run_divergence("reverse_kl"),
    r"full_forward_kl": run_divergence("forward_kl"),
    r"gkd_jsd_.*": run_divergence("jsd", "beta", "temperature"),
    r"linear_kl_mix": run_divergence("linear_kl", "beta"),
    r"power_exact_.*": run_power_full,
    r"lsm_topk_renormalised_reverse_kl": run_local_support("lsm"),
    r"topk_unnormalised_reverse_kl": run_local_support("lsm", normalise=False),
    r"topk_unnormalised_forward_kl": run_local_support("lsm", normalise=False, direction="forward"),
    r"topk_with_tail_bucket": run_tail_bucket,
    r"student_topk_reward_thunlp": run_student_top_k,
    r"veto_beta_[0-9.]+|veto_reverse_sampled_expectation": run_veto,
    r"entropies": run_entropies,
    r"eopd": run_eopd,
    r"tip_authors_sampling_weight": run_tip_weight,
    r"vopd_baseline": run_vopd,
    r"pg_gradient_logits_one_token": run_one_token,
    r"behaviour_truncated_top_k": run_truncated_sampling,
}

HERE = [case for case in CASES if "student_logits" in case["inputs"] and case["id"] != "padded_vocab"]
"""Both vocabularies are cut where logits are computed."""

test_the_registries_reproduce_the_vector = vector_test(HERE, RUN_OF_PATTERN)
