"""Packed sequences are attended to one by one, with the same result as each alone and as under a mask."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from learner.log_probs import HeadLimits
from learner.packed_attention import PACKED, use_packed_attention
from learner.student import StudentModel
from tests.unit.test_learner_scene import VOCAB_SIZE, tiny_qwen3
from tests.unit.test_log_probs import relative

LENGTHS = (7, 1, 12, 2)


def packed() -> tuple[Tensor, Tensor]:
    ids_N = torch.randint(VOCAB_SIZE, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return ids_N, torch.cat([torch.arange(length) for length in LENGTHS])


def values_and_gradients(student: StudentModel, ids_N: Tensor, positions_N: Tensor) -> tuple[Tensor, list[Tensor]]:
    logp_N, _ = student(ids_N, positions_N, torch.arange(len(ids_N)), ids_N.flip(0))
    gradients = torch.autograd.grad((logp_N * torch.arange(len(ids_N))).sum(), list(student.parameters()))
    return logp_N.detach(), list(gradients)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_values_and_gradients_equal_those_under_a_mask(is_checkpointed: bool) -> None:
    found = []
    for is_packed in (False, True):
        causal_lm = tiny_qwen3().train()
        if is_packed:
            use_packed_attention(causal_lm)
        if is_checkpointed:
            causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        assert (causal_lm.config._attn_implementation == PACKED) == is_packed
        found.append(values_and_gradients(StudentModel(causal_lm, HeadLimits(VOCAB_SIZE)), *packed()))
    (masked_N, masked), (alone_N, alone) = found
    torch.testing.assert_close(alone_N, masked_N, rtol=1e-6, atol=1e-6)
    for left, right in zip(alone, masked, strict=True):
        assert relative(left, right) <= 1e-5


def test_each_sequence_has_the_values_it_has_alone() -> None:
    causal_lm = tiny_qwen3()
    use_packed_attention(causal_lm)
    student = StudentModel(causal_lm, HeadLimits(VOCAB_SIZE))
    ids_N, positions_N = packed()
    logp_N, _ = student(ids_N, positions_N, torch.arange(len(ids_N)), ids_N)
    for part_N in torch.arange(len(ids_N)).split(LENGTHS):
        alone = causal_lm(input_ids=ids_N[None, part_N]).logits[0].log_softmax(-1)
        torch.testing.assert_close(
            logp_N[part_N], alone.gather(1, ids_N[part_N, None])[:, 0], rtol=1e-5, atol=1e-5
        )


def test_a_model_with_a_sliding_window_keeps_its_masks() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    causal_lm = MistralForCausalLM(MistralConfig(vocab_size=8, num_key_value_heads=1, sliding_window=4, **sizes))
    use_packed_attention(causal_lm)
    assert causal_lm.config._attn_implementation == "sdpa"


def turned(**rope: Any) -> StudentModel:
    """A student of 512 positions, whose weights are large enough that attention tells them apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10_000.0, "factor": 4.0, **rope},
        initializer_range=0.3,
    )
    causal_lm = LlamaForCausalLM(config).eval()
    use_packed_attention(causal_lm)
    return StudentModel(causal_lm, HeadLimits(VOCAB_SIZE))


LONGROPE = {"original_max_position_embeddings": 32, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}


@pytest.mark.parametrize(
    ("rope", "fits"), [({"rope_type": "longrope", **LONGROPE}, 32), ({"rope_type": "dynamic"}, 512)]
)
def test_a_model_that_turns_positions_by_the_longest_is_refused_beyond_the_length_at_which_it_does(
    rope: dict[str, Any], fits: int
) -> None:
    golden = torch.arange(3, 20)
    turned(**rope).check_packing(golden, limit=1e-5, longest=fits)
    with pytest.raises(ValueError, match="turns positions by the longest"):
        turned(**rope).check_packing(golden, limit=1e-5, longest=fits + 1)


@pytest.mark.parametrize("rope", [{"rope_type": "yarn"}, {"rope_type": "linear"}])
def test_a_model_that_turns_every_position_alike_has_no_such_length(rope: dict[str, Any]) -> None:
    turned(**rope).check_packing(torch.arange(3, 20), limit=1e-5, longest=512)


def test_a_model_whose_packed_sequences_see_one_another_is_refused() -> None:
    student = StudentModel(tiny_qwen3(), HeadLimits(VOCAB_SIZE))
    golden = torch.arange(3, 12)
    student.check_packing(golden, limit=1e-5)
    embeddings: Any = student.causal_lm.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    embeddings.register_forward_hook(lambda _module, _inputs, hidden: hidden + hidden.cumsum(dim=1))
    with pytest.raises(ValueError, match="lets packed sequences see one another"):
        student.check_packing(golden, limit=1e-5)
