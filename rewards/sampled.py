"""The reward of a sampled token as a function of its two probabilities, for a picture of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewards.catalogue import OBJECTIVES, TOKEN_REWARDS


def sampled_reward(
    name: str, parameters: Mapping[str, object], teacher_p_BT: Tensor, student_p_BT: Tensor, *, max_steps: int
) -> Tensor | None:
    """Return the reward, not normalised, of tokens that teacher and student give these probabilities.

    None if the objective has no reward of a sampled token, or one that takes more than the two. One that
    changes over the run is shown at its first step.
    """
    extras = {"step": 0, "max_steps": max_steps}
    entry = TOKEN_REWARDS.get(name)
    if entry is None or not {*entry.extras} <= extras.keys():
        return None
    if OBJECTIVES[name].needs_with(OBJECTIVES[name].validate(parameters, field="objective")).form == "direct":
        return None
    mask_BT = torch.ones_like(student_p_BT, dtype=torch.bool)
    given = {name: extras[name] for name in entry.extras}
    return entry(teacher_p_BT.log(), student_p_BT.log(), mask_BT, **given, **parameters)
