"""One word for each thing: words that were given up stand in no code, comment or document."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    r"pulses?": "heartbeat",
    r"likeliest": "top-k",
    r"known.answers?": "replica check",
    r"lent|lends?|lending": "borrowed",
    r"(?:go|goes|going|gone|went) on": "continues, is running",
    r"rooms?": "capacity, space",
    r"in.hand|inhand": "in place, zero-copy, in progress",
    r"(?<!of )courses?": "attempt",
    r"so long an? \w+ may": "maximum time for a ... to ...",
    r"how an? \w+ does": "... health",
}
"""What was given up, as a word or a part of a name, and what stands in its place."""
PATTERN = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])", re.IGNORECASE)
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".service", ".sbatch", ".j2", ".css", ".svg", ""}
NOT_OURS = {
    "LICENSE",
    "CHANGELOG.md",
    "benchmarks/LOG.md",
    "examples/smollm2/prompts.py",
    "tests/unit/test_words.py",
}
KEPT = ('"room":',)
"""A key of `preflight.json`, which people read."""


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and name not in NOT_OURS]
    return [ROOT / name for name in names if Path(name).suffix in TEXT and (ROOT / name).is_file()]


def test_words_that_were_given_up_are_found_in_prose_and_in_names() -> None:
    found = ["it goes on", "Pulse()", "room_for(x)", "self._in_hand", "a worker is lent", "the old course"]
    clean = ["headroom", "impulse", "of course", "go once", "talent", "a mushroom", "onwards"]
    assert [text for text in found if not PATTERN.search(text)] == []
    assert [text for text in clean if PATTERN.search(text)] == []


def test_no_word_that_was_given_up_is_left() -> None:
    left = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in PATTERN.finditer(line)
        if not any(kept in line for kept in KEPT)
    ]
    assert left == []
