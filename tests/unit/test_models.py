"""Families of models: what is published and exported is what a folder holds, and what is refused says why."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from commands.checks import check_cpu_engine
from docs.generate.model_families import (
    FAMILIES,
    VOCAB_SIZE,
    kinds_of,
    perturb,
    read_back,
    save_family,
    tiny_model,
)
from learner.divergence import TeacherHead
from learner.export import keep_architecture
from learner.publisher import publish_weights
from learner.stored_tensors import parts_of, stored_tensors
from learner.support import check_architecture, tiny
from tests.unit.test_learner_scene import run_config
from transport.weights import WeightManifest

pytestmark = pytest.mark.timeout(60)

CPU = torch.device("cpu")
IDS_1T = torch.arange(3, 40)[None]


def published(causal_lm: Any, *, dtype: str = "float32", max_bytes: int = 40_000) -> dict[str, Tensor]:
    """What engines get, by name."""
    *buckets, manifest = publish_weights(
        causal_lm,
        gathered=lambda _: nullcontext(),
        is_first_rank=True,
        incarnation=0,
        version=1,
        dtype=dtype,
        golden_token_ids=[1, 2],
        golden_log_probs=[0.0],
        max_bytes=max_bytes,
    )
    assert isinstance(manifest, WeightManifest)
    found = {}
    arrays = [bucket for bucket in buckets if isinstance(bucket, np.ndarray)]
    for spec in manifest.tensors:
        values = torch.from_numpy(arrays[spec.bucket][spec.offset : spec.offset + spec.num_bytes].copy())
        found[spec.name] = values.view(getattr(torch, spec.dtype)).view(spec.shape)
    return found


def saved(path: Path) -> dict[str, Tensor]:
    return {name: each for file in path.glob("*.safetensors") for name, each in load_file(file).items()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def log_probs(causal_lm: Any) -> Tensor:
    return causal_lm(input_ids=IDS_1T).logits[0].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_published_is_what_save_pretrained_writes(family: str, tmp_path: Path) -> None:
    causal_lm = save_family(family, tmp_path / "student")
    for kind in kinds_of(causal_lm):
        perturb(causal_lm, kind)
    causal_lm.save_pretrained(tmp_path / "changed")
    assert same(published(causal_lm), saved(tmp_path / "changed"))
    assert saved(tmp_path / "changed").keys() == saved(tmp_path / "student").keys()
    causal_lm.save_pretrained(tmp_path / "export", state_dict=stored_tensors(causal_lm))
    assert torch.equal(log_probs(read_back(tmp_path / "export")), log_probs(causal_lm))


@pytest.mark.parametrize("family", ["GLM-4-MoE", "DeepSeek-V3"])
def test_a_buffer_that_routes_tokens_is_published_in_float32_and_exported(family: str, tmp_path: Path) -> None:
    causal_lm = tiny_model(family)
    [name] = [name for name in stored_tensors(causal_lm) if name.endswith("e_score_correction_bias")]
    found = published(causal_lm, dtype="bfloat16")
    assert torch.equal(found.pop(name), stored_tensors(causal_lm)[name])
    assert {each.dtype for each in found.values()} == {torch.bfloat16}
    causal_lm.save_pretrained(tmp_path, state_dict=stored_tensors(causal_lm))
    assert name in saved(tmp_path)


def test_packed_experts_are_gathered_once_and_sent_one_by_one() -> None:
    causal_lm, gathered = tiny_model("Mixtral"), list[int]()

    def gather(tensors: Iterable[Tensor]) -> nullcontext[None]:
        gathered.extend(id(each) for each in tensors)
        return nullcontext()

    *_, manifest = publish_weights(
        causal_lm,
        gathered=gather,
        is_first_rank=True,
        incarnation=0,
        version=1,
        dtype="float32",
        golden_token_ids=[1, 2],
        golden_log_probs=[0.0],
        max_bytes=1,
    )
    assert sorted(gathered) == sorted(id(each) for each in causal_lm.parameters())
    assert isinstance(manifest, WeightManifest)
    of_experts = [spec for spec in manifest.tensors if ".layers.0.block_sparse_moe.experts." in spec.name]
    assert len(of_experts) == 4 * 3
    assert len({spec.bucket for spec in of_experts}) == 2


def test_tensors_that_are_stored_as_one_are_one_part() -> None:
    joined = [part for part in parts_of(tiny_model("Mixtral")) if part.is_converted]
    assert all(len(part.sources) == 1 and len(part.shapes) in (4, 8) for part in joined)
    assert len(joined) == 4


SUPPORTED = ["Llama", "Gemma3 (multimodal)", "GPT-NeoX", "Qwen3-MoE", "DeepSeek-V3"]
REFUSED = {
    "Granite": "scales or caps its logits",
    "GraniteMoE": "scales or caps its logits",
    "Cohere2": "scales or caps its logits",
    "Gemma2": "scales or caps its logits",
    "Qwen3-Next": "lets packed sequences see one another",
    "Qwen3.5 (text)": "lets packed sequences see one another",
    "gpt-oss": "lets packed sequences see one another",
}


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_supported_family_passes_on_its_configuration_alone(family: str, tmp_path: Path) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    check_architecture(str(tmp_path), "student.model_path", attention="sdpa")


@pytest.mark.parametrize(("family", "reason"), REFUSED.items(), ids=REFUSED)
def test_a_family_that_the_learner_would_train_wrongly_is_refused_in_one_line(
    family: str, reason: str, tmp_path: Path
) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^student.model_path: .*{reason}") as caught:
        check_architecture(str(tmp_path), "student.model_path", attention="sdpa")
    assert "\n" not in str(caught.value)


def test_of_a_model_that_is_not_trained_only_the_head_is_tried(tmp_path: Path) -> None:
    FAMILIES["Qwen3-Next"]().save_pretrained(tmp_path / "hybrid")
    FAMILIES["Gemma2"]().save_pretrained(tmp_path / "capped")
    given: dict[str, Any] = {"field": "teacher.model_path", "attention": "sdpa", "is_trained": False}
    check_architecture(str(tmp_path / "hybrid"), **given)
    with pytest.raises(ValueError, match=r"^teacher.model_path: .* caps its logits"):
        check_architecture(str(tmp_path / "capped"), **given)


def test_a_large_configuration_is_tried_as_a_tiny_model() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        num_hidden_layers=94,
    )
    config.update(
        {"intermediate_size": 30_000, "moe_intermediate_size": 3072, "num_experts": 128, "vocab_size": 151936}
    )
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(tiny(config))
    assert causal_lm.num_parameters() < 2e6
    assert len(causal_lm.model.layers) == 2


HEADS = {
    "tied": "Llama",
    "untied": "Qwen3",
    "another name": "GPT-NeoX",
    "inside": "Gemma3 (multimodal)",
    "with a bias": "PhiMoE",
}


def head_of(path: Path) -> TeacherHead:
    head = TeacherHead.load(str(path), dtype="float32", max_rows=VOCAB_SIZE, device=CPU)
    head.check(str(path), IDS_1T[0].tolist(), limit=1e-4)
    return head


@torch.no_grad()
def through(head: TeacherHead, causal_lm: Any) -> Tensor:
    return head.logits(causal_lm.get_decoder()(input_ids=IDS_1T).last_hidden_state[0]).log_softmax(-1)


@pytest.mark.parametrize("family", HEADS.values(), ids=HEADS)
def test_the_head_of_a_teacher_gives_its_own_log_probs(family: str, tmp_path: Path) -> None:
    causal_lm = save_family(family, tmp_path)
    head = head_of(tmp_path)
    assert (head.bias_V is not None) == (family == "PhiMoE")
    torch.testing.assert_close(through(head, causal_lm), log_probs(causal_lm))


@pytest.mark.parametrize("which", ["other", "equal"])
def test_a_head_in_the_file_is_used_though_the_configuration_ties_it(which: str, tmp_path: Path) -> None:
    save_family("Llama", tmp_path)
    tensors = saved(tmp_path)
    embedding_VH = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding_VH.flip(0).contiguous() if which == "other" else embedding_VH.clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    causal_lm = read_back(tmp_path)
    torch.testing.assert_close(through(head_of(tmp_path), causal_lm), log_probs(causal_lm))


def test_a_head_that_is_not_the_one_of_the_teachers_logits_is_found(tmp_path: Path) -> None:
    save_family("Llama", tmp_path)
    head = head_of(tmp_path)
    head.weight_VH = head.weight_VH.flip(0)
    with pytest.raises(ValueError, match=r"teacher.model_path: log-probs through the head .* differ .* by "):
        head.check(str(tmp_path), IDS_1T[0].tolist(), limit=1e-4)


def test_a_folder_without_the_head_that_its_configuration_asks_for_is_refused(tmp_path: Path) -> None:
    save_family("Qwen3", tmp_path)
    tensors = saved(tmp_path)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no output head in safetensors \(lm_head.weight\)"):
        head_of(tmp_path)


@pytest.mark.parametrize(
    ("family", "student", "teacher"),
    [
        ("Qwen3", None, None),
        (
            "DeepSeek-V3",
            r"^student.model_path: .* has latent attention .*; use GPUs$",
            r"^teacher.engine.dtype must be",
        ),
        (
            "Qwen3-Next",
            r"^rollout.engine.dtype must be bfloat16",
            r"^teacher.engine.dtype must be bfloat16 on CPUs",
        ),
    ],
)
def test_what_engines_on_cpus_cannot_do_is_refused(
    family: str, student: str | None, teacher: str | None, tmp_path: Path
) -> None:
    FAMILIES[family]().save_pretrained(tmp_path)
    config = run_config(str(tmp_path))
    for role, reason in {"student": student, "teacher": teacher}.items():
        with nullcontext() if reason is None else pytest.raises(ValueError, match=reason):
            check_cpu_engine(config, role, str(tmp_path))
    for role, section in {"student": "rollout", "teacher": "teacher"}.items():
        on_gpus = run_config(str(tmp_path), **{section: {"resources": {"num_gpus": 1}}})
        check_cpu_engine(on_gpus, role, str(tmp_path))


def test_an_export_spells_its_class_as_the_folder_of_the_student_does(tmp_path: Path) -> None:
    causal_lm = tiny_model("PhiMoE")
    causal_lm.save_pretrained(tmp_path)
    own = AutoConfig.from_pretrained(tmp_path)
    assert own.architectures == ["PhimoeForCausalLM"]
    own.architectures = ["PhiMoEForCausalLM"]
    keep_architecture(tmp_path, own)
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["PhiMoEForCausalLM"]
    own.architectures = ["PhiMoEForConditionalGeneration"]
    keep_architecture(tmp_path, own)
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["PhiMoEForCausalLM"]
