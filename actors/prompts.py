"""The source of prompts: JSON lines in, tokenized prompts in a seeded order out.

Position p of the order belongs to epoch p // n; each epoch is its own seeded permutation, so any position can be
looked up at any time, and a resumed run meets the same prompts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from cluster.batches import PROMPT_SCHEMA, check_prompts

MAX_LINE_BYTES = 4_000_000
MAX_LABEL = 1000
"""Longest id and source, in characters: they are part of every row of a rollout."""


@dataclass(frozen=True)
class Problem:
    """One row of a data file."""

    prompt_id: str
    text: str
    answer: str | None
    source: str


@dataclass(frozen=True)
class Prompt:
    """A problem rendered by the chat template."""

    prompt_id: str
    token_ids: list[int]
    answer: str | None
    source: str


def read_problems(path: str, field: str) -> list[Problem]:
    """Read a JSONL file; ValueError naming file and line for the first bad row, or `field` if it is empty."""
    try:
        if not Path(path).is_file():
            raise ValueError(f"{field}: no such file: {path}")
        with open(path, "rb") as file:
            problems = list(_problems(file, path))
    except OSError as error:
        raise ValueError(f"{field}: {path} cannot be read: {error.strerror}") from error
    if not problems:
        raise ValueError(f"{field}: {path} holds no problems")
    ids = [problem.prompt_id for problem in problems]
    if len(set(ids)) < len(ids):
        twice = next(prompt_id for prompt_id, count in Counter(ids).items() if count > 1)
        raise ValueError(f"{field}: {path} holds the id {twice!r} twice")
    return problems


def _problems(file: BinaryIO, path: str) -> Iterator[Problem]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes")
        if line.strip():
            yield _problem(line, f"{path}:{number}")


def _problem(line: bytes, place: str) -> Problem:
    try:
        row: Any = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # also a wrong encoding, and an integer of too many digits
        raise ValueError(f"{place}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not valid JSON: it is nested too deep") from error
    if not isinstance(row, dict) or not isinstance(row.get("problem"), str) or not row["problem"]:
        raise ValueError(f"{place}: needs a non-empty string under 'problem'")
    _check_text(row["problem"], "problem", place)
    return Problem(
        prompt_id=_label(row, "id", place) or place.rpartition(":")[2],
        text=row["problem"],
        answer=_label(row, "answer", place, MAX_LINE_BYTES),
        source=_label(row, "source", place) or "default",
    )


def _label(row: dict[str, Any], key: str, place: str, max_length: int = MAX_LABEL) -> str | None:
    """The text of a key, which may be a number; None without one. ValueError for anything else."""
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"{place}: needs a text or a number under {key!r}, not a {type(value).__name__}")
    text = str(value)
    _check_text(text, key, place)
    if len(text) > max_length or (key != "answer" and "\0" in text):
        raise ValueError(f"{place}: {key!r} must have at most {max_length} characters, and no NUL")
    return text


def _check_text(text: str, key: str, place: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half a character: no tokenizer takes it
        raise ValueError(f"{place}: {key!r} holds an unpaired surrogate, which is no text")


def render_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None,
    template_arguments: dict[str, Any],
) -> list[Prompt]:
    """Apply the chat template with a generation prompt and tokenize; ValueError without a template."""
    if not tokenizer.chat_template:
        raise ValueError("student.model_path: the student's tokenizer has no chat template")
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    prompts = []
    for problem in problems:
        messages = [*system, {"role": "user", "content": problem.text}]
        encoded: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **template_arguments
        )
        prompts.append(Prompt(problem.prompt_id, list(encoded["input_ids"]), problem.answer, problem.source))
    return prompts


def check_prompt_lengths(
    prompts: Sequence[Prompt],
    *,
    max_response_tokens: int,
    context: int,
    field: str,
    limit_field: str = "rollout.max_response_tokens",
) -> None:
    """ValueError naming the longest prompt if it leaves no room for a full response in the context."""
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    needed = len(longest.token_ids) + max_response_tokens
    if needed > context:
        raise ValueError(
            f"{field}: prompt {longest.prompt_id!r} has {len(longest.token_ids)} tokens, and with a response of "
            f"up to {max_response_tokens} needs {needed}, but the context holds {context} (nearest valid "
            f"{limit_field}: {max(0, context - len(longest.token_ids))})"
        )


class PromptSource:
    """Prompts in a seeded order, as generation requests. Slot i takes position i.

    A slot whose prompt is given up takes the next position after the last slot's, so no other slot shifts.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, num_samples: int, num_slots: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._num_samples = num_samples
        self._num_slots = num_slots
        self.replacements: dict[int, int] = {}  # position of slots whose first prompt was given up

    def prompt_of(self, slot: int) -> tuple[int, Prompt]:
        """Return (epoch, prompt) of a slot."""
        position = self.replacements.get(slot, slot)
        epoch, index = divmod(position, len(self._prompts))
        order = _permutation(len(self._prompts), self._seed, epoch)
        return epoch, self._prompts[int(order[index])]

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
        last = max([*self.replacements.values(), self._num_slots - 1])
        self.replacements[slot] = last + 1
        return given_up


def evaluation_requests(
    prompts: Sequence[Prompt], *, num_samples: int, seed: int, benchmark: str = "", first_slot: int = 0
) -> pa.Table:
    """Return requests for every prompt of a benchmark, `num_samples` each; the slots number the prompts.

    How a response is drawn depends on the place of its prompt in the benchmark, its sample and `seed` alone.
    """
    rows = [
        _request(prompt, f"eval-{benchmark}-{index}-{sample}", first_slot + index, 0, sample, seed)
        | {"seed": sampling_seed(seed, f"eval-{index}-{sample}")}
        for index, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    return check_prompts(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA))


def sampling_seed(seed: int, uid: str) -> int:
    """Seed of one response: the same for every attempt at it, so that a repeated attempt is no new draw."""
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


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)
