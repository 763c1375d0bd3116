"""The small real things of the engine's tests: a random Qwen3 on disk, published weights, exact log-probs."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from actors.engine import Engine, EngineSettings, Generation, GenerationRequest, Sampling
from actors.vllm import open_engine
from learner.publisher import WeightHistory, publish_weights
from settings.engine import EngineConfig
from tests.unit.buckets_in_place import BucketsInPlace
from transport.notes import LoadReport
from transport.weights import WeightManifest

T = TypeVar("T")

VOCAB_SIZE = 64
MAX_MODEL_LEN = 256
GOLDEN_TOKEN_IDS = [5, 17, 3, 40, 9, 22, 61, 8]
BUCKET_BYTES = 40_000
"""Small enough that the tiny model travels in several buckets."""


def save_model(path: Path, *, tied: bool = True, seed: int = 0) -> str:
    """Write a random Qwen3 whose log-probs are far from uniform; returns the path as text."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(1 + noise if "norm" in name else noise)
    model.save_pretrained(path)
    return str(path)


def read_model(path: str) -> Qwen3ForCausalLM:
    """Load a saved model in fp32."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


def perturb(model: Qwen3ForCausalLM, fragment: str = "", *, seed: int = 1) -> None:
    """Change every parameter whose name holds `fragment`, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if fragment in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@torch.no_grad()
def exact_log_probs(model: Qwen3ForCausalLM, prompt: Sequence[int], response: Sequence[int]) -> np.ndarray:
    """Log-prob of every response token by a transformers forward: float32 [T]."""
    token_ids = torch.tensor([[*prompt, *response]])
    logp_TV = torch.log_softmax(model(token_ids).logits[0].float(), dim=-1)
    positions = torch.arange(len(prompt) - 1, token_ids.shape[1] - 1)
    return logp_TV[positions, token_ids[0, len(prompt) :]].numpy()


def publish(
    model: Qwen3ForCausalLM,
    version: int,
    *,
    incarnation: int = 0,
    golden_error: float = 0.0,
    history: WeightHistory | None = None,
) -> tuple[WeightManifest, list[np.ndarray]]:
    """The manifest and buckets of a model (and differences, with a history), as the learner publishes them."""
    golden = exact_log_probs(model, GOLDEN_TOKEN_IDS[:1], GOLDEN_TOKEN_IDS[1:]) + golden_error
    *buckets, manifest = publish_weights(
        model,
        gathered=lambda _: nullcontext(),
        is_first_rank=True,
        incarnation=incarnation,
        version=version,
        dtype="float32",
        golden_token_ids=GOLDEN_TOKEN_IDS,
        golden_log_probs=golden.tolist(),
        max_bytes=BUCKET_BYTES,
        history=history,
    )
    assert isinstance(manifest, WeightManifest)
    assert len(buckets) > 3
    return manifest, [bucket for bucket in buckets if isinstance(bucket, np.ndarray)]


def in_place(published: tuple[WeightManifest, list[np.ndarray]]) -> tuple[WeightManifest, BucketsInPlace]:
    """The arguments of `load_weights`."""
    return published[0], BucketsInPlace(published[1])


def settings(
    model_path: str, *, vocab_size: int = VOCAB_SIZE, stops: tuple[int, ...] = (), **config: Any
) -> EngineSettings:
    """Settings of a small fp32 CPU engine."""
    sizes = {
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "kv_cache_gib": 0.1,
    }
    return EngineSettings(
        model_path=model_path,
        dtype="float32",
        device="cpu",
        seed=0,
        vocab_size=vocab_size,
        stop_token_ids=stops,
        config=EngineConfig.model_validate(sizes | config),
    )


@contextmanager
def opened(engine_settings: EngineSettings) -> Iterator[Any]:
    """A vLLM engine in this process; one at a time, since vLLM's process groups are global."""
    engine = open_engine(engine_settings)
    try:
        yield engine
    finally:
        engine.shutdown()


@dataclass
class Student:
    """An engine, the folder it was opened from, and the model whose weights it holds."""

    engine: Any
    path: str
    model: Qwen3ForCausalLM
    version: int = 0

    def publish(self, *, golden_error: float = 0.0) -> tuple[WeightManifest, list[np.ndarray]]:
        """The model's present weights under the next version."""
        self.version += 1
        return publish(self.model, self.version, golden_error=golden_error)

    async def load(self) -> LoadReport:
        """Bring the engine up to the model."""
        return await self.engine.load_weights(*in_place(self.publish()))

    @property
    def is_idle(self) -> bool:
        """True when the engine has nothing left to do."""
        return not self.engine._engine.has_unfinished_requests()


def prompt_of(index: int) -> list[int]:
    """Prompts of different lengths."""
    return [3 + (7 * index + j) % 33 for j in range(4 + index % 5)]


def requests(count: int, *, name: str = "r") -> dict[str, GenerationRequest]:
    """Requests by id, each with its own prompt and seed."""
    return {f"{name}{i}": GenerationRequest(f"{name}{i}", prompt_of(i), seed=i) for i in range(count)}


async def collect(
    engine: Engine, wanted: dict[str, GenerationRequest], sampling: Sampling, found: list[Generation] | None = None
) -> list[Generation]:
    """All responses in finish order; `found` holds those that have come so far."""
    found = [] if found is None else found
    async with aclosing(engine.generate(list(wanted.values()), sampling)) as generations:
        async for generation in generations:
            found.append(generation)
    return found


async def until(predicate: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Wait until something is true; TimeoutError otherwise."""
    async with asyncio.timeout(timeout_s):
        while not predicate():
            await asyncio.sleep(0.01)


def run(work: Coroutine[Any, Any, T], *, timeout_s: float = 300.0) -> T:
    """Run a coroutine in a fresh event loop, with a limit."""
    return asyncio.run(asyncio.wait_for(work, timeout_s))
