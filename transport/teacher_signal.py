"""What a scored table holds besides the rollout: chosen once from the objective, and obeyed by every stage."""

from dataclasses import dataclass
from typing import Literal

BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class TeacherSignal:
    """Only what the objective declares travels.

    >>> TeacherSignal()                      # 4 bytes per token: the log-prob of the scored token
    >>> TeacherSignal("topk", k=32)          # 260 bytes: and the teacher's 32 likeliest tokens
    >>> TeacherSignal("full", hidden_size=2560, dtype="bfloat16")  # 5,120 bytes: the input of its output head
    """

    kind: Literal["token", "topk", "full"] = "token"
    k: int = 0
    """Tokens of `topk`."""
    hidden_size: int = 0
    """Width of the hidden states of `full`."""
    dtype: str = "bfloat16"
    """Precision of the hidden states of `full`: the teacher engine's own, so that nothing is rounded."""
    has_outcome: bool = False
    """The final answer of every response is graded: 4 bytes per response."""
    has_reference: bool = False
    """The reference model's log-prob of every token follows the teacher's signal: 4 bytes per token."""

    @property
    def hidden_bytes(self) -> int:
        """Bytes of the hidden state of one token."""
        return self.hidden_size * BYTES_OF_DTYPE[self.dtype]

    @property
    def token_bytes(self) -> int:
        """About the bytes of a token in a scored table: ids, log-probs, and what the signal adds."""
        own = {"token": 4, "topk": 4 + 8 * self.k, "full": self.hidden_bytes}[self.kind]
        return 16 + own + 4 * self.has_reference


SAMPLED = TeacherSignal()
"""The log-prob of the scored token alone."""
