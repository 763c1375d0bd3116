"""What a registry entry is: name, parameters, needs, and where its function lives. No torch.

Shapes: B sequences, T tokens, S sufficient statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rewards.parameters import Parameter, Params, Rule, check_params

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What an entry asks of teachers, learner and rollouts; a job that cannot serve it is refused."""

    form: Literal["pg", "direct", "pg+direct"] = "pg"
    """"pg": a detached reward times the log-prob. "direct": a divergence that is differentiated itself."""
    teacher: tuple[Literal["token", "topk", "ids_query", "full"], ...] = ("token",)
    """What a teacher returns per position: the sampled token's log-prob, its own top K, log-probs at ids
    that the student names, all logits. Empty: nothing."""
    student: tuple[Literal["token", "entropy", "logits"], ...] = ("token",)
    """What the learner computes per position."""
    window_statistics: bool = False
    """True: one pass without gradient over the whole window comes before the first backward."""
    reference: bool = False
    """True: log-probs of a frozen reference model."""
    behaviour: bool = False
    """True: log-probs recorded at sampling time."""
    proximal: bool = False
    """True: log-probs that the learner computes once at the start of the window."""
    outcome: bool = False
    """True: a graded outcome per response."""
    finite_teacher: bool = False
    """True: at a teacher log-prob of -inf there is no reward, only a stand-in of 0. The caller masks and counts
    such tokens: `drop_non_finite(reward_BT, logp_BT, response_mask_BT, teacher_logp_BT)`."""
    full_softmax: bool = False
    """True: where it settles (at the teacher, or at a target of its own) the reward is a constant other than 0.
    Its expected gradient vanishes there only over all tokens of the full softmax at temperature 1."""


NOTHING = Needs(teacher=())
BEHAVIOUR = Needs(teacher=(), behaviour=True)


@dataclass(frozen=True)
class Entry:
    """A function of tensors with its declaration; call it like the function, parameters by keyword.

    >>> TOKEN_REWARDS["power"](teacher_logp_BT, student_logp_BT, response_mask_BT, alpha=5.0)
    """

    name: str
    doc: str
    source: str
    """"module:function", imported on the first call."""
    needs: Needs = Needs()
    is_bounded: bool = False
    """True: the result is finite and bounded for every log-prob in [-inf, 0]."""
    formula: str = ""
    """Of objectives, for the documentation: the value of a token or position."""
    parameters: tuple[Parameter, ...] = ()
    rules: tuple[Rule, ...] = ()
    extras: tuple[str, ...] = ()
    """Further keyword inputs that are not configured: tensors such as `reference_logp_BT`, or the `step`."""
    refine_needs: Callable[[Params, Needs], Needs] | None = None
    """Set where a parameter changes what is needed, such as the direction of a divergence."""
    token_mask: str | None = None
    """The entry of TOKEN_MASKS that belongs to this reward and takes the same parameters."""

    def __call__(self, *inputs: Any, **keywords: Any) -> Tensor:
        extras = {name: keywords.pop(name) for name in self.extras if name in keywords}
        return self.function(*inputs, **extras, **self.validate(keywords, field=self.name))

    def validate(self, params: Mapping[str, object], *, field: str) -> Params:
        """Return `params` checked and completed with defaults; a ValueError calls them `field`.NAME."""
        return check_params(self.name, self.parameters, self.rules, params, field)

    def needs_with(self, params: Params) -> Needs:
        """Return what this entry needs when it is run with these validated parameters."""
        return self.needs if self.refine_needs is None else self.refine_needs(params, self.needs)

    def needs_finite_teacher(self, params: Mapping[str, object]) -> bool:
        """Return `Needs.finite_teacher` with these parameters, given in part or in full."""
        return self.needs_with(self.validate(params, field=self.name)).finite_teacher

    @cached_property
    def function(self) -> Callable[..., Tensor]:
        """The function itself; asking for it imports torch."""
        return load(self.source)


@dataclass(frozen=True)
class NormaliserEntry:
    """A normaliser in two halves, so that a window may be spread over micro-batches and ranks.

    >>> parts = [zscore.statistics(reward_BT, mask_BT) for reward_BT, mask_BT in micro_batches]
    >>> statistics_S = zscore.merge(*parts)             # then all-reduce it with zscore.reduction
    >>> zscore.apply(reward_BT, mask_BT, statistics_S)  # the same values as one call on the whole window
    """

    name: str
    doc: str
    statistics_source: str
    apply_source: str
    reduction: Literal["sum", "max"]
    """How statistics of two parts become those of both; also the all-reduce operation over ranks."""
    uses_window_statistics: bool = True
    parameters: tuple[Parameter, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __call__(self, reward_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
        return self.apply(reward_BT, response_mask_BT, self.statistics(reward_BT, response_mask_BT))

    @cached_property
    def statistics(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(reward_BT, response_mask_BT) -> float64 statistics_S of the unmasked rewards."""
        return load(self.statistics_source)

    @cached_property
    def apply(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(reward_BT, response_mask_BT, statistics_S of the window) -> rewards, normalised; 0 outside the mask."""
        return load(self.apply_source)

    def merge(self, *statistics_S: Tensor) -> Tensor:
        """Return the statistics of one or more parts taken together."""
        if self.reduction == "sum":
            return reduce(lambda left_S, right_S: left_S + right_S, statistics_S)
        return reduce(lambda left_S, right_S: left_S.maximum(right_S), statistics_S)

    def validate(self, params: Mapping[str, object], *, field: str) -> Params:
        """Return `params` checked and completed with defaults; a ValueError calls them `field`.NAME."""
        return check_params(self.name, self.parameters, self.rules, params, field)


def load(source: str) -> Callable[..., Tensor]:
    """Import "module:function"."""
    module, function = source.split(":")
    return getattr(import_module(module), function)


AnyEntry = TypeVar("AnyEntry", Entry, NormaliserEntry)


def by_name(*entries: AnyEntry) -> dict[str, AnyEntry]:
    """Return the entries as a registry, each under its own name."""
    return {entry.name: entry for entry in entries}
