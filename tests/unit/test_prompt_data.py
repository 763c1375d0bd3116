"""Training data: filters drop what they should and count it, and prompts in a file are those in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inputs.data_report import DataReport
from inputs.filters import HeldOut, Seen
from inputs.prompt_data import TrainingPrompts, prepare_prompts
from inputs.prompts import PromptSource
from settings.data import DataConfig
from tests.unit.word_tokenizer import word_tokenizer

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
LONG = "How many ways are there to put two red and three blue balls in a row of five"
HELD_OUT = [("eval: 1", LONG), ("eval: 2", "What is 3 + 4?")]


def written(path: Path, *texts: str) -> str:
    rows = [{"id": f"{path.stem}{i}", "problem": text, "answer": str(i)} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(*, held_out: Any = None, **settings: Any) -> TrainingPrompts:
    return prepare_prompts(DataConfig.model_validate(settings), word_tokenizer(), held_out)


def ids(training: TrainingPrompts) -> list[str]:
    return [prompt.prompt_id for prompt in training.prompts]


def test_duplicates_are_dropped_across_sources_and_counted(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", "One  two", "plus", "one two ", "\uff4fne two")
    second = written(tmp_path / "b.jsonl", "PLUS", "plus one")
    training = prepared(sources=[{"path": first}, {"path": second}], drop_duplicates=True)
    assert ids(training) == ["a0", "a1", "b1"]
    assert [source.dropped["duplicates"] for source in training.report.sources] == [2, 1]
    assert training.report.sources[0].examples == {"duplicates": ["a2", "a3"]}
    assert len(prepared(sources=[{"path": first}, {"path": second}]).prompts) == 6


def test_a_problem_that_shares_13_words_with_the_evaluation_is_dropped(tmp_path: Path) -> None:
    words = LONG.split()
    shares_13 = "Tell me: " + " ".join(words[3:16]).upper().replace(" ", ", ") + "?"
    shares_12 = " ".join(words[:12]) + " stand " + " ".join(words[13:])
    path = written(tmp_path / "a.jsonl", shares_13, shares_12, "what IS 3+4", "what is 3 + 4 + 5", LONG)
    training = prepared(train_path=path, decontaminate=True, held_out=HeldOut(HELD_OUT))
    assert ids(training) == ["a1", "a3"]
    [report] = training.report.sources
    assert (report.rows, report.kept, report.dropped) == (5, 2, {"duplicates": 0, "overlaps": 3, "too_long": 0})
    assert report.examples["overlaps"][1] == "a2 with eval: 2: 'what is 3 4'"
    assert training.report.held_out_problems == 2


def test_long_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "one two plus one two", "one two")
    training = prepared(train_path=path, max_prompt_tokens=4)
    assert ids(training) == ["a0", "a2"]
    [report] = training.report.sources
    assert report.examples == {"too_long": ["a1 with 7 tokens"]}
    assert (report.longest_id, report.longest_tokens, report.num_tokens) == ("a2", 4, 7)


def test_what_takes_long_is_said_with_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("inputs.filters.SAY_AFTER_S", -1.0)
    prepared(train_path=written(tmp_path / "a.jsonl", "one", "two"))
    assert caplog.messages == ["data.train_path: making prompts takes long: 2 rows so far"]


def test_a_source_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    path, other = written(tmp_path / "a.jsonl", "one two", "one two"), written(tmp_path / "b.jsonl", "one")
    settings = {"sources": [{"path": other}, {"path": path}], "max_prompt_tokens": 3, "drop_duplicates": True}
    with pytest.raises(
        ValueError, match=r"data.sources.1: no problem of .*a.jsonl is left of 2 \(dropped: dup.* 1, too"
    ):
        prepared(**settings)


def test_an_id_may_come_again_in_another_source_but_not_in_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "two")
    assert len(prepared(sources=[{"path": path}, {"path": path}]).prompts) == 4
    (tmp_path / "a.jsonl").write_text('{"id": 1, "problem": "a"}\n{"id": 1, "problem": "b"}\n')
    with pytest.raises(ValueError, match=r"data.train_path: .*a.jsonl holds the id '1' twice"):
        prepared(train_path=path)


def test_the_report_says_what_became_of_every_source(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "one", "two")
    training = prepared(sources=[{"path": path, "weight": 3}, {"path": path}], drop_duplicates=False)
    lines = list(training.report.lines())
    assert lines[0].startswith(f"data.sources.0: 3 of 3 problems of {path}, 75.0% of the prompts; 3 tokens each")
    content = json.loads(json.dumps(training.report.as_json()))
    assert (content["kept"], content["sources"][1]["share"]) == (6, 0.25)
    assert DataReport.from_json(content) == training.report


def test_the_fingerprint_is_that_of_the_prompts_of_slots(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "two")
    before = prepared(train_path=path).report.fingerprint
    assert prepared(sources=[{"path": path, "weight": 7}], drop_duplicates=True).report.fingerprint == before
    assert prepared(train_path=path, system_prompt="be").report.fingerprint != before
    assert prepared(train_path=written(tmp_path / "a.jsonl", "two", "one")).report.fingerprint != before


def streamed(tmp_path: Path, **settings: Any) -> TrainingPrompts:
    return prepared(streaming=True, cache_path=str(tmp_path / "cache"), **settings)


def test_prompts_in_a_file_are_those_in_memory_in_the_same_order(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", *(f"one {i % 1900} two" for i in range(2100)))
    second = written(tmp_path / "b.jsonl", "one", "plus")
    settings: dict[str, Any] = {
        "sources": [{"path": first, "weight": 2}, {"path": second}],
        "drop_duplicates": True,
    }
    memory, stored = prepared(**settings), streamed(tmp_path, **settings)
    assert list(memory.prompts) == list(stored.prompts)
    assert (len(stored.prompts), stored.prompts[-1]) == (1902, memory.prompts[-1])
    sources = [PromptSource(each.prompts, seed=3, num_samples=1, num_slots=500) for each in (memory, stored)]
    assert [sources[0].prompt_of(slot) for slot in range(500)] == [
        sources[1].prompt_of(slot) for slot in range(500)
    ]
    assert memory.report.fingerprint == stored.report.fingerprint
    with pytest.raises(IndexError):
        stored.prompts[1902]


def test_a_file_of_prompts_is_used_again_until_data_or_settings_change(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "two")

    def folder_of(**settings: Any) -> str | None:
        return streamed(tmp_path, **settings).report.stored_at

    first = folder_of(train_path=path)
    assert folder_of(train_path=path) == first
    assert folder_of(sources=[{"path": path, "weight": 2}]) != folder_of(train_path=path, max_prompt_tokens=9)
    os.utime(path, ns=(1, 1))
    assert folder_of(train_path=path) != first
    assert sorted(each.name for each in (tmp_path / "cache").iterdir() if each.name.startswith(".")) == []


def test_nothing_is_left_of_a_preparation_that_failed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "")
    with pytest.raises(ValueError, match=r"a.jsonl:2: needs a non-empty string"):
        streamed(tmp_path, train_path=path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_file_of_prompts_and_a_bad_cache_folder_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "one", "two")
    stored_at = streamed(tmp_path, train_path=path).report.stored_at
    assert stored_at is not None
    (Path(stored_at) / "part-0.arrow").write_bytes(b"ARROW1 and nothing")
    with pytest.raises(ValueError, match=rf"data.cache_path: {stored_at} is damaged, remove it: "):
        streamed(tmp_path, train_path=path)
    with pytest.raises(ValueError, match=r"data.cache_path: .*a.jsonl/cache cannot be written: "):
        prepared(streaming=True, cache_path=f"{path}/cache", train_path=path)


MEMORY = """
import json, sys, threading
from inputs.prompt_data import prepare_prompts
from inputs.prompts import PromptSource
from settings.data import DataConfig
from tests.unit.word_tokenizer import word_tokenizer

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

