"""The checks of models and prompts that need no engine, in their order: results go into a `Checks`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from inputs.check_data import context_findings, data_findings
from inputs.check_templates import stop_findings
from inputs.check_tokenizers import padded_rows_findings, tokenizer_findings
from inputs.data_report import DataReport
from inputs.model_facts import ModelFacts
from inputs.preflight_templates import Render, template_findings
from inputs.rendering import Prompt
from settings.checks import Checks, Finding
from settings.run import RunConfig
from transport.stop_tokens import StopTokens

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
    mode = config.objective.stop_mode
    _enter(checks, "stop_ids", lambda: stop_findings(models, stops, mode, template_arguments=arguments))
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
    room = min(model.room for model in models.values())
    _enter(checks, "data", lambda: data_findings(counted, report, max_prompt_tokens=room - limit))


def _enter(checks: Checks, key: str, find: Callable[[], Found]) -> None:
    with checks.guard(key, is_hard=True), _timed() as seconds:
        findings, details = find()
        checks.add(key, findings, details, seconds=seconds())


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    start = time.monotonic()
    yield lambda: time.monotonic() - start
