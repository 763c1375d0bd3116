"""Whole runs from the command line, with real engines, teachers and learner on the demo's tiny models."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from records.files import read_rows
from records.metrics import declared, required_keys
from records.run_folder import valid_ledger
from records.timeline import read_spans
from tests.integration.browser import CHROMIUM, assert_good

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "arithmetic"
STEPS, BATCH = 10, 16

SYNCHRONOUS = {
    "max_steps": STEPS,
    "batch_size": BATCH,
    "max_staleness": 0,
    "batches_ahead": 0,
    "importance.name": "none",
    "learner.micro_batch_tokens": 256,
    "learner.learning_rate": 1e-3,
    "checkpoint.every_steps": 4,
    "logging.save_batches": "true",
}

pytestmark = pytest.mark.timeout(700)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with generated problems and room for runs."""
    folder = tmp_path_factory.mktemp("runs")
    script = EXAMPLE / "problems.py"
    subprocess.run([sys.executable, script, "--out", folder / "data"], check=True, timeout=60)
    return folder


def command(workspace: Path, name: str, *flags: str, **settings: Any) -> list[str]:
    """The command line of a run."""
    options = {
        "runs_path": workspace,
        "run_name": name,
        "data.train_path": workspace / "data" / "train.jsonl",
        "evaluation.data_path": workspace / "data" / "heldout.jsonl",
        "evaluation.max_problems": 8,
        "evaluation.num_samples": 2,
        "evaluation.k": 2,
        "cluster.num_cpus": 4,
    } | {key.replace("__", "."): value for key, value in settings.items()}
    given = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", *flags, *given]


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    """Run to the end; its output is shown if the test fails."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(done.stdout[-6000:], done.stderr[-6000:])
    return done


@pytest.fixture(scope="module")
def synchronous(workspace: Path) -> Path:
    """A finished synchronous fp32 run, not interrupted, that kept its batches."""
    assert run(command(workspace, "synchronous", **SYNCHRONOUS)).returncode == 0
    return workspace / "synchronous"


def weights_of(run_path: Path) -> dict[str, torch.Tensor]:
    return load_file(run_path / "export" / "model.safetensors")


def assert_trained_once(run_path: Path, *, steps: int, batch: int) -> None:
    """Every slot below steps * batch is in the valid ledger exactly once."""
    ledger = valid_ledger(run_path / "ledger.jsonl")
    assert sorted(ledger) == list(range(1, steps + 1))
    slots = sorted(int(uid.split("-")[0]) for uids in ledger.values() for uid in uids)
    assert slots == list(range(steps * batch))


def batch_rows(run_path: Path, step: int) -> list[dict[str, Any]]:
    """The rows that a step of a run with one rank was trained on."""
    with pa.OSFile(str(run_path / "batches" / f"step_{step}_rank_0.arrow")) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def plain_step(model: Any, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]], alpha: float) -> float:
    """One PowerOPD step, the plain way: full logits, one sequence at a time, one token mean."""
    num_tokens = sum(len(row["response_token_ids"]) for row in rows)
    optimizer.zero_grad()
    total = 0.0
    for row in rows:
        prompt, response = row["prompt_token_ids"], row["response_token_ids"]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
        logp = torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        teacher = torch.tensor(row["teacher_log_probs"])
        reward = teacher.exp() ** alpha - logp.detach().exp() ** alpha
        loss = -(reward * logp).sum() / num_tokens
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total


def test_a_synchronous_run_equals_a_plain_training_loop_on_the_same_rollouts(synchronous: Path) -> None:
    metrics = read_rows(synchronous / "metrics.jsonl")
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE / "models" / "student", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(STEPS):
        rows = batch_rows(synchronous, step)
        assert len(rows) == BATCH
        optimizer.param_groups[0]["lr"] = metrics[step]["lr"]
        assert plain_step(model, optimizer, rows, alpha=5.0) == pytest.approx(metrics[step]["loss"], rel=1e-5)
    ours = weights_of(synchronous)
    for name, parameter in model.named_parameters():
        difference = (ours[name].float() - parameter.detach()).norm() / parameter.detach().norm()
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"


def test_a_synchronous_run_trains_fresh_tokens_only_and_every_slot_once(synchronous: Path) -> None:
    rows = read_rows(synchronous / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["staleness/max"] for row in rows) == 0
    assert max(row["mismatch/max_lag0"] for row in rows) < 1e-4
    assert_trained_once(synchronous, steps=STEPS, batch=BATCH)


def test_a_drained_run_resumes_to_the_same_bits(workspace: Path, synchronous: Path) -> None:
    line = command(workspace, "interrupted", **SYNCHRONOUS)
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = workspace / "interrupted" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while len(read_rows(metrics)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no third step within 200 s"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    stopped_at = len(read_rows(metrics))
    assert process.returncode == 3, output
    assert "continue with --resume" in output
    assert 3 <= stopped_at < STEPS
    assert run(command(workspace, "interrupted", "--resume", **SYNCHRONOUS)).returncode == 0

    expected, resumed = weights_of(synchronous), weights_of(workspace / "interrupted")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    assert_trained_once(workspace / "interrupted", steps=STEPS, batch=BATCH)
    repeatable = ("loss", "kl/reverse", "grad_norm", "reward/mean", "tokens_trained", "response_length/mean")
    first, second = read_rows(synchronous / "metrics.jsonl"), read_rows(metrics)
    assert [[row[key] for key in repeatable] for row in first] == [
        [row[key] for key in repeatable] for row in second
    ]


def test_an_asynchronous_run_with_two_workers_of_each_kind_keeps_its_bound_and_exports_the_student(
    workspace: Path,
) -> None:
    settings: dict[str, Any] = {
        "max_steps": 8,
        "batch_size": 8,
        "num_samples_per_prompt": 2,
        "max_staleness": 2,
        "batches_ahead": 1,
        "rollout.num_workers": 2,
        "teacher.num_workers": 2,
        "learner.num_workers": 2,
        "learner.zero_stage": 3,
        "learner.dtype": "bfloat16",
        "learner.micro_batch_tokens": 256,
        "objective.normaliser": "zscore",
        "evaluation.every_steps": 4,
        "evaluation.num_workers": 1,
        "checkpoint.every_steps": 2,
        "weights.delta": "true",
    }
    assert run(command(workspace, "asynchronous", **settings)).returncode == 0
    path = workspace / "asynchronous"
    rows = read_rows(path / "metrics.jsonl")
    assert [key for row in rows for key in row if declared(key) is None] == []
    assert all(row.keys() >= {*required_keys()} for row in rows)
    assert len(rows) == 8
    assert max(row["staleness/max"] for row in rows) <= 2
    uids = [uid for uids in valid_ledger(path / "ledger.jsonl").values() for uid in uids]
    assert len(uids) == len(set(uids)) == 8 * 8 * 2
    assert {row["workers/rollout"] for row in rows} == {row["workers/teacher"] for row in rows} == {2}
    check_evaluations(path)
    assert sorted(folder.name for folder in (path / "checkpoints").iterdir()) == ["step_6", "step_8"]
    assert list((path / "tensorboard").iterdir())
    summary = json.loads((path / "summary.json").read_text())
    assert {"teacher", "student_before", "student_after", "kl_reverse_first", "kl_reverse_last"} < summary.keys()
    assert AutoModelForCausalLM.from_pretrained(path / "export").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(path / "export").chat_template
    events = read_rows(path / "events.jsonl")
    loaded = [row for row in events if row["event"] == "weights_loaded"]
    assert {row["worker"] for row in loaded} == {"rollout-0", "rollout-1", "evaluation-0"}
    published = [row for row in events if row["event"] == "weights_published"]
    assert [row["base_version"] for row in published] == [None, *range(8)]
    differences = {row["version"]: row["difference_bytes"] for row in published if row["version"] > 0}
    assert all(0 < size < published[0]["bytes"] for size in differences.values())
    assert any(row["bytes_fetched"] == differences.get(row["version"]) for row in loaded)
    assert any(row["bytes_fetched"] == 0 for row in loaded)
    samples = read_rows(path / "samples.jsonl")
    assert [(row["when"], row["step"]) for row in samples] == [("before", 0)] * 4 + [("after", 8)] * 4
    for row in samples:
        assert "".join(row["tokens"]).endswith("<|im_end|>") == (row["finish_reason"] == "stop")
        teacher, student = torch.tensor(row["teacher_logp"]), torch.tensor(row["student_logp"])
        expected = (5 * teacher).exp() - (5 * student).exp()
        assert torch.allclose(torch.tensor(row["values"]), expected, atol=1e-3)
    stages = {(span.worker, span.stage) for span in read_spans(path / "timeline.jsonl")}
    for worker in ("rollout-0", "rollout-1"):
        assert {(worker, "generate"), (worker, "load weights")} <= stages
    assert {("evaluation-0", "load weights"), ("evaluation-0", "evaluate")} <= stages
    assert {("learner-1", "train"), ("learner-1", "publish"), ("teacher-0", "score")} <= stages
    assert all(row["wasted/fall_back"] == row["wasted/lost"] == 0 for row in rows)
    assert (
        sum(value for key, value in rows[-1].items() if key.startswith("staleness/lag_"))
        == (rows[-1]["tokens_trained"])
    )
    if CHROMIUM is not None:
        assert_good(path / "report.html", num_figures=13)


def check_evaluations(path: Path) -> None:
    """Each row is of one weight version; step 4 has one unless that of step 0 still ran by then."""
    rows = read_rows(path / "eval.jsonl")
    skipped = [row["step"] for row in read_rows(path / "events.jsonl") if row["event"] == "evaluation_skipped"]
    during = [] if skipped == [4] else [("student", 4)]
    steps = [(row["model"], row["step"]) for row in rows]
    assert steps == [("teacher", 0), ("student_before", 0), *during, ("student_after", 8)]
    for step in (row["step"] for row in rows[1:]):
        kept = pq.read_table(path / "evaluations" / f"step_{step}" / "arithmetic.parquet")
        assert set(kept.column("weight_version").to_pylist()) == {step}
        assert kept.num_rows == 8 * 2
    assert (path / "evaluations" / "teacher" / "arithmetic.parquet").is_file()


@pytest.mark.parametrize(("name", "step"), [("synchronous", STEPS), ("asynchronous", 8)])
def test_a_checkpoint_is_exported_to_what_the_run_exports(
    workspace: Path, synchronous: Path, name: str, step: int
) -> None:
    """`synchronous` has float32 and one rank, `asynchronous` bfloat16 and two with ZeRO-3."""
    out = workspace / f"{name}_{step}"
    line = [sys.executable, "launch.py", "export", "--run", name, "--runs-path", str(workspace)]
    done = run([*line, "--step", str(step), "--out", str(out)])
    assert done.returncode == 0
    assert done.stdout.strip() == f"step {step} of {name} is in {out}"
    last, found = weights_of(workspace / name), load_file(out / "model.safetensors")
    assert found.keys() == last.keys()
    assert all(torch.equal(found[key], value) for key, value in last.items())
    generation = [(path / "generation_config.json").read_text() for path in (workspace / name / "export", out)]
    assert generation[0] == generation[1]
    cards = [(path / "README.md").read_text() for path in (workspace / name / "export", out)]
    assert cards[0] == cards[1]
    [evaluated] = [row for row in read_rows(workspace / name / "eval.jsonl") if row["model"] == "student_after"]
    front = yaml.safe_load(cards[1].split("---\n")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == evaluated["avg_at_k"]


def test_student_engine_teacher_engine_and_learner_agree_and_a_teacher_equal_to_the_student_gives_no_reward(
    workspace: Path,
) -> None:
    settings = SYNCHRONOUS | {"max_steps": 1, "teacher.model_path": EXAMPLE / "models" / "student"}
    assert run(command(workspace, "itself", **settings)).returncode == 0
    rows = batch_rows(workspace / "itself", step=0)
    for row in rows:
        engine, teacher = torch.tensor(row["behaviour_log_probs"]), torch.tensor(row["teacher_log_probs"])
        assert (engine - teacher).abs().max() < 1e-4
        assert ((5 * teacher).exp() - (5 * engine).exp()).abs().max() < 1e-3
    metrics = read_rows(workspace / "itself" / "metrics.jsonl")[0]
    assert metrics["mismatch/max_lag0"] < 1e-4
    assert abs(metrics["kl/reverse"]) < 1e-4
    assert metrics["reward/abs_p95"] < 1e-3


def test_a_run_on_whole_distributions_trains_stale_tokens_without_correction(workspace: Path) -> None:
    """The teacher's engines have no head then: it is not evaluated, and the learner holds its head."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "batch_size": 32,
        "max_staleness": 2,
        "batches_ahead": 1,
        "objective.name": "reverse_kl",
        "importance.name": "none",
        "learner.micro_batch_tokens": 256,
        "learner.warmup_steps": 2,
        "checkpoint.every_steps": 0,
        "evaluation.max_problems": 2,
        "logging.save_batches": "true",
    }
    done = run(command(workspace, "distributions", **settings))
    assert done.returncode == 0
    assert "the teacher is not evaluated: for reverse_kl" in done.stderr
    path = workspace / "distributions"
    rows = read_rows(path / "metrics.jsonl")
    assert len(rows) == 6
    assert all(row["divergence/mean"] >= 0 and row["reward/mean"] == 0 for row in rows)
    for name in ("divergence/mean", "kl/reverse"):
        values = [row[name] for row in rows]
        assert sum(values[-2:]) < sum(values[:2]), (name, values)
    assert [row["model"] for row in read_rows(path / "eval.jsonl")] == ["student_before", "student_after"]
    with pa.OSFile(str(path / "batches" / "step_0_rank_0.arrow")) as file:
        schema = pa.ipc.open_file(file).schema
    assert "teacher_hidden" in schema.names
    assert "teacher_log_probs" not in schema.names


def test_eval_prints_the_accuracy_of_a_model_folder(workspace: Path) -> None:
    line = command(workspace, "unused")
    line[2] = "eval"
    done = run([*line, "--model", str(EXAMPLE / "models" / "teacher")])
    assert done.returncode == 0
    row = json.loads(done.stdout.strip().splitlines()[-1])
    assert row["avg_at_k"] >= 0.8
    assert not (workspace / "unused").exists()


def test_nothing_of_a_run_is_left_running(workspace: Path, synchronous: Path) -> None:
    """Runs after the others: no process started from this repository's command line is alive."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if str(workspace) in arguments:
                alive.append(arguments)
    assert not alive
