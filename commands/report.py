"""`launch.py report`: writes the report of runs, ended or still running, from what their folders hold."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from records.files import replacing
from records.run_folder import RunFolder
from settings.exit_codes import FINISHED
from settings.run import checked_run_name

logger = logging.getLogger(__name__)

MAX_RUNS = 8
"""Runs of a comparison: as many as there are colours."""


def report_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Write the file and say where; ValueError for bad input, and then nothing is written."""
    if options:
        raise ValueError(f"unexpected argument {options[0]!r}; report takes --run, --runs-path and --out")
    names: list[str] = arguments.run
    if len(set(names)) < len(names):
        raise ValueError(f"--run: {next(name for name in names if names.count(name) > 1)} is given twice")
    if len(names) > MAX_RUNS:
        raise ValueError(f"--run: at most {MAX_RUNS} runs can be compared, got {len(names)}")
    runs_path = Path(arguments.runs_path)
    folders = [_folder(runs_path, name) for name in names]
    default = folders[0].report if len(names) == 1 else runs_path / f"report_{'_'.join(names)[:150]}.html"
    path = default if arguments.out is None else Path(arguments.out)
    if not path.parent.is_dir():
        raise ValueError(f"--out: {path.parent} is not a folder")
    size = write_report(folders, path)
    print(f"{path} ({size / 1e6:.1f} MB)")
    return FINISHED


def write_report(folders: Sequence[RunFolder], path: Path) -> int:
    """Write the report of one run or several into one file, in place of an earlier one; returns its bytes."""
    from reporting.page.run_data import read_run
    from reporting.page.write import render

    content = render([read_run(folder) for folder in folders]).encode("utf-8", errors="replace")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def _folder(runs_path: Path, name: str) -> RunFolder:
    """The folder of a run; ValueError if there is none."""
    folder = RunFolder(runs_path / checked_run_name(name, "--run"))
    if not folder.path.is_dir():
        known = sorted(path.parent.name for path in runs_path.glob("*/config.yaml"))
        raise ValueError(f"--run: there is no run folder {folder.path} (there: {', '.join(known[:20]) or 'none'})")
    return folder
