"""An export has the generation settings of training, whatever the student's own are; the end of a run is tried."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import launch
from commands.preflight.ending import check_ending
from learner.export import export_student, exported_generation_config
from records.run_folder import RunFolder
from settings.checks import Checks
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RolloutConfig, RunConfig
from tests.unit.conftest import MODELS
from tests.unit.test_checkpoint_store import ReadOnlyFileSystem
from transport.stop_tokens import StopTokens

pytestmark = pytest.mark.timeout(60)

OF_TRAINING = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 20, "eos_token_id": [2, 3]}

OWN = {
    "sampling without do_sample": {"temperature": 0.6, "top_p": 0.9},
    "sampling with do_sample false": {"do_sample": False, "temperature": 0.9, "top_k": 64},
    "early stopping": {"do_sample": True, "early_stopping": True},
    "a length penalty": {"length_penalty": 1.5},
    "greedy by temperature": {"do_sample": True, "temperature": 0.0},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "early_stopping": "never"},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "another filter": {"do_sample": True, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1},
    "outputs": {"output_scores": True},
    "lengths": {"max_length": 20, "max_new_tokens": 5, "min_new_tokens": 2},
    "a padding that is none": {"pad_token_id": -1},
}


def exported(own: dict[str, Any]) -> dict[str, Any]:
    config = exported_generation_config(
        GenerationConfig(**{"pad_token_id": 0, "eos_token_id": 2} | own),
        stops=StopTokens((2,), (3,)),
        rollout=RolloutConfig(temperature=0.9, top_p=0.95, top_k=20),
        pad_token_id=0,
    )
    config.validate(strict=True)
    values = config.to_diff_dict()
    del values["transformers_version"]
    return values


@pytest.mark.parametrize("own", OWN.values(), ids=OWN.keys())
def test_of_the_students_sampling_nothing_is_left(own: dict[str, Any]) -> None:
    assert exported(own) == OF_TRAINING | {"pad_token_id": 0}


def test_what_says_nothing_about_sampling_stays() -> None:
    own = {"bos_token_id": 1, "cache_implementation": "static", "chat_format": "chatml"}
    assert exported(own) == OF_TRAINING | {"pad_token_id": 0} | own


def test_settings_that_contradict_each_other_are_left_out() -> None:
    assert exported({"use_cache": False, "cache_implementation": "static"}) == OF_TRAINING | {"pad_token_id": 0}


def test_a_student_whose_settings_transformers_would_not_save_is_exported(tmp_path: Path) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    own = {"temperature": 0.6, "top_p": 0.9, "early_stopping": True}
    (student / "generation_config.json").write_text(json.dumps(own))
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    export_student(
        causal_lm,
        str(tmp_path / "export"),
        gathered=lambda parameters: nullcontext(),
        is_first_rank=True,
        model_path=str(student),
        stops=StopTokens((2,), (1,)),
        rollout=RolloutConfig(),
    )
    saved = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["eos_token_id"]) == (True, 1.0, [2, 1])
    assert causal_lm.generation_config.temperature == 0.6, "the model that trains is left as it is"


def test_preflight_tries_the_end_of_a_run_on_the_students_own_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    (student / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6, "num_beams": 2}')
    (student / "README.md").write_text("---\nlicense: mit\ndate: 2024-13-45\n---\n")
    options = ["preflight", *arguments[1:], "--dry-run", "--json", f"--student.model_path={student}"]
    assert launch.main(options) == FINISHED
    said = capsys.readouterr()
    rows = {row["key"]: row for row in json.loads(said.out)["checks"]}
    assert rows["export"]["message"] == "tried: export, model card, report, checkpoints"
    assert said.err == ""
    options.append(f"--checkpoint.path={ReadOnlyFileSystem.protocol}://{tmp_path}/elsewhere")
    assert launch.main(options) == BAD_INPUT
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert rows["export"]["message"].startswith("checkpoint.path: checkpoints could not be written: ")
    assert rows["export"]["message"].endswith("403 Forbidden")


def test_an_export_that_fails_is_found_before_the_training(tmp_path: Path) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    (student / "tokenizer.json").unlink()
    values = {"student": {"model_path": str(student)}, "data": {"train_path": "d"}, "teacher": {"model_path": "t"}}
    config = RunConfig.model_validate(values | {"runs_path": str(tmp_path)})
    checks = Checks(collects=True)
    check_ending(config, RunFolder.named(config), StopTokens((2,), (2,)), checks)
    [result] = checks.errors
    assert result.key == "export"
    assert result.message.startswith(f"student.model_path: {student} could not be exported: ")
