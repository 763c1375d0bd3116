"""`launch.py eval`: what its options mean, what is recorded, and how an interrupted evaluation continues.

    python launch.py eval --model runs/first/export --benchmarks gsm8k,math500 --n 8 --k 1,8 --temperature 0.6
    python launch.py eval --config configs/demo.yaml --model runs/first/export

Options become settings of `evaluation.*`; without --config a model folder is enough. The same command continues
where it was interrupted, since results are kept as problems are finished (`evaluation/results.py`).
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cluster.capacity import check_local_machine, ray_cluster
from cluster.placement import Demand, plan
from commands.checks import load_checked
from commands.dry_run import dry_run
from commands.exit_codes import run_to_exit_code
from commands.signals import StopSignals, current_task, stopped_by_signals
from evaluation.metrics import mean_of_rows
from evaluation.results import ResultFolder
from evaluation.view import EvaluationView, print_results
from records.events import Events
from records.run_folder import describe_environment
from settings.benchmarks import known_benchmarks
from settings.checks import Checks
from settings.evaluation import EvaluationConfig
from settings.exit_codes import DRAINED, FINISHED
from settings.run import RunConfig

if TYPE_CHECKING:  # they import Ray, which reads its environment then
    from cluster.pool import Pool
    from inputs.inputs import Inputs

MAX_TOKENS = 4096
"""Response limit without --config and --max-tokens."""

SETTING_OF_OPTION = {
    "n": "evaluation.num_samples",
    "temperature": "evaluation.temperature",
    "top_p": "evaluation.top_p",
    "top_k": "evaluation.top_k",
    "max_tokens": "evaluation.max_response_tokens",
    "limit": "evaluation.max_problems",
    "model": "student.model_path",
    "stop_ids_of": "teacher.model_path",
}


TO_CONTINUE = "the same command continues it"


@dataclass(frozen=True)
class PlannedEvaluation:
    """An evaluation that is checked and may start."""

    config: RunConfig
    inputs: "Inputs"
    demands: list[Demand]
    k: tuple[int, ...]
    folder: ResultFolder
    settings: dict[str, Any]


def evaluate_command(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluate one model folder with rollout workers, or continue what was interrupted; returns the exit code."""
    with stopped_by_signals() as signals:
        try:
            planned = prepare(arguments, overrides)
            if planned is None:
                return FINISHED
            with ray_cluster(planned.config, planned.demands):
                signals.check()
                return run_to_exit_code(evaluate(planned, signals), to_continue=TO_CONTINUE)
        except BaseException:
            if not signals.have_come:
                raise
            print(f"interrupted; {TO_CONTINUE}", file=sys.stderr)
            return DRAINED


def prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> PlannedEvaluation | None:
    """Check everything; None if there is nothing to run: a dry run, or results that are there already."""
    from inputs.inputs import read_inputs

    config, k = configure(arguments, overrides)
    inputs = read_inputs(config, with_training=False, checks=Checks(force=arguments.force))
    demands = [demand for demand in plan(config) if demand.role == "rollout"]
    check_local_machine(config, demands)
    if arguments.dry_run:
        dry_run(config, demands)
        return None
    settings = settings_of(config, inputs, k)
    folder = ResultFolder(Path(arguments.out) if arguments.out else default_folder(config, settings))
    if folder.is_finished:
        print_results(folder.finished_summary(settings), folder.path)
        return None
    folder.check(settings)
    return PlannedEvaluation(config, inputs, demands, k, folder, settings)


async def evaluate(planned: PlannedEvaluation, signals: StopSignals) -> int:
    """Start rollout workers on the model as it is, and evaluate, until a signal comes."""
    signals.then(current_task().cancel, say=None)
    from commands.wiring import build_pools

    config = planned.config
    pool = build_pools(config, planned.inputs, Events(), roles=["rollout"])["rollout"]
    try:
        await pool.place()
        await pool.start()
        await pool.call("serve_own_weights", timeout_s=config.cluster.load_timeout_s)
        await _evaluate_on(pool, planned)
        return FINISHED
    finally:
        await pool.close()


async def _evaluate_on(pool: "Pool", planned: PlannedEvaluation) -> None:
    """Evaluate on started workers that serve the model; writes and prints the results."""
    from evaluation.evaluation import EvaluationRun, evaluation_of

    evaluation = evaluation_of(planned.config, planned.inputs, k=planned.k)
    assert evaluation is not None, "no benchmarks"
    folder = planned.folder
    graded = folder.resume(planned.settings)
    with EvaluationView(len(evaluation.problems), num_before=len(graded)) as view:
        run = EvaluationRun(evaluation, planned.config.cluster, keep=folder.keep, show=view.show, graded=graded)
        results = await run.run(pool, pool.some_healthy)
    rows = [result.row() for result in results]
    means = [mean_of_rows([row for row in rows if row["k"] == k]) for k in planned.k]
    summary = {
        "model": planned.config.student.model_path,
        "settings": planned.settings,
        "results": rows,
        "mean": means if len({row["benchmark"] for row in rows}) > 1 else [],
        "environment": describe_environment(),
    }
    folder.finish(summary)
    print_results(summary, folder.path)


