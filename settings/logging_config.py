"""Settings of what a person sees of a run: the live view, dashboards, what is kept."""

from typing import Annotated, Literal

from pydantic import Field

from settings.engine import NonNegative, Seconds, Section

WandbText = Annotated[str, Field(min_length=1, max_length=128)]


class LoggingConfig(Section):
    """Where progress goes."""

    display: Literal["auto", "live", "plain"] = "auto"
    """Live view on a terminal, one plain line per step otherwise."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    diagnostics_every: NonNegative = 10
    """Measure on every so many-th step, from the first, what the log-ratio's gradient norm would have been
    (`grad_norm/log_ratio`): one more forward and backward, and for that time a float32 copy of all gradients on
    every rank, next to those of a micro-batch. Not with learner.zero_stage 3. 0 is never."""
    save_batches: bool = False
    """Keep every trained batch as Arrow files under `batches/`, so that steps can be replayed and examined."""
    samples: NonNegative = 4
    """Problems whose responses before and after training are kept, token by token with their rewards, in
    `samples.jsonl` for the report; 0 is none."""
    prometheus: bool = True
    """Metrics named `poweropd_...` through Ray, on the Prometheus port of the driver's node."""
    wandb_project: WandbText | None = None
    """Weights & Biases project; nothing is sent without it. The package `wandb` must be installed
    (`pip install 'poweropd[wandb]'`); a resumed run continues the same run there."""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """offline writes to `wandb/` in the run folder, for `wandb sync`; disabled is like no project."""
    wandb_entity: WandbText | None = None
    """User or team that the project belongs to; by default that of the login."""
    wandb_group: WandbText | None = None
    """Group of the run, e.g. for seeds of one experiment."""
    wandb_tags: list[WandbText] = Field(default=[])
    """Tags of the run."""
    wandb_timeout_s: Seconds = 60.0
    """So long Weights & Biases may take to begin and, at the end, to send the rest; the run never waits longer."""
