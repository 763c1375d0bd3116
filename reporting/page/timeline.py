"""The timeline by worker: a row for every worker, and what it did when, in colours.

A span's bar is as long as the time in which the worker was busy with it, so that a stretch of many short calls is
not drawn as if it were full. Time in which the run did not exist, between its end and its continuation, is
left out.
"""

from bisect import bisect_right
from collections.abc import Sequence

from records.timeline import Span, merged
from reporting.page.figure import NUM_COLORS, Figure, Trace, color, plain
from reporting.page.run_data import RunData, number

MAX_DRAWN = 6_000
"""Spans of a figure; of more, neighbours are merged."""

MIN_PAUSE_S = 60.0
"""Time without any span or event that is left out, if it is also a twentieth of the run."""

ORDER = ("generate", "score", "train", "publish", "load weights", "evaluate", "samples", "checkpoint", "export")
"""Stages in the order of the legend; their places are their colours, the last ones share the last."""
THIN = frozenset({"load weights", "samples", "checkpoint"})
"""Stages that overlap another one of the same worker: drawn thinner, above it."""
DOWN = "down"
START = "start"
ROW_HEIGHT = 24
MAX_ROWS = 100


def timeline_figure(run: RunData) -> Figure | None:
    """The timeline of a run; None if it has none."""
    spans = [*run.spans, *_from_events(run)]
    if not spans:
        return None
    clock = _Clock(spans)
    workers = sorted({span.worker for span in spans}, key=_place)
    shown = workers[:MAX_ROWS]
    drawn = _fewer([span for span in spans if span.worker in set(shown)], clock.length_s)
    stages = sorted({span.stage for span in drawn}, key=_rank)
    traces = [_trace(stage, [span for span in drawn if span.stage == stage], shown, clock) for stage in stages]
    caption = (
        "What every worker did when. Drag across to zoom in, double-click to see all again. A stretch of many "
    )
    caption += "short calls is drawn as long as the worker was busy in it. Blank: it waited."
    caption += f" The first {MAX_ROWS} of {len(workers)} workers." if len(workers) > MAX_ROWS else ""
    if clock.num_cuts:
        caption += f" {clock.num_cuts} pause(s) in which the run did not exist are left out."
    layout = {
        "xaxis": {"title": {"text": "seconds since the start"}, "range": [0, clock.length_s], "zeroline": False},
        "yaxis": {
            "tickvals": list(range(len(shown))),
            "ticktext": [plain(worker) for worker in shown],
            "range": [len(shown) - 0.5, -0.5],
            "fixedrange": True,
            "zeroline": False,
            "showgrid": False,
        },
        "hovermode": "closest",
    }
    height = 110 + ROW_HEIGHT * len(shown)
    return Figure(f"timeline-{run.name}", "Timeline by worker", caption, traces, layout, height, is_wide=True)


class _Clock:
    """Times since 1970 as seconds since the start of the run, without its pauses."""

    def __init__(self, spans: Sequence[Span]) -> None:
        starts, last = sorted(spans, key=lambda span: span.start), max(span.end for span in spans)
        least_s = max(MIN_PAUSE_S, (last - starts[0].start) / 20)
        self._from, self._cut_s, end = [starts[0].start], [starts[0].start], starts[0].end
        for span in starts:
            if span.start - end > least_s:
                self._from.append(span.start)
                self._cut_s.append(self._cut_s[-1] + span.start - end)
            end = max(end, span.end)
        self.num_cuts = len(self._from) - 1
        self.length_s = max(self(last), 1e-3)

    def __call__(self, time_s: float) -> float:
        return time_s - self._cut_s[max(0, bisect_right(self._from, time_s) - 1)]


def _from_events(run: RunData) -> list[Span]:
    """Starts of workers, and the times between their deaths and their next starts."""
    spans: list[Span] = []
    died: dict[str, float] = {}
    for event in run.events:
        time_s, worker = number(event, "time"), event.get("worker")
        if time_s is None or not isinstance(worker, str):
            continue
        if event["event"] in ("worker_died", "worker_ended"):
            died.setdefault(worker, time_s)
        elif event["event"] == "worker_started":
            begun = time_s - (number(event, "seconds") or 0.0)
            if worker in died and died[worker] < begun:
                spans.append(Span(worker, DOWN, died[worker], begun, begun - died[worker]))
            died.pop(worker, None)
            spans.append(Span(worker, START, begun, time_s, time_s - begun))
        elif event["event"] in ("worker_given_up", "worker_retired"):
            died.pop(worker, None)
    return spans


def _fewer(spans: Sequence[Span], length_s: float) -> list[Span]:
    """The same, merged until they are few enough to be drawn."""
    resolution_s = length_s / 4000
    found = merged(spans, resolution_s)
    while len(found) > MAX_DRAWN and resolution_s < length_s:
        resolution_s *= 2
        found = merged(found, resolution_s)
    return found


def _trace(stage: str, spans: Sequence[Span], workers: Sequence[str], clock: _Clock) -> Trace:
    """All spans of a stage as one broken line."""
    row_of = {worker: row for row, worker in enumerate(workers)}
    x: list[float | None] = []
    y: list[float | None] = []
    texts: list[str] = []
    least_s = clock.length_s / 2000
    for span in spans:
        start = clock(span.start)
        busy_s = min(span.busy_s, span.end - span.start)
        x += [round(start, 3), round(start + max(busy_s, least_s), 3), None]
        y += [row_of[span.worker], row_of[span.worker], None]
        share = "" if span.num == 1 else f" ({span.num} uses, busy {busy_s:.2f} s)"
        text = f"{plain(span.worker)}: {plain(stage)}, {start:.1f} to {clock(span.end):.1f} s{share}"
        texts += [text, text, ""]
    width = 7 if stage in THIN else 15
    shade = {DOWN: "theme:bad", START: "theme:muted/0.45"}.get(stage, color(min(_rank(stage)[0], NUM_COLORS - 1)))
    return {
        **{"type": "scatter", "mode": "lines", "x": x, "y": y, "name": plain(stage), "text": texts},
        **{"hoverinfo": "text", "line": {"color": shade, "width": width}, "connectgaps": False},
    }


def _rank(stage: str) -> tuple[int, str]:
    return (ORDER.index(stage) if stage in ORDER else len(ORDER) + (stage == DOWN), stage)


def _place(worker: str) -> tuple[int, str, int]:
    """Learner first, then rollout workers, then those that score; each by number."""
    role, _, index = worker.rpartition("-")
    return ({"learner": 0, "rollout": 1}.get(role, 2), role, int(index) if index.isdecimal() else 0)
