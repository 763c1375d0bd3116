"""Students that would be trained wrongly, or have no weights of their own, are refused before anything starts."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from settings.exit_codes import BAD_INPUT
from tests.unit.conftest import MODELS, Preflight

pytestmark = pytest.mark.timeout(60)

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
FAMILIES = {
    "scales its logits": ({"model_type": "granite", "logits_scaling": 8.0}, "caps its logits"),
    "caps its logits": ({"model_type": "gemma2", "head_dim": 32}, "caps its logits"),
    "a hybrid": (
        {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"], "head_dim": 32},
        "packed sequences see one another|bfloat16 on CPUs",
    ),
    "no causal language model": ({"model_type": "distilbert"}, "is no causal language model"),
}


@pytest.mark.parametrize(("config", "reason"), FAMILIES.values(), ids=FAMILIES)
def test_a_student_of_a_family_that_would_be_trained_wrongly_is_refused_before_anything_starts(
    config: dict[str, Any], reason: str, preflight: Preflight, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    own = json.loads((student / "config.json").read_text())
    kept = {name: own[name] for name in ("vocab_size", "eos_token_id", "max_position_embeddings")}
    layers = {"num_hidden_layers": 2}
    (student / "config.json").write_text(json.dumps(kept | SMALL | layers | config))
    code, found = preflight("--student.model_path", str(student))
    assert code == BAD_INPUT
    assert found["architecture"]["status"] == "error"
    assert re.search(reason, found["architecture"]["message"])
    assert "\n" not in found["architecture"]["message"]


def test_an_adapter_as_the_student_is_refused_before_anything_starts(preflight: Preflight, tmp_path: Path) -> None:
    student = Path(shutil.copytree(MODELS / "student", tmp_path / "student"))
    (student / "adapter_config.json").write_text("{}")
    code, found = preflight("--student.model_path", str(student))
    assert code == BAD_INPUT
    assert "merge it into its base model" in found["paths"]["message"]
    (student / "adapter_config.json").unlink()
    for file in student.glob("*.safetensors"):
        file.unlink()
    code, found = preflight("--student.model_path", str(student))
    assert code == BAD_INPUT
    assert "holds no weights" in found["paths"]["message"]
