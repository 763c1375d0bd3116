"""Stop tokens: what ends a response, and what the last token counts as for student and teacher.

Only the last token of a response is inspected; a truncated response has no stop token and stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

StopMode = Literal["raw", "mask", "im_end", "cross_eos"]


@dataclass(frozen=True)
class StopTokens:
    """Stop ids of both models. Generation ends on any of `ids`; the first of each side is its own label."""

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that end a response."""
        return tuple(sorted({*self.student_ids, *self.teacher_ids}))


@dataclass(frozen=True)
class StopLabels:
    """A response as each side sees it; `keep_last` is False where the last token is dropped from the loss."""

    student_token_ids: list[int]
    teacher_token_ids: list[int]
    keep_last: bool
    has_stop: bool


def stop_labels(response_token_ids: Sequence[int], *, mode: StopMode, stops: StopTokens) -> StopLabels:
    """Apply a stop mode to one response.

    raw: as sampled. mask: a final stop token does not count. cross_eos: the student is credited for its own
    stop token, the teacher is asked for its own. im_end: both sides see the teacher's.
    """
    student, teacher = list(response_token_ids), list(response_token_ids)
    has_stop = bool(student) and student[-1] in stops.ids
    if has_stop and mode in ("cross_eos", "im_end"):
        teacher[-1] = stops.teacher_ids[0]
        student[-1] = stops.student_ids[0] if mode == "cross_eos" else stops.teacher_ids[0]
    return StopLabels(student, teacher, keep_last=not (has_stop and mode == "mask"), has_stop=has_stop)
