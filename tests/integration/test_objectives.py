"""Objectives beyond the sampled log-prob, with real teacher engines and the real learner on tiny models.

Scores of both signals are compared with transformers, and every objective then trains on the same rollouts.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import rewards
from actors.engine import Engine, EngineSettings
from actors.teacher_worker import TeacherWorker
from learner.divergence import TeacherHead
from settings.objective import ObjectiveConfig
from tests.integration.test_engine_scene import MAX_MODEL_LEN, opened, read_model, run, save_model, settings
from tests.integration.test_learner_ranks import make_rank, run_ranks
from tests.integration.test_workers import rollouts
from tests.unit.test_learner_scene import run_config
from transport.batches import TeacherSignal, check_scored
from transport.stop_tokens import StopTokens

pytestmark = pytest.mark.timeout(900)

K, HIDDEN, NUM_STEPS = 24, 96, 4
STOPS = StopTokens(student_ids=(60,), teacher_ids=(60,))
SIGNALS = {"topk": TeacherSignal("topk", k=K), "full": TeacherSignal("full", hidden_size=HIDDEN, dtype="float32")}
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "full": [
        {"name": "reverse_kl"},
        {"name": "forward_kl"},
        {"name": "jsd", "beta": 0.5},
        {"name": "veto", "direction": "forward"},
        {"name": "power_full", "alpha": 1.0},
        {"name": "linear_kl"},
        {"name": "veto_full", "direction": "reverse"},
        {"name": "student_top_k", "k": 8},
        {"name": "lsm", "k": 8, "support": "student"},
    ],
    "topk": [
        {"name": "lsm", "k": K},
        {"name": "lsm", "k": K, "direction": "forward", "tail": "bucket"},
        {"name": "top_k_forward_kl", "k": K},
        {"name": "eopd"},
        {"name": "aopd"},
    ],
}


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("teacher"), tied=False, seed=2)


@pytest.fixture(scope="module")
def student_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("student"), seed=1)


@pytest.fixture(scope="module")
def scored(teacher_path: str) -> dict[str, pa.Table]:
    """The same rollouts, scored by an engine of each signal."""
    tables = {}
    for kind, signal in SIGNALS.items():
        engine_settings = replace(settings(teacher_path, max_num_batched_tokens=MAX_MODEL_LEN), signal=signal)
        with opened(engine_settings) as engine:
            tables[kind] = run(score(engine, engine_settings))
    return tables


async def score(engine: Engine, engine_settings: EngineSettings) -> pa.Table:
    worker = TeacherWorker(engine_settings, lambda _: engine, stop_mode="raw", stops=STOPS)
    await worker.start()
    _, *tables = await worker.score(*(rollouts(slot) for slot in range(12)))
    return pa.concat_tables(tables)


@torch.no_grad()
def teacher_logits(teacher_path: str, row: dict[str, Any]) -> Tensor:
    """Logits [T, V] by transformers at the positions that predict the response."""
    ids = row["prompt_token_ids"] + row["response_token_ids"]
    return read_model(teacher_path)(torch.tensor([ids])).logits[0, len(row["prompt_token_ids"]) - 1 : -1]


def test_top_k_tokens_are_those_of_transformers(teacher_path: str, scored: dict[str, pa.Table]) -> None:
    for row in check_scored(scored["topk"], SIGNALS["topk"]).to_pylist()[:8]:
        log_probs_TV = teacher_logits(teacher_path, row).log_softmax(-1)
        exact_TK = log_probs_TV.topk(K)
        ids_TK = np.reshape(row["teacher_topk_ids"], (-1, K))
        assert ids_TK.tolist() == exact_TK.indices.tolist()
        found_TK = torch.tensor(row["teacher_topk_log_probs"]).view(-1, K)
        torch.testing.assert_close(found_TK, exact_TK.values, rtol=0, atol=1e-4)
        sampled_T = log_probs_TV.gather(1, torch.tensor(row["response_token_ids"])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(row["teacher_log_probs"]), sampled_T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_is_read_from_the_folder_of_the_teacher(tmp_path: Path, tied: bool) -> None:
    path = save_model(tmp_path, tied=tied)
    head = TeacherHead.load(path, dtype="float32", max_rows=50, device=torch.device("cpu"))
    assert torch.equal(head.weight_VH, read_model(path).lm_head.weight[:50])


def test_hidden_states_and_the_head_give_the_logits_of_transformers(
    teacher_path: str, scored: dict[str, pa.Table]
) -> None:
    head = TeacherHead.load(teacher_path, dtype="float32", max_rows=1000, device=torch.device("cpu"))
    for row in check_scored(scored["full"], SIGNALS["full"]).to_pylist()[:8]:
        hidden_TH = torch.from_numpy(np.frombuffer(row["teacher_hidden"], np.float32).reshape(-1, HIDDEN).copy())
        exact_TV = teacher_logits(teacher_path, row)
        torch.testing.assert_close(head.logits(hidden_TH), exact_TV, rtol=0, atol=1e-4)


def train_each(rank: int, world_size: int, port: int, paths: dict[str, str], kind: str, folder: str) -> None:
    """Train every objective of one signal for a few steps on the same rollouts; leaves the metrics in a file."""
    with pa.OSFile(f"{folder}/{kind}.arrow") as file:
        table = pa.ipc.open_file(file).read_all()
    found = {}
    for given in OBJECTIVES[kind]:
        parameters = rewards.validate("objective", given["name"], {k: v for k, v in given.items() if k != "name"})
        config = run_config(
            paths["student"],
            teacher={"model_path": paths["teacher"]},
            learner={"learning_rate": 2e-3, "zero_stage": 3 if given["name"] in ("jsd", "lsm") else 2},
        )
        objective = ObjectiveConfig.model_validate({"name": given["name"], "stop_mode": "raw", **parameters})
        config = config.model_copy(update={"objective": objective})
        learner = make_rank(config, rank, world_size, port, stops=STOPS, signal=SIGNALS[kind])
        found[str(given)] = [learner.train_step(step, table).metrics for step in range(NUM_STEPS)]
    (Path(folder) / f"{kind}_{rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("kind", ["full", "topk"])
def test_every_objective_brings_the_student_closer_to_the_teacher(
    kind: str, scored: dict[str, pa.Table], student_path: str, teacher_path: str, tmp_path: Path
) -> None:
    with (
        pa.OSFile(str(tmp_path / f"{kind}.arrow"), "wb") as file,
        pa.ipc.new_file(file, scored[kind].schema) as writer,
    ):
        writer.write_table(scored[kind])
    run_ranks(train_each, 1, {"student": student_path, "teacher": teacher_path}, kind, str(tmp_path))
    found = json.loads((tmp_path / f"{kind}_0.json").read_text())
    assert found.keys() == {str(given) for given in OBJECTIVES[kind]}
    for name, steps in found.items():
        assert all(np.isfinite(value) for step in steps for value in step.values()), name
        first, last = (abs(step["divergence/mean"]) for step in (steps[0], steps[-1]))  # student_top_k is negative
        assert last < first, name
        assert steps[0]["tokens_trained"] == 24 * 3.5, name
