"""Outcome grading and accuracy over repeated answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import avg_at_k, grade_batch, pass_at_k
from rewards.grading.outcome import extract_answer

unhurried = settings(deadline=None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}} is the answer", r"\frac{1}{2}"),
        (r"\boxed{3} but cut off \boxed{4", "3"),
        (r"an open { before \boxed{ 5 }", "5"),
        (r"\boxed{a \boxed{6}}", "6"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{7} #### 8", "7"),
        ("work #### 8\n#### 9\n", "9"),
        ("  just text ", "just text"),
        ("", ""),
    ],
)
def test_the_answer_is_the_last_balanced_box_else_after_hashes_else_everything(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("1,000", "1000"),
        ("+5", "5"),
        ("0.50", "1/2"),
        ("-3/6", "-.5"),
        ("1e3", "1000"),
        ("42.", "42"),
        (" 3 / 4 ", "3/4"),
        ("x + 1", "x+1"),
        ("no  solution", "no solution"),
        (r"so \boxed{12}", "#### 12"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_equal_answers_are_right_however_they_are_written(prediction: str, answer: str) -> None:
    assert grade_batch([prediction], [answer]) == [True]


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("1,2", "12"),
        ("1 1/2", "11/2"),
        ("0.333", "1/3"),
        ("1/0", "0"),
        ("1e999999999", "1"),
        ("9" * 5000, "9"),
        ("", "0"),
        ("nosolution", "no solution"),
    ],
)
def test_different_answers_are_wrong(prediction: str, answer: str) -> None:
    assert grade_batch([prediction], [answer]) == [False]


@unhurried
@given(st.text(alphabet="\\boxed{}#0123456789,./+-eE \n", max_size=60))
def test_grading_never_raises_and_a_text_equals_itself(text: str) -> None:
    assert grade_batch([text], [text]) == [True]


def test_a_degenerate_response_is_graded_in_one_pass() -> None:
    assert grade_batch([r"\boxed{" * 200_000], ["1"]) == [False]


def test_predictions_and_answers_must_pair_up() -> None:
    with pytest.raises(ValueError, match="must pair up, got 1 and 2"):
        grade_batch(["1"], ["1", "2"])


CORRECT = [[True, False, False, True], [False, False, False, True], [False] * 4, [True] * 4]


def test_avg_at_k_is_the_mean_share_of_correct_answers_among_the_first_k() -> None:
    assert avg_at_k(CORRECT, 4) == pytest.approx(7 / 16)
    assert avg_at_k(CORRECT, 1) == pytest.approx(2 / 4)


def test_pass_at_k_is_the_share_of_problems_solved_within_the_first_k() -> None:
    assert pass_at_k(CORRECT, 4) == pytest.approx(3 / 4)
    assert pass_at_k(CORRECT, 3) == pytest.approx(2 / 4)


def test_k_must_fit_the_number_of_answers() -> None:
    with pytest.raises(ValueError, match="at least k = 5 answers, got 4"):
        avg_at_k(CORRECT, 5)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        pass_at_k(CORRECT, 0)
