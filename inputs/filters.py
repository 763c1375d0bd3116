"""Problems -> training prompts: drops and counts duplicates, overlaps with evaluation sets, and long prompts.

Overlap is 13 consecutive words, as in GPT-3 (Brown et al. 2020, appendix C), ignoring case, punctuation and
spaces. An evaluation problem with fewer words overlaps where a training problem has exactly those.
"""

import hashlib
import logging
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from inputs.data_report import DUPLICATES, OVERLAPS, TOO_LONG, SourceReport
from inputs.problems import Problem
from inputs.rendering import BATCH, Prompt
from settings.data import DataConfig

SAY_AFTER_S = 20.0
"""What takes longer is said, again after as long."""
logger = logging.getLogger(__name__)
GRAM_WORDS = 13
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """What a training problem shares with an evaluation set."""

    name: str  # of the problem in the evaluation set: `eval_math500.jsonl: test/algebra/7`
    words: str


class HeldOut:
    """Problems to exclude from training."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        """`problems` are pairs of a name and a text; only the grams stay in memory."""
        self._name_of_gram: dict[str, str] = {}
        self.num_problems = 0
        digest = hashlib.sha256()
        for name, text in problems:
            self.num_problems += 1
            digest.update(f"{name}\0{text}\0".encode())
            for gram in grams(text):
                self._name_of_gram.setdefault(gram, name)
        self.fingerprint = digest.hexdigest()

    def overlap(self, text: str) -> Overlap | None:
        """The first words that a text shares with a problem here; None if it shares none."""
        gram = next((gram for gram in grams(text) if gram in self._name_of_gram), None)
        return None if gram is None else Overlap(self._name_of_gram[gram], gram)


class Filters:
    """The filters of a run; they see its sources one after the other, so a duplicate in a later one is dropped."""

    def __init__(
        self, config: DataConfig, held_out: HeldOut | None, render: Callable[[Sequence[Problem]], list[Prompt]]
    ) -> None:
        self._config = config
        self._held_out = held_out
        self._render = render
        self._seen = Seen()

    def pass_on(
        self, problems: Iterable[Problem], report: SourceReport, write: Callable[[Sequence[Prompt]], object]
    ) -> None:
        """Write the prompts of one source that are to be trained on, in their order, and count in `report`.

        ValueError if two of them have the same id.
        """
        ids, digest, rest = Seen(), hashlib.sha256(), iter(problems)
        say_at_s = time.monotonic() + SAY_AFTER_S
        while batch := list(islice(rest, BATCH)):
            report.rows += len(batch)
            if time.monotonic() > say_at_s:
                say_at_s = time.monotonic() + SAY_AFTER_S
                logger.warning("%s: making prompts takes long: %d rows so far", report.setting, report.rows)
            prompts = self._short(self._render(self._clean(self._first(batch, report), report)), report)
            for prompt, is_new in zip(prompts, ids.are_new([each.prompt_id for each in prompts]), strict=True):
                if not is_new:
                    raise ValueError(f"{report.setting}: {report.path} holds the id {prompt.prompt_id!r} twice")
                report.keep(prompt)
                digest.update(f"{prompt.prompt_id}\0{prompt.answer}\0{prompt.source}\0".encode())
                digest.update(np.array(prompt.token_ids, dtype=np.int32).tobytes())
            write(prompts)
        report.sha256 = digest.hexdigest()

    def _first(self, problems: list[Problem], report: SourceReport) -> list[Problem]:
        if not self._config.drop_duplicates:
            return problems
        are_new = self._seen.are_new([normalised(problem.text) for problem in problems])
        for problem, is_new in zip(problems, are_new, strict=True):
            if not is_new:
                report.drop(DUPLICATES, problem.prompt_id)
        return [problem for problem, is_new in zip(problems, are_new, strict=True) if is_new]

    def _clean(self, problems: list[Problem], report: SourceReport) -> list[Problem]:
        if self._held_out is None:
            return problems
        clean: list[Problem] = []
        for problem in problems:
            overlap = self._held_out.overlap(problem.text)
            if overlap is None:
                clean.append(problem)
            else:
                report.drop(OVERLAPS, f"{problem.prompt_id} with {overlap.name}: {overlap.words!r}")
        return clean

    def _short(self, prompts: list[Prompt], report: SourceReport) -> list[Prompt]:
        limit = self._config.max_prompt_tokens
        if limit is None:
            return prompts
        for prompt in prompts:
            if len(prompt.token_ids) > limit:
                report.drop(TOO_LONG, f"{prompt.prompt_id} with {len(prompt.token_ids):,} tokens")
        return [prompt for prompt in prompts if len(prompt.token_ids) <= limit]


def normalised(text: str) -> str:
    """A text by which duplicates are found: without differences of case, spaces and the width of letters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def grams(text: str) -> Iterator[str]:
    """Every run of 13 words of a text; all of its words if there are fewer."""
    words = words_of(text)
    for start in range(max(1, len(words) - GRAM_WORDS + 1) if words else 0):
        yield " ".join(words[start : start + GRAM_WORDS])


def words_of(text: str) -> list[str]:
    """Letters and digits in a row, in lower case: `\\frac{1}{2}` is three words."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Seen:
    """Which texts came before, by 64-bit digests: of ten million, two are taken for one with a chance of 3e-6.

    Kept as sorted arrays, of which a shorter one is merged into the one before it.
    """

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def are_new(self, texts: Sequence[str]) -> list[bool]:
        """For each text whether it comes for the first time; from now on all were seen."""
        digests = np.array([_digest(text) for text in texts], dtype=np.uint64)
        unique, first = np.unique(digests, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for array in self._sorted:
            places = np.minimum(np.searchsorted(array, unique), len(array) - 1)
            known |= array[places] == unique
        is_new = np.zeros(len(digests), dtype=bool)
        is_new[first[~known]] = True
        self._add(unique[~known])
        return is_new.tolist()

    def _add(self, digests: np.ndarray) -> None:
        if not len(digests):
            return
        self._sorted.append(digests)
        while len(self._sorted) > 1 and len(self._sorted[-2]) <= 2 * len(self._sorted[-1]):
            last = self._sorted.pop()
            self._sorted[-1] = np.sort(np.concatenate([self._sorted[-1], last]))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
