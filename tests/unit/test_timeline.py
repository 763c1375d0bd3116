"""The timeline of workers: what overlaps is one span, and a long run's file stays small."""

from pathlib import Path

from records.ownership import Ownership
from records.timeline import Span, Timeline, merged, read_spans


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_uses_that_overlap_are_one_span_with_their_busy_time(tmp_path: Path) -> None:
    clock = Clock()
    timeline = Timeline(tmp_path / "timeline.jsonl", clock=clock)
    with timeline.lasting("score", "teacher-0"):
        clock.time += 2
        with timeline.lasting("score", "teacher-0"), timeline.lasting("load weights", "teacher-0"):
            clock.time += 3
        clock.time += 1
    timeline.close()
    assert read_spans(tmp_path / "timeline.jsonl") == [
        Span("teacher-0", "load weights", 102.0, 105.0, 3.0),
        Span("teacher-0", "score", 100.0, 106.0, 6.0),
    ]


def test_uses_that_follow_at_once_are_merged_and_others_are_not(tmp_path: Path) -> None:
    clock = Clock()
    timeline = Timeline(tmp_path / "timeline.jsonl", clock=clock)
    for pause_s in (0.004, 1.0, 0.0):
        with timeline.lasting("train", "learner-0", "learner-1"):
            clock.time += 0.5
        clock.time += pause_s
    timeline.close()
    spans = [span for span in read_spans(tmp_path / "timeline.jsonl") if span.worker == "learner-1"]
    assert [(span.num, round(span.busy_s, 3)) for span in spans] == [(2, 1.0), (1, 0.5)]


def test_a_span_that_goes_on_is_written_in_pieces_and_at_the_end(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "timeline.jsonl"
    timeline = Timeline(path, clock=clock)
    with timeline.lasting("generate", "rollout-0"):
        for _ in range(100):
            with timeline.lasting("load weights", "rollout-0"):
                clock.time += 1
            clock.time += 1
        written = [span for span in read_spans(path) if span.stage == "generate"]
        assert sum(span.busy_s for span in written) >= 120, "a crash here would lose it"
        timeline.close()
    whole = [span for span in read_spans(path) if span.stage == "generate"]
    assert round(sum(span.busy_s for span in whole), 6) == 200
    assert len(merged(whole, 0.0)) == 1


def test_a_file_holds_no_more_spans_than_it_may_and_loses_no_busy_time(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "timeline.jsonl"
    timeline = Timeline(path, max_spans=200, clock=clock)
    for _ in range(5000):
        for worker in ("rollout-0", "rollout-1"):
            with timeline.lasting("generate", worker):
                clock.time += 0.25
        clock.time += 0.25
    timeline.close()
    spans = read_spans(path)
    assert 20 < len(spans) <= 200
    for worker in ("rollout-0", "rollout-1"):
        mine = [span for span in spans if span.worker == worker]
        assert abs(sum(span.busy_s for span in mine) - 1250) < 1
        assert sum(span.num for span in mine) == 5000
    assert max(span.end for span in spans) - min(span.start for span in spans) > 3700


def test_a_run_that_is_continued_goes_on_in_the_same_file(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "timeline.jsonl"
    for _ in range(2):
        timeline = Timeline(path, clock=clock)
        with timeline.lasting("train", "learner-0"):
            clock.time += 1
        timeline.close()
        clock.time += 60
    assert [span.start for span in read_spans(path)] == [100.0, 161.0]


def test_nothing_is_written_once_another_process_has_the_folder(tmp_path: Path) -> None:
    mine, other = Ownership(tmp_path), Ownership(tmp_path)
    mine.take()
    timeline = Timeline(tmp_path / "timeline.jsonl", mine)
    with timeline.lasting("train", "learner-0"):
        other.take()
    timeline.close()
    assert read_spans(tmp_path / "timeline.jsonl") == []
