"""A batch is split over ranks without losing a slot; where a run stands survives JSON."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.lanes import Rollout
from controller.learner_group import split_by_tokens
from controller.recovery import Progress
from records.checkpoints import Frontier
from transport.notes import RolloutNote

MANY_TOKENS = st.lists(st.integers(1, 5000), min_size=1, max_size=60)


def batch_of(tokens: list[int]) -> list[Rollout]:
    """Slots 0, 1, ... with these numbers of tokens; a slot's table is its number."""
    return [
        Rollout(RolloutNote(slot, 0, (str(slot),), num_tokens, 1, 0, 0, 0, "math"), table=slot)
        for slot, num_tokens in enumerate(tokens)
    ]


def num_tokens(share: list[Rollout]) -> int:
    """Tokens of a rank's share."""
    return sum(scored.note.num_tokens for scored in share)


def test_two_ranks_get_equal_shares_in_slot_order() -> None:
    shares = split_by_tokens(batch_of([10, 1, 9, 4, 6]), 2)
    assert [[scored.note.slot for scored in share] for share in shares] == [[0, 1, 3], [2, 4]]
    assert [num_tokens(share) for share in shares] == [15, 15]


@given(MANY_TOKENS, st.integers(1, 8))
def test_a_split_keeps_every_slot_once_and_balances_tokens(tokens: list[int], num_ranks: int) -> None:
    shares = split_by_tokens(batch_of(tokens), num_ranks)
    assert len(shares) == num_ranks
    assert sorted(scored.table for share in shares for scored in share) == list(range(len(tokens)))
    loads = [num_tokens(share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens)
    assert len(tokens) < num_ranks or all(shares)


@given(MANY_TOKENS, st.randoms())
def test_a_split_does_not_depend_on_the_order_of_the_batch(tokens: list[int], random: Any) -> None:
    batch = batch_of(tokens)
    shuffled = random.sample(batch, len(batch))
    assert split_by_tokens(batch, 3) == split_by_tokens(shuffled, 3)


def test_progress_survives_json() -> None:
    progress = Progress(Frontier(3, 10, (12, 15)), incarnation=2, replacements={7: 96, 11: 97})
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress
    assert Progress.from_json(json.loads(json.dumps(Progress().to_json()))) == Progress()
