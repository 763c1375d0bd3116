"""Settings of what a person sees of a run: the live view, dashboards, what is kept."""

from typing import Literal

from cluster.engine_config import NonNegative, Section


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
    wandb_project: str | None = None
    """Weights & Biases project; the `wandb` package must be installed."""
