"""The commands of `launch.py`, their options, and what their exit codes mean."""

import argparse
from typing import NoReturn

from pydantic import BaseModel

from commands.compare.plan import CompareConfig
from commands.plan.plan_config import PlanConfig
from settings.run import RunConfig
from settings.run_files import describe_fields

COMMANDS = {
    "train": "distil the teacher into the student",
    "preflight": "check a run before it takes devices; exit code 2 where training would be wrong",
    "eval": "evaluate a model folder",
    "submit": "train as a job of a Ray cluster or of Kubernetes; follow, stop or look at such a run",
    "compare": "train with several objectives, one after the other, and put them side by side",
    "plan": "predict throughput, staleness and bottleneck of a run, and the cheapest worker counts for a target",
}

SETTINGS: dict[str, type[BaseModel]] = {"compare": CompareConfig, "plan": PlanConfig}
"""Settings of the commands that take others than a run's."""

REMOTE_COMMANDS = {
    "scale": "add or retire workers of a running run: scale --run NAME --rollout 4 --teacher 2",
    "stop": "finish the step in progress of a running run, save it, and end it with exit code 3",
    "status": "show workers, slots, throughput and what limits a running run",
    "chaos": "kill workers and nodes of a running run, and report what was lost: nothing",
}
"""Commands that talk to a run in another process; they take no settings."""

COMMANDS_ON_FOLDERS = {
    "export": "write the student of a checkpoint as a Hugging Face folder, and push it to the hub if asked to",
    "report": "write report.html of a run, or of several side by side: one file that needs no network",
}
"""Commands that read the folder of a run; they take no settings."""


GRACE_S = 600.0
"""Time that a submitted run has to drain."""


