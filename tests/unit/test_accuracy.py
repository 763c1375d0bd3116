"""Accuracy over repeated answers: avg@k, pass@k, unbiased pass@k and maj@k."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import avg_at_k, maj_at_k, pass_at_k, pass_at_k_unbiased

CORRECT = [[True, False, False, True], [False, False, False, True], [False] * 4, [True] * 4]


def test_avg_at_k_is_the_mean_share_of_correct_answers_among_the_first_k() -> None:
    assert avg_at_k(CORRECT, 4) == pytest.approx(7 / 16)
    assert avg_at_k(CORRECT, 1) == pytest.approx(2 / 4)


def test_pass_at_k_is_the_share_of_problems_solved_within_the_first_k() -> None:
    assert pass_at_k(CORRECT, 4) == pytest.approx(3 / 4)
    assert pass_at_k(CORRECT, 3) == pytest.approx(2 / 4)


def test_unbiased_pass_at_k_is_the_mean_over_all_draws_of_k() -> None:
    correct = [True, False, False, True, False]
    for k in (1, 2, 3, 4, 5):
        draws = [any(draw) for draw in combinations(correct, k)]
        assert pass_at_k_unbiased([correct], k) == pytest.approx(sum(draws) / len(draws))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_the_two_kinds_of_pass_at_k_are_one_where_all_answers_are_drawn(correct: list[list[bool]]) -> None:
    assert pass_at_k_unbiased(correct, 6) == pytest.approx(pass_at_k(correct, 6))
    assert pass_at_k_unbiased(correct, 1) == pytest.approx(avg_at_k(correct, 6))


def test_the_most_frequent_answer_is_graded_not_the_most_frequently_right_one() -> None:
    assert maj_at_k([["4", "5", "5", "6"]], [[True, False, False, False]], 4) == 0.0
    assert maj_at_k([["4", "5", "5", "4", "4"]], [[True, False, False, True, True]], 5) == 1.0


def test_of_equally_frequent_answers_the_one_sampled_first_wins() -> None:
    assert maj_at_k([["4", "5", "5", "4"]], [[True, False, False, True]], 4) == 1.0
    assert maj_at_k([["5", "4", "4", "5"]], [[False, True, True, False]], 4) == 0.0


def test_only_the_first_k_answers_vote() -> None:
    assert maj_at_k([["4", "5", "5"], ["1", "1", "1"]], [[True, False, False], [True] * 3], 1) == 1.0
    assert maj_at_k([["4", "5", "5"], ["1", "1", "1"]], [[True, False, False], [True] * 3], 3) == 0.5


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least k = 3 answers, got 2"):
        pass_at_k_unbiased([[True, False]], 3)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        maj_at_k([["1"]], [[True]], 0)
    with pytest.raises(ValueError, match="at least k = 1 answers, got 0"):
        maj_at_k([], [], 1)
    with pytest.raises(ValueError, match="the same problems and answers"):
        maj_at_k([["1", "2"]], [[True]], 1)
