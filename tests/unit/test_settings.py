"""Settings are read from YAML and dotted overrides, and every mistake is one line that names the field."""

from pathlib import Path

import pytest

from settings.load import save_config
from settings.run import RunConfig
from settings.run_files import load_config

REQUIRED = ["--student.model_path", "s", "--teacher.model_path", "t", "--data.train_path", "d"]


def load(*overrides: str) -> RunConfig:
    """A configuration of the required settings and some overrides."""
    return load_config(None, [*REQUIRED, *overrides])


def mistake(*overrides: str) -> str:
    """The message that some overrides are refused with."""
    with pytest.raises(ValueError, match=r"\w") as error:
        load(*overrides)
    return str(error.value)


def yaml_file(path: Path, text: str) -> str:
    """A file with some text."""
    file = path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_overrides_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "batch_size: 4\nrollout: {num_workers: 2, engine: {max_num_seqs: 7}}")
    config = load_config(path, [*REQUIRED, "--rollout.num_workers", "3"])
    assert (config.batch_size, config.rollout.num_workers, config.rollout.engine.max_num_seqs) == (4, 3, 7)
    assert config.max_steps == 100


@pytest.mark.parametrize(
    "override",
    [["--max-steps", "7"], ["--max_steps", "7"], ["--max-steps=7"], ["--max-steps", "3", "--max-steps", "7"]],
)
def test_an_override_may_be_written_in_several_ways_and_the_last_one_counts(override: list[str]) -> None:
    assert load(*override).max_steps == 7


def test_a_value_may_be_negative_a_list_or_a_mapping() -> None:
    config = load(
        *("--rollout.top_k", "-1", "--learner.betas", "[0.8, 0.9]"),
        *("--teacher.engine.extra", "{quantization: fp8}", "--rollout.resources.custom", "{student: 1}"),
    )
    assert config.rollout.top_k == -1
    assert config.learner.betas == (0.8, 0.9)
    assert config.teacher.engine.extra == {"quantization": "fp8"}
    assert config.rollout.resources.custom == {"student": 1.0}


@pytest.mark.parametrize("text", ["007", "1e3", "yes", "a: b", "[x", "Think, then {answer}.", ""])
def test_text_is_taken_as_it_is_typed_and_null_unsets_it(text: str) -> None:
    assert load("--data.system_prompt", text).data.system_prompt == text
    assert load("--data.system_prompt", text, "--data.system_prompt", "null").data.system_prompt is None


def test_interpolation_refers_to_other_settings(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "seed: 3\nrun_name: seed-${seed}\n")
    assert load_config(path, REQUIRED).run_name == "seed-3"
    assert load_config(path, [*REQUIRED, "--seed", "4"]).run_name == "seed-4"


