"""Prompts of a simulated run: nothing but lengths, drawn from a seed."""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from commands.plan.workers import SlotRequest
from settings.engine import NonNegative, Positive, Section
from settings.run import RunConfig
from settings.teachers import role_of_source

Spread = Annotated[float, Field(ge=0, le=5)]


class LengthsConfig(Section):
    """Tokens of prompts and responses. Response lengths are log-normal: most are short, a few very long."""

    prompt: NonNegative = 100
    """Tokens of every prompt."""
    median: Annotated[float, Field(ge=1)] = 300.0
    """Half of all responses are shorter."""
    spread: Spread = 1.0
    """Standard deviation of the logarithm of the length; 0 makes all equal, 1.5 is a long tail."""
    max: Positive = 4096
    """Longer responses are cut off here."""

    @model_validator(mode="after")
    def _median_within_max(self) -> Self:
        if self.median > self.max:
            raise ValueError(f"lengths.median must be <= lengths.max ({self.max}), got {self.median:g}")
        return self

    @property
    def mean(self) -> float:
        """Mean response length, of many that are drawn."""
        return float(np.mean(self.draw(20_000, seed=0)))

    def draw(self, num: int, *, seed: int) -> list[int]:
        """Return `num` response lengths."""
        drawn = np.random.default_rng(seed).lognormal(np.log(self.median), self.spread, num)
        return np.clip(np.rint(drawn), 1, self.max).astype(int).tolist()


class SimulatedPrompts:
    """The prompt source of a simulated run."""

    def __init__(self, config: RunConfig, lengths: LengthsConfig) -> None:
        self._num_samples = config.num_samples_per_prompt
        self._num_prompt_tokens = lengths.prompt
        self._sources = sorted(role_of_source(config)) or ["simulated"]
        self.num_slots = config.max_steps * config.batch_size
        self._lengths = lengths.draw(self.num_slots * self._num_samples, seed=config.seed)
        self.replacements: dict[int, int] = {}

    def requests_for(self, slots: Sequence[int], attempts: Sequence[int]) -> list[SlotRequest]:
        """The sizes of these slots."""
        return [self._request(slot, attempt) for slot, attempt in zip(slots, attempts, strict=True)]

    def give_up(self, slot: int) -> str:
        """Let the slot take another prompt, of the same size; no prompt here is bad, but one may be unlucky."""
        self.replacements[slot] = self.replacements.get(slot, slot) + 1
        return f"p{slot}"

    def _request(self, slot: int, attempt: int) -> SlotRequest:
        first = slot * self._num_samples
        lengths = tuple(self._lengths[first : first + self._num_samples])
        return SlotRequest(
            slot, attempt, self._num_prompt_tokens, lengths, self._sources[slot % len(self._sources)]
        )
