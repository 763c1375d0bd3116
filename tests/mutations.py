"""Breaks one line at a time and shows which test of `make test` finds it: how good the tests are, as a table.

    python -m tests.mutations              # all of them, in a copy of this checkout; about 15 minutes
    python -m tests.mutations --only 3,17  # some of them

Exit code 0 if at most one of them survives. A mutant whose line is no longer there is an error: choose another.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_SURVIVORS = 1
TIMEOUT_S = 900


@dataclass(frozen=True)
class Mutant:
    """One line of a file, what it becomes, and what that breaks."""

    file: str
    line: str
    broken: str
    what: str
    tests: tuple[str, ...]
    """Where to look, with pytest's `-x`: files of `make test`."""

    def apply(self, root: Path) -> None:
        """Break the line in a copy of the checkout; ValueError unless it is there exactly once."""
        path = root / self.file
        lines = path.read_text().splitlines()
        places = [place for place, line in enumerate(lines) if line.strip() == self.line]
        if len(places) != 1:
            raise ValueError(f"{self.file} has this line {len(places)} times: {self.line}")
        indent = lines[places[0]][: -len(self.line)]
        lines[places[0]] = indent + self.broken
        path.write_text("\n".join(lines) + "\n")


SLOTS = ("tests/unit/test_slots.py", "tests/unit/test_slots_properties.py")
SCORING = ("tests/unit/test_pipeline_scorers.py", "tests/unit/test_pipeline.py")
LOSS = (
    "tests/unit/test_learner_loss.py",
    "tests/unit/test_learner_scorers.py",
    "tests/unit/test_learner_window.py",
)
COLLATE = ("tests/unit/test_collate.py", "tests/unit/test_learner_window.py")
WEIGHTS = ("tests/unit/test_weights.py", "tests/unit/test_checksums.py")
LEDGER = ("tests/unit/test_ledger.py",)
CHECKPOINTS = ("tests/unit/test_checkpoints.py",)
POOL = ("tests/unit/test_scaling.py", "tests/unit/test_pipeline_faults.py", "tests/unit/test_pipeline_scaling.py")

