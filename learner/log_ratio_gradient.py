"""What the gradient of vanilla on-policy distillation would have been on the batch of a step: for comparison only.

Loaded only where `logging.diagnostics_every` asks for it.

The log-ratio is trained on the same tokens, with the same importance weight or surrogate, and without normaliser,
returns, baseline or token weight. Its gradient is measured at the weights before the step, and then forgotten.
"""

import logging
from typing import TYPE_CHECKING

from torch import Tensor

from learner.collate import PackedBatch
from learner.loss import FixedValues, Objective
from learner.window import Window
from settings.objective import ObjectiveConfig
from settings.run import RunConfig

if TYPE_CHECKING:
    from learner.deepspeed_backend import DeepSpeedBackend

logger = logging.getLogger(__name__)


class LogRatioGradient:
    """Measures `grad_norm/log_ratio`."""

    def __init__(self, config: RunConfig) -> None:
        self._is_sharded = config.learner.zero_stage == 3
        objective = ObjectiveConfig(name="log_ratio", aggregate=config.objective.aggregate)
        self._vanilla = Objective(objective, config.importance, surrogate=config.surrogate)
        if self._is_sharded:
            logger.warning(
                "grad_norm/log_ratio is not measured: learner.zero_stage 3 has no memory for all gradients"
            )

    def norm(self, window: Window, backend: "DeepSpeedBackend") -> dict[str, float]:
        """Return the metric, or nothing with ZeRO-3. Every rank must call it."""
        if self._is_sharded:
            return {}
        fixed = iter(window.fixed)

        def loss_of(batch: PackedBatch, logp_T: Tensor, entropy_T: Tensor) -> Tensor:
            known = FixedValues(proximal_logp_T=next(fixed).proximal_logp_T)
            result = self._vanilla.micro_batch_loss(batch, logp_T, entropy_T, counts=window.counts, fixed=known)
            return result.loss

        return {"grad_norm/log_ratio": backend.gradient_norm(window.batches, loss_of)}
