"""The head of a report: what a run came to in words and numbers, and its faults; of several runs side by side."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reporting.advisor import Advice, advise
from reporting.page.cost import pool_costs, waste_lines, wasted_tokens
from reporting.page.run_data import Row, RunData, mean, number, numbers, total

NOTHING = "\u2013"
"""Stands for a number that is not known."""

MAX_SHOWN = 200
"""Faults in the table; of more, the first and the last."""

FAULT_WORDS = ("died", "restarted", "given_up", "suspect", "heard", "failed", "lost", "damaged", "restored")
FAULTS = frozenset({"resumed", "orphan_ended", "rows_written_late"})
"""Events are faults that have one of these words in their names, or are named here."""

NOT_DETAILS = ("time", "event", "worker", "reason", "error", "node", "pid")


@dataclass(frozen=True)
class Verdict:
    """One sentence about a run; `kind` is good, bad or plain."""

    kind: str
    text: str


def verdicts(run: RunData) -> list[Verdict]:
    """What to know first."""
    found = [_progress(run), *_accuracy(run), *_divergence(run)]
    advice = advice_of(run)
    if advice is not None:
        found.append(Verdict("plain", f"Bottleneck: {advice.text}."))
    skipped = int(total(run.rows, "skipped"))
    if skipped:
        found.append(Verdict("bad", f"{skipped} steps had no finite gradient and were skipped."))
    truncated = mean(run.rows[-max(1, len(run.rows) // 10) :], "truncated_frac") or 0.0
    if truncated > 0.3:
        text = f"{percent(truncated)} of the last responses were cut at the length limit"
        found.append(Verdict("bad", f"{text} (rollout.max_response_tokens)."))
    faults = faults_of(run)
    if faults.counts:
        found.append(Verdict("plain", f"Faults: {faults.text}."))
    return found


def _progress(run: RunData) -> Verdict:
    wanted = run.config.max_steps if run.config is not None else None
    done = len(run.rows)
    if wanted is None or done >= wanted:
        return Verdict("good" if done else "bad", f"{done} steps trained.")
    return Verdict("bad", f"{done} of {wanted} steps trained: the run has not finished (continue with --resume).")


def _accuracy(run: RunData) -> list[Verdict]:
    found = []
    for benchmark in benchmarks(run):
        before, after, teacher = (evaluation(run, name, benchmark) for name in ("before", "after", "teacher"))
        if before is None or after is None:
            continue
        text = f"{benchmark}: accuracy {percent(before)} before, {percent(after)} after training"
        if teacher is not None:
            text += f"; the teacher has {percent(teacher)}"
        if teacher is not None and teacher - before > 0.01:
            text += f", so {percent((after - before) / (teacher - before))} of the distance is covered"
        found.append(Verdict("good" if after > before else "bad", f"{text}."))
    return found


def _divergence(run: RunData) -> list[Verdict]:
    first, last = first_and_last(run, "kl/reverse")
    if first is None or last is None or first <= 0:
        return []
    change = last / first - 1
    verb = "fell" if change < 0 else "rose"
    text = f"Reverse KL to the teacher {verb} by {percent(abs(change))}: "
    text += f"{first:.4g} in the first tenth of the steps, {last:.4g} in the last."
    return [Verdict("good" if change < 0 else "bad", text)]


def summary_rows(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """The table: a label, and a value for every run. Lines in which no run has a value are left out."""
    lines: list[tuple[str, Callable[[RunData], str]]] = [
        ("student", lambda run: run.config.student.model_path if run.config else NOTHING),
        ("teacher", lambda run: run.config.teacher.model_path if run.config else NOTHING),
        ("objective", _objective),
        *((f"{benchmark}: {label}", _accuracy_cell(name, benchmark))
          for benchmark in dict.fromkeys(each for run in runs for each in benchmarks(run))
          for name, label in (("before", "before"), ("after", "after"), ("teacher", "teacher"))),
        ("reverse KL, first to last tenth", lambda run: _pair(run, "kl/reverse")),
        ("response length, first to last tenth", lambda run: _pair(run, "response_length/mean")),
        ("largest staleness", lambda run: _most(run, "staleness/max")),
        ("largest / median gradient norm", _spikes),
        ("steps", lambda run: str(len(run.rows))),
        ("tokens trained", lambda run: f"{total(run.rows, 'tokens_trained'):,.0f}"),
        ("tokens generated and not trained", lambda run: f"{wasted_tokens(waste_lines(run)):,}"),
        ("seconds per step", lambda run: _number(mean(run.rows, "time/step_s"))),
        ("wall time", lambda run: duration(run.end_s - run.start_s)),
        ("device-seconds", _device_seconds),
        ("limit", lambda run: NOTHING if (advice := advice_of(run)) is None else advice.short),
    ]  # fmt: skip
    table = [(label, [cell(run) for run in runs]) for label, cell in lines]
    return [(label, cells) for label, cells in table if any(cell != NOTHING for cell in cells)]


def advice_of(run: RunData) -> Advice | None:
    """What limited the run as a whole; None where its rows do not tell."""
    return advise([row for row in run.rows if _is_timed(row)])


def benchmarks(run: RunData) -> list[str]:
    """Names of the benchmarks that the run was evaluated on."""
    return list(dict.fromkeys(str(row.get("benchmark", "held out")) for row in run.evaluations))


def evaluation(run: RunData, name: str, benchmark: str) -> float | None:
    """avg@k before or after training (the last there is), or the teacher's."""
    rows = [row for row in run.evaluations if str(row.get("benchmark", "held out")) == benchmark]
    if name == "teacher":
        found = numbers([row for row in rows if row.get("model") == "teacher"], "avg_at_k")
        return found[-1] if found else None
    student = [row for row in rows if str(row.get("model", "")).startswith("student")]
    before = numbers([row for row in student if number(row, "step") == 0], "avg_at_k")
    after = numbers([row for row in student if (number(row, "step") or 0) > 0], "avg_at_k")
    chosen = before if name == "before" else after
    return chosen[-1] if chosen else None


