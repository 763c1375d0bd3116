"""Scored sample responses as rows for people: token texts, log-probs of both models, and the objective's reward.

Shapes: T response tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learner.sequences import ScoredSequence, read_sequences
from rewards.sampled import reward_of_log_probs
from settings.run import RunConfig
from transport.batches import TeacherSignal
from transport.stop_tokens import StopTokens

MAX_TOKENS = 1500
"""Tokens kept of a response: its first."""

MAX_BYTES_OF_CHARACTER = 4
REPLACEMENT = chr(0xFFFD)
"""What a decoder makes of half a character."""


class SampleRows:
    """Describes scored responses. The student's log-probs are the engine's, raw, of the policy that sampled."""

    def __init__(self, config: RunConfig, tokenizer: Any, *, stops: StopTokens, signal: TeacherSignal) -> None:
        """`signal` is the objective's; of whole distributions no log-prob of the teacher is known here."""
        self._config = config
        self._tokenizer = tokenizer
        self._stops = stops
        has_outcome = config.outcome.rl_coef > 0
        self._signal = TeacherSignal(
            signal.kind, signal.k, signal.hidden_size, signal.dtype, has_outcome=has_outcome
        )

    def __call__(self, table: pa.Table, step: int) -> list[dict[str, Any]]:
        """A row for each response of a table as a teacher returns it; keys as in `controller/samples.py`."""
        mode = self._config.objective.stop_mode
        sequences = read_sequences(table, stop_mode=mode, stops=self._stops, signal=self._signal)
        ids, reasons = (table.column(name).to_pylist() for name in ("prompt_id", "finish_reason"))
        return [
            {"problem_id": prompt_id, "finish_reason": reason, **self._describe(sequence, step)}
            for prompt_id, reason, sequence in zip(ids, reasons, sequences, strict=True)
        ]

    def _describe(self, sequence: ScoredSequence, step: int) -> dict[str, Any]:
        kept = slice(MAX_TOKENS)
        value, values_T = self._values(sequence, step)
        has_teacher = self._signal.kind != "full"
        return {
            "prompt": self._tokenizer.decode(sequence.prompt_ids.tolist(), skip_special_tokens=True),
            "num_tokens": len(sequence.response_ids),
            "tokens": token_texts(self._tokenizer, sequence.response_ids[kept].tolist()),
            "student_logp": _numbers(sequence.behaviour_logp[kept]),
            "teacher_logp": _numbers(sequence.teacher_logp[kept]) if has_teacher else None,
            "value": value,
            "values": None if values_T is None else _numbers(values_T[kept]),
            "is_trained": sequence.response_mask[kept].tolist(),
        }

    def _values(self, sequence: ScoredSequence, step: int) -> tuple[str | None, np.ndarray | None]:
        """The objective's reward before its normaliser; without one the log-ratio; None without a teacher's."""
        if self._signal.kind == "full":
            return None, None
        objective = self._config.objective
        teacher_T, student_T = (
            torch.from_numpy(x)[None] for x in (sequence.teacher_logp, sequence.behaviour_logp)
        )
        reward_BT = reward_of_log_probs(
            *(objective.name, objective.parameters, teacher_T, student_T),
            max_steps=self._config.max_steps,
            step=step,
        )
        if reward_BT is None:
            return "log-ratio", sequence.teacher_logp - sequence.behaviour_logp
        return "reward", reward_BT[0].numpy()


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token as it stands in its place; of a character in several tokens, all at the last one.

    Each is decoded behind the one before, since some decoders drop the space of a first token.
    """
    texts: list[str] = []
    before: list[int] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        start = tokenizer.decode(before, skip_special_tokens=False)
        text = tokenizer.decode(before + pending, skip_special_tokens=False)[len(start) :]
        if text.endswith(REPLACEMENT) and len(pending) < MAX_BYTES_OF_CHARACTER:
            texts.append("")
            continue
        texts.append(text)
        before, pending = [token], []
    return texts


def _numbers(values_T: np.ndarray) -> list[float | None]:
    return [round(value, 5) if np.isfinite(value) else None for value in values_T.tolist()]
