"""Several sampled tokens per position, each scored by the teacher: the loss of AsyncOPD (arXiv 2606.24143).

Shapes: N positions, M samples per position, drawn with replacement from the rollout's own distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.log_ratio import log_ratio
from rewards.surrogates import unclipped


def multi_sample_loss(teacher_logp_NM: Tensor, logp_NM: Tensor, behaviour_logp_NM: Tensor) -> Tensor:
    """Return the mean over the samples of `-ratio * (teacher_logp - logp)` per position.

    The ratio `exp(logp - behaviour_logp)` carries the gradient, the log-ratio does not. Repeated samples are kept:
    they are what makes the mean unbiased.
    """
    all_NM = torch.ones_like(logp_NM, dtype=torch.bool)
    advantage_NM = log_ratio(teacher_logp_NM, logp_NM, all_NM)
    return unclipped(logp_NM, advantage_NM, all_NM, behaviour_logp_BT=behaviour_logp_NM).mean(-1)
