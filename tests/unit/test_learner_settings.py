"""The settings DeepSpeed gets, and what of the student's configuration is changed."""

import pytest
from transformers import GPT2Config

from learner.deepspeed_backend import engine_settings, without_dropout
from learner.engine_memory import REDUCE_BUCKET_ELEMENTS
from settings.learner import LearnerConfig


def test_user_settings_are_merged_over_the_generated_ones() -> None:
    over = {"zero_optimization": {"overlap_comm": True}, "optimizer": {"params": {"eps": 1e-6}}}
    config = LearnerConfig.model_validate({"zero_stage": 3, "deepspeed": over})
    settings = engine_settings(config, world_size=4, device_type="cuda")
    zero = {"stage": 3, "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS, "overlap_comm": True}
    assert settings["zero_optimization"] == zero
    assert settings["optimizer"]["params"]["eps"] == 1e-6
    assert settings["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert settings["train_batch_size"] == 4


@pytest.mark.parametrize(("stage", "expected"), [(0, "bf16"), (1, "fp32"), (2, "fp32"), (3, "fp32")])
def test_bfloat16_gradients_accumulate_in_float32_from_stage_1(stage: int, expected: str) -> None:
    config = LearnerConfig.model_validate({"zero_stage": stage, "dtype": "bfloat16"})
    settings = engine_settings(config, world_size=1, device_type="cpu")
    assert settings["data_types"]["grad_accum_dtype"] == expected


def test_offloading_without_zero_is_refused() -> None:
    config = LearnerConfig(zero_stage=0, offload_optimizer=True)
    with pytest.raises(ValueError, match=r"learner\.offload_optimizer needs learner\.zero_stage >= 1"):
        engine_settings(config, world_size=1, device_type="cpu")


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
