"""Several sources: every stretch of the order has them in their shares, each in epochs of its own."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inputs.mixture import BLOCK, PromptMixture, PromptOrder, Schedule
from inputs.prompts import PromptSource
from inputs.rendering import Prompt
from tests.examples import examples

pytestmark = pytest.mark.timeout(60)

weights = st.lists(st.floats(0.01, 100), min_size=2, max_size=6)


def prompts(name: str, count: int) -> list[Prompt]:
    return [Prompt(f"{name}{i}", [1, i], None, name) for i in range(count)]


def mixed(seed: int = 0, num_slots: int = 200) -> PromptSource:
    mixture = PromptMixture([prompts("a", 30), prompts("b", 7), prompts("c", 2)], [6.0, 3.0, 1.0])
    return PromptSource(mixture, seed=seed, num_samples=1, num_slots=num_slots)


@given(weights=weights, seed=st.integers(0, 2**32 - 1))
def test_every_prefix_has_the_sources_in_their_shares(weights: list[float], seed: int) -> None:
    schedule = Schedule(weights, seed=seed)
    shares = [weight / sum(weights) for weight in weights]
    counts: Counter[int] = Counter()
    for position in range(1, 501):
        part, number = schedule.source_at(position - 1)
        assert number == counts[part]
        counts[part] += 1
        for index, share in enumerate(shares):
            assert abs(counts[index] - share * position) <= 1 + share * len(weights) + 1e-9


@given(weights=weights, seed=st.integers(0, 2**32 - 1), start=st.integers(0, 10**9))
@examples(40)
def test_any_position_can_be_looked_up_and_none_is_left_out(weights: list[float], seed: int, start: int) -> None:
    schedule = Schedule(weights, seed=seed)
    found = [schedule.source_at(position) for position in range(start, start + 40)]
    assert found == [Schedule(weights, seed=seed).source_at(position) for position in range(start, start + 40)]
    for part in {part for part, _ in found}:
        numbers = [number for each, number in found if each == part]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_order_continues_over_block_boundaries() -> None:
    schedule = Schedule([1.0, 2.5, 0.3], seed=4)
    counts: Counter[int] = Counter()
    for position in range(2 * BLOCK + 100):
        part, number = schedule.source_at(position)
        assert number == counts[part]
        counts[part] += 1
    total = sum(counts.values())
    assert {part: round(count / total, 2) for part, count in counts.items()} == {0: 0.26, 1: 0.66, 2: 0.08}


def test_one_source_keeps_the_order_that_it_has_alone() -> None:
    alone = PromptSource(prompts("a", 9), seed=3, num_samples=1, num_slots=30)
    mixture = PromptSource(PromptMixture([prompts("a", 9)], [5.0]), seed=3, num_samples=1, num_slots=30)
    expected = ["a2", "a4", "a7", "a1", "a6", "a5", "a0", "a3", "a8"]
    assert [alone.prompt_of(slot) for slot in range(30)] == [mixture.prompt_of(slot) for slot in range(30)]
    assert sorted(expected) == sorted(alone.prompt_of(slot)[1].prompt_id for slot in range(9))


def test_every_source_comes_whole_in_each_of_its_epochs() -> None:
    found = [mixed().prompt_of(slot) for slot in range(200)]
    for name, count in (("a", 30), ("b", 7), ("c", 2)):
        of_source = [(epoch, prompt.prompt_id) for epoch, prompt in found if prompt.source == name]
        assert [epoch for epoch, _ in of_source] == [place // count for place in range(len(of_source))]
        assert {prompt_id for epoch, prompt_id in of_source if epoch == 0} == {f"{name}{i}" for i in range(count)}
    assert Counter(prompt.source for _, prompt in found).most_common() == [("a", 120), ("b", 60), ("c", 20)]


def test_the_order_depends_on_seed_and_position_only() -> None:
    of, backwards = mixed(), mixed()
    assert [of.prompt_of(slot) for slot in range(150)] == [backwards.prompt_of(s) for s in range(149, -1, -1)][
        ::-1
    ]
    assert [of.prompt_of(slot) for slot in range(150)] != [mixed(seed=1).prompt_of(slot) for slot in range(150)]
    longer = mixed(num_slots=1000)
    assert of.prompt_of(17) == longer.prompt_of(17)
    resumed = mixed()
    of.give_up(5)
    resumed.replacements.update(of.replacements)
    assert of.prompt_of(5) == resumed.prompt_of(5) == longer.prompt_of(200)


def test_a_mixture_is_the_sequence_of_its_sources() -> None:
    parts = [prompts("a", 3), prompts("b", 1), prompts("c", 2)]
    mixture = PromptMixture(parts, [1.0, 1.0, 1.0])
    assert list(mixture) == [*parts[0], *parts[1], *parts[2]]
    assert (len(mixture), mixture[-1], mixture[3:5]) == (6, parts[2][1], [parts[1][0], parts[2][0]])
    with pytest.raises(IndexError):
        mixture[6]


def test_large_orders_of_several_epochs_are_looked_up_quickly() -> None:
    order = PromptOrder([10_000, 3], [1.0, 1.0], seed=0)
    assert len({order.place(position) for position in range(20_000)}) == 20_000
