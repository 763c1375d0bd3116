"""Where the two graders find the final answer of a response, and which answers they take for right."""

import pytest

from rewards import Grader, Verdict, extract_answer, grade_batch, grade_responses
from rewards.grading.extraction import MAX_READ

LENIENT = [
    # statements
    ("Twice 21 makes 42.\n\nThe answer is 42.", "42"),
    ("The answer is: 42", "42"),
    ("the answer is 42 ", "42"),
    ("**Answer:** 42", "42"),
    ("**Final Answer**\n42", "42"),
    ("### Final answer\n\n$42$", "$42$"),
    ("Final answer: 42 apples", "42"),
    ("ANSWER: 42", "42"),
    ("Answer = 42", "42"),
    ("So the final answer is **42**!", "42"),
    ("Therefore, the answer is $42$.", "42"),
    (r"The answer is \(42\).", "42"),
    ("The answer is\n$$\n42\n$$", "42"),
    ("The answer to the question is 42, as we saw in step 3.", "42"),
    ("The answer is 42 because 6 * 7 = 42.", "42"),
    ("The answer would be 42 (since 6 times 7 is 42).", "42"),
    ("The answer is that she has 42 eggs left.", "42"),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "0.5"),
    ("The answer is $1,234.50.", "1234.5"),
    ("The answer is 12%.", r"12\%"),
    ("The answer is 12 percent.", r"12\%"),
    ("The answer is 3 1/2 hours.", "3.5"),
    ("The answer is 6 * 7 = 42.", "42"),
    ("The answer is 3 million.", "3000000"),
    ("The answer is x = 42.", "42"),
    ("The answer is 2 and 3.", "3, 2"),
    ("The answers are $x = 2$ and $x = 3$.", "2, 3"),
    ("The answer is (1, 2).", "(1,2)"),
    ("The answer is [0, 1).", "[0,1)"),
    (r"The answer is $(-\infty, 2) \cup (3, \infty)$.", r"(-\infty,2)\cup(3,\infty)"),
    ("The answer is no solution.", "no solution"),
    ("The answer is (C).", "C"),
    ("The answer is Evelyn.", r"\text{Evelyn}"),
    ("The answer is x^2 + 3.", "3+x^2"),
    ("The answer is -42.", "-42"),
    ("The answer is 42, not 43.", "42"),
    ("First the answer is 41. No, the answer is 42.", "42"),
    ("The answer is 41. Wait, that is wrong. It should be 42.", "42"),
    ("The answer is 41. No, it is 42.", "42"),
    ("She earns 41. Actually, it is 42.", "42"),
    ("The answer is 42. Actually 6 * 7 = 42.", "42"),
    ("He runs 6*7=<<6*7=42>>42 miles", "42"),
    ("<answer>42</answer>", "42"),
    ("The answer is *42*.", "42"),
    ("The answer is negative 42.", "-42"),
    ("The answer is 42. Wait, let me check. Yes, it holds.", "42"),
    ("The answer is 42. To check: 42 / 6 = 7.", "42"),
    ("Is the answer 41? It is 42.", "42"),
    # hashes
    ("#### 42\nThe answer is: 42", "42"),
    ("#### **42**", "42"),
    ("####42", "42"),
    ("#### $42 dollars", "42"),
    ("#### 41\nThe answer is: 42", "42"),
    ("The answer is 41.\n#### 42", "42"),
    ("#### Step 3: Conclusion\nSo she has 42 eggs.", "42"),
    ("#### Evelyn", "Evelyn"),
    # boxes
    (r"\boxed 42", "42"),
    (r"so $\boxed 42$ is it", "42"),
    (r"\boxed{41}, no: \boxed{42}", "42"),
    (r"\boxed{41}, no: $\boxed 42$.", "42"),
    (r"The answer is 41, so \boxed{42}.", "42"),
    # neither
    ("So he earns **$42** every day.", "42"),
    ("She has 45 - 3 = 42 eggs left.", "42"),
    ("x = 42", "42"),
    (r"Hence $x = \frac{1}{2}$.", "1/2"),
    (r"Hence \[ x = \frac{1}{2} \]", "1/2"),
    ("It takes 1,042 steps.", "1042"),
    ("1. Buy 40 eggs.\n2. Buy 2 more: 42 in all.", "42"),
    ("Cost = $42", "42"),
    ("The sum is 42!", "42"),
    ("- 42 eggs are left", "42"),
    ("The roots are 2 and 3.", "2,3"),
    ("They are $2$, $3$, and $5$.", "2,3,5"),
    ("even", r"\text{even}"),
    (r"11\sqrt2", r"\sqrt{242}"),
    ("5 hours and 30 minutes", "5 hours and 30 minutes"),
    ("The answer is approximately 4.25.", "4.25"),
    ("It weighs about 4.25 kg.", "4.25"),
    ('The answer is "42".', "42"),
    ("The answer is <b>42</b>.", "42"),
    ("The answer is 42.<|im_end|>", "42"),
    ("The answer is 42</s>", "42"),
    ("The answer is: b) 42", "42"),
    ("So the correct option is B.", "B"),
    ("She needs 42 more eggs.", "42"),
    ("There are 42 fifth graders.", "42"),
    ("She has 6 times 7 = 42 eggs.", "42"),
    ("So 50 minus 8 = 42.", "42"),
    ("He bought 42 months ago", "42"),
]

