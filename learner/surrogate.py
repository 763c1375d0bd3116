"""Advantage -> loss of each token, with the correction of staleness that belongs to it.

Either an importance weight multiplies the advantage of a policy gradient, or the surrogate corrects by its own
ratio to the policy that sampled.

Shapes: T response tokens of a micro-batch.
"""

from functools import partial
from math import inf

from torch import Tensor

from learner.collate import PackedBatch
from rewards import IMPORTANCE_WEIGHTS, SURROGATES
from settings.objective import ImportanceConfig, SurrogateConfig

POLICY_GRADIENT = "policy_gradient"


class Surrogate:
    """The configured surrogate and importance weight. Parameters must have been validated."""

    def __init__(self, surrogate: SurrogateConfig, importance: ImportanceConfig) -> None:
        self.name = surrogate.name
        self._entry = SURROGATES[surrogate.name]
        self._surrogate = partial(self._entry, **surrogate.parameters)
        weight, parameters = importance.name, importance.parameters
        if surrogate.name == "decoupled_ppo":
            weight = "decoupled"
            parameters = {key: value for key, value in surrogate.parameters.items() if key == "cap"}
        elif surrogate.name != POLICY_GRADIENT:
            weight, parameters = "unclipped", {}
        self._importance_entry = IMPORTANCE_WEIGHTS[weight]
        self._importance = partial(self._importance_entry, **parameters)
        self.importance_cap = float(parameters.get("high", 2.0)) if weight in ("truncated", "tis") else inf

    @property
    def needs_proximal(self) -> bool:
        """True: log-probs of the learner at the start of the window are needed."""
        return self._entry.needs.proximal or self._importance_entry.needs.proximal

    def weight(self, batch: PackedBatch, logp_T: Tensor, proximal_logp_T: Tensor | None = None) -> Tensor:
        """Return the policy gradient's detached weight_T.

        For a surrogate with a ratio of its own it is that ratio, or the weight beside it: reported, not used.
        """
        weight_BT = self._importance(
            batch.unpack(logp_T),
            batch.unpack(batch.behaviour_logp_T),
            batch.unpack(batch.response_mask_T),
            **self._proximal(self._importance_entry.extras, batch, proximal_logp_T),
        )
        return weight_BT[batch.row_T, batch.column_T]

    def loss(
        self,
        batch: PackedBatch,
        logp_T: Tensor,
        advantage_T: Tensor,
        keep_T: Tensor,
        *,
        importance_T: Tensor,
        proximal_logp_T: Tensor | None = None,
    ) -> Tensor:
        """Return loss_T with the gradient of `logp_T`, 0 outside `keep_T`, under which all inputs are finite."""
        if self.name == POLICY_GRADIENT:
            return self._surrogate(logp_T, importance_T * advantage_T, keep_T)
        extras = {"behaviour_logp_BT": batch.behaviour_logp_T}
        if "proximal_logp_BT" in self._entry.extras:
            assert proximal_logp_T is not None, f"{self.name} needs proximal log-probs"
            extras["proximal_logp_BT"] = proximal_logp_T
        return self._surrogate(logp_T, advantage_T, keep_T, **extras)

    @staticmethod
    def _proximal(
        extras: tuple[str, ...], batch: PackedBatch, proximal_logp_T: Tensor | None
    ) -> dict[str, Tensor]:
        if "proximal_logp_BT" not in extras:
            return {}
        assert proximal_logp_T is not None, "this weight needs proximal log-probs"
        return {"proximal_logp_BT": batch.unpack(proximal_logp_T)}
