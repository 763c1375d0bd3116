"""Checks of what the student's chat template makes of prompts: begun and ended as meant, and nothing left out.

All findings but one are warnings that show the text: only a person can tell what was meant.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from inputs.model_facts import ModelFacts
from inputs.problems import ROLES, Message, Problem
from inputs.rendering import rendered_texts
from inputs.templates import MARK, Chat, RefusedChatError, render_chats
from settings.checks import Finding

SHOWN = 120
"""Characters that are shown of the start and of the end of a text."""
MAX_TRIED = 8
"""Problems on which it is tried whether something is left out."""

Render = Callable[..., list[str]]
"""(problems, further template arguments) -> their texts; ValueError if the template refuses one."""


def rendering_findings(
    student: ModelFacts,
    sample: Sequence[Problem],
    *,
    system_prompt: str | None,
    template_arguments: Mapping[str, Any],
) -> list[Finding]:
    """What is unusual in the texts that the template makes of the sample problems; ValueError if it makes none."""

    def render(problems: Sequence[Problem], system: str | None = system_prompt, **arguments: Any) -> list[str]:
        given = {**template_arguments, **arguments}
        left = {name: value for name, value in given.items() if value is not LEFT_OUT}
        return rendered_texts(problems, student.tokenizer, system_prompt=system, template_arguments=left)

    texts = render(sample)
    findings = [
        *_begins(student, texts[0]),
        *_is_not_asked(student, texts, lambda: render(sample, add_generation_prompt=False)),
        *_question(student, template_arguments),
        *_keys(student, sample, render),
        *_nothing(student, sample, render),
    ]
    if system_prompt and _same(lambda: texts[:1], lambda: render(sample[:1], system=None)):
        findings.append(_left_out(student, "data.system_prompt", texts[0]))
    for name, value in template_arguments.items():
        others: list[dict[str, Any]] = [{name: other} for other in (LEFT_OUT, not value, MARK)]
        if all(_same(lambda: texts[:1], lambda o=other: render(sample[:1], **o)) for other in others):
            findings.append(_left_out(student, f"data.template_arguments.{name}", texts[0]))
    return findings


LEFT_OUT = object()
"""In the place of a template argument: it is not given."""


def _begins(student: ModelFacts, text: str) -> Iterator[Finding]:
    """A text that the tokenizer would begin with a token of its own begins with it, and once."""
    tokenizer = student.tokenizer
    plain: list[int] = tokenizer.encode(MARK, add_special_tokens=False)
    whole: list[int] = tokenizer.encode(MARK)
    own = whole[: max(0, _place(plain, whole))]
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not own:
        return
    named = ", ".join(ascii(token) for token in tokenizer.convert_ids_to_tokens(own))
    if ids[: len(own)] != own:
        said = f"begins prompts without {named}, with which the tokenizer begins every text"
    elif ids[len(own) : 2 * len(own)] == own:
        said = f"begins prompts with {named} twice"
    else:
        return
    remedy = "if the model was trained otherwise, add it to the chat template (or remove it there)"
    yield Finding("warning", f"{student.field}: the chat template {said}: {_shown(text)}", remedy)


def _place(part: Sequence[int], whole: Sequence[int]) -> int:
    """Where a part begins; -1 if it is not there."""
    ends = range(len(whole) - len(part) + 1)
    return next((start for start in ends if list(whole[start : start + len(part)]) == list(part)), -1)


def _is_not_asked(
    student: ModelFacts, texts: Sequence[str], without: Callable[[], list[str]]
) -> Iterator[Finding]:
    if _same(lambda: texts, without):
        text = (
            f"{student.field}: the chat template ignores add_generation_prompt, so that nothing but the prompt's "
            f"end may tell the student to answer: {_shown(texts[0])}"
        )
        yield Finding("warning", text, "if it does not end as an answer begins, mend the chat template")


def _question(student: ModelFacts, template_arguments: Mapping[str, Any]) -> Iterator[Finding]:
    arguments = {"add_generation_prompt": True, **template_arguments}
    try:
        [text] = render_chats(student.tokenizer, [Chat([{"role": "user", "content": MARK}])], arguments)
    except RefusedChatError:  # it needs more than a question; what it makes of the rows was said
        return
    if MARK not in text:
        yield Finding(
            "error",
            f"{student.field}: the chat template leaves out what the user says: of {MARK} it makes {_shown(text)}",
            "mend the chat template",
        )


def _keys(student: ModelFacts, sample: Sequence[Problem], render: Render) -> Iterator[Finding]:
    """Whatever rows hold besides the user's texts makes a difference, for one problem at least."""
    changes: dict[str, Callable[[Problem], Problem]] = {}
    keys = {key for problem in sample for key in problem.keys} - {*ROLES}
    for key in sorted(keys, key=lambda key: (key != "tools", key)):
        changes[key] = partial(_without, key=key)
    for role in ("system", "assistant", "tool"):
        changes[role] = partial(_changed, change=partial(_marked, role=role))
    for key, change in changes.items():
        given = [problem for problem in sample if key in problem.keys][:MAX_TRIED]
        others = [change(problem) for problem in given]
        if given != others and _same(lambda g=given: render(g), lambda o=others: render(o)):
            what = f"messages of the role {key}" if key in ("system", "assistant", "tool") else repr(key)
            yield _left_out(student, f"{what} of problem {given[0].prompt_id!r}", render(given[:1])[0])


def _nothing(student: ModelFacts, sample: Sequence[Problem], render: Render) -> Iterator[Finding]:
    """A content that is null, as beside calls of tools, is no word of the prompt."""
    given = [problem for problem in sample if any(message.content is None for message in problem.messages)][:1]
    others = [
        _changed(problem, lambda message: replace(message, content=message.content or "")) for problem in given
    ]
    try:
        pairs = list(zip(given, render(given), render(others), strict=True))
    except ValueError:  # it tells them apart
        return
    for problem, text, other in pairs:
        if text.count("None") > other.count("None"):
            said = f"writes None for a content that is null, of problem {problem.prompt_id!r}: {_shown(text)}"
            yield Finding("warning", f"{student.field}: the chat template {said}", 'write "" in the data')


def _changed(problem: Problem, change: Callable[[Message], Message]) -> Problem:
    return replace(problem, messages=tuple(map(change, problem.messages)))


def _without(problem: Problem, key: str) -> Problem:
    less = _changed(problem, lambda message: message.without(key))
    return replace(less, tools=None) if key == "tools" else less


def _marked(message: Message, role: str) -> Message:
    return replace(message, content=MARK) if message.role == role and message.content else message


def _same(ours: Callable[[], Sequence[str]], theirs: Callable[[], Sequence[str]]) -> bool:
    try:
        return list(ours()) == list(theirs())
    except ValueError:  # then it makes a difference
        return False


def _left_out(student: ModelFacts, what: str, text: str) -> Finding:
    return Finding("warning", f"{student.field}: the chat template makes no use of {what}: {_shown(text)}")


def _shown(text: str) -> str:
    """The text, or its start and its end, in one line."""
    if len(text) <= 2 * SHOWN:
        return ascii(text)
    return f"{text[:SHOWN]!a} ... {text[-SHOWN:]!a}"
