"""Checks of the training prompts: their lengths against every model's context, and what else a run needs."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from actors.model_facts import ModelFacts
from actors.prompts import Prompt
from cluster.preflight.checks import Finding

NUM_LONGEST = 3
"""The longest prompts are named."""


def context_findings(
    models: Mapping[str, ModelFacts], prompts: Sequence[Prompt], *, max_response_tokens: int, field: str
) -> tuple[list[Finding], dict[str, Any]]:
    """Whether every prompt leaves room for a full response in every model's context."""
    findings = list[Finding]()
    for each in models.values():
        if each.max_model_len is not None and each.max_model_len > each.context:
            where = each.field.removesuffix("model_path")
            where = "rollout." if each.role == "student" else where
            text = (
                f"{where}engine.max_model_len is {each.max_model_len}, but {each.path} was made for {each.context}"
            )
            findings.append(Finding("warning", text, f"set it to at most {each.context}"))
    narrowest = min(models.values(), key=lambda each: each.room)
    room = narrowest.room
    limit = room - max_response_tokens
    long = [prompt for prompt in prompts if len(prompt.token_ids) > limit]
    if long:
        findings.insert(0, _too_long(long, len(prompts), narrowest, max_response_tokens, field))
    details: dict[str, Any] = {"max_response_tokens": max_response_tokens, "max_prompt_tokens": limit}
    for role, each in models.items():
        details[role] = {"context": each.context, "max_model_len": each.max_model_len, "room": each.room}
    if not findings:
        longest = max(len(prompt.token_ids) for prompt in prompts)
        text = f"{longest} + {max_response_tokens} tokens at most, room for {room} (the {narrowest.who} has least)"
        findings.append(Finding("ok", text))
    return findings, details


def _too_long(
    long: Sequence[Prompt], total: int, model: ModelFacts, max_response_tokens: int, field: str
) -> Finding:
    longest = max(long, key=lambda prompt: len(prompt.token_ids))
    num_tokens = len(longest.token_ids)
    nearest = max(0, model.room - num_tokens)
    text = (
        f"{field}: prompt {longest.prompt_id!r} has {num_tokens} tokens, and with a response of up to "
        f"{max_response_tokens} needs {num_tokens + max_response_tokens}, but the context holds {model.room} "
        f"(nearest valid rollout.max_response_tokens: {nearest}); {len(long)} of {total} prompts "
        f"({len(long) / total:.1%}) are too long for the {model.who}"
    )
    return Finding("error", text, "leave them out (data.max_prompt_tokens), or raise engine.max_model_len")


def data_findings(
    prompts: Sequence[Prompt], *, max_prompt_tokens: int, num_rows: int, needs_answers: bool
) -> tuple[list[Finding], dict[str, Any]]:
    """Lengths, answers and sources of the first `num_rows` prompts."""
    counted = prompts[:num_rows]
    lengths = sorted(len(prompt.token_ids) for prompt in counted)
    over = sum(length > max_prompt_tokens for length in lengths) / len(lengths)
    longest = sorted(counted, key=lambda prompt: -len(prompt.token_ids))[:NUM_LONGEST]
    unanswered = [prompt.prompt_id for prompt in counted if prompt.answer is None]
    details = {
        "num_prompts": len(prompts),
        "num_counted": len(counted),
        "tokens": {
            "min": lengths[0],
            "median": statistics.median(lengths),
            "p95": lengths[round(0.95 * (len(lengths) - 1))],
            "max": lengths[-1],
        },
        "max_prompt_tokens": max_prompt_tokens,
        "share_over_limit": round(over, 6),
        "longest": {prompt.prompt_id: len(prompt.token_ids) for prompt in longest},
        "num_unanswered": len(unanswered),
        "sources": dict(Counter(prompt.source for prompt in counted)),
    }
    tokens = ", ".join(f"{name} {value:g}" for name, value in details["tokens"].items())
    text = f"{len(prompts):,} prompts, tokens: {tokens}; {over:.1%} over the limit of {max_prompt_tokens}"
    findings = [Finding("ok", text)]
    if needs_answers and unanswered:
        text = f"data.train_path: problem {unanswered[0]!r} has no answer to grade against"
        findings.append(
            Finding("error", text, "give every problem an answer, or set outcome.rl_coef 0", is_hard=True)
        )
    repeated = len(counted) - len({tuple(prompt.token_ids) for prompt in counted})
    if repeated:
        findings.append(Finding("warning", f"{repeated} of {len(counted)} prompts are repetitions of others"))
    return findings, details
