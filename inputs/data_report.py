"""What became of the training data: rows per source, and how many each filter dropped, with examples."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from inputs.rendering import Prompt

DUPLICATES, OVERLAPS, TOO_LONG = "duplicates", "overlaps", "too_long"
MAX_EXAMPLES = 5
MAX_NAMES, MAX_NAME = 10, 40
"""Of columns that are listed, and characters of each."""


@dataclass
class SourceReport:
    """Counts of one data set; they grow while it is read."""

    setting: str
    """The setting that names it."""
    path: str
    share: float = 1.0
    """Of the slots that take their prompt from here."""
    rows: int = 0
    """Read."""
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: {DUPLICATES: 0, OVERLAPS: 0, TOO_LONG: 0})
    """By filter; a row counts for the first that drops it, in this order."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """A few ids of what each filter dropped; of overlaps with whom, and with which words."""
    kept_by_source: dict[str, int] = field(default_factory=dict)
    """Kept problems by the `source` that they have."""
    num_tokens: int = 0
    """Of all kept prompts."""
    longest_id: str = ""
    longest_tokens: int = -1
    unanswered_id: str | None = None
    """The first kept problem without an answer."""
    sha256: str = ""
    """Of ids and tokens of the kept prompts, in their order."""
    unused_columns: list[str] = field(default_factory=list)
    """Columns of the rows that nothing is taken from."""

    def drop(self, reason: str, example: str) -> None:
        """Count a problem that a filter dropped."""
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def keep(self, prompt: Prompt) -> None:
        """Count a prompt that passed all filters."""
        self.kept += 1
        self.kept_by_source[prompt.source] = self.kept_by_source.get(prompt.source, 0) + 1
        self.num_tokens += len(prompt.token_ids)
        if len(prompt.token_ids) > self.longest_tokens:
            self.longest_id, self.longest_tokens = prompt.prompt_id, len(prompt.token_ids)
        if prompt.answer is None and self.unanswered_id is None:
            self.unanswered_id = prompt.prompt_id

    @property
    def dropped_in_words(self) -> str:
        """`duplicates 3, too long 1`; empty if nothing was dropped."""
        return ", ".join(
            f"{reason.replace('_', ' ')} {count:,}" for reason, count in self.dropped.items() if count
        )


@dataclass
class DataReport:
    """What became of all training data."""

    sources: list[SourceReport]
    held_out_problems: int = 0
    """That overlap was looked for with."""
    seconds: float = 0.0
    """Spent to read, filter and tokenize; of a file made earlier, by whoever made it."""
    stored_at: str | None = None
    """Folder of the files that prompts are looked up in, if they are not in memory."""

    @property
    def fingerprint(self) -> str:
        """The same for two runs whose slots have the same prompts, if their seeds are the same."""
        parts = [f"{source.sha256} {source.share!r}\n" for source in self.sources]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """For `data_report.json`."""
        return {"fingerprint": self.fingerprint, "kept": self.kept, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "DataReport":
        """The report that `as_json` was made of."""
        values: dict[str, Any] = {
            key: value for key, value in content.items() if key not in ("fingerprint", "kept")
        }
        values["sources"] = [SourceReport(**source) for source in values["sources"]]
        return cls(**values)

    @property
    def kept(self) -> int:
        """Problems of all sources."""
        return sum(source.kept for source in self.sources)

    def lines(self) -> Iterator[str]:
        """The report as text: a line for each source, and indented ones with examples."""
        for source in self.sources:
            share = f", {source.share:.1%} of the prompts" if len(self.sources) > 1 else ""
            dropped = f" (dropped: {source.dropped_in_words})" if source.dropped_in_words else ""
            mean = source.num_tokens / max(1, source.kept)
            yield (
                f"{source.setting}: {source.kept:,} of {source.rows:,} problems of {source.path}{dropped}{share}; "
                f"{mean:.0f} tokens each, {source.longest_tokens:,} at most"
            )
            if source.unused_columns:
                names = ", ".join(ascii(name)[1:-1][:MAX_NAME] for name in source.unused_columns[:MAX_NAMES])
                more = len(source.unused_columns) - MAX_NAMES
                yield f"  columns without a use: {names}" + (f" and {more} more" if more > 0 else "")
            for reason, examples in source.examples.items():
                yield f"  {reason.replace('_', ' ')}: {'; '.join(examples[:3])}"
