"""Settings of the checks before a run."""

from typing import Annotated

from pydantic import Field

from settings.engine import Fraction, Positive, Section


class PreflightConfig(Section):
    """Limits of the checks that `launch.py preflight` makes, and `train` before it starts."""

    num_samples: Positive = 8
    """Prompts on which the chat templates of student and teachers are rendered and compared."""
    num_rows: Positive = 10_000
    """Prompts whose lengths are counted; the first so many."""
    max_memory_fraction: Fraction = 0.95
    """A role's estimated memory may be this share of what its device or node has."""
    min_free_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.2
    """Disk space that must stay free beside checkpoints and export, in GiB: metrics, logs, ledger."""
    golden_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest mean absolute difference of log-probs of the golden sequence between two engines, or between an
    engine and the learner; by default 0.001 in float32 and 0.25 in bfloat16."""
    node_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Wait so long for every node of the cluster to say what it has."""
