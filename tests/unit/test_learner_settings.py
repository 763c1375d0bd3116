"""The settings DeepSpeed gets, and what of the student's configuration is changed."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from learner.deepspeed_backend import engine_settings, load_student, without_dropout
from learner.engine_memory import REDUCE_BUCKET_ELEMENTS
from settings.learner import LearnerConfig
from tests.unit.test_learner_scene import VOCAB_SIZE, run_config, save_student


def test_user_settings_are_merged_over_the_generated_ones() -> None:
    over = {"zero_optimization": {"overlap_comm": True}, "optimizer": {"params": {"eps": 1e-6}}}
    config = LearnerConfig.model_validate({"zero_stage": 3, "deepspeed": over})
    settings = engine_settings(config, world_size=4, device_type="cuda")
    zero = {"stage": 3, "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS, "overlap_comm": True}
    assert settings["zero_optimization"] == zero
    assert settings["optimizer"]["params"]["eps"] == 1e-6
    assert settings["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert settings["train_batch_size"] == 4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_gradients_accumulate_in_float32(stage: int) -> None:
    config = LearnerConfig.model_validate({"zero_stage": stage, "dtype": "bfloat16"})
    settings = engine_settings(config, world_size=1, device_type="cpu")
    assert settings["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"zero_stage": 0}, r"learner\.zero_stage must be >= 1 with learner\.dtype bfloat16, got 0"),
        (
            {"zero_stage": 0, "offload_optimizer": True},
            r"learner\.offload_optimizer needs learner\.zero_stage",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, r"learner\.zero_stage decides it"),
        ({"deepspeed": {"bf16": {"enabled": True}}, "dtype": "float32"}, r"learner\.dtype decides it"),
        (
            {"deepspeed": {"data_types": {"grad_accum_dtype": "bf16"}}},
            r"data_types\.grad_accum_dtype must not",
        ),
    ],
)
def test_what_would_add_gradients_up_in_bfloat16_or_has_no_effect_is_refused(
    given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        LearnerConfig.model_validate(given)


def test_an_offloaded_optimizer_on_a_gpu_is_deepspeeds_own_and_one_on_cpus_is_torchs_fused() -> None:
    config = LearnerConfig(zero_stage=2, offload_optimizer=True)
    on_gpu = engine_settings(config, world_size=1, device_type="cuda")
    on_cpu = engine_settings(config, world_size=1, device_type="cpu")
    assert not on_gpu["optimizer"]["params"]["torch_adam"]
    assert on_cpu["optimizer"]["params"]["torch_adam"]
    assert on_cpu["optimizer"]["params"]["fused"]


def test_every_dropout_rate_is_zero() -> None:
    config = without_dropout(GPT2Config())
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_student_whose_folder_lacks_a_tensor_is_refused(name: str, tmp_path: Path) -> None:
    config = run_config(save_student(tmp_path, tied=False))
    assert load_student(config, {}, vocab_size=VOCAB_SIZE).num_parameters > 0
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"^student\.model_path: .* has no {name} \(1 tensors are missing\)$"):
        load_student(config, {}, vocab_size=VOCAB_SIZE)
