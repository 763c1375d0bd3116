"""Several teachers: the `source` of a prompt selects the teacher that scores it, and the weight of its tokens.

    teacher: {model_path: models/math, sources: [gsm8k, aime]}
    teachers:
      code: {model_path: models/code, sources: [mbpp], weight: 0.5}

Without `teachers`, the one teacher scores every source.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from settings.run import RunConfig


def field_of(role: str) -> str:
    """The section of a role in the configuration: `teachers.math` for `teacher-math`."""
    return role.replace("teacher-", "teachers.", 1)


def role_of_source(config: RunConfig) -> Mapping[str, str]:
    """Role of the teacher by source; empty if one teacher scores every source."""
    if not config.teachers:
        return {}
    return {source: role for role, each in config.teacher_of_role.items() for source in each.sources or ()}


@dataclass(frozen=True)
class TeacherShare:
    """A teacher as the learner sees it."""

    index: int = 0
    """Index among the teachers, in the order of `RunConfig.teacher_of_role`."""
    weight: float = 1.0
    """Loss weight of its tokens."""


ONLY_TEACHER = TeacherShare()


def share_of_source(config: RunConfig) -> Mapping[str, TeacherShare]:
    """The teacher by source; empty if one teacher scores every source."""
    teachers = config.teacher_of_role.items()
    shares = {role: TeacherShare(index, each.weight) for index, (role, each) in enumerate(teachers)}
    return {source: shares[role] for source, role in role_of_source(config).items()}


def check_sources(config: RunConfig, data_sources: Iterable[str]) -> None:
    """ValueError unless exactly one teacher takes each source of the training data; names source and field.

    A teacher none of whose sources occurs in the data is refused too: its workers would be idle.
    """
    known = sorted({*data_sources})
    if not config.teachers:
        _check_one_teacher(config)
        return
    taken: dict[str, str] = {}
    for role, each in config.teacher_of_role.items():
        field = f"{field_of(role)}.sources"
        if each.sources is None:
            raise ValueError(
                f"{field}: required where there are several teachers, but not set (known sources: "
                f"{_listed(known)})"
            )
        for source in each.sources:
            if source in taken:
                other = "the same list" if taken[source] == field else taken[source]
                raise ValueError(
                    f"{field}: source {source!r} is also in {other}; one teacher must take each source"
                )
            taken[source] = field
        if not {*known} & {*each.sources}:
            raise ValueError(
                f"{field}: the training data have none of {_listed(each.sources)}, only {_listed(known)}"
            )
    missing = next((source for source in known if source not in taken), None)
    if missing is not None:
        close = difflib.get_close_matches(missing, taken, n=1)
        fields = ", ".join(f"{field_of(role)}.sources" for role in config.teacher_of_role)
        nearest = f", {taken[close[0]]} names {close[0]!r}" if close else ""
        raise ValueError(
            f"teachers: no teacher takes source {missing!r} of data.train_path (nearest valid: add it to one of "
            f"{fields}{nearest}; known sources: {_listed(known)})"
        )


def _check_one_teacher(config: RunConfig) -> None:
    if config.teacher.sources is not None:
        raise ValueError(
            "teacher.sources must be null without further teachers, since one teacher takes every source"
        )
    if config.teacher.weight != 1.0:
        raise ValueError(
            f"teacher.weight must be 1 where there is one teacher, got {config.teacher.weight:g}: scale "
            f"learner.learning_rate instead"
        )


def _listed(sources: Iterable[str]) -> str:
    return ", ".join(map(repr, sources))
