"""Problems become prompts: the chat template is applied, and the text is tokenized."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from inputs.problems import Problem
from inputs.templates import Chat, RefusedChatError, render_chats

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
    prompts: list[Prompt] = []
    rest = iter(problems)
    while batch := list(islice(rest, BATCH)):
        texts = rendered_texts(
            batch, tokenizer, system_prompt=system_prompt, template_arguments=template_arguments
        )
        encoded: Any = tokenizer(texts, add_special_tokens=False)
        prompts += _prompts(batch, encoded["input_ids"])
    return prompts


def rendered_texts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None,
    template_arguments: Mapping[str, Any],
) -> list[str]:
    """The text of every prompt, before it is tokenized; ValueError naming a problem that the template refuses."""
    chats = [_chat(problem, system_prompt) for problem in problems]
    try:
        return render_chats(tokenizer, chats, {"add_generation_prompt": True, **template_arguments})
    except RefusedChatError as error:
        name = problems[error.index].prompt_id
        raise ValueError(f"student.model_path: its chat template refuses problem {name!r}: {error}") from error


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


def _chat(problem: Problem, system_prompt: str | None) -> Chat:
    messages = [each.as_dict() for each in problem.messages] or [{"role": "user", "content": problem.text}]
    if system_prompt:
        own = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": system_prompt}, *own]
    return Chat(messages, problem.tools)


def _prompts(problems: Sequence[Problem], token_ids: Sequence[Sequence[int]]) -> Iterator[Prompt]:
    for problem, ids in zip(problems, token_ids, strict=True):
        yield Prompt(problem.prompt_id, list(ids), problem.answer, problem.source)
