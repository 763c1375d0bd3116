"""TensorBoard gets scalars, evaluations, events in words, and the configuration."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from records.events import Events
from records.run_folder import RunFolder
from reporting.live.boards import Dashboards
from reporting.live.event_words import evaluation_scalars
from reporting.live.tensorboard import TensorBoard, flat
from tests.unit.test_live_view import config


def text_of(events: EventAccumulator, tag: str) -> list[str]:
    """The texts under a tag."""
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]


def scalars_of(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    """Steps and values under a tag."""
    return [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(tag)]


def test_steps_evaluations_events_and_the_configuration_are_there(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.configuration("max_steps: 10\n", {"max_steps": 10, "learner": {"betas": [0.9, 0.95], "x": None}})
    evaluation = {"model": "student_before", "benchmark": "gsm8k", "step": 0, "k": 8, "n": 8, "avg_at_k": 0.25}
    board.evaluation(evaluation)
    board.step({"step": 1, "loss": 0.5, "text": "no number"})
    board.event({"event": "worker_died", "worker": "rollout-0", "reason": "killed"})
    board.event({"event": "weights_loaded", "worker": "rollout-0"})
    board.evaluation(evaluation | {"model": "student", "step": 1, "avg_at_k": 0.5})
    board.evaluation(evaluation | {"model": "teacher-code", "avg_at_k": 0.75})
    board.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert scalars_of(events, "loss") == [(1, 0.5)]
    assert events.SummaryMetadata("loss").summary_description == "Loss of the step."
    assert scalars_of(events, "eval/gsm8k/avg_at_8") == [(0, 0.25), (1, 0.5)]
    assert scalars_of(events, "eval/gsm8k/teacher-code/avg_at_8") == [(0, 0.75)]
    assert text_of(events, "events") == ["rollout-0 has died: killed"]
    assert "max_steps: 10" in text_of(events, "configuration")[0]
    [content] = events.PluginTagToContent(metadata.PLUGIN_NAME).values()
    started = metadata.parse_session_start_info_plugin_data(content)
    assert started.hparams["max_steps"].number_value == 10
    assert started.hparams["learner.betas"].string_value == "[0.9, 0.95]"


def test_a_run_tells_its_dashboards_through_its_folder_and_its_events(tmp_path: Path) -> None:
    folder, events = RunFolder(tmp_path), Events(tmp_path / "events.jsonl")
    boards = Dashboards(config(logging={"prometheus": False, "display": "plain"}), folder, events)
    events.add("worker_suspect", worker="rollout-0", reason="silent")
    folder.add_evaluation({"model": "student", "benchmark": "b", "step": 2, "k": 1, "avg_at_k": 1.0})
    written = EventAccumulator(str(folder.tensorboard), size_guidance={"tensors": 0}).Reload()
    assert scalars_of(written, "eval/b/avg_at_1") == [(2, 1.0)]
    assert text_of(written, "events") == ["rollout-0 does not answer: silent"]
    assert "run_name: first" in text_of(written, "configuration")[0]
    status = boards.monitor.status({}, is_running=True)
    assert status["health"]["total"]["suspects"] == {"rollout": 1}


def test_settings_are_flat_and_scalars_leave_what_is_no_measure() -> None:
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": None})) == {"a.b": 1, "a.c": "{}", "d": "null"}
    row = {"model": "teacher", "benchmark": "b", "step": 1, "k": 4, "n": 8, "pass_at_k": 1, "mean_length": 9.5}
    row |= {"pass_at_k_unbiased": 0.5, "weight_version": None}
    assert evaluation_scalars(row) == {
        "eval/b/teacher/pass_at_4": 1.0,
        "eval/b/teacher/mean_length": 9.5,
        "eval/b/teacher/pass_at_4_unbiased": 0.5,
    }
