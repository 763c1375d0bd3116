"""Prompts -> generation requests, in a seeded order with random access to any position."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from inputs.mixture import PromptMixture, PromptOrder
from inputs.rendering import Prompt
from transport.batches import PROMPT_SCHEMA, check_prompts


class PromptSource:
    """Prompts in a seeded order, as generation requests. Slot i takes position i.

    A slot whose prompt is given up takes the next position after the last slot's, so no other slot shifts.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, num_samples: int, num_slots: int) -> None:
        mixture = prompts if isinstance(prompts, PromptMixture) else PromptMixture([prompts], [1.0])
        self._parts = mixture.parts
        self._order = PromptOrder([len(part) for part in mixture.parts], mixture.weights, seed=seed)
        self._seed = seed
        self._num_samples = num_samples
        self.num_slots = num_slots
        self.replacements: dict[int, int] = {}  # position of slots whose first prompt was given up

    def prompt_of(self, slot: int) -> tuple[int, Prompt]:
        """Return (epoch, prompt) of a slot; the epoch is that of the prompt's data set."""
        epoch, part, index = self._order.place(self.replacements.get(slot, slot))
        return epoch, self._parts[part][index]

    def requests_for(self, slots: Sequence[int], attempts: Sequence[int]) -> pa.Table:
        """Return the generation requests of some slots: `num_samples` rows per slot."""
        rows: list[dict[str, Any]] = []
        for slot, attempt in zip(slots, attempts, strict=True):
            epoch, prompt = self.prompt_of(slot)
            for sample in range(self._num_samples):
                uid = f"{slot}-{epoch}-{prompt.prompt_id}-{sample}"
                rows.append(_request(prompt, uid, slot, attempt, sample, self._seed))
        return check_prompts(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA))

    def give_up(self, slot: int) -> str:
        """Let the slot take the next unused position; returns the id of the prompt given up."""
        given_up = self.prompt_of(slot)[1].prompt_id
        last = max([*self.replacements.values(), self.num_slots - 1])
        self.replacements[slot] = last + 1
        return given_up


def evaluation_requests(
    prompts: Sequence[Prompt], *, num_samples: int, seed: int, benchmark: str = "", first_slot: int = 0
) -> pa.Table:
    """Return requests for every prompt of a benchmark, `num_samples` each; the slots number the prompts.

    How a response is sampled depends only on `seed`, its sample and the index of its prompt in the benchmark.
    """
    rows = [
        _request(prompt, f"eval-{benchmark}-{index}-{sample}", first_slot + index, 0, sample, seed)
        | {"seed": sampling_seed(seed, f"eval-{index}-{sample}")}
        for index, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    return check_prompts(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA))


def sampling_seed(seed: int, uid: str) -> int:
    """Seed of one response: the same for every attempt at it, so that a retry is not a new sample."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:4], "big")


def _request(prompt: Prompt, uid: str, slot: int, attempt: int, sample: int, seed: int) -> dict[str, Any]:
    return {
        "uid": uid,
        "slot": slot,
        "attempt": attempt,
        "prompt_id": prompt.prompt_id,
        "sample": sample,
        "seed": sampling_seed(seed, uid),
        "source": prompt.source,
        "answer": prompt.answer,
        "prompt_token_ids": prompt.token_ids,
    }
