"""Checks of models and prompts that need no engine, in their order; findings go into a `Checks`."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rewards
from inputs.check_templates import Render, stop_findings, template_findings
from inputs.check_tokenizers import padded_rows_findings, tokenizer_findings
from inputs.data_report import DataReport, SourceReport
from inputs.model_facts import ModelFacts
from inputs.rendering import Prompt
from settings.checks import Checks, Finding
from settings.run import RunConfig
from transport.stop_tokens import StopTokens

NUM_LONGEST = 3
"""The longest prompts are named."""


Found = tuple[list[Finding], dict[str, Any]]


def check_models(
    config: RunConfig,
    models: Mapping[str, ModelFacts],
    stops: StopTokens,
    checks: Checks,
    *,
    render: Render,
    with_training: bool = True,
    has_prompts: bool = True,
) -> None:
    """Compare tokenizers, embeddings, stop tokens and chat templates; RefusedError unless errors are collected.

    `render` renders sample prompts, if there are any, with the template of a tokenizer. Where nothing is trained,
    the tokenizers alone are compared.
    """
    _enter(checks, "tokenizer", lambda: tokenizer_findings(models))
    if not with_training:
        return
    _enter(checks, "padded_rows", lambda: padded_rows_findings(models))
    arguments = config.data.template_arguments
    objective = config.objective
    needs = rewards.OBJECTIVES[objective.name].needs_with(objective.parameters)
    is_direct = needs.form == "direct"
    _enter(
        checks,
        "stop_ids",
        lambda: stop_findings(
            models, stops, objective.stop_mode, is_direct=is_direct, template_arguments=arguments
        ),
    )
    if has_prompts:
        _enter(checks, "chat_template", lambda: template_findings(models, render))


def check_prompts(
    config: RunConfig,
    models: Mapping[str, ModelFacts],
    prompts: Sequence[Prompt],
    report: DataReport,
    checks: Checks,
) -> None:
    """Check lengths, answers and sources of the training prompts; RefusedError unless errors are collected."""
    limit = config.rollout.max_response_tokens
    counted = prompts[: config.preflight.num_rows]
    _enter(checks, "context", lambda: context_findings(models, counted, report, max_response_tokens=limit))
    context = min(model.max_tokens for model in models.values())
    _enter(checks, "data", lambda: data_findings(counted, report, max_prompt_tokens=context - limit))


def _enter(checks: Checks, key: str, find: Callable[[], Found]) -> None:
    with checks.guard(key, is_hard=True), _timed() as seconds:
        findings, details = find()
        checks.add(key, findings, details, seconds=seconds())


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    start = time.monotonic()
    yield lambda: time.monotonic() - start


def context_findings(
    models: Mapping[str, ModelFacts],
    counted: Sequence[Prompt],
    report: DataReport,
    *,
    max_response_tokens: int,
) -> tuple[list[Finding], dict[str, Any]]:
    """Whether the longest prompt of every data set leaves space for a full response in every model's context.

    How many are too long is said of the `counted` ones.
    """
    findings = [*_longer_than_made_for(models), *_not_computed_alike(models["student"])]
    narrowest = min(models.values(), key=lambda each: each.max_tokens)
    limit = narrowest.max_tokens - max_response_tokens
    share = sum(len(prompt.token_ids) > limit for prompt in counted) / max(1, len(counted))
    for source in report.sources:
        if source.longest_tokens > limit:
            counts = f"; {share:.1%} of {len(counted)} prompts are too long for the {narrowest.who}"
            findings.insert(0, _too_long(source, narrowest.max_tokens, max_response_tokens, counts))
    details: dict[str, Any] = {"max_response_tokens": max_response_tokens, "max_prompt_tokens": limit}
    for role, each in models.items():
        details[role] = {
            "context": each.context,
            "max_model_len": each.max_model_len,
            "room": each.max_tokens,
        }
    if not findings:
        longest = max(source.longest_tokens for source in report.sources)
        text = f"{longest} + {max_response_tokens} tokens at most, limit {narrowest.max_tokens}"
        findings.append(Finding("ok", f"{text} (the {narrowest.who} has least)"))
    return findings, details


def _longer_than_made_for(models: Mapping[str, ModelFacts]) -> Iterator[Finding]:
    for each in models.values():
        if each.max_model_len is not None and each.max_model_len > each.context:
            section = "rollout" if each.role == "student" else each.field.removesuffix(".model_path")
            field = f"{section}.engine.max_model_len"
            text = f"{field} is {each.max_model_len}, but {each.path} was made for {each.context}"
            yield Finding("warning", text, f"set it to at most {each.context}")


def _not_computed_alike(student: ModelFacts) -> Iterator[Finding]:
    """What a student's sequence counts as in a packed micro-batch must not depend on the others in it."""
    longest = student.max_model_len or student.context
    if student.position_limit is None or longest <= student.position_limit[1]:
        return
    kind, limit = student.position_limit
    text = (
        f"{student.field}: {student.path} turns positions by the longest sequence beside them (rope type {kind}): "
        f"with sequences of up to {longest} tokens, engines and micro-batches compute short ones differently"
    )
    remedy = (
        f"set rollout.engine.max_model_len to at most {limit}" if limit else "take a model of another rope type"
    )
    yield Finding("error", text, remedy)


def _too_long(source: SourceReport, context: int, max_response_tokens: int, counts: str) -> Finding:
    needed = source.longest_tokens + max_response_tokens
    text = (
        f"{source.setting}: prompt {source.longest_id!r} has {source.longest_tokens} tokens, and with a response "
        f"of up to {max_response_tokens} needs {needed}, but the context holds {context} (nearest valid "
        f"rollout.max_response_tokens: {max(0, context - source.longest_tokens)}){counts}"
    )
    return Finding("error", text, "data.max_prompt_tokens drops long ones; or raise engine.max_model_len")


def data_findings(
    counted: Sequence[Prompt], report: DataReport, *, max_prompt_tokens: int
) -> tuple[list[Finding], dict[str, Any]]:
    """Lengths of the `counted` prompts, and sources and dropped problems of all data."""
    lengths = sorted(len(prompt.token_ids) for prompt in counted)
    over = sum(length > max_prompt_tokens for length in lengths) / len(lengths)
    longest = sorted(counted, key=lambda prompt: -len(prompt.token_ids))[:NUM_LONGEST]
    tokens = {
        "min": lengths[0],
        "median": statistics.median(lengths),
        "p95": lengths[round(0.95 * (len(lengths) - 1))],
        "max": lengths[-1],
    }
    details = {
        "num_prompts": report.kept,
        "num_counted": len(counted),
        "tokens": tokens,
        "max_prompt_tokens": max_prompt_tokens,
        "share_over_limit": round(over, 6),
        "longest": {prompt.prompt_id: len(prompt.token_ids) for prompt in longest},
        "num_unanswered": sum(prompt.answer is None for prompt in counted),
        "sources": dict(Counter(prompt.source for prompt in counted)),
        "data": list(report.lines()),
    }
    listed = ", ".join(f"{name} {value:g}" for name, value in tokens.items())
    text = f"{report.kept:,} prompts, tokens: {listed}; {over:.1%} over the limit of {max_prompt_tokens}"
    findings = [Finding("ok", text)]
    repeated = len(counted) - len({tuple(prompt.token_ids) for prompt in counted})
    if repeated:
        text = f"{repeated} of {len(counted)} prompts are repetitions of others"
        findings.append(Finding("warning", text, "data.drop_duplicates keeps the first of each"))
    return findings, details
