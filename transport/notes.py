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


@dataclass(frozen=True)
class LoadReport:
    """One completed and verified weight load, with the seconds of each phase in order.

    The engine keeps generating while it fetches and checks. It makes no token from the start of the pause to the
    end of the verification.
    """

    incarnation: int
    version: int
    fetch_s: float
    """Until the worker holds the bytes; also a wait for another engine of the node."""
    check_s: float
    """Applying differences, computing checksums, and writing the file that all engines of the node load."""
    pause_s: float
    """Preempting requests in flight and clearing the cache."""
    load_s: float
    """Replacing vLLM's parameters."""
    verify_s: float
    """Scoring the golden sequence with the new weights."""
    bytes_fetched: int
    """Bytes that this engine fetched; 0 if its node had them."""
    golden_difference: float
    """Mean absolute difference to the learner's log-probs of the golden sequence."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step of the learner, reduced over ranks: the same on every rank."""

    metrics: dict[str, float]
    was_skipped: bool = False
    """True: the gradient was not finite and no weight changed."""
    is_vanishing: bool = False
    """True: the gradient is smaller, in the mean over the weights, than AdamW's epsilon: they hardly move."""
    staleness_max: int = 0
    """Largest `step - weight_version` of a trained token."""
    staleness_mean: float = 0.0
    tokens_trained: int = 0