def prepare(path, streaming):
    config = DataConfig(train_path=path, streaming=streaming, cache_path=sys.argv[3], drop_duplicates=True)
    return prepare_prompts(config, word_tokenizer(), None).prompts

def measured(streaming):
    before, peaks, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.02):
            peaks.append(anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    prompts = prepare(sys.argv[2], streaming)
    source = PromptSource(prompts, seed=0, num_samples=1, num_slots=500)
    tokens = sum(len(source.prompt_of(slot)[1].token_ids) for slot in range(500))
    done.set()
    thread.join()
    return {"mib": (max(peaks) - before) / 1024, "prompts": len(prompts), "tokens": tokens}

prepare(sys.argv[1], True)  # imports, and the buffers of one batch and one epoch
print(json.dumps({"streaming": measured(True), "memory": measured(False)}))
"""


@pytest.mark.slow
def test_memory_stays_flat_with_streaming(tmp_path: Path) -> None:
    for name, rows in (("small", 3000), ("large", 15_000)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(rows):  # answers are as large as problems may be, and need no time to tokenize
                file.write(json.dumps({"problem": f"one {number}", "answer": f"{number:04}" * 1000}) + "\n")
    assert (tmp_path / "large.jsonl").stat().st_size > 60e6
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEMORY,
            *(str(tmp_path / name) for name in ("small.jsonl", "large.jsonl", "cache")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout.splitlines()[-1])
    assert used["streaming"]["prompts"] == used["memory"]["prompts"] == 15_000
    assert used["streaming"]["tokens"] == used["memory"]["tokens"]
    assert used["streaming"]["mib"] < 20, used
    assert used["memory"]["mib"] > 50, used  # else the test proves nothing


def test_texts_seen_before_are_found_however_many_came_between() -> None:
    seen = Seen()
    assert seen.are_new(["a", "b", "a"]) == [True, True, False]
    for start in range(0, 5000, 100):
        assert all(seen.are_new([f"{number}" for number in range(start, start + 100)]))
    assert seen.are_new(["4999", "b", "c", "0"]) == [False, False, True, False]
    assert seen.are_new([]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.train_path: required, but not set"),
        (
            {"train_path": "a", "sources": [{"path": "b"}]},
            "data.train_path must be null where data.sources is set",
        ),
        ({"train_path": "a", "decontaminate_paths": ["b"]}, "data.decontaminate must be true"),
        ({"sources": [{"path": "a", "weight": 0}]}, "greater than 0"),
        ({"sources": [{"path": "a", "columns": {"question": "b"}}]}, "columns.question"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(settings)
