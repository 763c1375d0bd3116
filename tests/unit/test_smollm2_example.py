"""The SmolLM2 example: disjoint prompts, a student without some layers, and an exact reverse KL."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.example_scripts import load_script

EXAMPLE_PATH = Path(__file__).parents[2] / "examples" / "smollm2"


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts of the folder by name; it is no package, and they import each other by name."""
    sys.path.insert(0, str(EXAMPLE_PATH))
    try:
        return {
            name: load_script(f"examples/smollm2/{name}.py") for name in ("prompts", "build_models", "measure")
        }
    finally:
        sys.path.remove(str(EXAMPLE_PATH))
        sys.modules.pop("prompts", None)


def tiny_model(seed: int, num_layers: int = 6) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def test_the_prompts_are_a_few_dozen_short_ones_and_none_is_held_out_too(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    prompts = scripts["prompts"]
    assert (len(prompts.TRAIN), len(prompts.HELDOUT)) == (48, 12)
    assert len({*prompts.TRAIN, *prompts.HELDOUT}) == 60
    assert max(map(len, prompts.TRAIN)) < 60
    prompts.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in rows] == prompts.TRAIN
    assert len({row["id"] for row in rows}) == 48


def test_a_student_without_layers_computes_what_the_kept_layers_do(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    model, ids_BT = tiny_model(0), torch.tensor([[1, 2, 3, 4]])
    student = scripts["build_models"].drop_layers(tiny_model(0), (1, 4))
    student.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == len(again.model.layers) == 4
    for index in (4, 1):
        del model.model.layers[index]
    with torch.no_grad():
        expected = model(input_ids=ids_BT, use_cache=False).logits
        assert_close(again(input_ids=ids_BT).logits, expected)
        assert_close(student(input_ids=ids_BT).logits, expected)  # with a cache: layers are numbered anew


def test_the_reverse_kl_is_that_of_torch_and_zero_for_equal_models(scripts: dict[str, ModuleType]) -> None:
    student, teacher, sequence_T = tiny_model(1), tiny_model(2), torch.arange(10)
    found = scripts["measure"].reverse_kl(student, teacher, sequence_T, 4)
    with torch.no_grad():
        log_p, log_q = (m(input_ids=sequence_T[None]).logits[0, 3:9].log_softmax(-1) for m in (student, teacher))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    assert_close(found, expected)
    assert found.min() > 0
    assert_close(scripts["measure"].reverse_kl(student, student, sequence_T, 4), torch.zeros(6))
