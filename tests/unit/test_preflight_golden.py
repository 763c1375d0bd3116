"""What engines answered becomes a result: the worst is named, and nothing that is no number passes."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.engine_settings import student_settings
from cluster.placement import Demand
from cluster.pool import Pool
from cluster.replica_check import ReplicaCheck
from cluster.worker import Worker
from commands.plan.local_pool import LocalActor
from commands.preflight.golden import record_golden, record_replicas
from inputs.inputs import read_inputs
from records.events import Events
from settings.checks import Checks, RefusedError
from settings.run import RunConfig
from settings.run_files import load_config
from tests.unit.conftest import MODELS
from tests.unit.test_preflight import edit

pytestmark = pytest.mark.timeout(60)


def pool_of(role: str, num: int, *, answer: ReplicaCheck | None = None) -> Pool:
    """A pool of workers that were never placed."""
    config = RunConfig.model_validate(
        {"student": {"model_path": "s"}, "teacher": {"model_path": "t"}, "data": {"train_path": "d"}}
    )
    demand = Demand(role, num, {"CPU": 1.0})

    def build(index: int) -> None:
        raise AssertionError("nothing is placed")

    pool = Pool(demand, build, config=config.cluster, events=Events(), replica_check=answer)  # pyright: ignore[reportArgumentType]
    for _ in range(num):
        pool.add()
    return pool


def golden(*differences: float | None, dtype: str = "float32", limit: float | None = None) -> Checks:
    pool = pool_of("rollout", len(differences))
    for worker, difference in zip(pool.workers, differences, strict=True):
        worker.golden_difference = difference
    checks = Checks()
    record_golden(checks, pool, dtype=dtype, limit=limit)
    return checks


def test_engines_within_the_limit_of_their_precision_pass() -> None:
    assert golden(1e-5, 2e-4).errors == []
    assert golden(0.04, dtype="bfloat16").errors == []
    assert golden(0.04, limit=0.1).errors == []


@pytest.mark.parametrize("worst", [0.04, float("nan"), float("inf")])
def test_the_engine_that_differs_most_is_named(worst: float) -> None:
    [result] = golden(1e-5, worst, 0.002).errors
    assert result.message.startswith("rollout-1's log-probs of the golden sequence differ from the learner's")
    assert "limit 0.001 for float32" in result.message


def test_engines_that_have_not_loaded_are_no_proof() -> None:
    [result] = golden(None).results
    assert result.status == "warning"


def test_replicas_are_compared_with_the_first_of_their_pool() -> None:
    answer = ReplicaCheck([1, 2], dtype="float32", timeout_s=1.0)
    answer.differences.update({"teacher-0": 0.0, "teacher-1": 0.5, "teacher-2": float("nan")})
    checks = Checks(collects=True)
    record_replicas(checks, {"teacher": pool_of("teacher", 3, answer=answer)}, {"teacher": None})
    [result] = checks.errors
    assert "teacher-2 does not agree with its replicas" in result.message
    assert result.details["teacher"]["differences"] == {"teacher-0": 0.0, "teacher-1": 0.5, "teacher-2": None}


class Answers:
    """A worker that gives these log-probs."""

    def __init__(self, *log_probs: float) -> None:
        self._log_probs = [*log_probs]

    def log_probs_of(self, token_ids: list[int]) -> list[float]:
        """The same for whatever is asked."""
        return self._log_probs


def test_a_resumed_run_refuses_a_model_that_answers_otherwise_than_when_it_began() -> None:
    kept: list[Any] = []

    def first_answer(*log_probs: float, known: list[float] | None, is_enforced: bool = True) -> float:
        async def ask() -> float:
            check = ReplicaCheck(
                [1, 2],
                **{"dtype": "float32", "timeout_s": 1.0, "model": "teacher.model_path t", "known": known},
                is_enforced=is_enforced,
                keep=lambda *answer: kept.append(answer),
            )
            return await check.ask(Worker("teacher-0", handle=LocalActor(Answers(*log_probs))))

        return asyncio.run(ask())

    first_answer(-1.0, -2.0, known=None)
    assert kept == [([-1.0, -2.0], None)]
    first_answer(-1.0, -2.0001, known=[-1.0, -2.0])
    for other in ((-1.0, -3.0), (-1.0,), (-1.0, float("nan"))):
        with pytest.raises(
            RefusedError, match=r"^teacher.model_path t is not the model that the run began with: "
        ):
            first_answer(*other, known=[-1.0, -2.0])
    assert len(kept) == 1
    first_answer(-1.0, -3.0, known=[-1.0, -2.0], is_enforced=False)
    assert kept[1:] == [([-1.0, -3.0], 0.5)]


def test_with_a_forced_tokenizer_only_common_ids_are_sampled(arguments: list[str], tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(MODELS / "teacher", tmp_path / "teacher"))
    edit(teacher / "tokenizer.json", lambda content: content["model"]["vocab"].pop("#"))
    options = [each for each in arguments[3:] if each != "--dry-run"]
    config = load_config(arguments[2], [*options, "--teacher.model_path", str(teacher)])
    with pytest.raises(ValueError, match=r"the student knows 1 ids from 31 on .*--force tokenizer"):
        read_inputs(config)
    inputs = read_inputs(config, checks=Checks(force=["tokenizer"]))
    assert student_settings(config, inputs).vocab_size == 31
