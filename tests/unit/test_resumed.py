"""A run that cannot continue from its checkpoint with its settings is refused before any worker is placed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch
from commands.checks import WHAT_OF, check_inputs, check_resumed, fingerprints_of, load_checked, shape_facts
from inputs.models import Shape, model_fingerprint
from records.checkpoint_store import CheckpointStore
from records.checkpoints import CheckpointManifest
from records.events import Events, record_data
from records.files import read_rows
from records.run_folder import RunFolder
from settings.checks import Checks
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RunConfig

pytestmark = pytest.mark.timeout(60)

SHAPE = Shape(1e6, 2, 64, 64, 32, 128, 100)

Refusal = Callable[..., str]

SETTINGS: dict[str, Any] = {
    "student": {"model_path": "s"},
    "teacher": {"model_path": "t"},
    "data": {"train_path": "d"},
    "learner": {"zero_stage": 2, "dtype": "float32"},
    "batch_size": 4,
}


def config_of(runs_path: Path, **settings: Any) -> RunConfig:
    """A configuration; `learner` is merged over that of `SETTINGS`."""
    learner = SETTINGS["learner"] | settings.pop("learner", {})
    return RunConfig.model_validate({**SETTINGS, "runs_path": str(runs_path), "learner": learner, **settings})


def with_checkpoint(folder: RunFolder, config: RunConfig, **state: Any) -> None:
    """Leave a checkpoint of step 4, and the event that it was committed."""
    store = CheckpointStore.of(config, folder)
    store.start(4)
    path = store.commit(4, CheckpointManifest(1, config.learner.zero_stage, config.learner.dtype, {}, state))
    Events(folder.events).add("checkpoint", step=4, path=path)


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """The line with which a run with other settings is refused; empty if it may continue."""

    def line(shape: Shape | None = SHAPE, **settings: Any) -> str:
        config = config_of(tmp_path)
        folder = RunFolder.named(config)
        if not folder.path.exists():
            with_checkpoint(folder, config, student=shape_facts(SHAPE))
        try:
            check_resumed(config_of(tmp_path, **settings), folder, shape)
        except ValueError as error:
            return str(error)
        return ""

    return line


def test_settings_that_may_change_are_no_mistake(refusal: Refusal) -> None:
    assert refusal() == ""
    assert refusal(batch_size=3, max_steps=2, max_staleness=0, seed=9) == ""
    assert refusal(learner={"zero_stage": 1, "weight_decay": 0.5, "num_workers": 2}) == ""
    assert refusal(shape=None) == ""


def test_a_setting_that_does_not_fit_the_checkpoint_is_named_with_its_value(
    refusal: Refusal, tmp_path: Path
) -> None:
    dtype, other = (
        ("float32", "bfloat16") if "float32" in refusal(learner={"dtype": "bfloat16"}) else ("bfloat16", "float32")
    )
    assert f"was written with learner.dtype {dtype}, not {other}" in refusal(learner={"dtype": other})
    text = refusal(learner={"zero_stage": 3})
    assert "was written with learner.zero_stage 2 and cannot be read with 3 (nearest valid: 1 or 2)" in text
    text = refusal(shape=Shape(1e6, 2, 96, 64, 32, 128, 100))
    assert text.startswith("student.model_path: checkpoint ")
    assert text.endswith("is of another model: its hidden is 64, not 96 as in s")
    text = refusal(checkpoint={"path": str(tmp_path / "elsewhere")})
    assert text.startswith(f"checkpoint.path: {tmp_path / 'elsewhere'}")
    assert "holds no checkpoint, but 1 were committed, the last as " in text


def test_train_says_so_in_one_line_and_exit_code_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "runs" / "again")
    config = config_of(tmp_path / "runs", run_name="again", learner={"zero_stage": 0})
    with_checkpoint(folder, config)
    given = ["--run_name", "again", "--resume", "--learner.zero_stage", "2", "--learner.dtype", "float32"]
    assert launch.main([*arguments, *given]) == BAD_INPUT
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: checkpoint ")
    assert "learner.zero_stage 0 and cannot be read with 2 (nearest valid: 0)" in line


def test_what_changed_since_the_run_began_is_refused_by_name_and_accepted_by_force(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_checked(arguments[2], [each for each in arguments[3:] if each != "--dry-run"])
    inputs = check_inputs(config, Checks())
    now, folder = fingerprints_of(config, inputs), RunFolder(tmp_path / "runs" / "again")
    assert [*now] == ["student", "tokenizer", "chat_template", "data"]
    folder.path.mkdir(parents=True)
    given = [*arguments, "--run_name", "again", "--resume"]
    for name, key in (("student", "architecture"), ("tokenizer",) * 2, ("chat_template",) * 2, ("data",) * 2):
        folder.write_fingerprints(now | {name: "0" * 64})
        assert launch.main(given) == BAD_INPUT
        [line] = capsys.readouterr().err.strip().splitlines()
        setting, what, _ = WHAT_OF[name]
        assert line.startswith(f"error: {setting}: {what} changed since the run began (fingerprint ")
        assert line.endswith(f"(check {key}; --force {key} continues anyway)")
        assert launch.main([*given, "--force", key]) == FINISHED
    folder.fingerprints.write_text("{")
    assert launch.main(given) == FINISHED, "an older run does not say"


def test_a_model_is_known_by_what_its_folder_holds_and_not_by_its_path(tmp_path: Path) -> None:
    for name in ("one", "copy", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 4}))
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3_000_000))
    with (tmp_path / "trained" / "model.safetensors").open("r+b") as file:
        file.write(bytes([1]) * 3_000_000)
    one, copy, trained = (model_fingerprint(str(tmp_path / name)) for name in ("one", "copy", "trained"))
    assert one == copy != trained
    assert model_fingerprint("someone/on-a-hub") is None


def test_another_seed_is_noted_as_other_data_are(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    report = {"fingerprint": "f", "sources": []}
    for seed in ({}, {"seed": 1}, {"seed": 1}, {"seed": 2}):  # an older version did not write it
        record_data(folder, Events(folder.events), report | seed)
    names = [row["event"] for row in read_rows(folder.events)]
    assert names == ["data", "data", "data", "data", "data_changed"]
    assert json.loads(folder.data_report.read_text())["seed"] == 2
