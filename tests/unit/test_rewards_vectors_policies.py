"""Published test vectors of importance weights and surrogates: values and gradients."""

from typing import Any

import torch
from torch import Tensor

from rewards import IMPORTANCE_WEIGHTS, SURROGATES, TOKEN_REWARDS, aggregate
from rewards.importance import importance_ratio
from rewards.surrogates import clipped_loss, dppo_mask, probability_difference
from tests.unit.reward_vectors import CASES, Case, Results, Run, all_kept, vector_test

HERE = [case for case in CASES if "lp_current" in case["inputs"]]


def inputs_of(case: Case, dtype: torch.dtype, *names: str) -> list[Tensor]:
    """Return each input with one row per sequence or position."""
    return [torch.atleast_2d(torch.tensor(case["inputs"][name], dtype=dtype)) for name in names]


def run_importance(name: str, key: str, *params: str) -> Run:
    def run(case: Case, dtype: torch.dtype) -> Results:
        current, behaviour = inputs_of(case, dtype, "lp_current", "lp_behaviour")
        chosen = {param: case["params"][param] for param in params}
        return {key: IMPORTANCE_WEIGHTS[name](current, behaviour, all_kept(current), **chosen)}

    return run


def mean_loss(name: str, current: Tensor, advantage: Tensor, **keywords: Any) -> Results:
    mask = all_kept(current)
    current = current.clone().requires_grad_()
    loss = aggregate(SURROGATES[name](current, advantage, mask, **keywords), mask)
    return {"loss_token_mean": loss, "grad_wrt_lp_current": torch.autograd.grad(loss, current)[0]}


def run_ppo(case: Case, dtype: torch.dtype) -> Results:
    current, old, advantage = inputs_of(case, dtype, "lp_current", "lp_old", "advantage")
    results = mean_loss("ppo", current, advantage, behaviour_logp_BT=old, **case["params"])
    return {**results, "ratio": importance_ratio(current, old, all_kept(current))}


def run_decoupled_ppo(case: Case, dtype: torch.dtype) -> Results:
    names = ("lp_current", "lp_proximal", "lp_behaviour", "advantage")
    current, proximal, behaviour, advantage = inputs_of(case, dtype, *names)
    mask, params = all_kept(current), case["params"]
    extras = {"behaviour_logp_BT": behaviour, "proximal_logp_BT": proximal}
    ratio = importance_ratio(current, proximal, mask)
    return {
        **mean_loss("decoupled_ppo", current, advantage, **extras, **params),
        "ratio": ratio,
        "behaviour_weight": IMPORTANCE_WEIGHTS["unclipped"](proximal, behaviour, mask),
        "kept_weight": IMPORTANCE_WEIGHTS["decoupled"](
            current, behaviour, mask, proximal_logp_BT=proximal, cap=params["cap"]
        ),
        "surrogate": -clipped_loss(ratio, advantage, eps=params["eps"], c=None),
    }


def run_unclipped(case: Case, dtype: torch.dtype) -> Results:
    current, behaviour, teacher = inputs_of(case, dtype, "lp_current", "lp_behaviour", "lp_teacher")
    advantage = TOKEN_REWARDS["log_ratio"](teacher, current, all_kept(current))
    results = mean_loss("unclipped", current, advantage, behaviour_logp_BT=behaviour)
    return {**results, "advantage": advantage}


def run_dppo_mask(case: Case, dtype: torch.dtype) -> Results:
    current, behaviour, advantage = inputs_of(case, dtype, "lp_current", "lp_behaviour", "advantage")
    mask = all_kept(current)
    keep = dppo_mask(current, advantage, mask, behaviour_logp_BT=behaviour, **case["params"])
    loss = SURROGATES["dppo"](current, advantage, mask, behaviour_logp_BT=behaviour, **case["params"])
    assert (loss[~keep] == 0).all()
    return {"prob_difference": probability_difference(current, behaviour, mask), "keep": keep}


def run_multi_sample(case: Case, dtype: torch.dtype) -> Results:
    """Several sampled tokens per position, as rows."""
    teacher, current, behaviour = inputs_of(case, dtype, "lp_teacher", "lp_current", "lp_behaviour")
    mask = all_kept(current)
    advantage = TOKEN_REWARDS["log_ratio"](teacher, current, mask)
    loss = SURROGATES["unclipped"](current, advantage, mask, behaviour_logp_BT=behaviour)
    return {"per_position_loss": loss.mean(-1)}


RUN_OF_PATTERN: dict[str, Run] = {
    r"token_is_ratio": run_importance("unclipped", "ratio"),
    r"tis_.*": run_importance("truncated", "weight", "low", "high"),
    r"icepop": run_importance("icepop", "weight", "low", "high"),
    r"ppo_.*clip": run_ppo,
    r"decoupled_ppo": run_decoupled_ppo,
    r"async_opd_unclipped_is": run_unclipped,
    r"dppo_mask": run_dppo_mask,
    r"mc_multi_sample": run_multi_sample,
}

test_the_registries_reproduce_the_vector = vector_test(HERE, RUN_OF_PATTERN)