def configure(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[RunConfig, tuple[int, ...]]:
    """The configuration that the options ask for, and every k; ValueError naming the option that is wrong."""
    if arguments.config is None and arguments.model is None:
        raise ValueError("--model: required without --config, but not set")
    options = {name: getattr(arguments, name) for name in SETTING_OF_OPTION}
    given = [f"--{SETTING_OF_OPTION[name]}={value}" for name, value in options.items() if value is not None]
    defaults = [] if arguments.config is not None else _defaults(arguments.model)
    k = _parsed_k(arguments.k) or (() if arguments.n is None else (arguments.n,))
    given += [f"--evaluation.k={max(k)}"] if k else []
    config = load_checked(arguments.config, [*defaults, *overrides, *given])
    k = k or (config.evaluation.k,)
    evaluation = _with_benchmarks(config.evaluation, arguments.benchmarks, arguments.data or [])
    return config.model_copy(update={"evaluation": evaluation}), k


def _defaults(model: str) -> list[str]:
    """Settings of a model folder alone: it stands for its teacher, and a GPU of this machine is used."""
    settings = {
        "student.model_path": model,
        "teacher.model_path": model,
        "data.train_path": "none",
        "run_name": "eval",
        "evaluation.max_response_tokens": MAX_TOKENS,
        "rollout.resources.num_gpus": int(any(Path("/dev").glob("nvidia[0-9]*"))),
    }
    return [f"--{key}={value}" for key, value in settings.items()]


def _parsed_k(text: str | None) -> tuple[int, ...]:
    try:
        k = tuple(dict.fromkeys(int(part) for part in text.split(","))) if text is not None else ()
    except ValueError as error:
        raise ValueError(f"--k must be numbers with commas between them, such as 1,8, got {text!r}") from error
    if any(each < 1 for each in k):
        raise ValueError(f"--k must be >= 1, got {min(k)} (nearest valid: 1)")
    return k


def _with_benchmarks(
    evaluation: EvaluationConfig, benchmarks: str | None, data: Sequence[str]
) -> EvaluationConfig:
    """The settings with the benchmarks of the options, which take the place of the configuration's."""
    values: dict[str, Any] = evaluation.model_dump()
    if benchmarks is not None:
        names = [name.strip() for name in benchmarks.split(",") if name.strip()]
        paths = {name: path for name, path in evaluation.paths.items() if name in names}
        values |= {"benchmarks": names, "data_path": None, "paths": paths, "num_workers": 0}
    values["paths"] = values["paths"] | dict(_named_path(each) for each in data)
    try:
        changed = EvaluationConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(str(first.get("ctx", {}).get("error", first["msg"]))) from error
    if not changed.is_wanted:
        known = ", ".join(known_benchmarks())
        raise ValueError(f"--benchmarks: required for eval where evaluation.data_path is not set (known: {known})")
    return changed


def _named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise ValueError(f"--data must be NAME=FILE, such as gsm8k=test.jsonl, got {text!r}")
    return name, path


def settings_of(config: RunConfig, inputs: "Inputs", k: Sequence[int]) -> dict[str, Any]:
    """All that the numbers depend on; an evaluation continues only where it is the same."""
    evaluation, engine = config.evaluation, config.rollout.engine
    return {
        "model": config.student.model_path,
        "model_sha256": model_fingerprint(config.student.model_path),
        "benchmarks": {benchmark.name: benchmark.facts() for benchmark in inputs.benchmarks},
        "n": evaluation.num_samples,
        "k": list(k),
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "top_k": evaluation.top_k,
        "seed": config.seed,
        "max_tokens": evaluation.max_response_tokens or config.rollout.max_response_tokens,
        "grader": evaluation.grader,
        "stop_token_ids": list(inputs.stops.ids),
        "stop_ids_of": [config.student.model_path, config.teacher.model_path],
        "system_prompt": config.data.system_prompt,
        "template_arguments": config.data.template_arguments,
        "dtype": config.dtype_of(engine),
        "engine": engine.model_dump(mode="json"),
    }


def model_fingerprint(path: str, *, num_bytes: int = 2**16) -> str | None:
    """SHA-256 over names, sizes, first and last bytes of a model folder's files; None for a name on the hub.

    It tells two exports to the same folder apart without reading all of the weights.
    """
    if not Path(path).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(each for each in Path(path).iterdir() if each.suffix in (".safetensors", ".json")):
        size = file.stat().st_size
        with file.open("rb") as content:
            start = content.read(num_bytes)
            content.seek(max(0, size - num_bytes))
            digest.update(f"{file.name} {size}\n".encode() + start + content.read(num_bytes))
    return digest.hexdigest()


def default_folder(config: RunConfig, settings: Mapping[str, Any]) -> Path:
    """`RUNS/evaluations/MODEL-HASH`: other settings have another folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    model = Path(config.student.model_path).absolute()
    return Path(config.runs_path) / "evaluations" / f"{model.parent.name}-{model.name}-{digest[:8]}"
