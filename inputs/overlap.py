"""Overlap of training problems with evaluation sets, by 13 words in a row.

The rule is that of GPT-3 (Brown et al. 2020, appendix C) with 13-grams of words: case, punctuation and spaces do
not count. A problem of the evaluation that has fewer words is found where a training problem has exactly those.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

GRAM_WORDS = 13
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """What a training problem shares with an evaluation set."""

    name: str  # of the problem in the evaluation set: `eval_math500.jsonl: test/algebra/7`
    words: str


class HeldOut:
    """Problems that must not be trained on."""

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


def grams(text: str) -> Iterator[str]:
    """Every run of 13 words of a text; all of its words if there are fewer."""
    words = words_of(text)
    for start in range(max(1, len(words) - GRAM_WORDS + 1) if words else 0):
        yield " ".join(words[start : start + GRAM_WORDS])


def words_of(text: str) -> list[str]:
    """Letters and digits in a row, in lower case: `\\frac{1}{2}` is three words."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """A text by which duplicates are found: without differences of case, spaces and the width of letters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
