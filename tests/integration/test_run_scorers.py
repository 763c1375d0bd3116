"""A run from the command line with two teachers, a reference model and graded outcomes, on the demo's models."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import rewards
from records.files import read_rows
from records.ledger import valid_ledger
from tests.integration.real_run import MODELS, batch_rows, run, write_problems

STEPS, BATCH, SAMPLES = 4, 8, 2
TINY = {"resources.num_cpus": 0.5, "engine.max_model_len": 128, "engine.kv_cache_gib": 0.25}

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def command(folder: Path) -> list[str]:
    """The command line: the demo's teacher scores one source, the student itself the other."""
    student = MODELS / "student"
    options: dict[str, Any] = {
        "runs_path": folder,
        "run_name": "scorers",
        "data.train_path": folder / "train.jsonl",
        "evaluation.data_path": folder / "data" / "heldout.jsonl",
        "evaluation.max_problems": 4,
        "evaluation.num_samples": 2,
        "evaluation.k": 2,
        "cluster.num_cpus": 4,
        "max_steps": STEPS,
        "batch_size": BATCH,
        "num_samples_per_prompt": SAMPLES,
        "max_staleness": 1,
        "batches_ahead": 1,
        "learner.micro_batch_tokens": 256,
        "checkpoint.every_steps": 0,
        "logging.save_batches": "true",
        "teacher.sources": "[even]",
        "teachers.own.model_path": student,
        "teachers.own.sources": "[odd]",
        "teachers.own.weight": 0.5,
        "objective.name": "g_opd",
        "reference.model_path": student,
        "outcome.rl_coef": 0.5,
        **{f"{section}.{key}": value for section in ("teachers.own", "reference") for key, value in TINY.items()},
    }
    given = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "launch.py", "train", "--config", "configs/demo.yaml", *given]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs")
    write_problems(folder)
    rows = read_rows(folder / "data" / "train.jsonl")[:100]
    for index, row in enumerate(rows):
        row["source"] = "odd" if index % 2 else "even"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(command(folder)).returncode == 0
    return folder / "scorers"


def test_every_slot_is_trained_once_with_finite_metrics_of_all_three_features(run_path: Path) -> None:
    ledger = valid_ledger(run_path / "ledger.jsonl")
    uids = [uid for step in ledger.values() for uid in step]
    assert sorted(int(uid.split("-")[0]) for uid in uids) == sorted([*range(STEPS * BATCH)] * SAMPLES)
    rows = read_rows(run_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["masked/nonfinite"] == 0
        assert row["grad_norm"] > 0
        shares = [row[f"tokens_trained/{name}"] for name in ("teacher", "teacher-own")]
        assert sum(shares) == row["tokens_trained"]
        workers = {"teacher": 2, "teacher-own": 1, "reference": 1, "rollout": 1}
        assert {name: row[f"workers/{name}"] for name in workers} == workers
    for role in ("teacher", "teacher-own", "reference"):  # a step whose tokens were all scored ahead has 0
        assert sum(row[f"throughput/{role}"] for row in rows) > 0
    models = [row["model"] for row in read_rows(run_path / "eval.jsonl")]
    assert models == ["teacher", "teacher-own", "student_before", "student_after"]
    assert {"teacher", "teacher-own"} < json.loads((run_path / "summary.json").read_text()).keys()


def test_reference_and_a_teacher_that_are_the_initial_student_score_its_first_tokens_as_it_does(
    run_path: Path,
) -> None:
    rows = batch_rows(run_path, step=0)
    assert {row["source"] for row in rows} == {"even", "odd"}
    for row in rows:
        assert {run["version"] for run in row["weight_versions"]} == {0}
        behaviour, teacher, reference = (
            torch.tensor(row[f"{name}_log_probs"]) for name in ("behaviour", "teacher", "reference")
        )
        assert (reference - behaviour).abs().max() < 1e-4
        assert ((teacher - behaviour).abs().max() < 1e-4) == (row["source"] == "odd")


def test_outcomes_are_the_grades_of_the_responses_and_so_are_their_metrics(run_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "student")
    for step, metrics in enumerate(read_rows(run_path / "metrics.jsonl")):
        rows = batch_rows(run_path, step)
        texts = [tokenizer.decode(row["response_token_ids"], skip_special_tokens=True) for row in rows]
        outcomes = [row["outcome_scores"] for row in rows]
        assert outcomes == rewards.grade_batch(texts, [row["answer"] for row in rows])
        groups = [
            {row["outcome_scores"] for row in rows if row["slot"] == slot} for slot in {r["slot"] for r in rows}
        ]
        assert len(groups) == BATCH
        constant = sum(len(group) == 1 for group in groups) / BATCH
        assert metrics["outcome/mean"] == pytest.approx(sum(outcomes) / len(rows))
        assert metrics["outcome/constant_groups_frac"] == pytest.approx(constant)
        # One of two is right: the sample deviation is sqrt(1/2), both advantages have size sqrt(1/2).
        assert metrics["outcome/advantage_abs_mean"] == pytest.approx((1 - constant) * math.sqrt(0.5), rel=1e-4)
