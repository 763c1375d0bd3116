"""Whole runs from the command line, with real engines, teachers and learner on the demo's tiny models.

Each run is shared by several tests: the demo (`demo_run`), the same resumed from its middle, one with two workers
of each kind (`wide_run`), and one that Ctrl-C ends (`drained_run`).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from records.checkpoints import committed_steps
from records.files import read_rows
from records.ledger import valid_ledger
from records.metrics import declared, required_keys
from records.timeline import read_spans
from settings.exit_codes import DRAINED
from tests.integration.browser import CHROMIUM, assert_good
from tests.integration.real_run import (
    BATCH,
    MODELS,
    STEPS,
    DrainedRun,
    assert_trained_once,
    batch_rows,
    batch_table,
    run,
    weights_of,
)

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only wait for each other where other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the demo --


def log_probs(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """Log-probs of a response by transformers, with gradient."""
    prompt, response = row["prompt_token_ids"], row["response_token_ids"]
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def plain_step(model: Any, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]], alpha: float) -> float:
    """One PowerOPD step, the plain way: full logits, one sequence at a time, one token mean."""
    num_tokens = sum(len(row["response_token_ids"]) for row in rows)
    optimizer.zero_grad()
    total = 0.0
    for row in rows:
        logp = log_probs(model, row)
        teacher = torch.tensor(row["teacher_log_probs"])
        reward = teacher.exp() ** alpha - logp.detach().exp() ** alpha
        loss = -(reward * logp).sum() / num_tokens
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total


def test_a_synchronous_run_equals_a_plain_training_loop_on_the_same_rollouts(demo_run: Path) -> None:
    metrics = read_rows(demo_run / "metrics.jsonl")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "student", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(STEPS):
        rows = batch_rows(demo_run, step)
        assert len(rows) == BATCH
        optimizer.param_groups[0]["lr"] = metrics[step]["lr"]
        assert plain_step(model, optimizer, rows, alpha=5.0) == pytest.approx(metrics[step]["loss"], rel=1e-5)
    ours = weights_of(demo_run)
    for name, parameter in model.named_parameters():
        difference = (ours[name].float() - parameter.detach()).norm() / parameter.detach().norm()
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"


@torch.no_grad()
def test_the_engines_of_student_and_teacher_and_the_learner_agree_with_transformers(demo_run: Path) -> None:
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32) for name in ("student", "teacher")
    )
    for row in batch_rows(demo_run, step=0):
        behaviour, scores = torch.tensor(row["behaviour_log_probs"]), torch.tensor(row["teacher_log_probs"])
        assert (behaviour - log_probs(student, row)).abs().max() < 1e-4
        assert (scores - log_probs(teacher, row)).abs().max() < 1e-4
    assert max(row["mismatch/max_lag0"] for row in read_rows(demo_run / "metrics.jsonl")) < 1e-4


def test_a_synchronous_run_trains_fresh_tokens_only_and_every_slot_once(demo_run: Path) -> None:
    rows = read_rows(demo_run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["staleness/max"] for row in rows) == 0
    assert_trained_once(demo_run, steps=STEPS, batch=BATCH)


def assert_declared(run_path: Path) -> None:
    """Every row has the keys that the table of metrics declares, and no other."""
    for row in read_rows(run_path / "metrics.jsonl"):
        assert [key for key in row if declared(key) is None] == []
        assert row.keys() >= {*required_keys()}


def test_rows_have_the_keys_that_the_table_of_metrics_declares(demo_run: Path, wide_run: Path) -> None:
    assert_declared(demo_run)
    assert_declared(wide_run)


def test_the_demo_leaves_what_the_quick_start_says(demo_run: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl", "export/model.safetensors", "export/config.json"):
        assert (demo_run / name).is_file(), name
    assert json.loads((demo_run / "summary.json").read_text())["steps"] == STEPS
    assert [*(demo_run / "tensorboard").iterdir()]
    assert "<html" in (demo_run / "report.html").read_text()[:500]


def test_a_resumed_run_ends_with_the_same_bits(demo_run: Path, resumed_run: Path) -> None:
    [resumed] = [row for row in read_rows(resumed_run / "events.jsonl") if row["event"] == "resumed"]
    assert resumed["step"] == STEPS // 2
    expected, found = weights_of(demo_run), weights_of(resumed_run)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert_trained_once(resumed_run, steps=STEPS, batch=BATCH)
    repeatable = ("loss", "kl/reverse", "grad_norm", "reward/mean", "tokens_trained", "response_length/mean")
    first, second = (
        {row["step"]: row for row in read_rows(path / "metrics.jsonl")} for path in (demo_run, resumed_run)
    )
    for step in range(1, STEPS + 1):  # of a step that was repeated, the row of the repetition
        assert [first[step][key] for key in repeatable] == [second[step][key] for key in repeatable]


# -- two workers of each kind --


def test_an_asynchronous_run_keeps_its_bound_and_trains_no_slot_twice(wide_run: Path) -> None:
    rows = read_rows(wide_run / "metrics.jsonl")
    assert len(rows) == 8
    assert max(row["staleness/max"] for row in rows) <= 2
    uids = [uid for uids in valid_ledger(wide_run / "ledger.jsonl").values() for uid in uids]
    assert len(uids) == len(set(uids)) == 8 * 8 * 2
    assert {row["workers/rollout"] for row in rows} == {row["workers/teacher"] for row in rows} == {2}
    assert all(row["wasted/fall_back"] == row["wasted/lost"] == 0 for row in rows)
    lags = sum(value for key, value in rows[-1].items() if key.startswith("staleness/lag_"))
    assert lags == rows[-1]["tokens_trained"]


def test_every_evaluation_is_of_one_weight_version(wide_run: Path) -> None:
    """Step 4 has one unless that of step 0 still ran by then."""
    rows = read_rows(wide_run / "eval.jsonl")
    skipped = [row["step"] for row in read_rows(wide_run / "events.jsonl") if row["event"] == "evaluation_skipped"]
    during = [] if skipped == [4] else [("student", 4)]
    steps = [(row["model"], row["step"]) for row in rows]
    assert steps == [("teacher", 0), ("student_before", 0), *during, ("student_after", 8)]
    for step in (row["step"] for row in rows[1:]):
        kept = pq.read_table(wide_run / "evaluations" / f"step_{step}" / "arithmetic.parquet")
        assert set(kept.column("weight_version").to_pylist()) == {step}
        assert kept.num_rows == 8 * 2
    assert (wide_run / "evaluations" / "teacher" / "arithmetic.parquet").is_file()
    summary = json.loads((wide_run / "summary.json").read_text())
    assert {"teacher", "student_before", "student_after", "kl_reverse_first", "kl_reverse_last"} < summary.keys()


def test_engines_follow_the_weights_and_fetch_differences(wide_run: Path) -> None:
    events = read_rows(wide_run / "events.jsonl")
    loaded = [row for row in events if row["event"] == "weights_loaded"]
    assert {row["worker"] for row in loaded} == {"rollout-0", "rollout-1", "evaluation-0"}
    published = [row for row in events if row["event"] == "weights_published"]
    assert [row["base_version"] for row in published] == [None, *range(8)]
    differences = {row["version"]: row["difference_bytes"] for row in published if row["version"] > 0}
    assert all(0 < size < published[0]["bytes"] for size in differences.values())
    assert any(row["bytes_fetched"] == differences.get(row["version"]) for row in loaded)
    assert any(row["bytes_fetched"] == 0 for row in loaded)


def test_the_timeline_has_the_stages_of_every_worker(wide_run: Path) -> None:
    stages = {(span.worker, span.stage) for span in read_spans(wide_run / "timeline.jsonl")}
    for worker in ("rollout-0", "rollout-1"):
        assert {(worker, "generate"), (worker, "load weights")} <= stages
    assert {("evaluation-0", "load weights"), ("evaluation-0", "evaluate")} <= stages
    assert {("learner-1", "train"), ("learner-1", "publish"), ("teacher-0", "score")} <= stages


def test_samples_hold_the_rewards_that_follow_from_their_log_probs(wide_run: Path) -> None:
    samples = read_rows(wide_run / "samples.jsonl")
    assert [(row["when"], row["step"]) for row in samples] == [("before", 0)] * 4 + [("after", 8)] * 4
    for row in samples:
        assert "".join(row["tokens"]).endswith("<|im_end|>") == (row["finish_reason"] == "stop")
        teacher, student = torch.tensor(row["teacher_logp"]), torch.tensor(row["student_logp"])
        expected = (5 * teacher).exp() - (5 * student).exp()
        assert torch.allclose(torch.tensor(row["values"]), expected, atol=1e-3)


def checks_of(run_path: Path) -> dict[str, dict[str, Any]]:
    """The details of the checks before a run by key; none found anything."""
    report: dict[str, Any] = json.loads((run_path / "preflight.json").read_text())
    assert report["ok"]
    assert {row["status"] for row in report["checks"]} == {"ok"}
    return {row["key"]: row["details"] for row in report["checks"]}


def test_the_checks_before_a_run_compare_every_engine(demo_run: Path, wide_run: Path) -> None:
    in_float32 = checks_of(demo_run)["golden"]
    assert in_float32["differences"]["rollout-0"] < in_float32["limit"] == 1e-3
    golden, replicas = checks_of(wide_run)["golden"], checks_of(wide_run)["replicas"]["teacher"]
    assert sorted(golden["differences"]) == ["rollout-0", "rollout-1"]
    assert sorted(replicas["differences"]) == ["teacher-0", "teacher-1"]
    assert max(golden["differences"].values()) < golden["limit"] == 0.25
    assert max(replicas["differences"].values()) < 1e-3


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to open the report in")
def test_the_report_of_the_run_is_drawn_whole(wide_run: Path) -> None:
    assert_good(wide_run / "report.html", num_figures=13)


@pytest.mark.parametrize("name", ["demo_run", "wide_run"])
def test_a_checkpoint_is_exported_to_what_the_run_exports(request: pytest.FixtureRequest, name: str) -> None:
    """One rank in float32, and two in bfloat16 with ZeRO-3."""
    path: Path = request.getfixturevalue(name)
    step = committed_steps(path / "checkpoints")[-1]
    out = path.parent / f"{name}_{step}"
    line = [sys.executable, "launch.py", "export", "--run", path.name, "--runs-path", str(path.parent)]
    done = run([*line, "--step", str(step), "--out", str(out)])
    assert done.returncode == 0
    assert done.stdout.strip() == f"step {step} of {path.name} is in {out}"
    last, found = weights_of(path), load_file(out / "model.safetensors")
    assert found.keys() == last.keys()
    assert all(torch.equal(found[key], value) for key, value in last.items())
    for file in ("generation_config.json", "README.md"):
        assert (path / "export" / file).read_text() == (out / file).read_text()
    [evaluated] = [row for row in read_rows(path / "eval.jsonl") if row["model"] == "student_after"]
    front = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == evaluated["avg_at_k"]
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out).chat_template


# -- whole distributions, a forced mismatch, Ctrl-C --


@pytest.mark.slow
def test_ctrl_c_lets_the_step_end_saves_it_and_says_how_to_go_on(drained_run: DrainedRun) -> None:
    steps = len(read_rows(drained_run.path / "metrics.jsonl"))
    assert drained_run.code == DRAINED
    assert f"drained at step {steps}; continue with --resume" in drained_run.output
    assert 6 <= steps < 500
    assert committed_steps(drained_run.path / "checkpoints") == [steps]
    assert sorted(valid_ledger(drained_run.path / "ledger.jsonl")) == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_run_on_whole_distributions_trains_stale_tokens_without_correction(drained_run: DrainedRun) -> None:
    """The teacher's engines have no head then: it is not evaluated, and the learner holds its head."""
    assert "the teacher is not evaluated: for reverse_kl" in drained_run.output
    assert_declared(drained_run.path)
    rows = read_rows(drained_run.path / "metrics.jsonl")
    assert all(row["divergence/mean"] >= 0 and row["reward/mean"] == 0 for row in rows)
    for name in ("divergence/mean", "kl/reverse"):
        values = [row[name] for row in rows]
        assert sum(values[4:6]) < sum(values[:2]), (name, values)
    assert [row["model"] for row in read_rows(drained_run.path / "eval.jsonl")] == ["student_before"]
    names = batch_table(drained_run.path, 0).schema.names
    assert "teacher_hidden" in names
    assert "teacher_log_probs" not in names


@pytest.mark.slow
def test_a_forced_mismatch_trains_on_the_common_ids_and_is_recorded(drained_run: DrainedRun) -> None:
    report = json.loads((drained_run.path / "preflight.json").read_text())
    rows = {row["key"]: row for row in report["checks"]}
    assert report["forced"] == report["force"] == ["tokenizer"]
    assert {key for key, row in rows.items() if row["status"] not in ("ok", "forced")} == set()
    assert rows["tokenizer"]["details"]["common_ids"] == 31
    assert rows["golden"]["details"]["differences"]["rollout-0"] < 1e-3
    assert list(rows["replicas"]["details"]["teacher"]["differences"]) == ["teacher-0"]
    [event] = [row for row in read_rows(drained_run.path / "events.jsonl") if row["event"] == "preflight"]
    assert event["force"] == ["tokenizer"]
    assert "the first is 8" in event["forced"]["tokenizer"]


def test_nothing_of_a_run_is_left_running(
    workspace: Path, demo_run: Path, resumed_run: Path, wide_run: Path
) -> None:
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if str(workspace) in arguments:
                alive.append(arguments)
    assert not alive
