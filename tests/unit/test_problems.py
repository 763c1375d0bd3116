"""Rows become problems under the names of their columns; whatever is wrong with one names its line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inputs.problems import Message, OpenedProblems, Problem
from inputs.rendering import render_prompts, rendered_texts
from settings.data import DataSourceConfig
from tests.unit.word_tokenizer import TEMPLATE, word_tokenizer

pytestmark = pytest.mark.timeout(30)


def written(folder: Path, *rows: Any) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(path: str, **settings: Any) -> list[Problem]:
    source = DataSourceConfig.model_validate({"path": path, **settings})
    return list(OpenedProblems(source, "data.sources.0"))


def mistake(path: str, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as error:
        problems(path, **settings)
    return str(error.value)


def chat(*turns: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def test_columns_have_the_names_that_the_configuration_gives(tmp_path: Path) -> None:
    row = {"question": "1+1", "final": 2, "uuid": "x", "kind": "sums", "problem": "not this one"}
    columns = {"problem": "question", "answer": "final", "id": "uuid", "source": "kind"}
    assert problems(written(tmp_path, row), columns=columns) == [Problem("x", "1+1", "2", "sums")]
    assert problems(written(tmp_path, row), columns=columns, source="own")[0].source == "own"


def test_a_column_may_lie_inside_another(tmp_path: Path) -> None:
    row = {"task": {"text": "1+1"}, "answers": ["2", "two"], "a.b": "id"}
    columns = {"problem": "task.text", "answer": "answers.0", "id": "a.b"}
    path = written(tmp_path, row)
    assert problems(path, columns=columns) == [Problem("id", "1+1", "2", "default")]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert problems(str(tmp_path / "a.parquet"), columns=columns) == [Problem("id", "1+1", "2", "default")]
    assert problems(path, columns=columns | {"answer": "answers.1"})[0].answer == "two"


def test_the_answer_is_what_follows_the_last_mark(tmp_path: Path) -> None:
    path = written(tmp_path, {"problem": "1+1", "answer": "One #### and one.\n#### 1,002 "})
    assert problems(path, answer_after="####")[0].answer == "1,002"
    assert mistake(path, answer_after="ANSWER:") == f"{path}:1: needs 'ANSWER:' before the answer under 'answer'"


def test_only_the_first_rows_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"problem": "1"}, {"problem": "2"}, ["broken"])
    assert [problem.text for problem in problems(path, max_rows=2)] == ["1", "2"]


def test_ids_of_a_folder_hold_the_name_of_the_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"problem": "1"}\n')
    assert [problem.prompt_id for problem in problems(str(tmp_path))] == ["a.jsonl:1", "b.jsonl:1"]


def test_a_column_that_no_row_has_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "1+1", "final": "2"})
    line = mistake(path)
    assert line == f"{path}:1: needs a non-empty string under 'problem' (its columns: question, final)"
    line = mistake(path, columns={"problem": "question", "answer": "result"})
    assert line.startswith(f"data.sources.0: no row of {path} has the column 'result' of columns.answer")
    assert line.endswith("(columns of the first row: question, final)")


def test_a_column_that_only_some_rows_have_is_no_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, {"problem": "1"}, {"problem": "2", "final": 4})
    assert [problem.answer for problem in problems(path, columns={"answer": "final"})] == [None, "4"]


def test_the_prompt_of_a_chat_is_all_before_the_assistants_last_turn(tmp_path: Path) -> None:
    rows = [
        {"chat": chat("s be brief", "u one", "a two", "u two", "a four", "a five"), "answer": "4"},
        {"chat": chat("u one")},
    ]
    assert problems(written(tmp_path, *rows), columns={"messages": "chat"}) == [
        Problem(
            "1",
            "one\ntwo",
            "4",
            "default",
            (
                Message("system", "be brief"),
                Message("user", "one"),
                Message("assistant", "two"),
                Message("user", "two"),
            ),
        ),
        Problem("2", "one", None, "default", (Message("user", "one"),)),
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "needs a list of messages under 'messages'"),
        ([], "needs a list of messages"),
        ("hello", "needs a list of messages"),
        (chat("a one"), "'messages' holds nothing from the user before the assistant's last turn"),
        (chat("s one"), "holds nothing from the user"),
        (chat("u "), "holds nothing from the user"),
        (
            [{"role": "human", "content": "x"}],
            "needs a role (system, user, assistant, tool) and a text as content",
        ),
        ([*chat("u one"), {"role": "user"}], "under 'messages.1'"),
        ([*chat("u one"), "two"], "under 'messages.1'"),
        ([*chat("u one"), {"role": "assistant", "content": None}, *chat("u two")], "under 'messages.1'"),
        ([{"role": "user", "content": None, "name": "me"}], "under 'messages.0'"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}]}],
            "needs a text part, {type: text, text}, under 'messages.0.content.1', not 'image'",
        ),
        ([{"role": "user", "content": ["one"]}], "under 'messages.0.content.0', not a str"),
        ([{"role": "user", "content": "one", "name": "\udfff"}], "'messages.0' holds an unpaired surrogate"),
        ([{"role": "user", "content": "\ud800"}], "'messages.0' holds an unpaired surrogate"),
    ],
)
def test_messages_that_are_no_chat_are_named(tmp_path: Path, messages: Any, message: str) -> None:
    path = written(tmp_path, {"messages": chat("u one")}, {"messages": messages})
    line = mistake(path, columns={"messages": "messages"})
    assert line.startswith(f"{path}:2: ")
    assert message in line


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"default": None}}}
CALLING = [
    {"role": "user", "content": "one", "name": "me"},
    {"role": "assistant", "content": None, "reasoning_content": "two", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "x"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "weight": 0.5},
    {"role": "assistant", "content": "5"},
]
TELLING = "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}{{ add_generation_prompt }}"
"""A template that leaves nothing out."""


def told(path: str, template: str = TELLING, **columns: str) -> list[str]:
    """The texts that a template makes of the chats of a file."""
    given = problems(path, columns={"messages": "messages"} | columns)
    return rendered_texts(given, word_tokenizer(template), system_prompt=None, template_arguments={})


def directly(row: dict[str, Any], template: str = TELLING) -> str:
    """What transformers makes of the row as it is."""
    tokenizer = word_tokenizer(template)
    return str(
        tokenizer.apply_chat_template(
            row["messages"][:-1], tools=row.get("tools"), add_generation_prompt=True, tokenize=False
        )
    )


def test_all_of_a_message_and_the_tools_of_the_row_reach_the_template(tmp_path: Path) -> None:
    rows = [{"messages": CALLING, "tools": [TOOL]}, {"messages": CALLING}, {"messages": CALLING, "tools": []}]
    assert told(written(tmp_path, *rows)) == [directly(row) for row in rows]
    renamed = [{"messages": CALLING, "functions": json.dumps([TOOL])}]
    assert told(written(tmp_path, *renamed), tools="functions") == [directly(rows[0])]


def test_keys_that_are_null_are_absent_in_a_message_and_everywhere_in_a_table(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "one", "name": None}, *CALLING[1:3], *chat("a 5")]
    path = written(tmp_path, {"messages": messages})
    [text] = told(path)
    assert '"name": null' not in text
    assert '"b": null' in text, "what a call says stays as it is"
    table = pa.Table.from_pylist([{"messages": messages, "tools": [TOOL]}, {"messages": chat("u one", "a two")}])
    pq.write_table(table, tmp_path / "a.parquet")
    both = told(str(tmp_path / "a.parquet"))
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    kept = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "reasoning_content": "two", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "x"},
        {},
    ]
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    assert both[0] == directly({"messages": kept, "tools": [tool]})
    assert both[1] == directly({"messages": chat("u one", "a two")})


PARTS = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %};{% endfor %}"
EITHER = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %};{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}", ["user:one two;", "user:one;"]),
        (PARTS, ["user:one two;", "user:one;"]),
        (EITHER, ["user:<one ><two>;", "user:one;"]),
    ],
)
def test_a_content_of_text_parts_is_written_by_every_template(
    tmp_path: Path, template: str, texts: list[str]
) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    path = written(tmp_path, {"messages": [{"role": "user", "content": parts}]}, {"messages": chat("u one")})
    assert told(path, template) == texts
    assert problems(path, columns={"messages": "messages"})[0].text == "one two"


@pytest.mark.parametrize("tools", ["calculator", "3", ["add"], {"name": "add"}])
def test_tools_that_are_none_are_refused_with_the_setting(tmp_path: Path, tools: Any) -> None:
    path = written(tmp_path, {"problem": "1", "tools": tools})
    line = f"{path}:1: needs a list of tools (objects) under 'tools' (columns.tools; null leaves them out)"
    assert mistake(path) == line
    assert problems(path, columns={"tools": None})[0].tools is None


def test_columns_without_a_use_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"task": {"text": "1"}, "level": 1}, {"task": {"text": "2"}, "solution": "two"})
    opened = OpenedProblems(
        DataSourceConfig.model_validate({"path": path, "columns": {"problem": "task.text"}}), "x"
    )
    assert [problem.text for problem in opened] == ["1", "2"]
    assert opened.unused_columns == ["level", "solution"]


def rendered(problem: Problem, system_prompt: str | None = None, template: str = TEMPLATE) -> list[int]:
    tokenizer = word_tokenizer(template)
    [prompt] = render_prompts([problem], tokenizer, system_prompt=system_prompt, template_arguments={})
    return prompt.token_ids


def test_a_system_message_of_the_data_stays_unless_the_configuration_sets_one() -> None:
    messages = (
        Message("system", "one"),
        Message("user", "two"),
        Message("assistant", "one"),
        Message("user", "two"),
    )
    problem = Problem("a", "two", None, "x", messages)
    assert rendered(problem) == [1, 6, 2, 7, 3, 6, 2, 7, 3]
    assert rendered(problem, "be brief") == [1, 4, 5, 2, 7, 3, 6, 2, 7, 3]
    assert rendered(Problem("a", "two", None, "x"), "be brief") == [1, 4, 5, 2, 7, 3]


def test_many_problems_are_rendered_as_each_alone() -> None:
    tokenizer = word_tokenizer()
    given = [Problem(str(i), "one " * (i % 7) + "two", str(i), "x") for i in range(600)]
    options: dict[str, Any] = {"system_prompt": "be", "template_arguments": {"think": True}}
    together = render_prompts(given, tokenizer, **options)
    assert together[::100] == [render_prompts([problem], tokenizer, **options)[0] for problem in given[::100]]
    assert [prompt.prompt_id for prompt in together] == [str(i) for i in range(600)]


def test_a_chat_that_the_template_refuses_is_named() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + ("{{ m.content }}{% endfor %}")
    )
    with pytest.raises(ValueError, match=r"student.model_path: .* refuses problem 'b': no system role"):
        render_prompts(
            [Problem("a", "one", None, "x"), Problem("b", "one", None, "x", (Message("system", "two"),))],
            word_tokenizer(template),
            system_prompt=None,
            template_arguments={},
        )
