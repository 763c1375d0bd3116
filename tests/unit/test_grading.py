"""Hand-written pairs of gold and predicted answers: how equal ones may be written, and what is wrong."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import compare_answers, equality_classes, grade_batch, grade_verdicts
from rewards.grading.comparison import MAX_LENGTH
from rewards.grading.outcome import extract_answer
from rewards.grading.pool import GradingPool, Verdict
from rewards.grading.text import clean_answer, enclosed, split_top

RIGHT = [
    # fractions, decimals, mixed numbers
    (r"\frac{1}{2}", "0.5"),
    (r"\frac34", r"\dfrac{3}{4}"),
    (r"-\frac{3}{4}", r"\frac{-3}{4}"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
    (r"1\frac{4}{5}", "1.8"),
    (r"137 \frac{1}{2}", "275/2"),
    ("1 1/2", "3/2"),
    (r"\frac{1}{3}", "0.333333"),
    (r"67.\overline{3}", r"\frac{202}{3}"),
    (".5", "0.50"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
    ("1/2", "0.50"),
    ("-.5", "-3/6"),
    ("3/4", " 3 / 4 "),
    # large numbers, separators, money, percent, scientific notation
    ("1000", "1,000"),
    ("1000", "1e3"),
    (r"10,\!080", "10080"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("1000000", "1 000 000"),
    (r"\$32,\!348", "32348"),
    ("18", "$18"),
    ("18", r"\$18.00"),
    ("18", "18 dollars"),
    ("3000000", "3 million"),
    (r"8 \%", "8%"),
    ("62.5%", "0.625"),
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("1.77e-6", r"1.77 \cdot 10^{-6}"),
    ("3e8", "300000000"),
    # units and degrees
    ("5", r"5 \text{ cm}"),
    (r"15\mbox{ cm}^2", r"15 \text{ square centimeters}"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", r"90 \text{ degrees}"),
    ("7", "7 apples"),
    # intervals, tuples, sets, lists
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", r"(0.6, 8/3]"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"x \in [-2,7]", "[-2, 7]"),
    (r"[-2,7]", r"-2 \le x \le 7"),
    (r"k \geqslant 2", r"2 \leq k"),
    ("1,-2", "-2, 1"),
    (r"\{1, 2\}", r"\left\{2, 1\right\}"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("(1,8,19), (2,7,13)", "(2, 7, 13), (1, 8, 19)"),
    ("69$,$84", r"69 \text{ and } 84"),
    ("100, 200", "100,200"),
    (r"\emptyset", r"\{\}"),
    # expressions, equations, matrices, functions
    ("x^2-1", "(x-1)(x+1)"),
    ("(a+5)(b+2)", "(b+2)(a+5)"),
    (r"11\sqrt2", r"\sqrt{242}"),
    (r"2^{1009}", r"2 \cdot 2^{1008}"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{n!n!}"),
    (r"\log_2 8", "3"),
    ("6 - 5i", "-5i+6"),
    (r"-2+2 \sqrt{3} i", r"-2 + 2i\sqrt{3}"),
    (r"\frac{v_{0}}{r_{0}} \frac{1}{\left(1+r / r_{0}\right)^{3 / 2}}", r"\frac{v_0}{r_0 (1 + r/r_0)^{3/2}}"),
    (r"\frac{1}{2a}(\exp{a*t} - \exp{-a*t})", r"\frac{e^{at}-e^{-at}}{2a}"),
    (r"a=2$, $a=-6-4 \sqrt{2}", r"a = -6-4\sqrt{2} \text{ or } a = 2"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("y = 2x + 3", "2x - y + 3 = 0"),
    ("f(x)=x+1", "x+1"),
    ("x=1,y=2", "y = 2, x = 1"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}"),
    ("2516_8", "2516_{8}"),
    ("2516_8", "2516"),
    (r"\lfloor m / 2\rfloor", r"\left\lfloor \frac{m}{2} \right\rfloor"),
    # words and letters
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{even}", r"\textbf{Even}."),
    (r"\text{(C)}", "C"),
    ("no real solutions", r"\text{No real solutions}"),
    ("2\u03c0", r"2\pi"),
    ("101_2", "(101)_2"),
    ("18", "**18**"),
    ("18", r"\text{18 dollars}"),
    (r"2\sqrt{3}", "2*sqrt(3)"),
    (r"2^{\frac{n+1}{2}}", "2^((n+1)/2)"),
    # derivatives and equations
    (r"\frac{d x}{d t}=k x-a", r"\frac{dx}{dt} - kx + a = 0"),
    (r"\frac{d x}{d t}=k x-a", r"kx-a = \frac{\mathrm{d}x}{\mathrm{d}t}"),
    (r"I \frac{d \omega}{d t}+2 B \omega=T", r"\frac{d\omega}{dt} = \frac{T - 2B\omega}{I}"),
    (r"\frac{d^2x}{dt^2}=-9x", r"\frac{d^{2} x}{dt^{2}}+9x=0"),
    ("2x", r"\frac{d}{dx} x^2"),
    (r"I=\frac{V}{R}", "V/R"),
]

WRONG = [
    ("11/2", "1 1/2"),
    ("1", "1e999999999"),
    ("9", "9" * 5000),
    ("12", "1 2"),
    (r"\frac{1}{3}", "0.333"),
    (r"\frac{1}{3}", "0.33"),
    (r"\pi", "3.14"),
    (r"\pi", r"\frac{22}{7}"),
    ("50", "0.5"),
    (r"50\%", r"5\%"),
    (r"1.6 \times 10^{-19}", r"1.7 \times 10^{-19}"),
    ("1e-7", "0.0000002"),
    ("0", "0.0000001"),
    (r"1.6 \times 10^{-19} \pi", r"1.7 \times 10^{-19} \pi"),
    ("1234", "1,2,3,4"),
    ("1234", "(1,234)"),
    ("100200", "100, 200"),
    (r"5 \text{ m}", r"5 \text{ cm}"),
    (r"5.4 \text{ cents}", r"\$5.4"),
    ("3", "3t"),
    ("2", "2c"),
    ("9", "9^2"),
    (r"30^\circ", r"\frac{\pi}{6}"),
    ("[1,2]", "(1,2)"),
    ("(1,2]", "[1,2)"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "2,1"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty, 2] \cup (3, \infty)"),
    (r"x > 2", r"x \ge 2"),
    ("1,2", "1"),
    ("1,2", "1,2,3"),
    ("1,1,2", "1,2,2"),
    ("x=1,y=2", "x=2,y=1"),
    ("x=1,y=2", "(2,1)"),
    (r"1 \pm \sqrt{2}", r"1 + \sqrt{2}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("5", "2x+3=5"),
    ("5", "9=5"),
    ("x=5", "y=5"),
    ("x^2+1=0", "x^2+2=0"),
    ("2516_8", "2516_9"),
    ("2516", "2516_8"),
    (r"\text{east}", r"\text{seat}"),
    ("ABC", "ACB"),
    ("A", "B"),
    ("A", "a"),
    ("1", r"\frac{R}{r}"),
    ("0", "V - v"),
    ("0", "0 is what I would say"),
    ("0", "I do not know 0"),
    ("y'+y=0", "y+y=0"),
    (r"1,2,\ldots,n", "1,2,n"),
    (r"\dot{x}", "x"),
    ("x+1", "y+1"),
    ("x-1", "1-x"),
    (r"\infty", r"-\infty"),
    ("6 - 5i", "6 + 5i"),
    ("12:30", "12/30"),
    ("3 pm", "3 am"),
    ("1.000", "1000"),
    (r"\sqrt{2}", "1.41421"),
    (r"\frac{1}{2} x", r"\frac{1}{2x}"),
    (r"(0,1) \cup (1,2)", "(0,2)"),
    ("no solution", "nosolution"),
    ("7", ""),
    ("7", "the answer is 7 or 8"),
    ("7", "7 dozen"),
    ("7", r"7 \text{ dozen}"),
    ("7", r"7 \text{ and more}"),
    ("7", r"7 \text{ or less}"),
    (r"\frac{2}{3}", r"\frac{2}{3} \text{ times } 5"),
    ("0", r"\frac{0}{0}"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    # derivatives of letters
    (r"\frac{dx}{dt}=kx-a", r"\frac{dt}{dx}=kx-a"),
    (r"\frac{dx}{dt}=kx-a", r"\frac{dy}{dt}=kx-a"),
    (r"\frac{dx}{dt}=kx-a", r"\frac{dx}{dt}=kx+a"),
    (r"\frac{dx}{dt}=kx-a", "0=kx-a"),
    (r"\frac{dx}{dt}=kx-a", "5=kx-a"),
    (r"\frac{dx}{dt}", r"\frac{dt}{dx}"),
    (r"\frac{dx}{dt}", "0"),
    ("0", r"\frac{d}{dt} x"),
    (r"\frac{dx}{dt}", r"\frac{d(xy)}{dt}"),
    ("x", r"x + \frac{dx}{dt}"),
    (r"\frac{d^2x}{dt^2}=-9x", r"\frac{d^2t}{dx^2}=-9x"),
    (r"I \frac{d \omega}{d t}+2 B \omega=T", r"I \frac{d t}{d \omega}+2 B \omega=T"),
    # what can be read in part
    (r"\frac{2}{3}", r"7e_{1}+\frac{2}{3}"),
    (r"\frac{2}{3}", r"x_{!}+\frac{2}{3}"),
    (r"\frac12", r"\frac{2}{3} \& \frac{1}{2}"),
    ("5", "x_{?}=3=5"),
    ("5", "5 )"),
    ("10100", "(101)_{2}"),
    # what is a number to the parser, or too small to be told apart
    ("-1", "I^2"),
    (r"\gamma", r"\Gamma"),
    (r"\omega", r"\Omega"),
    ("0.5772156649", r"\gamma"),
    (r"1.6 \times 10^{-19} V", r"1.7 \times 10^{-19} V"),
    ("x", "x+10^{-30}y"),
    (r"x > 10^{-30}", r"x > 2 \cdot 10^{-30}"),
    ("x=x", "y=y"),
    ("1=2", "2=3"),
    ("5", "x != 5"),
]

ENDLESS = [
    ("5", r"10^{10^{10}}"),
    ("5", r"9^{9^{9^{9}}}"),
    ("5", "99999999!"),
    ("5", r"((((((((((x+1)^{99})^{99})^{99})^{99})+y)^{99})^{99})^{99})^{99})"),
]


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


def test_predictions_and_answers_must_pair_up() -> None:
    with pytest.raises(ValueError, match="must pair up, got 1 and 2"):
        grade_batch(["1"], ["1", "2"])


def test_equal_answers_are_right_however_they_are_written() -> None:
    golds, predictions = [gold for gold, _ in RIGHT], [prediction for _, prediction in RIGHT]
    boxed = [rf"So the answer is $\boxed{{{prediction}}}$." for prediction in predictions]
    after = [f"a long way #### {prediction}" for prediction in predictions]
    for form in (predictions, boxed, after):
        graded = grade_batch(form, golds)
        assert [pair for pair, is_right in zip(RIGHT, graded, strict=True) if not is_right] == []


def test_wrong_answers_are_never_right() -> None:
    golds, predictions = [gold for gold, _ in WRONG], [prediction for _, prediction in WRONG]
    boxed = [rf"So the answer is $\boxed{{{prediction}}}$." for prediction in predictions]
    for form in (predictions, boxed):
        graded = grade_batch(form, golds)
        assert [pair for pair, is_right in zip(WRONG, graded, strict=True) if is_right] == []


def test_answers_that_never_end_are_wrong_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    pool = GradingPool(num_workers=2, cpu_limit_s=0.5)
    verdicts = pool.compare(ENDLESS)
    assert Verdict.RIGHT not in verdicts
    assert Verdict.TIMED_OUT in verdicts
    assert "more than 0.5 s of CPU time" in caplog.text
    assert pool.compare([("1", r"\frac{2}{\sqrt{4}}")]) == [Verdict.RIGHT]  # another worker has taken over
    pool.close()


def test_degenerate_responses_are_graded_at_once_and_wrong() -> None:
    responses = [
        r"\boxed{" + "{" * 50_000 + "}" * 50_000 + "}",
        r"\boxed{" + r"\frac{1}{" * 300 + "2" + "}" * 300 + "}",
        r"\boxed{" + "(" * 900 + "x" + ")" * 900 + "}",
        r"\boxed{" + r"\text{" * 300 + "}" * 300 + "}",
        r"\boxed{" + ", ".join(map(str, range(400))) + "}",
        r"\boxed{" + "1,234" * 350 + "}",
        "#### " + "9" * 10_000,
        "\\" * 100_000,
        "\ud800 \x00 \\boxed{\ud800}",
    ]
    assert grade_batch(responses, ["5"] * len(responses)) == [False] * len(responses)


def test_answers_longer_than_any_number_are_compared_as_text() -> None:
    digits = "7" * 5000
    assert len(digits) > MAX_LENGTH
    assert grade_batch([rf"\boxed{{{digits}}}", digits + "0"], [digits, digits]) == [True, False]


def test_each_pair_of_a_batch_is_compared_once_and_answered_in_its_place() -> None:
    predictions, golds = [r"\sqrt{8}", r"\sqrt{9}"] * 200, [r"2\sqrt{2}"] * 400
    assert grade_batch(predictions, golds) == [True, False] * 200


def test_equal_answers_have_the_class_of_the_first() -> None:
    answers = ["1/2", "3", "0.5", r"\frac{2}{4}", "x=3", r"\sqrt{9}", "", ""]
    assert equality_classes(answers) == [0, 1, 0, 0, 1, 1, 6, 6]


def test_parts_and_brackets_are_found_at_the_top_alone() -> None:
    assert split_top("(1,2), [3,4), 5") == ["(1,2)", "[3,4)", "5"]
    assert split_top(r"(1,2)\cup\{3\}", r"\cup") == ["(1,2)", r"\{3\}"]
    assert enclosed("(3,4]") == ("(", "3,4", "]")
    assert enclosed(r"\{1,2\}") == (r"\{", "1,2", r"\}")
    assert enclosed("(1)(2)") is None
    assert enclosed("((1)") is None
    assert clean_answer(r"\left( \dfrac{1}{2},\; 30^{\circ} \right).") == r"( \frac{1}{2}, 30 )"


ALPHABET = r"\boxed{}#0123456789,./+-^_()[]$%&= xyeitfracsqpmnTUC~'!|<>" + "\n"


@given(st.text(alphabet=ALPHABET, max_size=60), st.text(alphabet=ALPHABET, max_size=20))
def test_grading_never_raises_and_a_text_equals_itself(text: str, other: str) -> None:
    first, second = compare_answers([(text, text), (text, other)])
    assert first is Verdict.RIGHT
    assert isinstance(second, Verdict)


COMMANDS = r"""\frac{ \sqrt{ \binom{ \text{ \{ \} \% \\ \pi \cdot \infty \sin \log \le \cup \pm
\begin{pmatrix} \end{pmatrix}"""
PIECES = [*COMMANDS.split(), *"}{()[],^_!xyen+-/=<|&~' ", "1", "23", "0.5"]


def test_random_latex_never_raises() -> None:
    chance = random.Random(0)
    texts = ["".join(chance.choices(PIECES, k=chance.randint(1, 14))) for _ in range(400)]
    golds = [chance.choice(["5", r"\frac{1}{2}", "x+1", "(1,2)", r"\{1,2\}", "x=1", "[0,1)"]) for _ in texts]
    verdicts = grade_verdicts(texts, golds)
    assert len(verdicts) == len(texts)
    assert verdicts.count(Verdict.TIMED_OUT) <= 4
    assert sum(verdict is Verdict.RIGHT for verdict in verdicts) <= 8
