"""The reward of a sampled token as a function of its two log-probs, for pictures and samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewards.catalogue import OBJECTIVES, TOKEN_REWARDS


def reward_of_log_probs(
    name: str,
    parameters: Mapping[str, object],
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    *,
    max_steps: int,
    step: int = 0,
) -> Tensor | None:
    """Return the reward, not normalised, of tokens with these log-probs, at a step of the run.

    None if the objective has no reward of a sampled token, or one that takes more than the two.
    """
    extras = {"step": step, "max_steps": max_steps}
    entry = TOKEN_REWARDS.get(name)
    if entry is None or not {*entry.extras} <= extras.keys():
        return None
    if OBJECTIVES[name].needs_with(OBJECTIVES[name].validate(parameters, field="objective")).form == "direct":
        return None
    mask_BT = torch.ones_like(student_logp_BT, dtype=torch.bool)
    given = {name: extras[name] for name in entry.extras}
    return entry(teacher_logp_BT, student_logp_BT, mask_BT, **given, **parameters)
