"""What a teacher hands to a divergence: all its logits, or its top K. No torch at run time.

Shapes: N positions, V vocabulary, K support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """The teacher's logits over the vocabulary that it shares with the student; no gradient."""

    logits_NV: Tensor


@dataclass(frozen=True, eq=False)
class TeacherTopK:
    """The teacher's K likeliest tokens per position; log-probs under its full softmax at temperature 1."""

    ids_NK: Tensor
    log_probs_NK: Tensor
