"""Every benchmark at a size of about a minute on two cores, and what became worse: `make bench`.

    .venv/bin/python benchmarks/quick.py                  # one after the other, then the table of compare.py
    .venv/bin/python benchmarks/quick.py data_plane weights
    .venv/bin/python benchmarks/quick.py --save           # and keep the rows, for later ones to be compared with

Settings are part of what is compared, so that quick rows are compared with quick rows. `QUICK` is the one list.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rows import RESULTS_PATH  # noqa: E402

QUICK: dict[str, tuple[str, ...]] = {
    "asynchrony": ("--steps=20", "--spreads", "1.0"),
    "learner": ("--runs=2", "--warmup=0"),
    "parts": ("--runs=1", "--repeats=1", "--batch-size=8", "--steps=3", "--skip=2"),
    "data_plane": ("--runs=3", "--steps=5"),
    "weights": ("--size=tiny", "--runs=3"),
}
"""By script, the arguments of its quick size."""

TIMEOUT_S = 600


def run(name: str) -> list[str]:
    """Run one and return its rows; none where it failed, and then the end of its output goes to standard error."""
    line = [sys.executable, f"benchmarks/{name}.py", *QUICK[name]]
    print(" ".join(line[1:]), file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    print(f"{name}: {time.monotonic() - start:.0f} s, exit code {done.returncode}", file=sys.stderr, flush=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        return []
    return [text for text in done.stdout.splitlines() if text.startswith("{")]


def compare(rows: list[str], *arguments: str) -> int:
    """Print the table of `compare.py`; returns its exit code."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.write("\n".join(rows))
        file.flush()
        line = [sys.executable, "benchmarks/compare.py", f"--row={file.name}", *arguments]
        return subprocess.run(line, cwd=ROOT, check=False).returncode


def keep(rows: list[str]) -> None:
    """Add rows to the results."""
    for row in rows:
        with (RESULTS_PATH / f"{json.loads(row)['benchmark']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(row + "\n")


def main() -> None:
    """Run them; exit code 1 where one has no row, or with `--strict` where a ratio is worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(QUICK)} [all]")
    parser.add_argument("--save", action="store_true", help="add the rows to benchmarks/results/")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a ratio is worse")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in QUICK]
    if unknown:
        parser.error(f"{unknown[0]} is not among {', '.join(QUICK)}")
    rows, failed = [], []
    for name in options.names or QUICK:
        found = run(name)
        print(*found, sep="\n", flush=True)
        rows += found
        failed += [] if found else [name]
    code = compare(rows, *(["--strict"] if options.strict else []))
    if options.save:
        keep(rows)
    if failed:
        sys.exit(f"no row of {', '.join(failed)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
