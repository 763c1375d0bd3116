"""Rates of a finished run, from its metrics rows and events."""

from cluster.config import RunConfig
from cluster.simulation.rates import RatesConfig


def fit_rates(path: str, config: RunConfig) -> RatesConfig:
    """Rates measured in a run; ValueError if its folder does not have them."""
    raise NotImplementedError