class Parser(argparse.ArgumentParser):
    """Mistakes are a ValueError, as everywhere, and not a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ValueError(f"{message}; see {self.prog} --help")


def add_eval_options(command: argparse.ArgumentParser) -> None:
    """The options of `eval`; `commands/evaluate.py` says which settings they are."""
    add = command.add_argument
    add("--model", help="model folder to evaluate, enough without --config; by default the student's")
    add("--benchmarks", metavar="A,B", help="benchmarks by name, such as gsm8k,math500")
    add("--data", action="append", metavar="NAME=FILE", help="local copy of a benchmark; may be repeated")
    add("--n", type=int, help="responses per problem (default 8)")
    add("--k", metavar="1,8", help="avg@k, pass@k and maj@k at each of these (default: n)")
    add("--temperature", type=float, help="sampling temperature (default 1)")
    add("--top-p", type=float, help="nucleus sampling (default 1)")
    add("--top-k", type=int, help="top-k sampling (default -1: all)")
    add("--max-tokens", type=int, help="response limit (default 4096; with --config what it says)")
    add("--limit", type=int, metavar="N", help="only the first N problems of each benchmark")
    add("--stop-ids-of", metavar="MODEL", help="stop on this model's stop tokens too: the teacher's")
    add("--out", metavar="FOLDER", help="where results go, and where an interrupted evaluation continues")


def add_submit_options(command: argparse.ArgumentParser) -> None:
    """The options of `submit`, which has --config, --dry-run and --force already."""
    add = command.add_argument
    add("--to", choices=["ray", "k8s"], default="ray", help="jobs of a Ray cluster, or KubeRay")
    add("--run", metavar="NAME", help="the run to --follow, --stop or --status; nothing is submitted then")
    add("--follow", action="store_true", help="print the run's log as it comes; its exit code is the command's")
    add("--stop", action="store_true", help="let the run finish its step and save, and wait for its end")
    add("--status", action="store_true", help="show the jobs of the run")
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="after a crash the job continues from the newest checkpoint, as in train; with --follow, a job that "
        "is lost as a whole is submitted again as often",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="variable of the job; without =VALUE that of this environment; may be repeated",
    )
    add("--grace", type=float, metavar="SECONDS", help=f"time to drain when it is stopped (default {GRACE_S:g})")
    add(
        "--node-groups",
        action="store_true",
        help="bind workers to nodes with the custom resources rollout, teacher and learner",
    )
    add("--address", help="Ray's jobs API (default RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)")
    add("--entrypoint-num-cpus", type=float, metavar="N", help="CPUs that Ray reserves for the run's own process")
    add(
        "--entrypoint-resources",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="custom resource of the node of the run's own process (default: Ray's head); may be repeated",
    )
    add("--overlay", metavar="DIR", help="k8s: kustomize overlay (default docker/k8s/overlays/cpu-kind)")
    add("--namespace", help="k8s: namespace (default: the overlay's)")
    add("--priority-class", metavar="NAME", help="k8s: priority class of the pods")


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser; settings stay unparsed, `settings/load.py` reads them."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="launch.py", description=description, formatter_class=formatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        fields = "\n".join(describe_fields(SETTINGS.get(name, RunConfig)))
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"settings (YAML keys, or options):\n{fields}",
            formatter_class=formatter,
            allow_abbrev=False,
        )
        command.add_argument("--config", help="YAML file of settings")
        if name != "plan":
            command.add_argument("--dry-run", action="store_true", help="print what would be done only")
        _add_log_level(command)
    _add_train(commands.choices["train"])
    for name in ("train", "submit", "preflight", "eval"):
        commands.choices[name].add_argument(
            "--force",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY",
            help="continue although this check fails; may be given several times",
        )
    commands.choices["preflight"].add_argument("--json", action="store_true", help="print JSON, one line")
    commands.choices["compare"].add_argument(
        "--results-only", action="store_true", help="train nothing; write table and figures of what is finished"
    )
    commands.choices["plan"].add_argument("--json", action="store_true", help="print JSON, one line")
    add_eval_options(commands.choices["eval"])
    add_submit_options(commands.choices["submit"])
    _add_export(commands)
    _add_remote(commands)
    _add_report(commands)
    return parser


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        default="no",
        choices=["yes", "no", "auto"],
        help="continue from the newest checkpoint; auto starts anew if there is no such run",
    )
    command.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="after a crash continue from the newest checkpoint; give up after N times without a new step",
    )


def _add_remote(commands: "argparse._SubParsersAction[Parser]") -> None:
    for name, text in REMOTE_COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = command.add_argument
        add("--run", required=True, help="name of the run")
        add("--runs-path", default="runs", help="folder that holds its run folder")
        add("--address", help="address of its Ray; by default what the run folder says, then auto")
        add("--json", action="store_true", help="print JSON, one line")
        _add_log_level(command)
    add = commands.choices["chaos"].add_argument
    add("--every", default="30s", help="time between kills: 30s, 2m (default 30s)")
    add("--duration", default="10m", help="kill for so long (default 10m)")
    add("--kill", default="rollout,teacher,learner", help="rollout, teacher, reference, learner, node")
    add("--seed", type=int, default=0, help="of what is killed (default 0)")
    commands.choices["status"].add_argument("--watch", action="store_true", help="again every 2 s until Ctrl-C")


def _add_export(commands: "argparse._SubParsersAction[Parser]") -> None:
    text = COMMANDS_ON_FOLDERS["export"]
    export = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    export.add_argument("--run", required=True, help="name of the run")
    export.add_argument("--runs-path", default="runs", help="folder that holds its run folder")
    export.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    export.add_argument("--out", help="folder to make; by default export_step_N in the run's")
    export.add_argument("--dtype", choices=["float32", "bfloat16"], help="by default that of training")
    export.add_argument("--push", metavar="ORG/NAME", help="upload it to this model repository")
    export.add_argument("--private", action="store_true", help="a repository that is made is private")
    _add_log_level(export)


def _add_report(commands: "argparse._SubParsersAction[Parser]") -> None:
    text = COMMANDS_ON_FOLDERS["report"]
    report = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    report.add_argument("--run", action="append", required=True, metavar="NAME", help="give it again to compare")
    report.add_argument("--runs-path", default="runs", help="folder that holds the run folders")
    report.add_argument(
        "--out",
        help="file to write; by default report.html in the first run's folder, of several "
        "runs report_NAME_NAME.html in --runs-path",
    )
    _add_log_level(report)


def _add_log_level(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
