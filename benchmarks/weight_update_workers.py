"""The actors of `benchmarks/weight_update.py`: a learner that only publishes, a worker that times its steps."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from actors.rollout_worker import RolloutWorker
from transport.notes import Heartbeat
from transport.weights import WeightManifest

GOLDEN_TOKEN_IDS = [5, 17, 3, 40, 9, 22, 61, 8, 30, 31, 32, 33, 34, 35, 36, 37]
SIZES: dict[str, dict[str, Any]] = {
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    "tiny": {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
}
"""Llama shapes with tied embeddings; that of 135m is SmolLM2-135M's."""


def save_model(size: str, path: str) -> int:
    """Write a random bfloat16 model of this size; returns its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM._from_config(config)
    model.save_pretrained(path)
    return model.num_parameters()


class Publisher:
    """A learner's rank that only publishes: before each version a share of all weights changes."""

    def __init__(self, path: str, *, changed: float, delta: bool) -> None:
        self._path = path
        self._changed = changed
        self._delta = delta

    def ping(self) -> Heartbeat:
        """Answer."""
        return Heartbeat()

    def rendezvous(self) -> tuple[str, int]:
        """Any address."""
        return "127.0.0.1", 1

    def setup(self, address: str, port: int) -> None:
        """Load the model."""
        import torch
        from transformers import AutoModelForCausalLM

        from learner.publisher import BucketMemory, WeightHistory

        torch.set_num_threads(1)
        self._model: Any = AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.bfloat16).eval()
        self._history = WeightHistory(full_every=10**6) if self._delta else None
        self._memory = BucketMemory()

    def change(self, version: int) -> None:
        """Scale a random share of every parameter's elements by 1 + 1/64."""
        import torch

        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in self._model.parameters():
                is_changed = torch.rand(parameter.shape, generator=generator) < self._changed
                parameter.mul_(torch.where(is_changed, 1 + 2**-6, 1.0).to(parameter.dtype))

    def publish(self, incarnation: int, version: int) -> Iterator[np.ndarray | WeightManifest]:
        """As a rank publishes: golden log-probs, then buckets, then the manifest."""
        import torch

        from learner.publisher import publish_weights

        start = time.perf_counter()
        ids = torch.tensor([GOLDEN_TOKEN_IDS])
        with torch.no_grad():
            logp_TV = torch.log_softmax(self._model(ids[:, :-1]).logits[0].float(), dim=-1)
        golden = logp_TV.gather(1, ids[0, 1:, None])[:, 0].tolist()
        self._golden_s = time.perf_counter() - start
        yield from publish_weights(
            self._model,
            gathered=lambda _: nullcontext(),
            is_first_rank=True,
            incarnation=incarnation,
            version=version,
            dtype="bfloat16",
            golden_token_ids=GOLDEN_TOKEN_IDS,
            golden_log_probs=golden,
            history=self._history,
            memory=self._memory,
        )

    def golden_s(self) -> float:
        """Seconds that the golden log-probs of the newest version took, as part of publishing it."""
        return self._golden_s

    def shutdown(self) -> None:
        """Nothing to do."""


class TimedWorker(RolloutWorker):
    """Notes when each engine step ended whose tokens could be delivered."""

    async def start(self) -> float:
        """As the worker."""
        seconds = await super().start()
        engine: Any = self._engine
        step, self._step_ends = engine._engine.step, []

        def timed_step() -> Any:
            outputs = step()
            if engine._is_serving:  # not while new weights are verified
                self._step_ends.append(time.time())
            return outputs

        engine._engine.step = timed_step
        return seconds

    async def longest_gap(self, since: float) -> float:
        """Longest time between the ends of two steps that follow each other, from `since` (epoch seconds)."""
        ends = np.asarray([end for end in self._step_ends if end >= since])
        return float(np.diff(ends).max()) if len(ends) > 1 else float("nan")
