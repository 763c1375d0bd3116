"""`launch.py plan`: what a run would do, and the cheapest workers for a target."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from cluster.connection import prepare_environment
from commands.checks import load_checked
from commands.compare.plan import options_of
from commands.plan.estimate import PlannedRates, planned_rates
from commands.plan.plan_config import PlanConfig
from commands.plan.plan_text import train_options
from settings.load import load_settings
from settings.run import RunConfig


def plan_command(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Predict, search, print. ValueError for bad input."""
    started = time.monotonic()
    plan = load_settings(PlanConfig, arguments.config, overrides)
    config = load_checked(plan.base, options_of(plan.overrides))
    planned = planned_rates(plan, config)
    prepare_environment()  # before Ray is imported, whose errors the controller handles; no Ray is started
    from commands.plan.plan_text import show
    from commands.plan.prediction import check_fit, predict
    from commands.plan.search import CountSearch

    def simulate(run: RunConfig) -> Any:
        return predict(run, planned.rates, plan.simulation)

    search = CountSearch(config, planned.rates, plan.target, simulate) if plan.target.is_set else None
    prediction = simulate(config)
    check = plan.from_run and check_fit(plan.from_run, planned.rates, plan.simulation)
    found = None if search is None else search.run()
    seconds = time.monotonic() - started
    if arguments.json:
        numbers = _numbers(planned, prediction, found) | {"seconds": round(seconds, 2)}
        print(json.dumps(numbers | ({"fit": asdict(check)} if check else {})))
    else:
        show(Console(), planned, prediction, found, check or None)
        Console().print(f"planned in {seconds:.1f} s", style="dim")
    return 0


def _numbers(planned: PlannedRates, prediction: Any, found: Any) -> dict[str, Any]:
    numbers = {"rates": planned.rates.model_dump(), "origin": planned.origin, "prediction": asdict(prediction)}
    if found is not None:
        numbers["search"] = asdict(found)
        numbers["options"] = None if found.chosen is None else train_options(found.chosen.workers)
    return numbers
