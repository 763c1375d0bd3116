"""The configuration of a plan: which run, how fast its parts are, and what is wanted."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from commands.plan.devices import DeviceConfig
from commands.plan.rates import RatesConfig
from inputs.models import ModelsConfig
from settings.engine import Count, Positive, Section

PositiveNumber = Annotated[float, Field(gt=0, le=1e18)]


class TargetConfig(Section):
    """What the cheapest worker counts are searched for; nothing is searched without `tokens_per_s` or `hours`."""

    tokens_per_s: PositiveNumber | None = None
    """Trained response tokens per second."""
    hours: PositiveNumber | None = None
    """Hours for all `max_steps` of the run, without evaluations and checkpoints."""
    max_workers: dict[str, Count] = Field(default={})
    """Most workers by role: `{rollout: 8, teacher: 4, learner: 8}`; 64 of each where nothing is said."""
    max_simulations: Positive = 20
    """Simulations that the search may take."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.tokens_per_s is not None and self.hours is not None:
            raise ValueError("target must have tokens_per_s or hours, not both")
        return self

    @property
    def is_set(self) -> bool:
        """True if counts are to be searched."""
        return self.tokens_per_s is not None or self.hours is not None


class SimulationConfig(Section):
    """How long a run is simulated for one prediction."""

    responses: Annotated[int, Field(ge=64, le=10_000_000)] = 2000
    """About so many responses are simulated for one prediction: small batches for more steps than `steps`; of
    large ones a simulated response stands for several."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 16
    """Steps that are measured at least, after those that fill the pipeline."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the response lengths."""


class PlanConfig(Section):
    """A plan. How fast the parts are: values under `rates` come first, then those fitted from `from_run`, else
    those estimated from `models` and `device`."""

    base: str
    """YAML file of the run configuration that is planned for."""
    overrides: dict[str, Any] = Field(default={})
    """Settings over those of `base` by dotted key: `{max_staleness: 0, rollout.num_workers: 4}`."""
    from_run: str | None = None
    """Folder of a finished run (`runs/NAME`) whose measured rates are taken."""
    models: ModelsConfig = ModelsConfig()
    """Sizes of the models, for estimates."""
    device: DeviceConfig = DeviceConfig()
    """The devices, for estimates."""
    rates: RatesConfig = Field(default=RatesConfig())
    """Rates that are known; whatever is given here replaces fitted and estimated values."""
    target: TargetConfig = TargetConfig()
    """What to find the cheapest worker counts for."""
    simulation: SimulationConfig = SimulationConfig()
    """Effort of a prediction."""
