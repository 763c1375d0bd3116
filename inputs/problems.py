"""Problems: rows of a data set under the names of their columns, as a text or as chat messages, with an answer."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from inputs.row_files import MAX_LINE_BYTES, ArrowRow, Row
from inputs.rows import open_data
from settings.data import DataSourceConfig

MAX_LABEL = 1000
"""Longest id and source, in characters: they are part of every row of a rollout."""
ROLES = ("system", "user", "assistant", "tool")
MAX_DEPTH = 100
"""Of what is inside of a message or tool."""
MAX_UNUSED = 100
"""Columns without a use that are named."""

Content = str | list[dict[str, Any]] | None
"""Of a message: a text, text parts `{type: text, text: ...}`, or nothing."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat, as its row has it."""

    role: str
    content: Content
    further: Mapping[str, Any] = field(default_factory=dict)
    """What else it has, for the chat template: `tool_calls`, `reasoning_content`, `name`, `tool_call_id`, ..."""
    has_content: bool = True
    """False if the row does not even say that there is none."""

    @property
    def text(self) -> str:
        """The content as a text."""
        parts = self.content if isinstance(self.content, list) else [{"text": self.content or ""}]
        return "".join(part["text"] for part in parts)

    @property
    def keys_of_parts(self) -> set[str]:
        """What the parts of the content have besides their texts."""
        parts = self.content if isinstance(self.content, list) else []
        return {key for part in parts for key, value in part.items() if value is not None} - {"type", "text"}

    def without(self, key: str) -> Self:
        """The message without a key, in itself and in the parts of its content."""
        content = self.content
        if isinstance(content, list):
            content = [{name: value for name, value in part.items() if name != key} for part in content]
        further = {name: value for name, value in self.further.items() if name != key}
        return replace(self, content=content, further=further)

    def as_dict(self) -> dict[str, Any]:
        """As chat templates take it."""
        content = {"content": self.content} if self.has_content else {}
        return {"role": self.role, **content, **self.further}


@dataclass(frozen=True)
class Problem:
    """One row of a data file."""

    prompt_id: str
    text: str  # with messages, all that the user said
    answer: str | None
    source: str
    messages: tuple[Message, ...] = ()  # empty where the text is the user's one message
    tools: list[dict[str, Any]] | None = None
    """What the assistant may call, for the chat template."""

    @property
    def keys(self) -> set[str]:
        """What there is for a chat template besides texts: `tools`, and the roles and keys of messages."""
        further = {key for each in self.messages for key in (each.role, *each.further, *each.keys_of_parts)}
        return further | ({"tools"} if self.tools is not None else set())


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
        self.unused_columns: list[str] = []
        """Of the rows that were read."""

    def __iter__(self) -> Iterator[Problem]:
        reader = RowReader(self._source)
        self.unused_columns = reader.unused
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
        self._unseen: dict[str, str] = source.columns.model_dump(exclude_defaults=True, exclude_none=True)
        self._first: Row = {}
        self.unused: list[str] = []
        """Columns that nothing is taken from."""
        ignored = {"problem"} if source.columns.messages is not None else None
        names = source.columns.model_dump(exclude_none=True, exclude=ignored).values()
        self._used = {*names, *(name.partition(".")[0] for name in names)}

    def problem(self, row: Row, place: str) -> Problem:
        """The problem of a row; ValueError naming the place if it has none."""
        self._note(row)
        messages: tuple[Message, ...] = ()
        if self._columns.messages is not None:
            messages = _prompt_of_chat(row, self._columns.messages, place)
            text = "\n".join(message.text for message in messages if message.role == "user")
        else:
            text = _text(row, self._columns.problem, place)
        return Problem(
            prompt_id=_label(row, self._columns.id, place) or _default_id(place, self._source.path),
            text=text,
            answer=self._answer(row, place),
            source=self._source.source or _label(row, self._columns.source, place) or "default",
            messages=messages,
            tools=_tools(row, self._columns.tools, place),
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
        if len(self.unused) < MAX_UNUSED and not row.keys() <= self._used:
            self.unused += [name for name in row if name not in self._used]
            self._used |= row.keys()

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


def _prompt_of_chat(row: Row, column: str, place: str) -> tuple[Message, ...]:
    """Messages up to the assistant's last turn, which the student is to write itself."""
    turns = _unified(row, value_of(row, column))
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: needs a list of messages under {column!r}, [{{role, content}}, ...]")
    messages = [_message(turn, f"{column}.{number}", place) for number, turn in enumerate(turns)]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not any(message.role == "user" and message.text for message in messages):
        raise ValueError(f"{place}: {column!r} holds nothing from the user before the assistant's last turn")
    return tuple(messages)


def _message(turn: Any, column: str, place: str) -> Message:
    given = turn if isinstance(turn, dict) else {}
    role, content = given.get("role"), given.get("content")
    further = {key: value for key, value in given.items() if key not in ("role", "content") and value is not None}
    says_nothing = content is None and role == "assistant" and further  # it calls a tool, say
    if role not in ROLES or not (isinstance(content, str | list) or says_nothing):
        raise ValueError(f"{place}: needs a role ({', '.join(ROLES)}) and a text as content under {column!r}")
    if isinstance(content, list):
        content = [_part(part, f"{column}.content.{number}", place) for number, part in enumerate(content)]
    _check_texts([content, further], column, place)
    return Message(str(role), content, further, has_content="content" in given)


def _part(part: Any, column: str, place: str) -> dict[str, Any]:
    is_text = isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    if not is_text:
        kind = repr(part.get("type")) if isinstance(part, dict) else f"a {type(part).__name__}"
        raise ValueError(f"{place}: needs a text part, {{type: text, text}}, under {column!r}, not {kind[:50]}")
    return part


def _tools(row: Row, column: str | None, place: str) -> list[dict[str, Any]] | None:
    """The tools of a row, which may be one JSON text: a table cannot hold those of every shape."""
    if column is None:
        return None
    tools = _unified(row, value_of(row, column))
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = ()
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(
            f"{place}: needs a list of tools (objects) under {column!r} (columns.tools; null leaves them out)"
        )
    _check_texts(tools, column, place)
    return tools


def _unified(row: Row, value: Any) -> Any:
    """A value without the nulls that stand for absent keys. The content of a message may be null itself."""
    return _without_nulls(value) if isinstance(row, ArrowRow) else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {
            key: each for key, each in value.items() if each is not None or (key == "content" and "role" in value)
        }
        return {key: _without_nulls(each) for key, each in kept.items()}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _check_texts(value: Any, column: str, place: str) -> None:
    """Check every text inside; ValueError if they are nested too deep for a template, or for a table."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for each in level:
            if isinstance(each, str):
                _check_text(each, column, place)
        inside = [each for each in level if isinstance(each, dict | list)]
        level = [part for each in inside for part in ([*each, *each.values()] if isinstance(each, dict) else each)]
        if not level:
            return
    raise ValueError(f"{place}: {column!r} is nested more than {MAX_DEPTH} deep")
