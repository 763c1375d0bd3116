"""Weights reach engines of several architectures exactly, packed from the buckets or by vLLM's own reload."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from actors.vllm import packed_layers, weight_transfer
from actors.vllm.packed_layers import joined
from docs.generate.model_families import kinds_of, save_family
from docs.generate.model_families import perturb as perturb_kind
from tests.integration.test_engine_scene import (
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    in_place,
    opened,
    perturb,
    publish,
    read_model,
    run,
    settings,
)
from tests.unit.buckets_in_place import BucketsInPlace

pytestmark = pytest.mark.timeout(600)

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_MODEL_LEN,
    "eos_token_id": None,
    "bos_token_id": None,
}

CONFIGS = {
    "llama": (LlamaConfig(**SIZES, tie_word_embeddings=True), 0),
    "qwen2-with-biases": (Qwen2Config(**SIZES), 0),
    "mistral": (MistralConfig(**SIZES, head_dim=32), 3),
}
"""Models, and how many of three loads take vLLM's own way."""


def save(config: Any, path: Path) -> Any:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return read_model(str(path))


@pytest.mark.parametrize(("config", "expected_reloads"), CONFIGS.values(), ids=CONFIGS)
def test_weights_reach_engines_of_other_architectures_exactly(
    config: Any, expected_reloads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reloads = save(config, tmp_path), list[object]()
    begin = weight_transfer.initialize_layerwise_reload

    def counted(model: Any) -> None:
        reloads.append(model)
        begin(model)

    monkeypatch.setattr(weight_transfer, "initialize_layerwise_reload", counted)
    with opened(settings(str(tmp_path))) as engine:
        for version in range(1, 4):
            perturb(model, seed=version)
            report = run(engine.load_weights(*in_place(publish(model, version))))
            assert report.golden_difference < 1e-4
    assert len(reloads) == expected_reloads


def test_packed_experts_and_a_buffer_that_routes_tokens_reach_an_engine_exactly(tmp_path: Path) -> None:
    model = save_family("GLM-4-MoE", tmp_path)
    kinds = [kind for kind in kinds_of(model) if "mlp" in kind]
    assert any(kind.endswith("e_score_correction_bias") for kind in kinds)
    with opened(settings(str(tmp_path))) as engine:
        for version, kind in enumerate(kinds, start=1):
            perturb_kind(model, kind, scale=0.3)
            report = run(engine.load_weights(*in_place(publish(model, version))))
            assert report.golden_difference < 1e-4, kind


def test_a_head_that_the_folder_repeats_is_refreshed_with_its_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_layers, "ARCHITECTURES", ())
    save(CONFIGS["llama"][0], tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    model = read_model(str(tmp_path))
    with opened(settings(str(tmp_path))) as engine:
        for version in (1, 2):
            perturb(model, seed=version)
            assert run(engine.load_weights(*in_place(publish(model, version)))).golden_difference < 1e-4


@pytest.mark.parametrize("left_out", ["mlp.experts.2.up_proj", "self_attn.k_proj", "mlp.gate.weight"])
def test_a_weight_set_in_which_a_part_of_a_layer_is_missing_is_refused(left_out: str, tmp_path: Path) -> None:
    model = save_family("Qwen3-MoE", tmp_path)
    with opened(settings(str(tmp_path))) as engine:
        manifest, buckets = publish(model, 1)
        kept = tuple(spec for spec in manifest.tensors if f"layers.1.{left_out}" not in spec.name)
        assert len(kept) < len(manifest.tensors)
        incomplete = replace(manifest, tensors=kept)
        with pytest.raises(ValueError, match=r"too little, for model\.layers\.1\."):
            run(engine.load_weights(incomplete, BucketsInPlace(buckets)))
        assert run(engine.load_weights(*in_place(publish(model, 2)))).golden_difference < 1e-4


def test_weights_of_another_dtype_are_cast(tmp_path: Path) -> None:
    model = save(CONFIGS["llama"][0], tmp_path)
    with opened(replace(settings(str(tmp_path)), dtype="bfloat16")) as engine:
        perturb(model)
        assert run(engine.load_weights(*in_place(publish(model, 1)))).golden_difference < 0.1


def test_matrices_one_after_the_other_are_joined_where_they_lie() -> None:
    memory = torch.arange(40.0)
    parts = [memory[4:12].view(4, 2), memory[12:16].view(2, 2), memory[16:20].view(2, 2)]
    whole = joined(parts)
    assert whole.data_ptr() == parts[0].data_ptr()
    assert torch.equal(whole, torch.cat(parts))


def test_matrices_with_something_between_or_in_another_order_are_copied() -> None:
    memory = torch.arange(40.0)
    first, second, later = memory[4:12].view(4, 2), memory[12:16].view(2, 2), memory[20:24].view(2, 2)
    for parts in ([first, later], [second, first], [first, second, later], [first, second.clone()]):
        whole = joined(parts)
        assert torch.equal(whole, torch.cat(parts))
        assert whole.data_ptr() != parts[0].data_ptr()


def test_a_single_matrix_is_not_copied() -> None:
    matrix = torch.arange(6.0).view(3, 2)
    assert joined([matrix]).data_ptr() == matrix.data_ptr()
