"""Published test vectors of token rewards, windows, masks and token weights, run through the registries.

Cases with logits are in `test_rewards_vectors_logits.py`,
those with two policies in `test_rewards_vectors_policies.py`.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

from rewards import (
    NORMALISERS,
    SURROGATES,
    TOKEN_MASKS,
    TOKEN_REWARDS,
    TOKEN_WEIGHTS,
    aggregate,
    avg_at_k,
    drop_non_finite,
    group_advantage,
    mix_outcome,
    pass_at_k,
    return_to_go,
    scheduled_beta,
    top_fraction_threshold,
)
from rewards.gated import aopd_gate
from rewards.reopold import reopold_floor
from rewards.surrogates import probability_difference
from rewards.tip import scaled_to_unit, tip_score
from tests.unit.reward_vectors import CASES, Case, Results, Run, all_kept, vector_test

CASE_OF_ID = {case["id"]: case for case in CASES}
PG_MODES = ("window_token_mean", "seq_mean_token_mean", "seq_mean_token_sum")


def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
    """Return one number per token as tensor_1T, or rows as they are; non-finite numbers arrive as text."""
    flat = values if isinstance(values[0], list) else [[float(value) for value in values]]
    return torch.tensor(flat, dtype=dtype)


def inputs_of(case: Case, dtype: torch.dtype, *names: str) -> list[Tensor]:
    return [tensor(case["inputs"][name], dtype) for name in names]


def log_probs(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    teacher_1T, student_1T = inputs_of(case, dtype, "lp_teacher", "lp_student")
    mask = case["inputs"].get("mask", [True] * teacher_1T.shape[1])
    return teacher_1T, student_1T, torch.tensor([mask])


# -- rewards of sampled tokens ----------------------------------------------------------------------------


def run_token_reward(name: str, *params: str) -> Run:
    def run(case: Case, dtype: torch.dtype) -> Results:
        chosen = {param: case["params"][param] for param in params}
        results: Results = {"reward": TOKEN_REWARDS[name](*log_probs(case, dtype), **chosen)}
        if name == "power":
            rescaled = TOKEN_REWARDS[name](*log_probs(case, dtype), **chosen, rescale="inv_alpha")
            results["reward_over_alpha"] = rescaled
        results["log_ratio"] = TOKEN_REWARDS["log_ratio"](*log_probs(case, dtype))
        return results

    return run


def run_non_finite(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    reward = TOKEN_REWARDS["log_ratio"](teacher, student, mask)
    assert TOKEN_REWARDS["log_ratio"].needs_finite_teacher({})
    kept = drop_non_finite(reward, student, mask, teacher)
    assert kept.num_dropped.item() == case["expected"]["keep"].count(False)
    torch.testing.assert_close(kept.reward_BT, reward, rtol=0, atol=0)
    return {"keep": kept.keep_BT, "reward": reward}


def run_bounds(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    rewards = [TOKEN_REWARDS["power"](teacher, student, mask, alpha=alpha) for alpha in case["params"]["alphas"]]
    sign = TOKEN_REWARDS["log_ratio"](teacher, student, mask).sign()
    assert all((reward * sign >= 0).all() for reward in rewards)
    is_bounded = all((reward.abs() <= 1).all() for reward in rewards)
    return {"max_abs_le_1": is_bounded, "sign_equals_sign_of_log_ratio": sign}


def run_underflow(case: Case, dtype: torch.dtype) -> Results:
    """The reward of a token that the teacher rules out is a normal float32 down to this log-prob."""
    results: Results = {"log_prob_at_which_exp_alpha_lp_becomes_subnormal": [], "prob": []}
    tiny = torch.finfo(torch.float32).tiny
    for alpha in case["expected"]["prob"]:
        edge = math.log(tiny) / float(alpha)
        student = torch.tensor([[edge * (1 - 1e-4), edge * (1 + 1e-4)]], dtype=torch.float32)
        teacher = torch.full_like(student, -math.inf)
        reward = TOKEN_REWARDS["power"](teacher, student, all_kept(student), alpha=float(alpha)).abs()
        assert reward[0, 0] >= tiny > reward[0, 1]
        results["log_prob_at_which_exp_alpha_lp_becomes_subnormal"].append(edge)
        results["prob"].append(math.exp(edge))
    return results


def run_reopold(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    lambda_ = case["params"]["lambda"]
    keep = TOKEN_MASKS["reopold"](mask, teacher_logp_BT=teacher, student_logp_BT=student, step=0, lambda_=lambda_)
    return {
        "floor": reopold_floor(lambda_),
        "reward": TOKEN_REWARDS["reopold"](teacher, student, mask, lambda_=lambda_),
        "phase1_keep": keep,
    }


def run_opd_plus(case: Case, dtype: torch.dtype) -> Results:
    log_u = tensor(case["inputs"]["log_u"], dtype)
    teacher, student = log_u.clamp(max=0), (-log_u).clamp(max=0)
    return {
        f"{prefix}_{divergence}": TOKEN_REWARDS["opd_plus"](
            teacher, student, all_kept(log_u), divergence=divergence, naive=prefix == "sg"
        )
        for prefix in ("w", "sg")
        for divergence in ("fkl", "rkl", "jsd")
    }


def run_g_opd(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    (reference,) = inputs_of(case, dtype, "lp_reference")
    lambda_ = case["params"]["lambda"]
    return {"reward": TOKEN_REWARDS["g_opd"](teacher, student, mask, reference_logp_BT=reference, lambda_=lambda_)}


def run_aopd_gate(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    gate = aopd_gate(teacher, student, mask, tau=case["params"]["tau"])
    reward = TOKEN_REWARDS["aopd"](teacher, student, mask, tau=case["params"]["tau"])
    assert (reward[gate] == 0).all()
    torch.testing.assert_close(reward[~gate], (teacher - student)[~gate])
    return {"prob_difference": probability_difference(teacher, student, mask), "use_forward_kl": gate}


# -- windows ----------------------------------------------------------------------------------------------


def run_zscore(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    reward = TOKEN_REWARDS["log_ratio"](teacher, student, mask)
    count, total, total_of_squares = NORMALISERS["zscore"].statistics(reward, mask).tolist()
    std = math.sqrt(total_of_squares / count - (total / count) ** 2)
    return {"reward": NORMALISERS["zscore"](reward, mask), "mean": total / count, "std": std}


def run_sign_max_abs(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    reward = TOKEN_REWARDS["log_ratio"](teacher, student, mask)
    positive, negative = NORMALISERS["sign_max_abs"].statistics(reward, mask).tolist()
    return {"reward": NORMALISERS["sign_max_abs"](reward, mask), "pos_scale": positive, "neg_scale": negative}


def run_masked_loss(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    student.requires_grad_()
    reward = TOKEN_REWARDS["power"](teacher, student, mask, alpha=case["params"]["alpha"])
    loss = aggregate(SURROGATES["policy_gradient"](student, reward, mask), mask)
    loss.backward()
    assert student.grad is not None
    assert student.grad[~mask].abs().sum() == 0.0
    return {"loss_token_mean": loss, "loss": loss, "token_count": mask.sum()}


def run_loss_normalisation(case: Case, dtype: torch.dtype) -> Results:
    inputs = case["inputs"]
    lengths = inputs["seq_lengths"]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    reward = torch.zeros_like(mask, dtype=dtype)
    reward[mask] = torch.tensor(inputs["reward"], dtype=dtype)
    logp = torch.zeros_like(reward)
    logp_values = inputs.get("lp_student", CASE_OF_ID["loss_normalisation"]["inputs"]["lp_student"])
    logp[mask] = torch.tensor(logp_values, dtype=dtype)
    is_gradient_case = case["id"] == "loss_gradient_wrt_logp"
    results: Results = {"per_token_term": SURROGATES["policy_gradient"](logp, reward, mask)[mask]}
    for how in PG_MODES:
        logp.requires_grad_().grad = None
        loss = aggregate(SURROGATES["policy_gradient"](logp, reward, mask), mask, how)
        loss.backward()
        assert logp.grad is not None
        results[how] = logp.grad[mask] if is_gradient_case else loss
    return results


def run_return_to_go(case: Case, dtype: torch.dtype) -> Results:
    (reward,) = inputs_of(case, dtype, "reward")
    return {"advantage": return_to_go(reward, all_kept(reward), discount=case["params"]["discount"])}


def run_group_advantage(case: Case, dtype: torch.dtype) -> Results:
    (outcome,) = inputs_of(case, dtype, "group_rewards")
    eps = case["params"]["eps"]
    results = {f"{std}_std": group_advantage(outcome, std=std, eps=eps) for std in ("sample", "population")}
    return {**results, "no_std": group_advantage(outcome, std="none"), "advantage": results["sample_std"]}


def run_outcome_mix(case: Case, dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    outcome = torch.tensor([case["inputs"]["outcome_advantage"]], dtype=dtype)
    rewards = {
        "slime": TOKEN_REWARDS["log_ratio"](teacher, student, mask),
        "power": TOKEN_REWARDS["power"](teacher, student, mask, alpha=case["params"]["alpha"]),
    }
    opd_coef = case["params"]["opd_coef"]
    return {name: mix_outcome(outcome, reward, mask, opd_coef=opd_coef) for name, reward in rewards.items()}


# -- masks and weights ------------------------------------------------------------------------------------


def run_special_tokens(case: Case, dtype: torch.dtype) -> Results:
    ids = torch.tensor(case["inputs"]["ids"])
    special_ids = case["params"]["special_ids"]
    keep = TOKEN_MASKS["special_tokens"](all_kept(ids), response_ids_BT=ids, special_token_ids=special_ids)
    return {"keep": keep}


def run_entropy_top(case: Case, dtype: torch.dtype) -> Results:
    (entropy,) = inputs_of(case, dtype, "entropy")
    mask, fraction = all_kept(entropy), case["params"]["top_fraction"]
    keep = TOKEN_MASKS["entropy_top"](mask, student_entropy_BT=entropy, top_fraction=fraction)
    return {"keep": keep, "threshold": top_fraction_threshold(entropy, mask, fraction)}


def run_tip(case: Case, dtype: torch.dtype) -> Results:
    entropy, divergence = inputs_of(case, dtype, "student_entropy", "reverse_kl")
    mask = all_kept(entropy)
    extras = {"student_entropy_BT": entropy, "reverse_kl_BT": divergence}
    return {
        "h": scaled_to_unit(entropy, mask),
        "d": scaled_to_unit(divergence, mask),
        "score": tip_score(mask, **extras),
        "keep": TOKEN_MASKS["tip"](mask, **extras, keep=case["params"]["keep"]),
    }


def run_iw_opd(case: Case, dtype: torch.dtype) -> Results:
    (size,) = inputs_of(case, dtype, "abs_advantage")
    gamma = case["params"]["gamma"]
    return {"weight": TOKEN_WEIGHTS["iw_opd"](all_kept(size), advantage_BT=-size, gamma=gamma)}


def run_fire_opd(case: Case, dtype: torch.dtype) -> Results:
    teacher, student = inputs_of(case, dtype, "teacher_entropy", "student_entropy")
    weight = TOKEN_WEIGHTS["fire_opd"](
        all_kept(teacher), teacher_entropy_BT=teacher, student_entropy_BT=student, **case["params"]
    )
    return {"weight": weight}


def run_schedule(case: Case, dtype: torch.dtype) -> Results:
    start, end, steps = (case["params"][name] for name in ("beta_start", "beta_end", "total_steps"))
    betas = [scheduled_beta(start, end, "linear", step=step, max_steps=steps) for step in range(steps + 1)]
    assert scheduled_beta(start, end, "linear", step=2 * steps, max_steps=steps) == end
    return {"beta": betas}


def run_accuracy(case: Case, dtype: torch.dtype) -> Results:
    """The vectors are percentages."""
    correct = case["inputs"]["correct"]
    return {
        "avg_at_8": 100 * avg_at_k(correct, 8),
        "pass_at_8": 100 * pass_at_k(correct, 8),
        "avg_at_4": 100 * avg_at_k(correct, 4),
        "pass_at_4_first4": 100 * pass_at_k(correct, 4),
    }


RUN_OF_PATTERN: dict[str, Run] = {
    r"log_ratio": run_token_reward("log_ratio"),
    r"log_clip_.*": run_token_reward("log_clip", "low", "high"),
    r"log_tanh_.*": run_token_reward("log_tanh", "temperature"),
    r"power_(near_equal_|neg_inf_)?[0-9.]+": run_token_reward("power", "alpha"),
    r"power_(limit_alpha_to_0|positive_roundoff)": run_token_reward("power", "alpha"),
    r"power_bounds_sign": run_bounds,
    r"float32_underflow": run_underflow,
    r"log_ratio_neg_inf_masked": run_non_finite,
    r"reopold_floor_.*": run_reopold,
    r"opd_plus_weights": run_opd_plus,
    r"g_opd_.*": run_g_opd,
    r"aopd_gate": run_aopd_gate,
    r"log_zscore_window": run_zscore,
    r"log_sign_max_abs_window": run_sign_max_abs,
    r"masked_nan_is_harmless|empty_window": run_masked_loss,
    r"loss_normalisation|loss_gradient_wrt_logp": run_loss_normalisation,
    r"return_to_go_.*": run_return_to_go,
    r"grpo_advantage.*": run_group_advantage,
    r"outcome_plus_opd": run_outcome_mix,
    r"special_token_first_occurrence_mask": run_special_tokens,
    r"entropy_top_fraction": run_entropy_top,
    r"tip_score": run_tip,
    r"iw_opd_weights": run_iw_opd,
    r"fire_opd_token_weights": run_fire_opd,
    r"veto_beta_schedule": run_schedule,
    r"avg_at_k_pass_at_k": run_accuracy,
}

COVERED_ELSEWHERE = r"terminal_stop_.*|padded_vocab"
"""Stop labels are made before scoring; vocabularies are cut where logits are computed."""

NOT_COMPUTED = {
    "loss_normalisation": {
        "microbatch_mean": "depends on how a window is split",
        "microbatch_mean_each": "the same",
        "mean_over_microbatches_of_returned_values": "what another trainer is handed",
        "window_token_mean_value_returned_by_each_microbatch_before_trainer_divides_by_GA": "the same",
        "seq_mean_token_sum_norm": "seq_mean_token_sum over a constant",
        "token_sum": "window_token_mean times the count",
    },
    "loss_gradient_wrt_logp": {"microbatch_mean": "depends on how a window is split"},
    "avg_at_k_pass_at_k": {"pass_at_4_unbiased": "listed for comparison only"},
}

HERE = [
    case
    for case in CASES
    if not {"student_logits", "lp_current"} & case["inputs"].keys()
    and not re.fullmatch(COVERED_ELSEWHERE, case["id"])
]

test_the_registries_reproduce_the_vector = vector_test(HERE, RUN_OF_PATTERN, not_computed=NOT_COMPUTED)
