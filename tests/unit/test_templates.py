"""A chat template is a program: whatever it does is one error within limits, and what it leaves out is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import launch
from inputs import templates
from inputs.check_rendering import rendering_findings
from inputs.model_facts import ModelFacts
from inputs.problems import Message, Problem
from inputs.templates import Chat, RefusedChatError, render_chats, shared_children
from settings.exit_codes import BAD_INPUT, FINISHED
from tests.unit.conftest import MODELS
from tests.unit.word_tokenizer import TEMPLATE, word_tokenizer

pytestmark = pytest.mark.timeout(60)

ASK = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
END = "{% if add_generation_prompt %}assistant{% endif %}"
AGAIN = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
FOREVER = "{% for a in range(99999) %}{% for _ in range(99999) %}{% if a < 0 %}{% endif %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(s='12345678') %}{% for _ in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"


def refusal(template: str, *contents: str) -> RefusedChatError:
    chats = [Chat([{"role": "user", "content": content}]) for content in contents or ("one",)]
    with pytest.raises(RefusedChatError) as error:
        render_chats(word_tokenizer(template), chats, {})
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ raise_exception('no\n such role') }}", "no such role"),
        ("{{ messages.nothing.at_all }}", "no attribute 'nothing'"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content.encode('ascii') }}{{ '%d' % 'x' }}", "TypeError: %d format"),
        (AGAIN, "RecursionError: maximum recursion depth exceeded"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
    ],
)
def test_whatever_a_template_raises_is_one_line(template: str, reason: str) -> None:
    error = refusal(template)
    assert reason in str(error)
    assert not error.met_limit


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (FOREVER, "it does not end in 0.2 s of CPU time"),
        ("{{ 'x' * 30000000000 }}", "it takes more than 1,024 MiB of memory"),
        (DOUBLING, "it takes more than 1,024 MiB of memory"),
        ("{{ 'x' * 17000000 }}", "its text is longer than 16,777,216 bytes"),
    ],
)
def test_a_template_that_meets_a_limit_is_stopped(
    monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr(templates, "CPU_LIMIT_S", 0.2 if template == FOREVER else 20.0)
    error = refusal(template)
    assert str(error) == reason
    assert error.met_limit


def test_the_chat_that_is_refused_is_named_and_the_next_call_has_a_child_of_its_own() -> None:
    template = "{% if messages[0].content == 'two' %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}"
    with shared_children():
        assert refusal(template, "one", "two", "three").index == 1
        tokenizer = word_tokenizer(template)
        chats = [Chat([{"role": "user", "content": text}]) for text in ("one", "three")]
        assert [render_chats(tokenizer, chats[:num], {}) for num in (0, 1, 2)] == [[], ["one"], ["one", "three"]]


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("template", "reason"),
    [(FOREVER, "it does not end in 0.2 s of CPU time"), ("{{ [] + 1 }}", "TypeError: can only concatenate list")],
)
def test_a_run_whose_template_fails_is_refused_in_one_line(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    template: str,
    reason: str,
) -> None:
    monkeypatch.setattr(templates, "CPU_LIMIT_S", 0.2)
    model = Path(shutil.copytree(MODELS / role, tmp_path / role))
    (model / "chat_template.jinja").write_text(template)
    assert launch.main([*arguments, "--dry-run", f"--{role}.model_path", str(model)]) == BAD_INPUT
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {role}.model_path: ")
    assert reason in line


def test_preflight_shows_what_a_template_makes_of_a_prompt(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["preflight", *arguments[1:], "--dry-run", "--json"]
    for role in ("student", "teacher"):
        model = Path(shutil.copytree(MODELS / role, tmp_path / role))
        template = (model / "chat_template.jinja").read_text()
        (model / "chat_template.jinja").write_text(template.replace("add_generation_prompt", "true"))
        options += [f"--{role}.model_path", str(model)]
    assert launch.main(options) == FINISHED
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert rows["chat_template"]["status"] == "warning"
    assert "ignores add_generation_prompt" in rows["chat_template"]["message"]
    assert "<|assistant|>'" in rows["chat_template"]["message"]


# -- what is told of prompts --------------------------------------------------------------------------------------


def found(
    template: str,
    *problems: Problem,
    bos: str | None = None,
    system_prompt: str | None = None,
    **template_arguments: Any,
) -> list[str]:
    """The findings for a student with this template, whose tokenizer begins texts with a word."""
    tokenizer: Any = word_tokenizer(template)
    if bos is not None:
        from tokenizers.processors import TemplateProcessing

        bos_id = tokenizer.convert_tokens_to_ids(bos)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bos_id)]
        )
    sample = problems or (Problem("a", "one", None, "x"),)
    given: dict[str, Any] = {"system_prompt": system_prompt, "template_arguments": template_arguments}
    with shared_children():
        return [each.message for each in rendering_findings(student_of(tokenizer), sample, **given)]


def student_of(tokenizer: Any) -> ModelFacts:
    return ModelFacts("student", "student.model_path", "s", tokenizer, (0,), 10, None, 10, None)


def test_a_template_that_leaves_nothing_out_is_well() -> None:
    assert found(TEMPLATE, system_prompt="be brief", think=True) == []
    assert found(f"be {ASK}{END}", bos="be") == []


def test_a_prompt_without_the_token_with_which_the_tokenizer_begins_texts_is_shown() -> None:
    [text] = found(ASK + END, bos="be")
    assert text == (
        "student.model_path: the chat template begins prompts without 'be', with which the tokenizer begins every "
        "text: 'user one assistant'"
    )
    [text] = found(f"be be {ASK}{END}", bos="be")
    assert "begins prompts with 'be' twice: 'be be user one assistant'" in text


def test_a_template_that_ignores_the_generation_prompt_is_shown() -> None:
    [text] = found(ASK)
    assert "ignores add_generation_prompt" in text
    assert text.endswith(": 'user one '")


def test_a_template_that_leaves_out_the_question_is_an_error() -> None:
    student = ModelFacts(
        "student", "student.model_path", "s", word_tokenizer("user" + END), (0,), 10, None, 10, None
    )
    sample = [Problem("a", "one", None, "x")]
    [finding] = rendering_findings(student, sample, system_prompt=None, template_arguments={})
    assert finding.status == "error"
    assert finding.message.endswith("leaves out what the user says: of 777 it makes 'userassistant'")


TALK = Problem(
    "talk",
    "one",
    None,
    "x",
    (
        Message("system", "be"),
        Message("user", "one"),
        Message("assistant", None, {"tool_calls": [{"name": "plus"}]}),
        Message("tool", "two", {"name": "plus"}),
        Message("user", "two"),
    ),
    [{"name": "plus"}],
)


def test_what_a_template_leaves_out_of_rows_is_named_with_a_problem_that_has_it() -> None:
    *texts, nothing = found(ASK + END, Problem("a", "one", None, "x"), TALK)
    assert (
        "writes None for a content that is null, of problem 'talk': 'system be user one assistant None " in nothing
    )
    named = [text.partition(" makes no use of ")[2].partition(":")[0] for text in texts]
    assert named == ["'tools' of problem 'talk'", "'name' of problem 'talk'", "'tool_calls' of problem 'talk'"]
    whole = "{{ messages | tojson }}{{ tools | tojson }}" + END
    assert found(whole, TALK) == []
    talks = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{{ tools | tojson }}" + END
    texts = found(talks, TALK)
    assert [text for text in texts if "messages of the role system of problem 'talk'" in text]
    assert [text for text in texts if "messages of the role tool of problem 'talk'" in text]


def test_keys_of_text_parts_are_told_where_the_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one", "cache_control": {"type": "plus"}, "image": None}]
    problem = Problem("parts", "one", None, "x", (Message("user", parts),))
    [text] = found(TEMPLATE, problem)
    assert "makes no use of 'cache_control' of problem 'parts': 'user one assistant'" in text
    of_parts = "{% for p in m.content %}{{ p.text }}{{ p.cache_control }}{% endfor %}"
    assert found(ASK.replace("{{ m.content }}", of_parts) + END, problem) == []


def test_settings_that_a_template_makes_no_use_of_are_named() -> None:
    user = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}" + END
    [text] = found(user, system_prompt="be brief")
    assert "makes no use of data.system_prompt: 'oneassistant'" in text
    [text] = found(TEMPLATE, thinking=True)
    assert "makes no use of data.template_arguments.thinking" in text
    assert found(TEMPLATE, think=False) == []
