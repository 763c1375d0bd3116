"""How fast the workers of a simulated run are: given, estimated or fitted, and what of it was given."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from commands.plan.prompts import LengthsConfig
from commands.plan.timing import Duration, EngineRates
from commands.plan.workers import LearnerRates
from settings.engine import Section


class RatesConfig(Section):
    """How fast everything is."""

    rollout: EngineRates = EngineRates()
    """A student engine."""
    teacher: EngineRates = EngineRates()
    """A teacher engine, of every teacher and of the reference model."""
    learner: LearnerRates = LearnerRates()
    """The learner, by rank."""
    start_s: Duration = 0.0
    """Seconds until an engine that is added has started."""
    lengths: LengthsConfig = Field(default=LengthsConfig())
    """How long prompts and responses are."""

    def given(self) -> dict[str, Any]:
        """The values that were given, by section; defaults are left out."""
        return self.model_dump(exclude_unset=True)


def override(rates: RatesConfig, given: Mapping[str, Any]) -> RatesConfig:
    """These rates with the values that were given in their place; ValueError if they do not go together."""
    try:
        return RatesConfig.model_validate(_merged(rates.model_dump(), given))
    except ValidationError as error:
        raise ValueError("; ".join(f"rates: {each['msg']}" for each in error.errors())) from error


def _merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _merged(values[key], each) for key, each in given.items() if isinstance(each, Mapping)}
    return {**values, **given, **nested}
