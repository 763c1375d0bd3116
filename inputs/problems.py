"""Problems: rows of a data set under the names of their columns, as a text or as chat messages, with an answer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs.row_files import MAX_LINE_BYTES, Row
from inputs.rows import open_data
from settings.data import DataSourceConfig

MAX_LABEL = 1000
"""Longest id and source, in characters: they are part of every row of a rollout."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """One row of a data file."""

    prompt_id: str
    text: str  # with messages, all that the user said
    answer: str | None
    source: str
    messages: tuple[Message, ...] = ()  # empty where the text is the user's one message


def read_problems(path: str, field: str) -> list[Problem]:
    """Read a whole data set; ValueError naming file and line for the first bad row, or `field` if it is empty."""
    problems = list(OpenedProblems(DataSourceConfig(path=path), field))
    ids = [problem.prompt_id for problem in problems]
    if len(set(ids)) < len(ids):
        twice = next(prompt_id for prompt_id, count in Counter(ids).items() if count > 1)
        raise ValueError(f"{field}: {path} holds the id {twice!r} twice")
    return problems


class OpenedProblems:
    """The problems of one data set, to be taken once, in their order.

    ValueError with one line if it cannot be opened, and, while problems are taken, for the first bad row, for a
    column that no row has, and, at the end, if there was none.
    """

    def __init__(self, source: DataSourceConfig, field: str) -> None:
        self._opened = open_data(
            source.path, subset=source.subset, split=source.split, revision=source.revision, field=field
        )
        self._source, self._field = source, field
        self.files = self._opened.files

    def __iter__(self) -> Iterator[Problem]:
        reader = RowReader(self._source)
        number = 0
        for place, row in self._opened.rows:
            number += 1
            yield reader.problem(row, place)
            if number == self._source.max_rows:
                break
        if not number:
            raise ValueError(f"{self._field}: {self._source.path} holds no problems")
        reader.check_columns(self._field)


class RowReader:
    """Makes problems of the rows of one data set."""

    def __init__(self, source: DataSourceConfig) -> None:
        self._source = source
        self._columns = source.columns
        # Those that were given a name of their own: a data set need not have the others.
        self._unseen: dict[str, str] = source.columns.model_dump(exclude_defaults=True)
        self._first: Row = {}

    def problem(self, row: Row, place: str) -> Problem:
        """The problem of a row; ValueError naming the place if it has none."""
        self._note(row)
        messages: tuple[Message, ...] = ()
        if self._columns.messages is not None:
            messages = _prompt_of_chat(value_of(row, self._columns.messages), self._columns.messages, place)
            text = "\n".join(message.content for message in messages if message.role == "user")
        else:
            text = _text(row, self._columns.problem, place)
        return Problem(
            prompt_id=_label(row, self._columns.id, place) or _default_id(place, self._source.path),
            text=text,
            answer=self._answer(row, place),
            source=self._source.source or _label(row, self._columns.source, place) or "default",
            messages=messages,
        )

    def check_columns(self, field: str) -> None:
        """ValueError for a column that was named in the configuration and is in no row."""
        for name, column in self._unseen.items():
            raise ValueError(
                f"{field}: no row of {self._source.path} has the column {column!r} of columns.{name} (columns of "
                f"the first row: {_listed(self._first)})"
            )

    def _note(self, row: Row) -> None:
        self._first = self._first or row
        for name in [name for name, column in self._unseen.items() if value_of(row, column) is not None]:
            del self._unseen[name]

    def _answer(self, row: Row, place: str) -> str | None:
        answer = _label(row, self._columns.answer, place, MAX_LINE_BYTES)
        mark = self._source.answer_after
        if answer is None or mark is None:
            return answer
        if mark not in answer:
            raise ValueError(f"{place}: needs {mark!r} before the answer under {self._columns.answer!r}")
        return answer.rpartition(mark)[2].strip()


def value_of(row: Row, column: str) -> Any:
    """What a row has in a column, or, with dots, inside of one; None if there is nothing."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _default_id(place: str, path: str) -> str:
    """The line or number of a row in a file; in a folder the file's name too."""
    return place.removeprefix(path).removeprefix(str(Path(path))).lstrip("/:")[-MAX_LABEL:]


def _text(row: Row, column: str, place: str) -> str:
    text = value_of(row, column)
    if not isinstance(text, str) or not text:
        there = "" if text is not None else f" (its columns: {_listed(row)})"
        raise ValueError(f"{place}: needs a non-empty string under {column!r}{there}")
    _check_text(text, column, place)
    return text


def _listed(row: Row) -> str:
    names = ", ".join(ascii(str(key))[1:-1] for key in row)
    return f"{names[:300]}..." if len(names) > 300 else names or "none"


def _label(row: Row, column: str, place: str, max_length: int = MAX_LABEL) -> str | None:
    """The text in a column, which may be a number; None without one. ValueError for anything else."""
    value = value_of(row, column)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"{place}: needs a text or a number under {column!r}, not a {type(value).__name__}")
    text = str(value)
    _check_text(text, column, place)
    if len(text) > max_length or (max_length == MAX_LABEL and "\0" in text):
        raise ValueError(f"{place}: {column!r} must have at most {max_length} characters, and no NUL")
    return text


def _check_text(text: str, column: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a character: no tokenizer takes it
        raise ValueError(f"{place}: {column!r} holds an unpaired surrogate, which is no text") from error
    if len(text) > MAX_LINE_BYTES:
        raise ValueError(f"{place}: {column!r} must have at most {MAX_LINE_BYTES} characters")


def _prompt_of_chat(turns: Any, column: str, place: str) -> tuple[Message, ...]:
    """Messages up to the assistant's last turn, which the student is to write itself."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: needs a list of messages under {column!r}, [{{role, content}}, ...]")
    messages = [_message(turn, f"{column}.{number}", place) for number, turn in enumerate(turns)]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not any(message.role == "user" and message.content for message in messages):
        raise ValueError(f"{place}: {column!r} holds nothing from the user before the assistant's last turn")
    return tuple(messages)


def _message(turn: Any, column: str, place: str) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str):
        raise ValueError(f"{place}: needs a role ({', '.join(ROLES)}) and a text as content under {column!r}")
    _check_text(content, column, place)
    return Message(role, content)
