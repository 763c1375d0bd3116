"""Published test vectors of the objectives, run through the registry.

They are read from `reward_vectors.json` in the folder named by POWEROPD_VECTORS, or in `../shared` beside the
repository; without that file these tests are skipped.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards import (
    IMPORTANCE_WEIGHTS,
    NORMALISERS,
    TOKEN_REWARDS,
    aggregate,
    avg_at_k,
    drop_non_finite,
    pass_at_k,
)

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS_PATH = Path(os.environ.get("POWEROPD_VECTORS", REPOSITORY.parent / "shared")) / "reward_vectors.json"
CASES = json.loads(VECTORS_PATH.read_text())["cases"] if VECTORS_PATH.exists() else []
CASE_OF_ID = {case["id"]: case for case in CASES}

Results = dict[str, Any]
Run = Callable[[dict[str, Any], torch.dtype], Results]


def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
    """Return one number per token as tensor_1T, or logits as they are; non-finite numbers arrive as text."""
    flat = values if isinstance(values[0], list) else [[float(value) for value in values]]
    return torch.tensor(flat, dtype=dtype)


def log_probs(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    inputs = case["inputs"]
    teacher_1T, student_1T = tensor(inputs["lp_teacher"], dtype), tensor(inputs["lp_student"], dtype)
    mask = inputs.get("mask", [True] * teacher_1T.shape[1])
    return teacher_1T, student_1T, torch.tensor([mask])


def run_token_reward(name: str, *params: str) -> Run:
    def run(case: dict[str, Any], dtype: torch.dtype) -> Results:
        chosen = {param: case["params"][param] for param in params}
        results: Results = {"reward": TOKEN_REWARDS[name](*log_probs(case, dtype), **chosen)}
        if name == "power":
            results["reward_over_alpha"] = TOKEN_REWARDS[name](
                *log_probs(case, dtype), **chosen, rescale="inv_alpha"
            )
        if "log_ratio" in case["expected"]:
            results["log_ratio"] = TOKEN_REWARDS["log_ratio"](*log_probs(case, dtype))
        return results

    return run


def run_normaliser(name: str) -> Run:
    def run(case: dict[str, Any], dtype: torch.dtype) -> Results:
        teacher, student, mask = log_probs(case, dtype)
        reward = TOKEN_REWARDS["log_ratio"](teacher, student, mask)
        return {"reward": NORMALISERS[name](reward, mask)}

    return run


def run_non_finite(case: dict[str, Any], dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    kept = drop_non_finite(TOKEN_REWARDS["log_ratio"](teacher, student, mask), student, mask)
    assert kept.num_dropped.item() == case["expected"]["keep"].count(False)
    return {"keep": kept.keep_BT, "reward": kept.reward_BT}


def run_bounds(case: dict[str, Any], dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    sign = torch.tensor([case["expected"]["sign_equals_sign_of_log_ratio"]], dtype=dtype)
    for alpha in case["params"]["alphas"]:
        reward = TOKEN_REWARDS["power"](teacher, student, mask, alpha=alpha)
        assert (reward.abs() <= 1).all()
        assert (reward * sign >= 0).all()
    return {"max_abs_le_1": True}


def run_masked_loss(case: dict[str, Any], dtype: torch.dtype) -> Results:
    teacher, student, mask = log_probs(case, dtype)
    student.requires_grad_()
    reward = TOKEN_REWARDS["power"](teacher, student, mask, alpha=case["params"]["alpha"])
    loss = aggregate(-reward * torch.where(mask, student, 0.0), mask)
    loss.backward()
    assert student.grad is not None
    assert student.grad[~mask].abs().sum() == 0.0
    return {"loss_token_mean": loss, "loss": loss, "token_count": mask.sum()}


def run_loss_normalisation(case: dict[str, Any], dtype: torch.dtype) -> Results:
    inputs = case["inputs"]
    ends = torch.tensor(inputs["seq_lengths"]).cumsum(0).tolist()
    rows = [range(end - length, end) for end, length in zip(ends, inputs["seq_lengths"], strict=True)]
    mask = torch.zeros(len(rows), max(inputs["seq_lengths"]), dtype=torch.bool)
    for index, tokens in enumerate(rows):
        mask[index, : len(tokens)] = True
    reward = torch.zeros_like(mask, dtype=dtype)
    reward[mask] = torch.tensor(inputs["reward"], dtype=dtype)
    student_logp = torch.zeros_like(reward)
    student_logp[mask] = torch.tensor(
        inputs.get("lp_student", CASE_OF_ID["loss_normalisation"]["inputs"]["lp_student"]), dtype=dtype
    )
    results: Results = {}
    for how in ("window_token_mean", "seq_mean_token_mean", "seq_mean_token_sum"):
        student_logp.requires_grad_().grad = None
        loss = aggregate(-reward * student_logp, mask, how)
        loss.backward()
        assert student_logp.grad is not None
        is_gradient_case = case["id"] == "loss_gradient_wrt_logp"
        results[how] = student_logp.grad[mask] if is_gradient_case else loss
    return results


def run_one_token(case: dict[str, Any], dtype: torch.dtype) -> Results:
    token = case["inputs"]["token"]
    logits_1V = tensor(case["inputs"]["student_logits"], dtype).requires_grad_()
    logp_11 = logits_1V.log_softmax(-1)[:, token : token + 1]
    teacher_11 = tensor(case["inputs"]["teacher_logits"], dtype).log_softmax(-1)[:, token : token + 1]
    mask_11 = torch.ones(1, 1, dtype=torch.bool)
    reward_11 = TOKEN_REWARDS["power"](teacher_11, logp_11, mask_11, alpha=case["params"]["alpha"])
    loss = aggregate(-reward_11 * logp_11, mask_11)
    return {"reward": reward_11, "loss": loss, "grad": torch.autograd.grad(loss, logits_1V)[0]}


def run_expected_gradient(case: dict[str, Any], dtype: torch.dtype) -> Results:
    """The vectors hold the exact divergence; its gradient and baseline are expectations of the reward's."""
    logits_NV = tensor(case["inputs"]["student_logits"], dtype).requires_grad_()
    logp_NV = logits_NV.log_softmax(-1)
    teacher_NV = tensor(case["inputs"]["teacher_logits"], dtype).log_softmax(-1)
    reward_NV = TOKEN_REWARDS["power"](
        teacher_NV, logp_NV, torch.ones_like(logp_NV, dtype=torch.bool), alpha=case["params"]["alpha"]
    )
    p_NV = logp_NV.detach().exp()
    (gradient_NV,) = torch.autograd.grad(-(p_NV * reward_NV * logp_NV).sum(), logits_NV)
    return {"grad_per_position": gradient_NV, "baseline": (p_NV * reward_NV).sum(-1)}