def test_a_saved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    config = load(
        *("--run-name", "007", "--data.system_prompt", "a: b\n'c' 1e3", "--objective.alpha", "5"),
        *("--importance.high", "2.5", "--learner.learning_rate", "1e-5", "--teacher.engine.extra", "{a: [1, x]}"),
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_batches_ahead_defaults_to_two_within_the_staleness_bound() -> None:
    assert [load("--max-staleness", str(bound)).num_batches_ahead for bound in (0, 1, 2, 8)] == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--rollout.num_worker", "2"], "rollout.num_worker: unknown key; did you mean rollout.num_workers?"),
        (["--max-step", "2"], "max_step: unknown key; did you mean max_steps?"),
        (
            ["--rollout.engine.max_num_seq", "2"],
            "rollout.engine.max_num_seq: unknown key; did you mean rollout.engine.max_num_seqs?",
        ),
        (["--num_workers", "2"], "num_workers: unknown key; did you mean teacher.num_workers?"),
        (
            ["--batch-size", "2147483647"],
            "batch_size must be <= 3333333: at most 10000000 rollouts may be open, (1 + batches_ahead) x "
            "batch_size x num_samples_per_prompt; got 3 x 2147483647 x 1",
        ),
        (
            ["--rollout.top-k", "3000000000"],
            "rollout.top_k must be <= 2147483647, got 3000000000 (nearest valid: 2147483647)",
        ),
        (
            ["--data.system-prompt", "x" * 100_001],
            "data.system_prompt must have at most 100,000 characters, got 100,001",
        ),
        (["--max-steps", "0"], "max_steps must be >= 1, got 0 (nearest valid: 1)"),
        (["--rollout.top_p", "1.5"], "rollout.top_p must be <= 1.0, got 1.5 (nearest valid: 1.0)"),
        (["--rollout.temperature", "0"], "rollout.temperature must be > 0.0, got 0"),
        (
            ["--learner.dtype", "bf16"],
            "learner.dtype must be 'float32' or 'bfloat16', got 'bf16' (nearest valid: bfloat16)",
        ),
        (
            ["--rollout.engine.dtype", "fp32"],
            "rollout.engine.dtype must be 'float32' or 'bfloat16' or 'auto', got 'fp32'",
        ),
        (["--learner.zero_stage", "5"], "learner.zero_stage must be 0, 1, 2 or 3, got 5"),
        (["--learner.betas", "[0.9, 2]"], "learner.betas.1 must be <= 1.0, got 2 (nearest valid: 1.0)"),
        (
            ["--batch-size", "two"],
            "batch_size: Input should be a valid integer, unable to parse string as an integer, got 'two'",
        ),
        (["--learner.learning_rate", "nan"], "learner.learning_rate: Input should be a finite number, got 'nan'"),
        (["--evaluation.k", "9"], "evaluation.k must be <= evaluation.num_samples (8), got 9"),
        (
            ["--max-staleness", "4", "--batches-ahead", "9"],
            "batches_ahead must be <= max_staleness (4), got 9",
        ),
        (["--rollout.num_workers"], "--rollout.num_workers: a value is missing"),
        (["--seed", "--max-steps", "3"], "--seed: a value is missing"),
        (["seed", "3"], "unexpected argument 'seed'; settings are given as --section.key value"),
        (["--=3"], "unexpected argument '--=3'; settings are given as --section.key value"),
        (["--run-name", "${nope}"], "run_name: Interpolation key 'nope' not found"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(overrides: list[str], message: str) -> None:
    assert mistake(*overrides) == message


def test_several_mistakes_are_several_lines() -> None:
    assert mistake("--max-steps", "0", "--seed", "-1").splitlines() == [
        "seed must be >= 0, got -1 (nearest valid: 0)",
        "max_steps must be >= 1, got 0 (nearest valid: 1)",
    ]


def test_required_settings_are_named() -> None:
    with pytest.raises(ValueError, match="student: required, but not set") as error:
        load_config(None)
    assert str(error.value).splitlines() == [
        f"{name}: required, but not set" for name in ("student", "data", "teacher")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "must hold a mapping of settings"),
        (b"42\n", "must hold a mapping of settings"),
        (b"a: [", "is not valid YAML: .*line"),
        (b"seed: 1\nseed: 2\n", "is not valid YAML: .*line"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"--config: .*config\.yaml {message}"):
        load_config(str(tmp_path / "config.yaml"), REQUIRED)
    with pytest.raises(ValueError, match=r"--config: no such file: .*missing\.yaml"):
        load_config(str(tmp_path / "missing.yaml"), REQUIRED)


@pytest.mark.parametrize("override", ["--rollout.num_workers", "--learner.betas"])
def test_a_value_that_is_no_yaml_is_refused_with_its_option(override: str) -> None:
    assert mistake(override, "[1").startswith(f"{override}: '[1' is not valid YAML: ")


def test_nccl_is_accepted_where_learner_and_rollout_engines_have_gpus_and_gloo_anywhere() -> None:
    gpus = ["--learner.resources.num_gpus", "1", "--rollout.resources.num_gpus", "1"]
    assert load("--weights.transport", "nccl", *gpus).weights.is_broadcast
    assert load("--weights.transport", "gloo").weights.is_broadcast
    assert not load().weights.is_broadcast
    wanted = "weights.transport must be 'object_store' without GPUs, got 'nccl' with learner.resources.num_gpus 0"
    assert mistake("--weights.transport", "nccl", *gpus[2:]).startswith(wanted)
