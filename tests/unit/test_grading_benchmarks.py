"""Definitions of benchmarks, and the gold answers of the benchmark files, where they lie in `../shared/data`."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rewards import Verdict, grade_verdicts
from settings.benchmarks import (
    FOLDER,
    BenchmarkDefinition,
    BenchmarkProblem,
    fingerprint,
    known_benchmarks,
    load_definition,
)

NAMES = ["aime24", "aime25", "amc23", "gsm8k", "math500", "minerva", "olympiadbench"]
DATA = Path(os.environ.get("POWEROPD_VECTORS", Path(__file__).resolve().parents[3] / "shared")) / "data"
FILE_OF = {name: DATA / f"eval_{name}.jsonl" for name in NAMES} | {"gsm8k": DATA / "eval_gsm8k_test.jsonl"}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data, nor data/ in POWEROPD_VECTORS")


def read(name: str) -> list[BenchmarkProblem]:
    rows = [json.loads(line) for line in FILE_OF[name].read_text(encoding="utf-8").splitlines()]
    return load_definition(name).read(rows)


def not_right(predictions: list[str], answers: list[str]) -> list[tuple[str, str]]:
    verdicts = grade_verdicts(predictions, answers)
    return [
        (answer, verdict.value)
        for answer, verdict in zip(answers, verdicts, strict=True)
        if verdict is not Verdict.RIGHT
    ]


@contextmanager
def a_busy_machine() -> Iterator[None]:
    """Three processes per CPU that do nothing but compute."""
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=_burn, daemon=True) for _ in range(3 * (os.cpu_count() or 1))]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def _burn() -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        sum(range(10_000))


def test_every_definition_is_valid_and_has_the_name_of_its_file() -> None:
    assert known_benchmarks() == NAMES
    for name in NAMES:
        definition = load_definition(name)
        assert definition.name == name
        assert definition.path.count("/") == 1


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_a_local_copy_is_what_the_definition_expects(name: str) -> None:
    problems = read(name)
    assert load_definition(name).mismatches(problems) == []
    changed = [*problems[1:], BenchmarkProblem("new", problems[0].problem, problems[0].answer + "0")]
    [warning] = load_definition(name).mismatches(changed)
    assert load_definition(name).sha256 in warning
    assert fingerprint(changed) in warning
    assert len(load_definition(name).mismatches(problems[1:])) == 2


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_every_gold_answer_is_right_against_itself(name: str) -> None:
    golds = [problem.answer for problem in read(name)]
    assert not_right(golds, golds) == []
    assert not_right([rf"The answer is $\boxed{{{gold}}}$." for gold in golds], golds) == []


@needs_data
@pytest.mark.slow
def test_gold_answers_are_right_on_a_busy_machine_too() -> None:
    """Written in another way, so that algebra has to be asked."""
    math500 = [problem.answer for problem in read("math500")]
    golds = [gold for gold in math500 if r"\sqrt" in gold and not any(each in gold for each in (",", r"\pm"))][:12]
    others = [r"\boxed{" + gold + " + 0}" for gold in golds]
    with a_busy_machine():
        assert not_right(others, golds) == []
        every_gold = [problem.answer for problem in read("minerva")]
        assert not_right(every_gold, every_gold) == []


def definition(**changes: object) -> BenchmarkDefinition:
    values = {
        **{"name": "own", "title": "Own", "path": "own/set", "expected_size": 1, "sha256": "0" * 64},
        **{"source": "us", "licence": "none"},
    }
    return BenchmarkDefinition.model_validate(values | changes)


def test_the_columns_of_the_hub_and_of_a_local_copy_are_read_alike() -> None:
    gsm8k = load_definition("gsm8k")
    hub = gsm8k.read([{"question": "2+2?", "answer": "two and two #### 1,004"}])
    local = gsm8k.read([{"id": "a", "problem": " 2+2?\n", "answer": "1004", "source": "x"}])
    assert hub == [BenchmarkProblem("gsm8k-0", "2+2?", "1,004")]
    assert local[0].problem_id == "a"
    assert fingerprint(hub) == fingerprint(local)
    listed = load_definition("olympiadbench").read([{"id": 7, "question": "q", "final_answer": ["$3$", "$4$"]}])
    assert listed == [BenchmarkProblem("7", "q", "$3$, $4$")]


def test_gold_answers_are_taken_out_of_solutions() -> None:
    boxed = definition(extraction="boxed", columns={"answer": ["solution"]})
    row = {"problem": "p", "solution": r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$."}
    assert boxed.read([row])[0].answer == r"\frac{1}{2}"
    assert boxed.read([{"problem": "p", "solution": "7"}])[0].answer == "7"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "benchmark own: the data set has no rows"),
        ([{"problem": "p"}], "row 0 has none of the columns answer"),
        ([{"prompt": "p", "answer": "1"}], "row 0 has none of the columns problem, question"),
        ([{"problem": "p", "answer": " "}], "row 0 has an empty answer"),
        ([{"id": 1, "problem": "p", "answer": "1"}] * 2, "two problems have the id '1'"),
    ],
)
def test_rows_that_are_no_problems_are_one_clear_error(rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        definition().read(rows)


def test_an_unknown_name_is_told_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown benchmark 'MATH-500' \(nearest: math500\); known are aime24"):
        load_definition("MATH-500")


def test_a_definition_may_lie_anywhere_and_its_mistakes_are_named(tmp_path: Path) -> None:
    text = (FOLDER / "amc23.yaml").read_text()
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("name: amc23", "name: own"))
    assert load_definition(str(own)).expected_size == 40
    own.write_text(text)
    with pytest.raises(ValueError, match="name must be 'own', got 'amc23'"):
        load_definition(str(own))
    own.write_text(text.replace("title:", "titel:"))
    with pytest.raises(ValueError, match=r"own.yaml: .*titel: unknown key; did you mean title\?"):
        load_definition(str(own))
    with pytest.raises(ValueError, match="no such file"):
        load_definition(str(tmp_path / "none.yaml"))