NOT_LENIENT = [
    # the right number stands elsewhere
    ("There are 42 eggs. She eats 2, so 40 are left.", "42"),
    ("The answer is 40. (42 was before lunch.)", "42"),
    ("#### 40\n42 was before lunch", "42"),
    ("I first thought of 42, but the answer is forty.", "42"),
    ("She has 42 eggs.\n3. She sells them all.", "3"),
    ("She sells them all.\nStep 3: none is left.", "3"),
    (r"\boxed{40} and not 42", "42"),
    ("The answer is 42. Wait, that is wrong. It should be 40.", "42"),
    ("The answer is 42. Wait, that is wrong.", "42"),
    ("Is the answer 42? No, the answer is 40.", "42"),
    ("He came 42nd.", "42"),
    ("There are 42 of them, and he came 3rd.", "42"),
    ("The answer is 42. No, it is 40.", "42"),
    ("The answer is 42, or maybe 40.", "42"),
    ("The answer is 42?", "42"),
    ("40 out of 42", "42"),
    # parts of an answer
    ("The answer is 42 or 43.", "42"),
    ("The answer is 42 and 43.", "42"),
    ("The answer is 42 apples and 43 pears.", "42"),
    ("x = 42 or x = 3", "3"),
    ("They are $42$ and $3$.", "3"),
    ("It is x^2 + 42", "42"),
    ("The answer is cost + 42.", "42"),
    ("The answer is (42, 3).", "42"),
    ("2x + 3 = 42", "42"),
    ("The answer is y = 42", "x = 42"),
    (r"The answer is $7e_{1}+\frac23$.", r"\frac23"),
    (r"Hence $\frac{1}{2} x$.", r"\frac{1}{2}"),
    # denied, estimated, in other units
    ("The answer is not 42.", "42"),
    ("It isn't 42.", "42"),
    ("The answer is more than 42.", "42"),
    ("The answer is at least 42.", "42"),
    ("The answer is about 42.", "42"),
    ("The answer is 42 or more.", "42"),
    ("The answer is 42 dozen.", "42"),
    ("The answer is between 41 and 42.", "42"),
    ("She has twice 42.", "42"),
    ("The answer is no longer 42.", "42"),
    ("The answer is anything but 42.", "42"),
    ("The answer is all numbers except 42.", "42"),
    ("The answer is 42 more than n.", "42"),
    ("The answer is 42 reduced by one.", "42"),
    ("The answer is 42 and a half.", "42"),
    # said of the number, not the number
    ("The answer is the square of 42.", "42"),
    ("The answer is the reciprocal of 42.", "42"),
    ("The answer is two thirds of 42.", "42"),
    ("The answer is the digit sum of 42.", "42"),
    ("The answer is three times 42.", "42"),
    ("Half of x = 42", "42"),
    ("One of the roots is x = 42", "42"),
    ("The answer is divisible by 42.", "42"),
    ("The answer is 42 squared.", "42"),
    ("The answer is 42 factorial.", "42"),
    ("The answer is 42 pi.", "42"),
    ("The answer is 42 tenths.", "42"),
    ("The answer is 42 halves.", "42"),
    (r"\boxed{42 \text{ squared}}", "42"),
    (r"\boxed{42 thousandths}", "42"),
    ("The answer is 42 cm.", r"42 \text{ m}"),
    ("The answer is 42 cents.", r"\$42"),
    ("The answer is unknown.", "42"),
    ("", "42"),
    ("I do not know.", "42"),
]


def graded(pairs: list[tuple[str, str]], grader: Grader) -> list[bool]:
    return grade_batch([text for text, _ in pairs], [answer for _, answer in pairs], grader)


def test_the_lenient_grader_reads_ordinary_answers() -> None:
    found = graded(LENIENT, "lenient")
    assert [pair for pair, is_right in zip(LENIENT, found, strict=True) if not is_right] == []


@pytest.mark.parametrize("grader", ["strict", "lenient"])
def test_a_right_number_elsewhere_or_in_part_makes_no_answer_right(grader: Grader) -> None:
    found = graded(NOT_LENIENT, grader)
    assert [pair for pair, is_right in zip(NOT_LENIENT, found, strict=True) if is_right] == []


def test_what_the_strict_grader_takes_the_lenient_one_does_too() -> None:
    strict = graded(LENIENT, "strict")
    assert 5 < sum(strict) < len(LENIENT) / 2
    assert all(right or not before for before, right in zip(strict, graded(LENIENT, "lenient"), strict=True))


def test_the_answer_that_is_recorded_is_the_one_that_was_compared() -> None:
    [stated, whole] = grade_responses(
        ["The answer is 42.", "5 hours and 30 minutes"], ["42", "5 hours and 30 minutes"], "lenient"
    )
    assert (stated.extracted, stated.verdict) == ("42", Verdict.RIGHT)
    assert (whole.extracted, whole.verdict) == ("5 hours and 30 minutes", Verdict.RIGHT)
    [unread] = grade_responses(["The answer is 42."], ["42"])
    assert (unread.extracted, unread.verdict) == ("The answer is 42.", Verdict.WRONG)


def test_an_open_box_and_a_box_without_braces_end_where_they_should() -> None:
    assert extract_answer(r"$\boxed 5$, as $\{1, 2\}$ has it") == "5"
    assert extract_answer(r"\boxed5.") == "5"
    assert extract_answer(r"\(\boxed \frac{1}{2}\)") == r"\frac{1}{2}"
    assert extract_answer(r"first \boxed 3 and then \boxed{4") == "3"


def test_long_and_broken_texts_are_read_at_once() -> None:
    texts = [
        "$" * 20_000,
        "the answer is " * 5_000,
        "answer " * 10_000,
        "#### " * 10_000,
        "1 + " * 10_000,
        "(" * 10_000 + "1",
        r"$\text{a}" * 3_000,
        r"\[" * 5_000,
        "wait, " * 5_000,
        "\n- " * 5_000,
        "1, 2 and " * 3_000,
    ]
    assert max(map(len, texts)) > 4 * MAX_READ
    assert grade_batch(texts, ["5"] * len(texts), "lenient") == [False] * len(texts)
