"""Every registry, and the check of a name and its parameters. No torch.

To add an entry: write its function, declare it in one of the `catalogue_` files, and state its closed form in
`tests/unit/test_rewards_*.py`, whose properties cover it by themselves. No user of the registries changes, and
`python -m docs.generate.write_reference` writes its documentation.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Literal

from rewards.catalogue_divergences import BASELINES, DIVERGENCES
from rewards.catalogue_losses import AGGREGATIONS, NORMALISERS, SURROGATES
from rewards.catalogue_rewards import TOKEN_REWARDS
from rewards.catalogue_weights import IMPORTANCE_WEIGHTS, TOKEN_MASKS, TOKEN_WEIGHTS
from rewards.parameters import Params, check_name
from rewards.registry import Entry, NormaliserEntry

__all__ = [
    "AGGREGATIONS",
    "BASELINES",
    "DIVERGENCES",
    "IMPORTANCE_WEIGHTS",
    "NORMALISERS",
    "OBJECTIVES",
    "SURROGATES",
    "TOKEN_MASKS",
    "TOKEN_REWARDS",
    "TOKEN_WEIGHTS",
    "Kind",
    "lookup",
    "validate",
]

OBJECTIVES: Mapping[str, Entry] = ChainMap(DIVERGENCES, TOKEN_REWARDS)
"""What a job may optimize, by name. An objective that stands in both registries is declared by its divergence, and
its `needs_with(params).form` says which functions to run: "pg" TOKEN_REWARDS, "direct" DIVERGENCES, "pg+direct"
both, with the same parameters, and the value of a token is the sum."""

Kind = Literal["objective", "normaliser", "importance", "token_weight", "token_mask", "baseline", "surrogate"]

REGISTRIES: dict[Kind, Mapping[str, Entry] | Mapping[str, NormaliserEntry]] = {
    "objective": OBJECTIVES,
    "normaliser": NORMALISERS,
    "importance": IMPORTANCE_WEIGHTS,
    "token_weight": TOKEN_WEIGHTS,
    "token_mask": TOKEN_MASKS,
    "baseline": BASELINES,
    "surrogate": SURROGATES,
}


def lookup(kind: Kind, name: str, *, field: str | None = None) -> Entry | NormaliserEntry:
    """Return the entry called `name`, or raise a ValueError that names the nearest one.

    `field` is what the user's configuration calls this section; by default, the kind.
    """
    registry = REGISTRIES[kind]
    check_name(f"{field or kind}.name", name, registry)
    return registry[name]


def validate(kind: Kind, name: str, params: Mapping[str, object], *, field: str | None = None) -> Params:
    """Return every parameter of the named entry, checked and completed with defaults.

    >>> validate("objective", "power", {"alpha": 0})
    ValueError: objective.alpha must be > 0 and <= 1000, got 0
    """
    return lookup(kind, name, field=field).validate(params, field=field or kind)
