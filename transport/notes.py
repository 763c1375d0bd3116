"""Small records that travel beside the tables, so that the controller never has to read one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutNote:
    """One finished slot: its rows are in the table that follows its parcel, under these uids."""

    slot: int
    attempt: int
    uids: tuple[str, ...]
    num_tokens: int  # prompts and responses of the group
    num_response_tokens: int
    num_truncated: int
    oldest_version: int  # of any token in the group
    newest_version: int
    source: str  # of the prompt; decides which teacher scores it


@dataclass(frozen=True)
class Parcel:
    """Slots that were finished at the same time and travel in one table, the next item of the stream."""

    notes: tuple[RolloutNote, ...]


@dataclass(frozen=True)
class EndOfStream:
    """Last item of a complete stream. A stream that ends without it was cut off by a death."""

    num_slots: int


@dataclass(frozen=True)
class ScoreNote:
    """One finished scoring call; the scored tables follow it, one for each of the call's parcels."""

    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class Heartbeat:
    """A worker's answer to a heartbeat."""

    pid: int = 0
    """Of its process; 0 in a simulation."""
    progress: int = 0
    """Changes whenever the engine makes a token or finishes a request."""
    is_working: bool = False
    """Whether the engine has unfinished requests."""
    error: str | None = None
    """Why the engine does not work any more, though its process lives."""
