"""Stop tokens: what ends a response, and what the last token counts as for student and teacher.

Only the last token of a response is inspected; a truncated response has no stop token and stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

StopMode = Literal["raw", "mask", "cross_eos"]


@dataclass(frozen=True)
class StopTokens:
    """Stop ids of student and teacher. Generation ends on any of `ids`; the first of each side is its own label.

    `inputs.tokenizers.stop_ids` finds the label by the chat template: the place in a model's files means nothing.
    With several teachers, a response ends on the stop ids of any, whoever scores it. A reference model ends no
    response; its ids are its own labels alone.
    """

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    teacher_ids_of_source: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the teacher of each source, where there are several teachers; the main teacher's are `teacher_ids`."""
    reference_ids: tuple[int, ...] = ()
    """Empty without a reference model."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that end a response."""
        further = [i for ids in self.teacher_ids_of_source.values() for i in ids]
        return tuple(sorted({*self.student_ids, *self.teacher_ids, *further}))

    def teacher_ids_of(self, source: str | None) -> tuple[int, ...]:
        """Stop ids of the teacher that scores this source; of the main teacher for None."""
        return self.teacher_ids if source is None else self.teacher_ids_of_source.get(source, self.teacher_ids)


@dataclass(frozen=True)
class StopLabels:
    """A response as each side sees it; `keep_last` is False where the last token is dropped from the loss."""

    student_token_ids: list[int]
    teacher_token_ids: list[int]
    reference_token_ids: list[int]
    keep_last: bool
    has_stop: bool


def stop_labels(
    response_token_ids: Sequence[int],
    *,
    mode: StopMode | Literal["im_end"],
    stops: StopTokens,
    source: str | None = None,
) -> StopLabels:
    """Apply a stop mode to one response to a prompt of this source.

    raw: as sampled. mask: a final stop token does not count. cross_eos: teacher and reference are asked for their
    own stop token, whichever was sampled; the student is credited for the one that it sampled. im_end, the default
    of the paper's code, credits the student for the teacher's: an action that nobody may have sampled, so that it
    is kept for comparison with published vectors, and no setting offers it.
    """
    student, teacher, reference = (list(response_token_ids) for _ in range(3))
    has_stop = bool(student) and student[-1] in stops.ids
    if has_stop and mode in ("cross_eos", "im_end"):
        teacher[-1] = reference[-1] = stops.teacher_ids_of(source)[0]
    if has_stop and mode == "im_end":
        student[-1] = teacher[-1]
    elif has_stop and mode == "cross_eos" and stops.reference_ids:
        reference[-1] = stops.reference_ids[0]
    keep_last = not (has_stop and mode == "mask")
    return StopLabels(student, teacher, reference, keep_last=keep_last, has_stop=has_stop)
