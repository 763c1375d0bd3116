"""Settings that contradict each other, or belong together: checked before anything starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from commands.checks import load_checked
from learner.served import signal_kind
from settings.exit_codes import FINISHED

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "arithmetic" / "models"

Refused = Callable[..., str]


PPO, NO_WEIGHT = ("--surrogate.name", "ppo"), ("--importance.name", "none")
BASELINE = ("--objective.baseline", "closed_form")
DIRECT = ("--objective.name", "reverse_kl")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (PPO, "importance.name must be none with surrogate.name ppo, which corrects by its own ratio"),
        (("--surrogate.name", "decoupled_ppo"), "importance.name must be none with surrogate.name decoupled_ppo"),
        (("--surrogate.name", "ppoo"), "surrogate.name must be one of"),
        ((*PPO, *NO_WEIGHT, "--surrogate.eps", "2"), "surrogate.eps must be > 0 and < 1, got 2"),
        ((*DIRECT, *PPO, *NO_WEIGHT), "surrogate.name must be policy_gradient with reverse_kl"),
        ((*DIRECT, "--objective.discount", "0.5"), "objective.discount must be 0.0 with reverse_kl"),
        ((*DIRECT, "--token_weights.name", "iw_opd"), "token_weights.name must be none with reverse_kl"),
        ((*DIRECT, *BASELINE), "objective.baseline must be none with reverse_kl"),
        (("--objective.name", "log_tanh", *BASELINE), "a closed form is known for log_ratio, power, veto_reverse"),
        ((*BASELINE, "--rollout.temperature", "0.7"), "rollout.temperature must be 1.0 with objective.baseline"),
        ((*BASELINE, "--rollout.top_k", "20"), "rollout.top_k must be -1 with objective.baseline closed_form"),
        (
            (*BASELINE, "--objective.normaliser", "zscore"),
            "objective.normaliser must be none with objective.baseline",
        ),
        ((*BASELINE, "--objective.discount", "0.5"), "objective.discount must be 0.0 with objective.baseline"),
        (
            (*BASELINE, "--objective.name", "log_ratio", "--objective.logprob_floor", "-9"),
            "objective.logprob_floor must be none with objective.baseline closed_form",
        ),
        (
            ("--objective.name", "opd_plus", "--objective.divergence", "fkl", "--rollout.top_p", "0.95"),
            "rollout.top_p must be 1.0 with opd_plus as configured, got 0.95: its reward is not 0 where",
        ),
        (
            ("--objective.name", "veto", "--objective.direction", "reverse", "--rollout.temperature", "0.5"),
            "rollout.temperature must be 1.0 with veto as configured",
        ),
        (
            ("--objective.name", "log_clip", "--objective.low", "0.5", "--rollout.top_k", "20"),
            "rollout.top_k must be -1 with log_clip as configured",
        ),
        (
            ("--objective.name", "opd_plus", "--objective.divergence", "fkl", "--objective.stop_mode", "mask"),
            "objective.stop_mode must be raw or cross_eos with opd_plus as configured, got mask: its reward",
        ),
        (
            (*BASELINE, "--objective.stop_mode", "mask"),
            "objective.stop_mode must be raw or cross_eos with objective.baseline closed_form, got mask",
        ),
        (
            ("--objective.name", "veto_reverse", "--masks.special_tokens", "['<|im_end|>']"),
            "masks.special_tokens must be left out with veto_reverse as configured",
        ),
        (
            (*BASELINE, "--masks.drop_truncated", "true"),
            "masks.drop_truncated must be left out with objective.baseline closed_form",
        ),
        (("--weights.transport", "nccl"), "weights.transport must be 'object_store'"),
        (
            ("--weights.transport", "nccl", "--learner.resources.num_gpus", "1"),
            "got 'nccl' with rollout.resources.num_gpus 0 (nearest valid: object_store)",
        ),
        (("--objective.name", "reopold", "--masks.selection", "tip"), "masks.selection must be none with reopold"),
        (("--masks.selection", "tip", "--masks.keep", "0"), "masks.keep must be > 0 and <= 1"),
        (
            ("--masks.selection", "tip", "--masks.top_fraction", "0.5"),
            "masks.top_fraction is unknown: tip takes keep",
        ),
        (
            ("--masks.special_tokens", "[x\u2603]"),
            "masks.special_tokens: the student's tokenizer has no token for",
        ),
        (("--token_weights.name", "iw_opd", "--token_weights.gamma", "-1"), "token_weights.gamma must be >= 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    refused: Refused, options: tuple[str, ...], reason: str
) -> None:
    assert reason in refused(*options)


@pytest.mark.parametrize(
    "options",
    [
        (*PPO, *NO_WEIGHT, "--max-staleness", "4"),
        ("--surrogate.name", "decoupled_ppo", *NO_WEIGHT),
        ("--importance.name", "decoupled"),
        ("--objective.name", "reopold", "--objective.switch_step", "50"),
        ("--objective.name", "eopd", "--objective.k", "8", *PPO, *NO_WEIGHT),
        ("--objective.discount", "0.5", "--objective.normaliser", "zscore"),
        ("--masks.drop_truncated", "true", "--masks.special_tokens", "['=']"),
        ("--masks.selection", "fire_opd", "--token_weights.name", "iw_opd"),
        ("--max-staleness", "0", "--batches-ahead", "0", *NO_WEIGHT),
        ("--objective.name", "reverse_kl", *NO_WEIGHT),
        ("--objective.name", "veto", *NO_WEIGHT, "--rollout.top_p", "0.5"),
        ("--objective.name", "opd_plus", "--rollout.top_p", "0.95", "--rollout.temperature", "0.9"),
        ("--objective.name", "opd_plus", "--objective.divergence", "rkl"),
        ("--objective.name", "veto_reverse", "--objective.beta", "0", "--rollout.top_k", "0"),
        ("--objective.name", "lsm", "--objective.k", "8"),
        ("--objective.name", "aopd", "--objective.k", "8"),
    ],
    ids=lambda options: " ".join(options),
)
def test_settings_that_belong_together_are_served(arguments: list[str], options: tuple[str, ...]) -> None:
    assert launch.main([*arguments, *options]) == FINISHED


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ((), "token"),
        (("--masks.selection", "entropy_top"), "token"),
        (("--masks.selection", "tip"), "full"),
        (("--token_weights.name", "iw_opd"), "token"),
        (("--token_weights.name", "fire_opd"), "full"),
        (BASELINE, "full"),
        (("--objective.name", "eopd", "--masks.selection", "tip"), "full"),
        (("--objective.name", "eopd"), "topk"),
        (("--objective.name", "lsm"), "topk"),
        (("--objective.name", "lsm", "--objective.support", "student"), "full"),
        (("--objective.name", "student_top_k"), "full"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_teacher_sends_what_the_objective_and_its_options_need_together(
    options: tuple[str, ...], kind: str
) -> None:
    config = load_checked(str(ROOT / "configs" / "demo.yaml"), options)
    assert signal_kind(config) == kind
    assert config.evaluation.teacher == (kind != "full")


def test_the_last_token_is_trained_by_default_where_all_must_count() -> None:
    needed = ["--student.model_path", "s", "--teacher.model_path", "t", "--data.train_path", "d"]
    name = "--objective.name"
    for options, mode in (
        (["log_ratio"], "mask"),
        (["reverse_kl"], "raw"),
        (["lsm"], "raw"),
        (["veto"], "raw"),
        (["veto", "--objective.direction", "reverse"], "raw"),
        (["veto_reverse", "--objective.beta", "0"], "mask"),
        (["log_ratio", *BASELINE], "raw"),
        (["reverse_kl", "--objective.stop_mode", "mask"], "mask"),
    ):
        assert load_checked(None, [*needed, name, *options]).objective.stop_mode == mode