def run_importance(name: str, key: str, **params: float) -> Run:
    def run(case: dict[str, Any], dtype: torch.dtype) -> Results:
        current = tensor(case["inputs"]["lp_current"], dtype)
        behaviour = tensor(case["inputs"]["lp_behaviour"], dtype)
        chosen = params or case["params"]
        return {key: IMPORTANCE_WEIGHTS[name](current, behaviour, torch.ones_like(current), **chosen)}

    return run


def run_accuracy(case: dict[str, Any], dtype: torch.dtype) -> Results:
    """The vectors are percentages."""
    correct = case["inputs"]["correct"]
    return {
        "avg_at_8": 100 * avg_at_k(correct, 8),
        "pass_at_8": 100 * pass_at_k(correct, 8),
        "avg_at_4": 100 * avg_at_k(correct, 4),
        "pass_at_4_first4": 100 * pass_at_k(correct, 4),
    }


RUN_OF_ID: dict[str, Run] = {
    "log_ratio": run_token_reward("log_ratio"),
    "log_zscore_window": run_normaliser("zscore"),
    "log_sign_max_abs_window": run_normaliser("sign_max_abs"),
    "log_ratio_neg_inf_masked": run_non_finite,
    "power_bounds_sign": run_bounds,
    "masked_nan_is_harmless": run_masked_loss,
    "empty_window": run_masked_loss,
    "loss_normalisation": run_loss_normalisation,
    "loss_gradient_wrt_logp": run_loss_normalisation,
    "pg_gradient_logits_one_token": run_one_token,
    "token_is_ratio": run_importance("truncated", "ratio", low=0.0, high=1e30),
    "tis_cap2": run_importance("truncated", "weight"),
    "avg_at_k_pass_at_k": run_accuracy,
}
RUN_OF_PATTERN: dict[str, Run] = {
    r"log_clip_.*": run_token_reward("log_clip", "low", "high"),
    r"log_tanh_.*": run_token_reward("log_tanh", "temperature"),
    r"power_(near_equal_|neg_inf_)?[0-9.]+": run_token_reward("power", "alpha"),
    r"power_(limit_alpha_to_0|positive_roundoff)": run_token_reward("power", "alpha"),
    r"power_exact_full_vocab_.*": run_expected_gradient,
}


def run_of(case_id: str) -> Run | None:
    """Return how to run a case, or None if its objective is not in the registry."""
    matching = (run for pattern, run in RUN_OF_PATTERN.items() if re.fullmatch(pattern, case_id))
    return RUN_OF_ID.get(case_id) or next(matching, None)


RUNNABLE = [case for case in CASES if run_of(case["id"]) is not None]


@pytest.mark.skipif(not CASES, reason="reward_vectors.json is in neither POWEROPD_VECTORS nor ../shared")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", RUNNABLE, ids=[case["id"] for case in RUNNABLE])
def test_the_registry_reproduces_the_vector(case: dict[str, Any], dtype: torch.dtype) -> None:
    run = run_of(case["id"])
    assert run is not None
    rtol, atol = (case["rtol"], case["atol"]) if dtype == torch.float64 else (2e-5, 1e-6)
    results = run(case, dtype)
    common = results.keys() & case["expected"].keys()
    assert common, case["expected"].keys()
    for key in common:
        expected = torch.as_tensor(case["expected"][key], dtype=torch.float64)
        actual = torch.as_tensor(results[key]).detach().double().reshape(expected.shape)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
