"""The registry: validation messages, declared needs, and that none of it imports torch."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import (
    BASELINES,
    DIVERGENCES,
    IMPORTANCE_WEIGHTS,
    NORMALISERS,
    OBJECTIVES,
    SURROGATES,
    TOKEN_MASKS,
    TOKEN_REWARDS,
    TOKEN_WEIGHTS,
    Entry,
    Needs,
    Parameter,
    validate,
)
from rewards.catalogue import Kind

REPOSITORY = Path(__file__).resolve().parents[2]
ALL_REGISTRIES = [
    TOKEN_REWARDS,
    DIVERGENCES,
    BASELINES,
    NORMALISERS,
    TOKEN_MASKS,
    TOKEN_WEIGHTS,
    IMPORTANCE_WEIGHTS,
    SURROGATES,
]


def test_defaults_are_filled_in() -> None:
    assert validate("objective", "power", {}) == {"alpha": 5.0, "rescale": "none"}
    assert validate("objective", "log_ratio", {}) == {"logprob_floor": None}
    assert validate("objective", "log_clip", {"high": 3}) == {"low": -1.0, "high": 3.0}
    assert validate("importance", "truncated", {}) == {"low": 0.0, "high": 2.0}
    assert validate("normaliser", "zscore", {}) == {}


def test_a_number_may_arrive_as_text_and_an_optional_one_as_none() -> None:
    assert validate("objective", "power", {"alpha": "1e-3"})["alpha"] == 1e-3
    assert validate("objective", "log_ratio", {"logprob_floor": "none"}) == {"logprob_floor": None}
    assert validate("objective", "log_ratio", {"logprob_floor": -100}) == {"logprob_floor": -100.0}
    assert validate("objective", "lsm", {"k": "16"})["k"] == 16


REFUSED: list[tuple[Kind, str, dict[str, object], str]] = [
    ("objective", "power", {"alpha": 0}, "objective.alpha must be > 0 and <= 1000, got 0"),
    ("objective", "power", {"alpha": 1000.1}, "objective.alpha must be > 0 and <= 1000, got 1000.1"),
    ("objective", "power", {"alpha": math.nan}, "objective.alpha must be > 0 and <= 1000, got nan"),
    ("objective", "power", {"alpha": math.inf}, "objective.alpha must be > 0 and <= 1000, got inf"),
    ("objective", "power", {"alpha": True}, "objective.alpha must be > 0 and <= 1000, got True"),
    ("objective", "power", {"alpha": "five"}, "objective.alpha must be > 0 and <= 1000, got 'five'"),
    ("objective", "power", {"alpha": None}, "objective.alpha must be > 0 and <= 1000, got None"),
    ("objective", "power", {"alpha": 10**400}, "objective.alpha must be > 0 and <= 1000, got 1000"),
    ("objective", "power", {"rescale": "x"}, "objective.rescale must be one of none, inv_alpha, got 'x'"),
    (
        "objective",
        "power",
        {"alhpa": 5},
        "alhpa is unknown: power takes alpha, rescale (nearest: alpha)",
    ),
    ("objective", "powr", {}, "got 'powr' (nearest: power)"),
    ("objective", "log_clip", {"low": 1, "high": 1}, "objective.low must be < high, got low = 1.0, high"),
    ("objective", "log_clip", {"low": math.nan}, "objective.low must be a finite number, got nan"),
    ("objective", "log_ratio", {"logprob_floor": 0}, "objective.logprob_floor must be < 0, or none, got 0"),
    ("objective", "lsm", {"k": 1}, "objective.k must be an integer >= 2, got 1"),
    ("objective", "lsm", {"k": 2.5}, "objective.k must be an integer >= 2, got 2.5"),
    ("objective", "veto", {"beta_start": 1.6}, "objective.beta_start must be >= 0 and <= 1.5, got 1.6"),
    (
        "objective",
        "veto",
        {"beta_start": 1, "schedule": "constant"},
        "must be < 1 with schedule constant, got",
    ),
    (
        "objective",
        "veto",
        {"beta": 1.2, "schedule": "constant"},
        "< 1 with schedule constant, got beta = 1.2",
    ),
    ("importance", "none", {"high": 2}, "importance.high is unknown: none takes no parameters"),
    ("importance", "icepop", {"low": 2, "high": 0.5}, "importance.low must be < high, got low = 2.0"),
    ("normaliser", "z_score", {}, "normaliser.name must be one of none, sign_max_abs, zscore, got 'z_score'"),
]


@pytest.mark.parametrize(("kind", "name", "params", "message"), REFUSED)
def test_a_bad_setting_is_refused_in_one_line_that_names_the_field(
    kind: Kind, name: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=r"must|unknown") as error:
        validate(kind, name, params)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_field_prefix_follows_the_configuration() -> None:
    with pytest.raises(ValueError, match=r"^learner\.importance\.low must be >= 0, got -1$"):
        validate("importance", "truncated", {"low": -1}, field="learner.importance")


def test_a_call_refuses_what_validation_refuses() -> None:
    with pytest.raises(ValueError, match=r"power\.alpha must be > 0"):
        TOKEN_REWARDS["power"](None, None, None, alpha=0.0)


def needs_of(name: str, **params: object) -> Needs:
    return OBJECTIVES[name].needs_with(validate("objective", name, params))


def test_the_direction_of_veto_decides_between_distributions_and_sampled_tokens() -> None:
    assert needs_of("veto").form == "direct"
    assert needs_of("veto").teacher == ("full",)
    sampled = Needs(form="pg", teacher=("token",), finite_teacher=True, full_softmax=True)
    assert needs_of("veto", direction="reverse") == sampled
    assert needs_of("veto_full", direction="reverse").form == "direct"
    reverse = validate("objective", "veto", {"direction": "reverse"})
    assert TOKEN_REWARDS["veto"].validate(reverse, field="objective") == reverse


def test_the_support_of_lsm_decides_what_a_teacher_is_asked_for() -> None:
    assert needs_of("lsm").teacher == ("topk",)
    assert needs_of("lsm", support="teacher+sampled").teacher == ("topk", "token")
    assert needs_of("lsm", support="student").teacher == ("ids_query",)
    assert needs_of("lsm", support="union").teacher == ("full",)


def test_a_floor_or_a_bound_lifts_the_need_of_a_finite_teacher() -> None:
    assert needs_of("log_ratio").finite_teacher
    assert not needs_of("log_ratio", logprob_floor=-100).finite_teacher
    assert needs_of("opd_plus", divergence="rkl").finite_teacher
    assert not needs_of("opd_plus", divergence="rkl", log_ratio_bound=6).finite_teacher
    assert needs_of("aopd", tau=-1).finite_teacher
    assert not any(needs_of(name).finite_teacher for name in ("power", "log_clip", "reopold", "aopd"))


def test_extra_inputs_reach_the_function_beside_the_parameters() -> None:
    entry = Entry(
        "with_reference",
        "",
        "builtins:dict",
        parameters=(Parameter("lambda_", float, 1.25, ""),),
        extras=("reference_logp_BT", "step"),
    )
    assert entry(reference_logp_BT="tensor", step=3) == {
        "reference_logp_BT": "tensor",
        "step": 3,
        "lambda_": 1.25,
    }


@pytest.mark.parametrize("registry", ALL_REGISTRIES)
def test_every_entry_is_documented_pickles_and_carries_its_own_name(registry: dict[str, Entry]) -> None:
    for name, entry in registry.items():
        assert entry.name == name
        assert entry.doc
        assert all(parameter.doc for parameter in entry.parameters)
        assert pickle.loads(pickle.dumps(entry)) == entry


def test_validation_and_grading_work_without_importing_torch() -> None:
    program = (
        "import sys, rewards\n"
        "rewards.validate('objective', 'power', {'alpha': 2})\n"
        "rewards.grade_batch(['1'], ['1'])\n"
        "assert rewards.TOKEN_REWARDS['power'].needs.form == 'pg'\n"
        "assert 'torch' not in sys.modules\n"
        "rewards.aggregate\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
