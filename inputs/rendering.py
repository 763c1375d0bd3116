"""Problems become prompts: the chat template is applied, and the text is tokenized."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from inputs.problems import Problem

BATCH = 64
"""Problems rendered together; tokenizers work faster on many."""


@dataclass(frozen=True)
class Prompt:
    """A problem rendered by the chat template."""

    prompt_id: str
    token_ids: list[int]
    answer: str | None
    source: str


def render_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None,
    template_arguments: dict[str, Any],
) -> list[Prompt]:
    """Apply the chat template with a generation prompt and tokenize; ValueError without a template.

    `system_prompt` takes the place of a system message that a chat has of its own.
    """
    if not tokenizer.chat_template:
        raise ValueError("student.model_path: the student's tokenizer has no chat template")
    arguments = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **template_arguments}
    prompts: list[Prompt] = []
    rest = iter(problems)
    while batch := list(islice(rest, BATCH)):
        chats = [_chat(problem, system_prompt) for problem in batch]
        try:
            encoded: Any = tokenizer.apply_chat_template(chats, **arguments)
        except TemplateError as error:
            raise ValueError(_refusal(batch, chats, tokenizer, arguments, error)) from error
        prompts += _prompts(batch, encoded["input_ids"])
    return prompts


def check_prompt_lengths(
    prompts: Sequence[Prompt],
    *,
    max_response_tokens: int,
    context: int,
    field: str,
    limit_field: str = "rollout.max_response_tokens",
) -> None:
    """ValueError naming the longest prompt if it does not leave space for a full response in the context."""
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    num_tokens = len(longest.token_ids)
    needed = num_tokens + max_response_tokens
    if needed > context:
        hint = "; data.max_prompt_tokens drops long ones" if field.startswith("data.") else ""
        raise ValueError(
            f"{field}: prompt {longest.prompt_id!r} has {num_tokens} tokens, and with a response of "
            f"up to {max_response_tokens} needs {needed}, but the context holds {context} (nearest valid "
            f"{limit_field}: {max(0, context - num_tokens)}){hint}"
        )


def _chat(problem: Problem, system_prompt: str | None) -> list[dict[str, str]]:
    messages = [asdict(message) for message in problem.messages] or [{"role": "user", "content": problem.text}]
    if not system_prompt:
        return messages
    return [{"role": "system", "content": system_prompt}, *(m for m in messages if m["role"] != "system")]


def _prompts(problems: Sequence[Problem], token_ids: Sequence[Sequence[int]]) -> Iterator[Prompt]:
    for problem, ids in zip(problems, token_ids, strict=True):
        yield Prompt(problem.prompt_id, list(ids), problem.answer, problem.source)


def _refusal(
    problems: Sequence[Problem], chats: Sequence[Any], tokenizer: Any, arguments: dict[str, Any], error: Exception
) -> str:
    """Which problem a chat template refuses, and why: it may not take a system message, or two turns of one."""
    for problem, chat in zip(problems, chats, strict=True):
        try:
            tokenizer.apply_chat_template(chat, **arguments)
        except TemplateError as refused:
            return f"student.model_path: its chat template refuses problem {problem.prompt_id!r}: {refused}"
    return f"student.model_path: its chat template refuses the problems: {error}"
