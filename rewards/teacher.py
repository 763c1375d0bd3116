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

    def at(self, positions: Tensor) -> TeacherLogits:
        """Return the positions that an index or a mask over N selects."""
        return TeacherLogits(self.logits_NV[positions])


@dataclass(frozen=True, eq=False)
class TeacherTopK:
    """The teacher's K likeliest tokens per position; log-probs under its full softmax at temperature 1.

    With a support that the student chooses, they are the K tokens that the teacher was asked for.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor

    def at(self, positions: Tensor) -> TeacherTopK:
        """Return the positions that an index or a mask over N selects."""
        return TeacherTopK(self.ids_NK[positions], self.log_probs_NK[positions])


Teacher = TeacherLogits | TeacherTopK
