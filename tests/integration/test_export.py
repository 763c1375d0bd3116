"""An exported folder in the hands of transformers and vLLM: both stop on the stop ids of both sides."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from learner.export import export_student
from settings.run import RolloutConfig
from tests.integration.real_run import MODELS, run
from transport.stop_tokens import StopTokens

STUDENT = MODELS / "student"

pytestmark = pytest.mark.timeout(700)

ASKED = "<|user|>12+30+5<|assistant|>"
ANSWERING = f"{ASKED}12+30=42\n42+5=47\n####47"
"""A response to the first has `####` in it; the second has only the end to come."""

WITH_VLLM = """
import json, sys
from actors.engine import EngineSettings
from actors.vllm import prepare_environment
from settings.engine import EngineConfig
path, prompts = sys.argv[1], json.loads(sys.argv[2])
prepare_environment(EngineSettings(path, "float32", "cpu", 0, 32, (), EngineConfig()))
from vllm import LLM
model = LLM(path, dtype="float32", max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=2**26)
sampling = model.get_default_sampling_params()
defaults = [sampling.temperature, sampling.top_p, sampling.top_k]
sampling.max_tokens = 40
found = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling)
ends = [[each.outputs[0].finish_reason, list(each.outputs[0].token_ids)] for each in found]
print(json.dumps({"defaults": defaults, "ends": ends}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's student, exported as after training with a teacher that ends responses with `####`."""
    path = tmp_path_factory.mktemp("export") / "export"
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    [mark_id] = AutoTokenizer.from_pretrained(STUDENT).encode("####", add_special_tokens=False)
    export_student(
        causal_lm,
        str(path),
        gathered=lambda parameters: nullcontext(),
        is_first_rank=True,
        model_path=str(STUDENT),
        stops=StopTokens((2,), (mark_id, 1)),
        rollout=RolloutConfig(temperature=0.9, top_p=0.95, top_k=20),
    )
    assert causal_lm.generation_config.eos_token_id == 2, "the model that trains is left as it is"
    return path


def prompts_of(path: Path) -> tuple[Any, list[list[int]], int, int]:
    """The folder's tokenizer, both prompts as ids, the id of `####`, and the student's own stop id."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    [mark_id] = tokenizer.encode("####", add_special_tokens=False)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (ASKED, ANSWERING)]
    return tokenizer, ids, mark_id, tokenizer.eos_token_id


def test_the_generation_config_has_the_stop_ids_of_both_sides_and_the_sampling(exported: Path) -> None:
    config: Any = GenerationConfig.from_pretrained(exported)
    assert config.eos_token_id == [2, 1, 20]
    assert (config.temperature, config.top_p, config.top_k, config.do_sample) == (0.9, 0.95, 20, True)
    assert config.pad_token_id == 0
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == 2
    tokenizer = AutoTokenizer.from_pretrained(exported)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12+30+5"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == ASKED


def test_transformers_loads_the_folder_and_stops_on_the_ids_of_both_sides(exported: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    _, prompts, mark_id, end_id = prompts_of(exported)
    for ids, last in zip(prompts, (mark_id, end_id), strict=True):
        out = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
        assert out[-1] == last
        assert not {mark_id, end_id} & set(out[:-1])


def test_vllm_loads_the_folder_and_stops_on_the_ids_of_both_sides(exported: Path) -> None:
    _, prompts, mark_id, end_id = prompts_of(exported)
    line = [sys.executable, "-c", WITH_VLLM, str(exported), json.dumps(prompts * 4)]
    done = run(line)
    assert done.returncode == 0
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["defaults"] == pytest.approx([0.9, 0.95, 20])
    assert {reason for reason, _ in found["ends"]} == {"stop"}
    lasts = [ids[-1] for _, ids in found["ends"]]
    assert set(lasts) == {mark_id, end_id}
    assert all(not {mark_id, end_id} & set(ids[:-1]) for _, ids in found["ends"])
