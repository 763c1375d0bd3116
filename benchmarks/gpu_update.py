"""Updates of a random Qwen3 student from a random Qwen3 teacher, with nothing but torch and transformers.

Shapes: B sequences, N tokens of one without its last, T response tokens, V vocabulary, H hidden size.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from learner.log_probs import HeadLimits
from learner.student import StudentModel
from rewards import DIVERGENCES, TOKEN_REWARDS, TeacherLogits

SIZES = {
    "qwen3": {
        "student": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
        "teacher": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        },
        "shared": {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128},
    },
    "tiny": {
        "student": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "teacher": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2},
        "shared": {"vocab_size": 4096, "num_key_value_heads": 1, "head_dim": 32},
    },
}


ALPHA = 5.0


def build(size: str, role: str, device: torch.device) -> Qwen3ForCausalLM:
    """Return a random bfloat16 model of one of the architectures."""
    settings: dict[str, Any] = {**SIZES[size]["shared"], **SIZES[size][role]}
    config = Qwen3Config(**settings, tie_word_embeddings=True, use_cache=False, dtype=torch.bfloat16)
    with torch.device(device):
        return Qwen3ForCausalLM._from_config(config)


class Update:
    """One learner update on a batch of B sequences of P prompt and T response tokens."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        device = torch.device(arguments.device)
        self.prompt = arguments.prompt_tokens
        self.student = build(arguments.size, "student", device).train()
        self.teacher = build(arguments.size, "teacher", device).eval().requires_grad_(False)
        if arguments.activation_checkpointing:
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-6, weight_decay=0.0)
        vocabulary = SIZES[arguments.size]["shared"]["vocab_size"]
        shape = (arguments.batch_size, arguments.prompt_tokens + arguments.response_tokens)
        self.ids_BN = torch.randint(vocabulary, shape, device=device)
        limits = HeadLimits(vocabulary, chunk_tokens=arguments.head_chunk_tokens)
        self.student_head = StudentModel(self.student, limits)
        self.teacher_head = StudentModel(self.teacher, limits)
        num_tokens = shape[1] - 1
        self.positions_N = torch.arange(num_tokens, device=device)
        self.sources_T = self.positions_N[self.prompt - 1 :]

    def power(self) -> None:
        """PowerOPD, one sequence at a time: sampled-token log-probs of both sides."""
        self._each_sequence(self._power_loss)

    def power_naive(self) -> None:
        """PowerOPD from all logits of both sides, in float32."""
        self._each_sequence(self._power_naive_loss)

    def full(self) -> None:
        """Full-vocabulary reverse KL whose logits exist for one block of positions at a time."""
        self._each_sequence(self._chunked_full_loss)

    def full_naive(self) -> None:
        """Full-vocabulary reverse KL, one sequence at a time: both softmaxes in float32."""
        self._each_sequence(self._full_loss)

    def _each_sequence(self, loss_of: Callable[[Tensor], Tensor]) -> None:
        for ids_N in self.ids_BN:
            (loss_of(ids_N) / self.ids_BN.shape[0]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _power_loss(self, ids_N: Tensor) -> Tensor:
        inputs = (ids_N[:-1], self.positions_N, self.sources_T, ids_N[self.prompt :])
        with torch.no_grad():
            teacher_T, _ = self.teacher_head(*inputs)
        return self._policy_gradient(teacher_T, self.student_head(*inputs)[0])

    def _power_naive_loss(self, ids_N: Tensor) -> Tensor:
        teacher_TV, student_TV = self._all_log_probs(ids_N)
        targets_T1 = ids_N[self.prompt :, None]
        return self._policy_gradient(
            teacher_TV.gather(1, targets_T1)[:, 0], student_TV.gather(1, targets_T1)[:, 0]
        )

    def _policy_gradient(self, teacher_T: Tensor, logp_T: Tensor) -> Tensor:
        mask_T = torch.ones_like(logp_T, dtype=torch.bool)
        return -(TOKEN_REWARDS["power"](teacher_T, logp_T.detach(), mask_T, alpha=ALPHA) * logp_T).mean()

    def _full_loss(self, ids_N: Tensor) -> Tensor:
        teacher_TV, student_TV = self._all_log_probs(ids_N)
        return (student_TV.exp() * (student_TV - teacher_TV)).sum(-1).mean()

    def _chunked_full_loss(self, ids_N: Tensor) -> Tensor:
        with torch.no_grad():
            hidden_1NH = self.teacher.get_decoder()(ids_N[None, :-1]).last_hidden_state
        hidden_TH, head = hidden_1NH[0, self.sources_T], self.teacher.lm_head

        def value(logits_SV: Tensor, positions_S: Tensor) -> Tensor:
            return DIVERGENCES["reverse_kl"](logits_SV, TeacherLogits(head(hidden_TH[positions_S])))

        inputs = (ids_N[:-1], self.positions_N, self.sources_T, ids_N[self.prompt :])
        return self.student_head(*inputs, value)[2].mean()

    def _all_log_probs(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's and the student's, [T, V]."""
        with torch.no_grad():
            teacher_TV = self.teacher(ids_N[None, :-1]).logits[0, self.sources_T].float().log_softmax(-1)
        student_TV = self.student(ids_N[None, :-1]).logits[0, self.sources_T].float().log_softmax(-1)
        return teacher_TV, student_TV


def timed(update: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Return (seconds, peak GiB allocated on the device; 0 on CPUs) of one update."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    update()
    if is_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**30 if is_gpu else 0.0
