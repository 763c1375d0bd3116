"""Small records that travel beside the tables, so that the controller never has to read one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutNote:
    """One finished slot: the table that follows it in the stream holds these uids."""

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
class EndOfStream:
    """Last item of a complete stream. A stream that ends without it was cut off by a death."""

    num_slots: int


@dataclass(frozen=True)
class ScoreNote:
    """One finished scoring call; the scored tables follow it, in the order of the call's arguments."""

    num_tokens: int
    seconds: float
