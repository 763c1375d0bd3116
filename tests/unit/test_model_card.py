"""The model card says what the run's own files say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from records.run_folder import RunFolder
from reporting.model_card import is_hub_name, license_of, write_model_card
from settings.run import RunConfig


def config(**settings: Any) -> RunConfig:
    """A run with models and data of the hub."""
    values: dict[str, Any] = {
        **{"student": {"model_path": "Qwen/Qwen3-1.7B-Base"}, "teacher": {"model_path": "Qwen/Qwen3-8B"}},
        **{"data": {"train_path": "agentica-org/DeepScaleR-Preview-Dataset"}, "run_name": "paper"},
        **{"objective": {"name": "power", "alpha": 5}, "max_steps": 4, "batch_size": 32, "seed": 7},
        "evaluation": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "num_samples": 16},
    }
    return RunConfig.model_validate(values | settings)


ROWS = [
    {"model": "teacher", "step": 0, "benchmark": "math500", "n": 16, "k": 8, "avg_at_k": 0.875, "pass_at_k": 1.0},
    {"model": "student_before", "step": 0, "benchmark": "math500", "n": 16, "k": 8, "avg_at_k": 0.25},
    {"model": "student", "step": 2, "benchmark": "math500", "n": 16, "k": 8, "avg_at_k": 0.4375},
    {"model": "student_after", "step": 4, "benchmark": "math500", "n": 16, "k": 8, "avg_at_k": 0.5625},
    {"model": "student_after", "step": 4, "benchmark": "aime24", "n": 16, "k": 8, "avg_at_k": 0.125},
]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run of four steps."""
    folder = RunFolder(tmp_path / "paper")
    folder.path.mkdir()
    for step in range(1, 5):
        uids = [f"{slot}-0-p-{sample}" for slot in range(32 * (step - 1), 32 * step) for sample in (0, 1)]
        folder.add_step({"step": step, "tokens_trained": 1000}, uids)
    for row in ROWS:
        folder.add_evaluation({"mean_length": 300.25, "truncated_frac": 0.125, **row})
    environment = {"git_commit": "abc123", "git_is_dirty": False, "packages": {"vllm": "0.32.0"}}
    (folder.path / "environment.json").write_text(json.dumps(environment))
    return folder


def card(folder: RunFolder, config: RunConfig, step: int = 4, **options: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of the card."""
    text = write_model_card(folder, config, folder.export, step=step, **options).read_text()
    empty, front, body = text.split("---\n", maxsplit=2)
    assert empty == ""
    return yaml.safe_load(front), body


def test_the_front_matter_names_models_data_and_the_numbers_of_the_evaluations(folder: RunFolder) -> None:
    front, _ = card(folder, config(), name="organisation/student")
    wanted = {"base_model": "Qwen/Qwen3-1.7B-Base", "teacher": "Qwen/Qwen3-8B", "library_name": "transformers"}
    wanted |= {"datasets": ["agentica-org/DeepScaleR-Preview-Dataset"]}
    assert wanted.items() <= front.items()
    assert "license" not in front
    [model] = front["model-index"]
    assert model["name"] == "student"
    values = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in model["results"]}
    assert values == {"math500": 0.5625, "aime24": 0.125}


def test_the_text_holds_recipe_data_numbers_protocol_and_origin(folder: RunFolder) -> None:
    _, body = card(folder, config(), name="organisation/student")
    for text in (
        "| objective | `power` (alpha 5) |",
        "| response tokens trained | 4,000 |",
        "128 prompts (one per slot) were trained on",
        "| teacher | math500 | 0 | 0.8750 (avg@8) | 1.0000 (pass@8) | - | 300.2 | 0.1250 |",
        "| student | math500 | 4 | 0.5625 (avg@8) |",
        "16 responses per problem, temperature 0.6, top-p 0.95, top-k 20, at most 1024 tokens, seed 7",
        "commit `abc123`; vllm 0.32.0",
        'from_pretrained("organisation/student")',
        "Only accuracy on aime24, math500 was measured",
    ):
        assert text in body
    assert "0.4375" not in body, "an evaluation of other weights than these"


def test_the_card_of_a_checkpoint_has_the_evaluation_and_the_tokens_of_its_step(folder: RunFolder) -> None:
    front, body = card(folder, config(), step=2)
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.4375
    assert "| response tokens trained | 2,000 |" in body
    assert "0.5625" not in body


def test_local_models_and_data_are_in_the_text_alone_and_a_license_is_taken_over(
    folder: RunFolder, tmp_path: Path
) -> None:
    student, data = tmp_path / "student", tmp_path / "train.jsonl"
    student.mkdir()
    (student / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Student\n")
    data.write_text('{"problem": "1+1"}\n{"problem": "2+2"}\n')
    local = config(student={"model_path": str(student)}, data={"train_path": str(data)})
    front, body = card(folder, local)
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front
    assert "datasets" not in front
    assert f"- `{data}`, 2 rows" in body
    assert f"`{student}`, distilled on its own samples from `Qwen/Qwen3-8B`" in body


def test_a_run_without_evaluations_claims_no_numbers(tmp_path: Path) -> None:
    front, body = card(RunFolder(tmp_path), config())
    assert "model-index" not in front
    assert "This student was not evaluated." in body
    assert "Nothing was measured" in body


@pytest.mark.parametrize(
    "text", ["", "# Title", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: 5\n---\n"]
)
def test_a_card_without_a_readable_license_says_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert license_of(tmp_path) is None


def test_a_hub_name_is_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_name("Qwen/Qwen3-8B")
    assert not any(map(is_hub_name, ["models/student", "/models/x", "./x", "data.jsonl", "a/b/c"]))
