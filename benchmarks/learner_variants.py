"""The updates that `benchmarks/learner.py` compares: the learner's, the same without DeepSpeed, and a naive one.

All take a scored table and make one optimizer step of PowerOPD: bfloat16 or float32 forward and backward, AdamW on
float32 weights, gradients clipped to the same norm.

Shapes: B sequences, N padded tokens, T response tokens, V vocabulary.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from learner.collate import PackedBatch
from learner.deepspeed_backend import StepOutcome, load_student
from learner.rank import LearnerRank
from learner.ranks import Ranks
from rewards import TOKEN_REWARDS
from settings.run import RunConfig
from transport.batches import SCORED_SCHEMA
from transport.stop_tokens import StopTokens

ALPHA, CLIP, LEARNING_RATE = 5.0, 1.0, 1e-6
GOLDEN_TOKEN_IDS = [5, 17, 3, 40]


def scored_table(lengths: list[int], *, prompt_tokens: int, vocabulary: int) -> pa.Table:
    """Random scored rollouts of so many tokens each, prompt included."""
    rows = []
    for index, length in enumerate(lengths):
        rng = np.random.default_rng(index)
        num_tokens = length - prompt_tokens
        ids = rng.integers(2, vocabulary, num_tokens).tolist()
        rows.append(
            {
                "uid": f"{index:06d}",
                "slot": index,
                "attempt": 0,
                "prompt_id": f"p{index}",
                "sample": 0,
                "seed": 0,
                "source": "random",
                "answer": None,
                "prompt_token_ids": rng.integers(2, vocabulary, prompt_tokens).tolist(),
                "response_token_ids": ids,
                "behaviour_log_probs": (-rng.gamma(2.0, 1.5, num_tokens)).tolist(),
                "weight_versions": [{"version": 0, "num_tokens": num_tokens}],
                "finish_reason": "length",
                "teacher_target_ids": ids,
                "teacher_log_probs": (-rng.gamma(2.0, 1.5, num_tokens)).tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)


def run_config(model_path: str, **learner: Any) -> RunConfig:
    """The configuration of a run with PowerOPD and these settings of the learner, without diagnostics."""
    optimizer = {"learning_rate": LEARNING_RATE, "max_grad_norm": CLIP}
    return RunConfig.model_validate(
        {
            "student": {"model_path": model_path},
            "teacher": {"model_path": model_path},
            "data": {"train_path": "unused.jsonl"},
            "learner": optimizer | learner,
            "objective": {"name": "power", "alpha": ALPHA, "rescale": "none", "stop_mode": "raw"},
            "importance": {"name": "truncated", "low": 0.0, "high": 2.0},
        }
    )


def learner_rank(config: RunConfig, *, rank: int, vocabulary: int) -> LearnerRank:
    """A rank of the learner that is not set up yet."""
    return LearnerRank(
        config,
        rank=rank,
        world_size=config.learner.num_workers,
        stops=StopTokens(student_ids=(1,), teacher_ids=(1,)),
        golden_token_ids=GOLDEN_TOKEN_IDS,
        vocab_size=vocabulary,
        is_local=True,
    )


def plain_rank(config: RunConfig, *, vocabulary: int) -> LearnerRank:
    """The only rank of a learner without DeepSpeed."""
    torch.set_num_threads(config.learner.num_threads)
    rank = learner_rank(config, rank=0, vocabulary=vocabulary)
    rank.ranks = Ranks(0, 1, torch.device("cpu"))
    rank.backend = PlainBackend(load_student(config, {}, vocab_size=vocabulary))  # pyright: ignore[reportAttributeAccessIssue]
    return rank


class MasterWeights:
    """AdamW on float32 copies of parameters; on the parameters themselves if they are float32."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.masters = [parameter.detach().to(torch.float32).requires_grad_() for parameter in parameters]
        self.is_copy = parameters[0].dtype != torch.float32
        if not self.is_copy:
            self.masters = list(parameters)
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        )

    def take_gradients(self) -> None:
        """Add the parameters' gradients to those of the float32 weights, and free them."""
        if not self.is_copy:
            return
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter.grad is not None:
                gradient = parameter.grad
                master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def step(self) -> float:
        """Clip, update and clear; returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self.masters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.is_copy:
            with torch.no_grad():
                for parameter, master in zip(self.parameters, self.masters, strict=True):
                    parameter.copy_(master)
        return float(norm)


class PlainBackend:
    """What `LearnerRank.train_step` asks of its backend, with torch alone."""

    zero_stage = 0

    def __init__(self, student: Any) -> None:
        self.student = student
        self.weights = MasterWeights(list(student.parameters()))

    def log_probs(self, batch: PackedBatch, *callbacks: Any) -> tuple[Tensor, ...]:
        """Return what the student does."""
        inputs = (batch.input_ids_N, batch.position_ids_N, batch.source_positions_T, batch.target_ids_T)
        return self.student(*inputs, *callbacks)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of a loss."""
        loss.backward()
        self.weights.take_gradients()

    def step(self, *, learning_rate: float) -> StepOutcome:
        """Update the weights."""
        for group in self.weights.optimizer.param_groups:
            group["lr"] = learning_rate
        return StepOutcome(self.weights.step(), was_skipped=False)


