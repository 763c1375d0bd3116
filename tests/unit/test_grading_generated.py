"""Generated answers under both graders: gold against gold, right ones written in another way, and perturbed ones.

pytest tests/unit/test_grading_generated.py -m slow -s      # prints the shares
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest

from rewards import Grader, Verdict, grade_verdicts

NUM_WRONG = 500
NUM_RIGHT = 1000

Chance = random.Random


@dataclass(frozen=True)
class Case:
    """A gold answer, a right one in another spelling, and a wrong one that is near."""

    gold: str
    right: str
    wrong: str


def fraction(value: Fraction, command: str = "frac") -> str:
    sign = "-" if value < 0 else ""
    return rf"{sign}\{command}{{{abs(value.numerator)}}}{{{value.denominator}}}"


def integer(chance: Chance) -> Case:
    value = chance.randint(-50, 20_000)
    others = [
        f"{value:,}",
        f"{value}.0",
        f"{value} \\text{{ units}}",
        f"+{value}" if value > 0 else f"{value}",
        f" {value} ",
    ]
    wrong = chance.choice([value + 1, value - 1, value * 10, -value if value else 1, value + 100])
    return Case(str(value), chance.choice(others), str(wrong))


def rational(chance: Chance) -> Case:
    value = Fraction(chance.randint(-40, 40) * 2 + 1, chance.choice([2, 4, 8, 16, 20]))
    above, below = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    others = [
        str(float(value)),
        fraction(value, "dfrac"),
        f"{sign}{above}/{below}",
        rf"{sign}\frac{{{3 * above}}}{{{3 * below}}}",
    ]
    wrong = chance.choice([1 / value, value + Fraction(1, value.denominator), -value, value * 10])
    return Case(fraction(value), chance.choice(others), fraction(wrong) if wrong.denominator > 1 else str(wrong))


def money(chance: Chance) -> Case:
    cents = chance.randint(100, 99_999)
    whole = f"{cents / 100:.2f}"
    others = [rf"\${whole}", f"{whole} dollars", f"{cents / 100:,.2f}", rf"{whole} \text{{ dollars}}"]
    return Case(
        rf"\${whole}",
        chance.choice(others),
        chance.choice([f"{cents / 100 + 1:.2f}", f"{whole} cents", f"{cents}"]),
    )


def percent(chance: Chance) -> Case:
    value = chance.randint(1, 99)
    others = [f"{value}%", f"{value} percent", rf"{value}\%", f"{value / 100:.2f}"]
    return Case(rf"{value}\%", chance.choice(others), chance.choice([rf"{value + 1}\%", f"{value / 1000:.3f}"]))


def root(chance: Chance) -> Case:
    inner, factor = chance.choice([2, 3, 5, 6, 7]), chance.randint(2, 12)
    others = [
        rf"\sqrt{{{inner * factor**2}}}",
        rf"{factor} \cdot \sqrt{inner}",
        rf"\sqrt{{{inner}}} \cdot {factor}",
    ]
    wrong = [
        rf"{factor + 1}\sqrt{{{inner}}}",
        rf"{factor}\sqrt{{{inner + 4}}}",
        rf"{factor}+\sqrt{{{inner}}}",
        str(factor * inner),
    ]
    return Case(rf"{factor}\sqrt{{{inner}}}", chance.choice(others), chance.choice(wrong))


def pair(chance: Chance) -> Case:
    one, other = chance.sample(range(-20, 40), 2)
    opening, closing = chance.choice(["()", "[]", "[)", "(]"])
    gold = f"{opening}{one},{other}{closing}"
    others = [rf"\left{opening} {one}, {other} \right{closing}", f"{opening}{one}, {other}{closing}"]
    turned = "[" if opening == "(" else "("
    wrong = [
        f"{opening}{other},{one}{closing}",
        f"{turned}{one},{other}{closing}",
        f"{opening}{one},{other + 1}{closing}",
    ]
    return Case(gold, chance.choice(others), chance.choice(wrong))


def several(chance: Chance) -> Case:
    values = chance.sample(range(-30, 60), chance.choice([2, 3]))
    turned = chance.sample(values, len(values))
    others = [", ".join(map(str, turned)), " and ".join(map(str, turned)), rf"\{{{', '.join(map(str, turned))}\}}"]
    wrong = [
        ", ".join(map(str, [*values[:-1], values[-1] + 1])),
        str(values[-1]),
        str(values[0]),
        ", ".join(map(str, [*values, 99])),
    ]
    return Case(", ".join(map(str, values)), chance.choice(others), chance.choice(wrong))


def polynomial(chance: Chance) -> Case:
    a, b = chance.sample(range(1, 12), 2)
    others = [f"(x+{a})(x+{b})", f"{a * b} + {a + b}x + x^2", f"x^2 + {a + b}x + {a * b}"]
    wrong = [
        f"x^2+{a + b}x+{a * b + 1}",
        f"x^2-{a + b}x+{a * b}",
        f"x^3+{a + b}x+{a * b}",
        f"y^2+{a + b}y+{a * b}",
        str(a * b),
    ]
    return Case(f"x^2+{a + b}x+{a * b}", chance.choice(others), chance.choice(wrong))


def line(chance: Chance) -> Case:
    a, b = chance.randint(2, 9), chance.randint(1, 9)
    others = [f"y = {b} + {a}x", f"{a}x - y + {b} = 0", rf"\frac{{y - {b}}}{{{a}}} = x", f"y-{a}x={b}"]
    wrong = [f"y={a}x-{b}", f"y={a + 1}x+{b}", f"x={a}y+{b}", f"{a}x+y+{b}=0", f"0={a}x+{b}"]
    return Case(f"y={a}x+{b}", chance.choice(others), chance.choice(wrong))


def derivative(chance: Chance) -> Case:
    a, (x, t) = chance.randint(2, 9), chance.choice(["xt", "yx", "vt", "Ps"])
    over, under = rf"\frac{{d{x}}}{{d{t}}}", rf"\frac{{d{t}}}{{d{x}}}"
    others = [
        rf"\frac{{d {x}}}{{d {t}}} = {a} - k{x}",
        rf"-k{x} + {a} = {over}",
        rf"{over} + k{x} = {a}",
        rf"{over} + k{x} - {a} = 0",
    ]
    wrong = [
        f"{under}={a}-k{x}",
        f"0={a}-k{x}",
        f"{over}={a}+k{x}",
        rf"\frac{{dz}}{{d{t}}}={a}-k{x}",
        f"{a}={a}-k{x}",
    ]
    return Case(f"{over}={a}-k{x}", chance.choice(others), chance.choice(wrong))


def physical(chance: Chance) -> Case:
    a, exponent = chance.randint(2, 9), chance.randint(-25, -8)
    other = [rf"{a}.0 \cdot 10^{{{exponent}}} M", rf"M \cdot {a} \times 10^{{{exponent}}}"]
    wrong = [
        rf"{a + 1} \times 10^{{{exponent}}} M",
        rf"{a} \times 10^{{{exponent - 1}}} M",
        rf"{a} \times 10^{{{exponent}}} m",
    ]
    return Case(rf"{a} \times 10^{{{exponent}}} M", chance.choice(other), chance.choice(wrong))


def part(chance: Chance) -> Case:
    """What collapses to a part of itself where a parser reads only that."""
    a, b = chance.randint(2, 9), chance.randint(11, 29)
    gold = rf"\frac{{{a}}}{{{b}}}"
    wrong = [
        rf"7e_{{1}}+{gold}",
        rf"x_{{!}}+{gold}",
        rf"\vec{{u}}+{gold}",
        rf"{gold}\hat{{x}}",
        rf"\int_0^1 f + {gold}",
        rf"{gold}'",
    ]
    return Case(gold, rf"\tfrac{a}{{{b}}}", chance.choice(wrong))


def word(chance: Chance) -> Case:
    words = ["even", "odd", "Evelyn", "Tuesday", "no solution", "increasing", "east", "parallelogram"]
    gold, wrong = chance.sample(words, 2)
    return Case(rf"\text{{{gold}}}", chance.choice([gold, rf"\textbf{{{gold}}}", rf"\mathrm{{{gold}}}"]), wrong)


def choice_letter(chance: Chance) -> Case:
    gold, wrong = chance.sample("ABCDE", 2)
    return Case(
        gold, chance.choice([f"({gold})", rf"\text{{{gold}}}", rf"\text{{({gold})}}"]), rf"\text{{({wrong})}}"
    )


KINDS: list[Callable[[Chance], Case]] = [
    *(integer, rational, money, percent, root, pair, several, polynomial, line),
    *(derivative, physical, part, word, choice_letter),
]

MARKED = [
    r"We find that $\boxed{{{0}}}$.",
    r"So first \boxed{{1234321}}, but in the end \boxed{{{0}}}.",
    "It takes 3 steps and 17 minutes.\n#### {0}",
]
STATED = [
    *(
        "The answer is ${0}$.",
        "**Answer:** ${0}$",
        "Final answer: ${0}$",
        "The final answer is ${0}$. I hope it is correct.",
    ),
    *(
        "It takes 3 steps.\n\nTherefore, the answer is: ${0}$",
        "#### ${0}$\nThe answer is: ${0}$",
        r"So \boxed ${0}$".replace("$", ""),
    ),
    *(
        "After 3 steps and 17 minutes it is ${0}$.",
        r"Thus we get \[ {0} \]",
        "The answer is **${0}$**.",
        r"The answer is \({0}\), as was shown in step 2.",
    ),
]
ELSEWHERE = [
    "At first it seems that ${1}$. But no. The answer is ${0}$.",
    "Once ${1}$ is known, the final answer is: ${0}$",
    "From ${1}$ we come to ${0}$.",
    "#### ${0}$\nThis is not ${1}$.",
    r"${1}$ is a part of it; $\boxed{{{0}}}$",
]


def templates(grader: Grader) -> list[str]:
    return MARKED if grader == "strict" else [*MARKED, *STATED]


def shown(name: str, grader: Grader, verdicts: list[Verdict]) -> int:
    num = verdicts.count(Verdict.RIGHT)
    print(f"{grader}: {name}: {num} of {len(verdicts)} accepted ({num / len(verdicts):.1%})")
    return num


@pytest.mark.slow
@pytest.mark.parametrize("grader", ["strict", "lenient"])
def test_generated_answers_are_graded_right(grader: Grader) -> None:
    chance = random.Random(f"generated {grader}")
    cases = [chance.choice(KINDS)(chance) for _ in range(NUM_RIGHT)]
    golds = [case.gold for case in cases]
    forms = [chance.choice(templates(grader)) for _ in cases]
    same = grade_verdicts([form.format(gold) for form, gold in zip(forms, golds, strict=True)], golds, grader)
    assert shown("gold against gold", grader, same) == NUM_RIGHT, unequal(golds, golds, same, Verdict.RIGHT)
    texts = [form.format(case.right) for form, case in zip(forms, cases, strict=True)]
    right = grade_verdicts(texts, golds, grader)
    assert shown("right ones in another spelling", grader, right) >= 0.97 * NUM_RIGHT, unequal(
        texts, golds, right, Verdict.RIGHT
    )
    texts = [
        chance.choice([*templates(grader), *ELSEWHERE]).format(case.wrong, case.gold) for case in cases[:NUM_WRONG]
    ]
    wrong = grade_verdicts(texts, golds[:NUM_WRONG], grader)
    assert shown("perturbed ones", grader, wrong) == 0, [
        pair
        for pair, verdict in zip(zip(texts, golds, strict=False), wrong, strict=True)
        if verdict is Verdict.RIGHT
    ]


def unequal(
    texts: list[str], golds: list[str], verdicts: list[Verdict], wanted: Verdict
) -> list[tuple[str, str, str]]:
    rows = zip(texts, golds, verdicts, strict=True)
    return [(text, gold, verdict.value) for text, gold, verdict in rows if verdict is not wanted]
