"""What engines answered becomes a result: the worst is named, and nothing that is no number passes."""

import shutil
from pathlib import Path

import pytest

from actors.engine_settings import student_settings
from cluster.placement import Demand
from cluster.pool import Pool
from cluster.replica_check import ReplicaCheck
from commands.preflight.golden import record_golden, record_replicas
from inputs.inputs import read_inputs
from records.events import Events
from settings.checks import Checks
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


def test_with_a_forced_tokenizer_only_common_ids_are_sampled(arguments: list[str], tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(MODELS / "teacher", tmp_path / "teacher"))
    edit(teacher / "tokenizer.json", lambda content: content["model"]["vocab"].pop("#"))
    options = [each for each in arguments[3:] if each != "--dry-run"]
    config = load_config(arguments[2], [*options, "--teacher.model_path", str(teacher)])
    with pytest.raises(ValueError, match=r"the student knows 1 ids from 31 on .*--force tokenizer"):
        read_inputs(config)
    inputs = read_inputs(config, checks=Checks(force=["tokenizer"]))
    assert student_settings(config, inputs).vocab_size == 31