class NaiveLearner:
    """Padded batches, all logits, `log_softmax` in float32, torch's autograd and AdamW."""

    def __init__(self, model_path: str, *, dtype: str, threads: int, micro_batch_tokens: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).train()
        self.weights = MasterWeights(list(self.model.parameters()))
        self.micro_batch_tokens = micro_batch_tokens

    def train_step(self, table: pa.Table) -> None:
        """Take one step; a micro-batch is as many rows, padded to the longest, as have so many tokens."""
        rows = table.select(
            ["prompt_token_ids", "response_token_ids", "teacher_log_probs", "behaviour_log_probs"]
        ).to_pylist()
        num_tokens = sum(len(row["response_token_ids"]) for row in rows)
        longest = max(len(row["prompt_token_ids"]) + len(row["response_token_ids"]) for row in rows)
        size = max(self.micro_batch_tokens // longest, 1)
        for start in range(0, len(rows), size):
            (self._loss(rows[start : start + size]) / num_tokens).backward()
            self.weights.take_gradients()
        self.weights.step()

    def _loss(self, rows: list[dict[str, Any]]) -> Tensor:
        length = max(len(row["prompt_token_ids"]) + len(row["response_token_ids"]) for row in rows)
        ids_BN = torch.zeros(len(rows), length, dtype=torch.int64)
        attention_BN, mask_BN = torch.zeros_like(ids_BN), torch.zeros(ids_BN.shape, dtype=torch.bool)
        teacher_BN, behaviour_BN = torch.zeros(ids_BN.shape), torch.zeros(ids_BN.shape)
        for index, row in enumerate(rows):
            first = len(row["prompt_token_ids"])
            end = first + len(row["response_token_ids"])
            ids_BN[index, :end] = torch.tensor(row["prompt_token_ids"] + row["response_token_ids"])
            attention_BN[index, :end] = 1
            mask_BN[index, first:end] = True
            teacher_BN[index, first:end] = torch.tensor(row["teacher_log_probs"])
            behaviour_BN[index, first:end] = torch.tensor(row["behaviour_log_probs"])
        # Rows of one length need no mask, and without one attention takes its fast path.
        attention = None if attention_BN.all() else attention_BN
        logits_BNV = self.model(input_ids=ids_BN, attention_mask=attention, use_cache=False).logits
        log_probs_BNV = logits_BNV[:, :-1].float().log_softmax(-1)
        logp_BN = log_probs_BNV.gather(-1, ids_BN[:, 1:, None])[..., 0]
        mask_BN, teacher_BN, behaviour_BN = mask_BN[:, 1:], teacher_BN[:, 1:], behaviour_BN[:, 1:]
        reward_BN = TOKEN_REWARDS["power"](teacher_BN, logp_BN.detach(), mask_BN, alpha=ALPHA)
        weight_BN = (logp_BN.detach() - behaviour_BN).exp().clamp(max=2.0)
        return -(weight_BN * reward_BN * logp_BN)[mask_BN].sum()


def set_rank_environment(rank: int, world_size: int) -> None:
    """What DeepSpeed wants to know before it is imported."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )
