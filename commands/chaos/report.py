"""What a run under fire has lost and how long it took to recover, from its folder alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from records.files import NUMBER, has
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from reporting.advisor import RECENT_STEPS


@dataclass(frozen=True)
class Kill:
    """One kill: when (seconds since 1970), of which kind, and the names of the workers that were hit."""

    time: float
    kind: str
    workers: tuple[str, ...]


def report(
    folder: RunFolder, kills: Sequence[Kill], *, began: float, frontier: Mapping[str, Any] | None, bound: int
) -> dict[str, Any]:
    """The numbers of a chaos run as JSON values.

    `frontier` is where the run stood when it was last asked: its version, the lowest untrained slot and the
    trained ones above it; every slot below counts as lost unless the ledger has it.
    """
    rows = folder.valid_metrics("time_s", "staleness/max", "tokens_trained")
    events = folder.event_rows()
    starts = [event["time"] for event in events if event["event"] == "run_started" and has(event, time=NUMBER)]
    started = max((time for time in starts if time < began), default=0.0)
    during = [row for row in rows if row["time_s"] >= began]
    before = [row for row in rows if started <= row["time_s"] < began]
    staleness = max((row["staleness/max"] for row in rows), default=0)
    return {
        "kills": dict(Counter(kill.kind for kill in kills)),
        "recovery_s": {kind: recoveries(folder, kills, kind) for kind in dict.fromkeys(k.kind for k in kills)},
        **check_ledger(folder, frontier),
        "given_up": sum(event["event"] == "prompt_given_up" for event in events),
        "staleness_max": staleness,
        "staleness_bound": bound,
        "bound_kept": staleness <= bound,
        "steps": len(during),
        "tokens_per_s": rate(during, since=began),
        "tokens_per_s_before": usual_rate(before),
    }


def check_ledger(folder: RunFolder, frontier: Mapping[str, Any] | None) -> dict[str, int]:
    """How many slots the ledger has not though they count as trained (`lost`), and how many twice."""
    ledger = valid_ledger(folder.ledger)
    if frontier is not None:
        ledger = {step: uids for step, uids in ledger.items() if step <= frontier["version"]}
    uids = Counter(uid for trained in ledger.values() for uid in trained)
    slots = {int(uid.split("-", 1)[0]) for uid in uids}
    wanted = set(range(frontier["lowest_untrained"])) | {*frontier["trained_above"]} if frontier else slots
    return {
        "trained_slots": len(slots),
        "lost": len(wanted - slots),
        "trained_twice": sum(number > 1 for number in uids.values()),
    }


def recoveries(folder: RunFolder, kills: Sequence[Kill], kind: str) -> dict[str, float | int | None]:
    """Median and worst seconds from a kill until all that it hit served again, and how often that was not seen."""
    seconds = [recovery_s(folder, kill) for kill in kills if kill.kind == kind]
    known = [each for each in seconds if each is not None]
    return {
        "median": round(median(known), 2) if known else None,
        "worst": round(max(known), 2) if known else None,
        "not_seen": len(seconds) - len(known),
    }


def recovery_s(folder: RunFolder, kill: Kill) -> float | None:
    """Seconds until every worker that was hit was admitted again, and the learner restarted; None if not seen."""
    back: dict[str, float] = {}
    for row in folder.event_rows():
        if not has(row, time=NUMBER) or row["time"] < kill.time:
            continue
        if row["event"] == "worker_readmitted" or row["event"] == "worker_given_up":
            back.setdefault(str(row.get("worker")), row["time"])
        elif row["event"] == "learner_restarted":
            back.setdefault("learner", row["time"])
    names = {"learner" if name.startswith("learner-") else name for name in kill.workers}
    if not names <= back.keys():
        return None
    return max((back[name] - kill.time for name in names), default=0.0)


def rate(rows: Sequence[Mapping[str, Any]], *, since: float) -> float | None:
    """Trained tokens per second from a time to the last row, whatever happened; None with fewer than three."""
    if len(rows) < 3:
        return None
    seconds = rows[-1]["time_s"] - since
    return round(sum(row["tokens_trained"] for row in rows) / max(seconds, 1e-9), 1)


def usual_rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Trained tokens per second of the usual step, which is neither a first, slow one nor one after an evaluation.

    None with fewer than three steps of their own time.
    """
    timed = [row for row in rows if row.get("time/step_s", 0) > 0][-RECENT_STEPS:]
    if len(timed) < 3:
        return None
    return round(median(row["tokens_trained"] / row["time/step_s"] for row in timed), 1)


def as_table(run: str, numbers: Mapping[str, Any]) -> Table:
    """The report for people."""
    table = Table(title=f"chaos: {run}", title_justify="left")
    for name, justify in (("killed", "left"), ("times", "right"), ("back after", "right"), ("at worst", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for kind, times in numbers["kills"].items():
        recovery = numbers["recovery_s"][kind]
        seconds = [
            f"{recovery[name]:.1f} s" if recovery[name] is not None else "-" for name in ("median", "worst")
        ]
        unseen = f" ({recovery['not_seen']} not seen)" if recovery["not_seen"] else ""
        table.add_row(kind, str(times), seconds[0], seconds[1] + unseen)
    return table


def as_lines(numbers: Mapping[str, Any]) -> list[str]:
    """What the report says besides the table."""
    kept = "kept" if numbers["bound_kept"] else "BROKEN"
    missed = numbers.get("missed", 0)
    lines = [f"{missed} kills left out: nothing of their kind was healthy in time"] if missed else []
    lines += [
        f"slots trained {numbers['trained_slots']}, lost {numbers['lost']}, trained twice "
        f"{numbers['trained_twice']}, prompts given up {numbers['given_up']}",
        f"staleness at most {numbers['staleness_max']:.0f}, bound {numbers['staleness_bound']}: {kept}",
    ]
    now, before = numbers["tokens_per_s"], numbers["tokens_per_s_before"]
    if now is not None and before is not None:
        share = f"{now / before:.0%}" if now < before else "all"  # steps differ: more is no gain of the kills
        lines.append(f"trained tokens/s {now:,.0f}, before {before:,.0f}: {share} kept")
    return lines
