"""The rates that a plan goes by, and where each of them comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commands.plan.estimate import estimate_rates
from commands.plan.fitting import fit_rates, read_run
from commands.plan.plan_config import PlanConfig
from commands.plan.prompts import LengthsConfig
from commands.plan.rates import RatesConfig, override
from settings.run import RunConfig

ENOUGH = {"rollout": "step_s", "teacher": "prefill_tokens_per_s", "learner": "tokens_per_s"}
"""With these three given, nothing has to be estimated."""


@dataclass(frozen=True)
class PlannedRates:
    """Rates, and what they are."""

    rates: RatesConfig
    origin: str
    """Where values come from that were not given: `estimated`, `fitted` or `default`."""
    given: Mapping[str, Any]

    def origin_of(self, section: str, name: str) -> str:
        """`given`, or where else a value comes from."""
        values = self.given.get(section, {}) if section else self.given
        return "given" if name in values else self.origin


def planned_rates(plan: PlanConfig, config: RunConfig) -> PlannedRates:
    """Rates given, fitted or estimated, in this order; ValueError if something cannot be known."""
    given = plan.rates.given()
    lengths = _lengths(config, given.get("lengths", {}))
    engine = {"max_num_seqs": config.rollout.engine.max_num_seqs}
    if plan.from_run is not None:
        origin, rates = "fitted", override(fit_rates(read_run(plan.from_run)), {"rollout": engine})
    elif all(name in given.get(section, {}) for section, name in ENOUGH.items()):
        origin, rates = "default", override(RatesConfig(lengths=lengths), {"rollout": engine})
    else:
        origin, rates = "estimated", estimate_rates(config, plan.device, plan.models, lengths)
    return PlannedRates(override(rates, given), origin, given)


def _lengths(config: RunConfig, given: Mapping[str, Any]) -> LengthsConfig:
    """Response lengths as given; the limit is that of the run."""
    most = config.rollout.max_response_tokens
    values: dict[str, Any] = {"median": min(300.0, max(1.0, most / 2)), "max": most} | dict(given)
    return override(RatesConfig(), {"lengths": values}).lengths
