"""What the last token of a response counts as, in closed form and against published vectors."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.engine_settings import evaluation_sampling, rollout_sampling
from settings.run import RunConfig
from transport.stop_tokens import StopLabels, StopMode, StopTokens, stop_labels

pytestmark = pytest.mark.timeout(20)

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS_PATH = Path(os.environ.get("POWEROPD_VECTORS", REPOSITORY.parent / "shared")) / "reward_vectors.json"
CASES = json.loads(VECTORS_PATH.read_text())["cases"] if VECTORS_PATH.exists() else []
STOP_CASES = [case for case in CASES if case["id"].startswith("terminal_stop_")]

STOPS = StopTokens(student_ids=(90, 91), teacher_ids=(92, 91))
MODES: list[StopMode] = ["raw", "mask", "cross_eos"]


@pytest.mark.parametrize("stop", STOPS.ids)
@pytest.mark.parametrize(
    ("mode", "teacher", "keep_last"),
    [("raw", None, True), ("mask", None, False), ("cross_eos", 92, True)],
)
def test_the_student_is_credited_for_the_stop_that_it_sampled_and_the_mode_says_what_the_teacher_is_asked_for(
    stop: int, mode: StopMode, teacher: int | None, keep_last: bool
) -> None:
    assert stop_labels([5, 6, stop], mode=mode, stops=STOPS) == StopLabels(
        student_token_ids=[5, 6, stop],
        teacher_token_ids=[5, 6, teacher or stop],
        reference_token_ids=[5, 6, teacher or stop],
        keep_last=keep_last,
        has_stop=True,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("response", [[5, 6, 7], [90, 6], [5, 92, 7], []])
def test_a_response_that_does_not_end_with_a_stop_token_stays_as_it_is(
    mode: StopMode, response: list[int]
) -> None:
    labels = stop_labels(response, mode=mode, stops=STOPS)
    assert labels == StopLabels(response, response, response, keep_last=True, has_stop=False)


def test_each_source_is_asked_for_the_stop_token_of_its_own_teacher_and_the_reference_for_its_own() -> None:
    stops = StopTokens((90,), (92,), teacher_ids_of_source={"math": (92,), "code": (94, 95)}, reference_ids=(97,))
    assert stops.ids == (90, 92, 94, 95)  # the reference ends no response
    for source, teacher in (("math", 92), ("code", 94)):
        labels = stop_labels([5, 95], mode="cross_eos", stops=stops, source=source)
        assert labels.student_token_ids == [5, 95]
        assert labels.teacher_token_ids == [5, teacher]
        assert labels.reference_token_ids == [5, 97]
        assert stop_labels([5, 95], mode="raw", stops=stops, source=source).reference_token_ids == [5, 95]
        assert not stop_labels([5, 95], mode="mask", stops=stops, source=source).keep_last


@pytest.mark.skipif(not STOP_CASES, reason=f"no {VECTORS_PATH}")
@pytest.mark.parametrize("case", STOP_CASES, ids=lambda case: case["id"])
def test_published_vectors_agree(case: dict[str, Any]) -> None:
    params, expected = case["params"], case["expected"]
    stops = StopTokens(student_ids=(params["endoftext"],), teacher_ids=(params["im_end"],))
    for row, (labels, mask) in enumerate(zip(case["inputs"]["labels"], case["inputs"]["mask"], strict=True)):
        length = sum(mask)
        found = stop_labels(labels[:length], mode=params["mode"], stops=stops)
        assert found.student_token_ids == expected["student_labels"][row][:length]
        assert found.teacher_token_ids == expected["teacher_labels"][row][:length]
        kept = [1] * length if found.keep_last else [1] * (length - 1) + [0]
        assert kept + [0] * (len(mask) - length) == expected["mask"][row]


@dataclass(frozen=True)
class OnlyStops:
    """As much of a run's inputs as sampling asks for."""

    stops: StopTokens = STOPS


def test_rollouts_end_on_every_sides_stop_tokens_or_on_the_students_alone_and_evaluations_on_all() -> None:
    needed = {"student": {"model_path": "s"}, "teacher": {"model_path": "t"}, "data": {"train_path": "d"}}
    every, own = (RunConfig.model_validate(needed | {"rollout": {"stop_on": on}}) for on in ("all", "student"))
    inputs: Any = OnlyStops()
    assert rollout_sampling(every, inputs).stop_token_ids == ()  # what the engine was given: all
    assert rollout_sampling(own, inputs).stop_token_ids == STOPS.student_ids
    assert evaluation_sampling(own).stop_token_ids == ()