def first_and_last(run: RunData, key: str) -> tuple[float | None, float | None]:
    """Means over the first and the last tenth of the steps."""
    tenth = max(1, len(run.rows) // 10)
    return mean(run.rows[:tenth], key), mean(run.rows[-tenth:], key)


def percent(share: float) -> str:
    """As in `43.4 %`."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """As in `1 h 02 min`, `2 min 05 s` or `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _is_timed(row: Row) -> bool:
    """Whether the advisor can read it."""
    keys = ("step_s", "rollout_wait_s", "score_wait_s", "train_s", "publish_s")
    whole = all(number(row, f"time/{key}") is not None for key in keys)
    return whole and all(number(row, key) is not None for key in ("staleness/max", "queue/rollouts"))


def _objective(run: RunData) -> str:
    if run.config is None:
        return NOTHING
    objective = run.config.objective
    parameters = ", ".join(f"{key} {value}" for key, value in objective.parameters.items())
    return f"{objective.name} ({parameters})" if parameters else objective.name


def _accuracy_cell(name: str, benchmark: str) -> Callable[[RunData], str]:
    return lambda run: NOTHING if (found := evaluation(run, name, benchmark)) is None else percent(found)


def _pair(run: RunData, key: str) -> str:
    first, last = first_and_last(run, key)
    return NOTHING if first is None or last is None else f"{first:.4g} \u2192 {last:.4g}"


def _most(run: RunData, key: str) -> str:
    return _number(max(numbers(run.rows, key), default=None))


def _spikes(run: RunData) -> str:
    values = sorted(numbers(run.rows, "grad_norm"))
    return f"{values[-1] / values[len(values) // 2]:.3g}" if values and values[len(values) // 2] > 0 else NOTHING


def _device_seconds(run: RunData) -> str:
    kinds: dict[str, float] = {}
    for cost in pool_costs(run):
        kind = cost.device.rpartition(" ")[2]
        kinds[kind] = kinds.get(kind, 0.0) + cost.device_s
    return ", ".join(f"{seconds:,.0f} {kind}" for kind, seconds in kinds.items()) or NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    after_s: float
    what: str
    who: str
    details: str


@dataclass(frozen=True)
class Faults:
    """All faults of a run: how often each kind, and the table."""

    counts: Mapping[str, int]
    table: list[Fault]
    num_left_out: int

    @property
    def text(self) -> str:
        """In one line."""
        return ", ".join(f"{what} {num}x" for what, num in self.counts.items()) or "none"


def faults_of(run: RunData) -> Faults:
    """The faults, in the order in which they came."""
    events = [event for event in run.events if _is_fault(event)]
    counts = Counter(event["event"].replace("_", " ") for event in events)
    shown = events
    if len(events) > MAX_SHOWN:
        shown = events[: MAX_SHOWN // 2] + events[-MAX_SHOWN // 2 :]
    table = [_fault(event, run.start_s) for event in shown]
    return Faults(dict(counts.most_common()), table, len(events) - len(shown))


def _is_fault(event: Row) -> bool:
    return event["event"] in FAULTS or any(word in event["event"] for word in FAULT_WORDS)


def _fault(event: Row, start_s: float) -> Fault:
    time_s = number(event, "time")
    named = [f"{key} {value}" for key, value in event.items() if key not in NOT_DETAILS and value is not None]
    reasons = [str(event[key]) for key in ("reason", "error") if event.get(key)]
    return Fault(
        after_s=0.0 if time_s is None else time_s - start_s,
        what=event["event"].replace("_", " "),
        who=str(event.get("worker") or event.get("prompt_id") or ""),
        details=_short("; ".join([*reasons, ", ".join(named)] if named else reasons)),
    )


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