MUTANTS = [
    Mutant(
        "controller/slots.py",
        "return max(0, self.version - (self.max_staleness - self.batches_ahead))",
        "return max(0, self.version - self.max_staleness)",
        "slots start on engines that are too old",
        SLOTS,
    ),
    Mutant(
        "controller/slots.py",
        "self._deadlines[slot] = engine_version + self.max_staleness",
        "self._deadlines[slot] = engine_version + self.max_staleness + 1",
        "every deadline is one version late",
        SLOTS,
    ),
    Mutant(
        "controller/slots.py",
        "for due in range(self.version, self.version + self.batches_ahead):",
        "for due in range(self.version + 1, self.version + self.batches_ahead):",
        "what is due now may be left behind",
        SLOTS,
    ),
    Mutant(
        "controller/scoring.py",
        "for rollout in sorted(self._gathered, key=slot_of):",
        "for rollout in self._gathered:",
        "a synchronous batch is scored in the order of arrival",
        SCORING,
    ),
    Mutant(
        "controller/scoring.py",
        "if self._reference is None or lane is self._reference:",
        "if True:",
        "slots are trained without the reference's scores",
        SCORING,
    ),
    Mutant(
        "controller/scoring.py",
        "is_held_up = any(lane.is_full for lane in reference)",
        "is_held_up = False",
        "teachers do not wait for a reference that is behind",
        SCORING,
    ),
    Mutant(
        "learner/loss.py",
        "batch.unpack(loss_T * batch.teacher_weight_B[batch.row_T]),",
        "batch.unpack(loss_T),",
        "weights of teachers are ignored",
        LOSS,
    ),
    Mutant(
        "learner/loss.py",
        "reward_T = self._reward(batch.teacher_logp_T, logp_T.detach(), mask_T, **keywords)",
        "reward_T = -self._reward(batch.teacher_logp_T, logp_T.detach(), mask_T, **keywords)",
        "the reward has the wrong sign",
        LOSS,
    ),
    Mutant(
        "learner/loss.py",
        "kept = drop_non_finite(advantage_T, logp_T, keep_T, *others)",
        "kept = drop_non_finite(advantage_T, logp_T, keep_T)",
        "an importance weight or divergence that is not finite is trained on",
        LOSS,
    ),
    Mutant(
        "learner/collate.py",
        "start + len(s.prompt_ids) - 1 + np.arange(length)",
        "start + len(s.prompt_ids) + np.arange(length)",
        "log-probs are read one position late",
        COLLATE,
    ),
    Mutant(
        "learner/collate.py",
        "return replace(self, response_mask_T=self.response_mask_T & keep_T, masked_by_T=masked_by_T)",
        "return replace(self, response_mask_T=self.response_mask_T | keep_T, masked_by_T=masked_by_T)",
        "a selection masks nothing",
        COLLATE,
    ),
    Mutant(
        "transport/weights.py",
        "if checksum(bucket) != manifest.checksums[index]:",
        "if False:",
        "checksums of buckets are not compared",
        WEIGHTS,
    ),
    Mutant(
        "transport/weights.py",
        "if offset and offset + size > max_bytes:",
        "if offset and offset + size >= max_bytes:",
        "a parameter that fills a bucket exactly gets another",
        WEIGHTS,
    ),
    Mutant(
        "transport/weights.py",
        "if not difference <= limit:",
        "if difference > limit:",
        "golden log-probs that are NaN pass",
        WEIGHTS,
    ),
    Mutant(
        "records/ledger.py",
        'places = {step: kept for step, kept in places.items() if step <= row["rollback_to"]}',
        'places = {step: kept for step, kept in places.items() if step < row["rollback_to"]}',
        "a roll back voids one step too many",
        LEDGER,
    ),
    Mutant(
        "records/ledger.py",
        'if row["step"] in missing and len(slots) == batch_size and slots <= left:',
        'if row["step"] in missing and len(slots) == batch_size:',
        "a lost step may get slots that another holds",
        LEDGER,
    ),
    Mutant(
        "records/checkpoints.py",
        "if found != manifest.files[name]:",
        "if found.num_bytes != manifest.files[name].num_bytes:",
        "checksums of files are not compared",
        CHECKPOINTS,
    ),
    Mutant(
        "records/checkpoints.py",
        "if not (path / MANIFEST_NAME).is_file() and (replaced / MANIFEST_NAME).is_file():",
        "if (replaced / MANIFEST_NAME).is_file():",
        "a checkpoint that was replaced comes back after a crash",
        CHECKPOINTS,
    ),
    Mutant(
        "cluster/pool.py",
        "if self.wanted == [worker]:",
        "if not self.wanted:",
        "the last worker of a pool can be drained",
        POOL,
    ),
    Mutant(
        "cluster/pool.py",
        "worker.version = -1",
        "pass",
        "a worker that comes back keeps the version that it had",
        POOL,
    ),
]


def failing_test(mutant: Mutant) -> str | None:
    """The first test that fails with a mutant in place; None if it survives."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, files.stdout.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        mutant.apply(root)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-m", "not slow and not gpu"]
        line = [sys.executable, "-m", "pytest", *options, *mutant.tests]
        try:
            done = subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"none ended within {TIMEOUT_S} s"
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return found[1] if found else None


def main() -> int:
    """Print the table, a row per mutant; returns the exit code."""
    parser = argparse.ArgumentParser(description="Break one line at a time, and see which test finds it.")
    parser.add_argument("--only", help="numbers of the mutants to try, as 3,17; all by default")
    only = parser.parse_args().only
    numbers = [int(number) for number in only.split(",")] if only else [*range(1, len(MUTANTS) + 1)]
    survivors = 0
    print("| line | so that | found by |\n|---|---|---|", flush=True)
    for number in numbers:
        mutant = MUTANTS[number - 1]
        found = failing_test(mutant)
        survivors += found is None
        name = f"`{found.removeprefix('tests/')}`" if found else "**nothing**"
        print(f"| `{mutant.file}`: `{mutant.line}` | {mutant.what} | {name} |", flush=True)
    print(f"\n{len(numbers) - survivors} of {len(numbers)} are found")
    return 0 if survivors <= MAX_SURVIVORS else 1


if __name__ == "__main__":
    sys.exit(main())
