"""`launch.py compare`: checks every run of a comparison, trains what is missing, and writes table and figures."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from commands.compare.plan import CompareConfig, PlannedRun, describe, plan_runs
from commands.retries import LAUNCH
from settings.exit_codes import FINISHED
from settings.load import load_settings


def compare_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Carry it out; returns the exit code. ValueError means bad input and that nothing runs."""
    config = load_settings(CompareConfig, arguments.config, options)
    runs = plan_runs(config)

    def command_of(run: PlannedRun) -> list[str]:
        train = [sys.executable, str(LAUNCH), "train", "--log-level", arguments.log_level]
        return [*train, "--config", config.base, *run.options, "--resume=auto"]

    if arguments.dry_run:
        for run in runs:
            print(f"# {run.config.run_name} ({describe(run)})\n{shlex.join(command_of(run))}")
        return FINISHED
    from commands.compare.results import write_results
    from commands.compare.runs import run_all

    code = FINISHED if arguments.results_only else run_all(runs, command_of)
    write_results(config, runs)
    return code
