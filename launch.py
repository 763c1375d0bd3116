"""The command line of poweropd: wires prompts, rollouts, teachers and learner into a run.

    python launch.py train --config configs/demo.yaml --run-name first --objective.alpha 5
    python launch.py train --config configs/demo.yaml --run-name first --resume
    python launch.py train --config configs/demo.yaml --run-name first --resume=auto --retries 5
    python launch.py train --config configs/demo.yaml --dry-run
    python launch.py submit --config configs/demo.yaml --run-name first --runs-path /shared/runs --follow
    python launch.py submit --stop --run first
    python launch.py preflight --config configs/demo.yaml --json
    python launch.py eval --config configs/demo.yaml --model runs/first/export
    python launch.py eval --model runs/first/export --benchmarks gsm8k,math500 --n 8 --k 1,8
    python launch.py compare --config configs/compare.yaml
    python launch.py plan --config configs/plan.yaml
    python launch.py scale --run first --rollout 4 --teacher 2
    python launch.py report --run first --run second
    python launch.py status --run first --watch
    python launch.py export --run first --step 100 --dtype bfloat16 --push organisation/name
    python launch.py stop --run first
    python launch.py chaos --run first --every 30s --kill rollout,teacher,learner --duration 10m

Every setting of the configuration is an option: `--rollout.num_workers 2`.
Exit codes: 0 finished, 1 failed, 2 bad input (nothing was started), 3 drained and resumable.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from commands.parser import build_parser
from commands.signals import stopped_by_signals
from reporting.live.output import lasting_output
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FailedError, one_line

PACKAGES = "actors cluster commands controller evaluation inputs records reporting transport"
RESUMABLE = ("train", "eval", "compare")
LASTING = (*RESUMABLE, "chaos", "export")
"""Commands whose work continues when what they print reaches nobody."""


INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ends and that has nothing to continue, as a shell has it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run one command, and return its exit code."""
    try:
        arguments, options = build_parser(__doc__).parse_known_args(argv)
    except ValueError as error:
        return refused(error)
    with ExitStack() as stack:
        if arguments.command in LASTING:
            stack.enter_context(lasting_output())
            stack.enter_context(stopped_by_signals())
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
        for package in PACKAGES.split():
            logging.getLogger(package).setLevel(arguments.log_level.upper())
        try:
            return run_command(arguments, options)
        except (OSError, ValueError) as error:
            return refused(error)
        except FailedError as error:
            print(f"failed: {one_line(error)}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return DRAINED if arguments.command in RESUMABLE else INTERRUPTED


def refused(error: Exception) -> int:
    """Say what was wrong with the input; the exit code."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return BAD_INPUT


def run_command(arguments: argparse.Namespace, options: list[str]) -> int:
    """The exit code of a command that could start; ValueError, or OSError of a file, for bad input.

    `options` are those the parser does not know: settings. Every command is imported when it is called.
    """
    match arguments.command:
        case "train":
            from commands.train import train_command as command
        case "preflight":
            from commands.preflight.command import preflight_command as command
        case "eval":
            from commands.evaluate import evaluate_command as command
        case "submit":
            from commands.submit.command import submit_command as command
        case "compare":
            from commands.compare.command import compare_command as command
        case "plan":
            from commands.plan.command import plan_command as command
        case "export":
            from commands.export import export_command as command
        case "report":
            from commands.report import report_command as command
        case "chaos":
            from commands.chaos.command import chaos_command as command
        case _:
            from commands.remote import run_remote_command as command
    return command(arguments, options)


if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that is closed now does not change the exit code
    sys.exit(code)
