"""Which teacher scores a source, which mappings are refused, and what each role is called."""

from typing import Any

import pytest

from cluster.placement import Demand, plan
from settings.run import RunConfig
from settings.teachers import TeacherShare, check_sources, field_of, role_of_source, share_of_source

SEVERAL: dict[str, Any] = {
    "teacher": {"sources": ["gsm8k", "aime"]},
    "teachers": {"code": {"model_path": "c", "sources": ["mbpp"], "weight": 0.5, "num_workers": 2}},
}


def config(**sections: Any) -> RunConfig:
    """A configuration with some sections."""
    teacher = {"model_path": "t", **sections.pop("teacher", {})}
    return RunConfig.model_validate(
        {"student": {"model_path": "s"}, "data": {"train_path": "d"}, "teacher": teacher, **sections}
    )


def named(*sources: str, **settings: Any) -> dict[str, Any]:
    """Settings of a further teacher."""
    return {"model_path": "c", "sources": list(sources), **settings}


def test_one_teacher_takes_every_source_with_weight_one() -> None:
    check_sources(config(), ["anything", "else"])
    assert role_of_source(config()) == share_of_source(config()) == {}


def test_every_source_has_the_role_and_the_weight_of_the_teacher_that_names_it() -> None:
    several = config(**SEVERAL)
    check_sources(several, ["mbpp", "aime", "gsm8k", "aime"])
    assert role_of_source(several) == {"gsm8k": "teacher", "aime": "teacher", "mbpp": "teacher-code"}
    main, code = TeacherShare(0, 1.0), TeacherShare(1, 0.5)
    assert share_of_source(several) == {"gsm8k": main, "aime": main, "mbpp": code}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"teachers": {"code": named("mbpp")}},
            "teacher.sources: required where there are several teachers, but not set (known sources: 'aime', "
            "'gsm8k', 'mbpp')",
        ),
        (
            {"teacher": {"sources": ["gsm8k"]}, "teachers": {"code": named("mbpp", "aimee")}},
            "teachers: no teacher takes source 'aime' of data.train_path (nearest valid: add it to one of "
            "teacher.sources, teachers.code.sources, teachers.code.sources names 'aimee'; known sources: 'aime', "
            "'gsm8k', 'mbpp')",
        ),
        (
            {"teacher": {"sources": ["gsm8k", "aime"]}, "teachers": {"code": named("mbpp", "aime")}},
            "teachers.code.sources: source 'aime' is also in teacher.sources; one teacher must take each source",
        ),
        (
            {"teacher": {"sources": ["aime", "aime"]}, "teachers": {"code": named("mbpp")}},
            "teacher.sources: source 'aime' is also in the same list; one teacher must take each source",
        ),
        (
            {"teacher": {"sources": ["gsm8k", "aime", "mbpp"]}, "teachers": {"code": named("mbp")}},
            "teachers.code.sources: the training data have none of 'mbp', only 'aime', 'gsm8k', 'mbpp'",
        ),
        (
            {"teacher": {"sources": ["gsm8k"]}},
            "teacher.sources must be null without further teachers, since one teacher takes every source",
        ),
        (
            {"teacher": {"weight": 2}},
            "teacher.weight must be 1 where there is one teacher, got 2: scale learner.learning_rate instead",
        ),
    ],
)
def test_a_mapping_that_leaves_a_source_or_a_teacher_without_the_other_is_refused(
    sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"sources?|weight") as error:
        check_sources(config(**sections), ["gsm8k", "aime", "mbpp"])
    assert str(error.value) == message


def test_every_teacher_and_the_reference_are_placed_as_roles_of_their_own() -> None:
    demands = plan(config(**SEVERAL, reference={"model_path": "r", "resources": {"num_cpus": 2}}))
    assert demands == [
        Demand("learner", 1, {"CPU": 1.0}, is_one_group=True),
        Demand("teacher", 1, {"CPU": 1.0}),
        Demand("teacher-code", 2, {"CPU": 1.0}),
        Demand("reference", 1, {"CPU": 2.0}),
        Demand("rollout", 1, {"CPU": 1.0}, strategy="spread"),
    ]
    assert [field_of(demand.role) for demand in demands][2:4] == ["teachers.code", "reference"]


def test_engines_take_the_learners_precision_unless_they_have_their_own() -> None:
    settings = config(learner={"dtype": "float32"}, teachers={"code": named("mbpp", engine={"dtype": "bfloat16"})})
    dtypes = {role: settings.dtype_of(each.engine) for role, each in settings.scorers.items()}
    assert dtypes == {"teacher": "float32", "teacher-code": "bfloat16"}
