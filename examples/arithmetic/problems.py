"""Sums of two or three numbers with worked steps: the demo's training and held-out problems.

    python examples/arithmetic/problems.py --out examples/arithmetic/data

writes `train.jsonl` and `heldout.jsonl`, one row per line:

    {"id": "train-00007", "problem": "12+30+5", "answer": "47", "source": "arithmetic"}

A problem's side follows from a hash of its sorted numbers, so no held-out problem, in any order of its numbers,
is ever a training problem, whatever the seeds and counts.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Numbers = tuple[int, ...]
Side = Literal["train", "heldout"]

MAX_NUMBER = 99
NUM_TERMS = (2, 3, 3)
"""Two in three problems have three numbers: there are only 9,801 sums of two."""
HELDOUT_PERCENT = 5
NUM_TRAIN = 20_000
NUM_HELDOUT = 200


def side_of(numbers: Numbers) -> Side:
    """Return the set a problem belongs to: the same for every order of its numbers, on every machine."""
    key = "+".join(str(number) for number in sorted(numbers))
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % 100 < HELDOUT_PERCENT else "train"


def stream(side: Side, *, seed: int) -> Iterator[Numbers]:
    """Yield the numbers of one side's problems without end, with repeats; the same ones for the same seed."""
    rng = random.Random(f"{side}-{seed}")
    while True:
        numbers = tuple(rng.randint(1, MAX_NUMBER) for _ in range(rng.choice(NUM_TERMS)))
        if side_of(numbers) == side:
            yield numbers


def distinct(side: Side, count: int, *, seed: int) -> list[Numbers]:
    """Return the first `count` different problems of the stream."""
    found: dict[Numbers, None] = {}
    for numbers in stream(side, seed=seed):
        found.setdefault(numbers)
        if len(found) == count:
            break
    return list(found)


def problem_text(numbers: Numbers) -> str:
    """Return the question, as in "12+30+5"."""
    return "+".join(str(number) for number in numbers)


def solution_text(numbers: Numbers) -> str:
    r"""Return the worked solution, as in "12+30=42\n42+5=47\n####47": a line per addition, then the answer."""
    return careless_solution_text(numbers, random.Random(0), slip_rate=0.0)


def careless_solution_text(numbers: Numbers, rng: random.Random, *, slip_rate: float) -> str:
    r"""Return a solution in which each sum has one wrong digit with probability `slip_rate`.

    Later lines continue from the wrong sum, as a careless pupil would: "12+30=47\n47+5=52\n####52".
    """
    total, *rest = numbers
    lines: list[str] = []
    for number in rest:
        digits = list(str(total + number))
        if rng.random() < slip_rate:
            place = rng.randrange(len(digits))
            digits[place] = rng.choice([digit for digit in "0123456789" if digit != digits[place]])
        lines.append(f"{total}+{number}={''.join(digits)}")
        total = int("".join(digits))
    return "\n".join([*lines, f"####{total}"])


def rows_text(side: Side, count: int, *, seed: int) -> str:
    """Return the JSON lines of one set."""
    rows = (
        {
            "id": f"{side}-{index:05d}",
            "problem": problem_text(numbers),
            "answer": str(sum(numbers)),
            "source": "arithmetic",
        }
        for index, numbers in enumerate(distinct(side, count, seed=seed))
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_if_changed(path: Path, text: str) -> bool:
    """Write the file unless it already holds this text; return whether it was written."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's arithmetic problems as JSON lines.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--num-train", type=int, default=NUM_TRAIN)
    parser.add_argument("--num-heldout", type=int, default=NUM_HELDOUT)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: dict[Side, int] = {"train": arguments.num_train, "heldout": arguments.num_heldout}
    for side, count in counts.items():
        path = arguments.out / f"{side}.jsonl"
        written = write_if_changed(path, rows_text(side, count, seed=arguments.seed))
        print(f"{path}: {count} problems, {'written' if written else 'already current'}")


if __name__ == "__main__":
    main()
