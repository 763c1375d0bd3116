"""Everything a run reads, read and checked before anything starts: models, tokenizers, prompts, stop tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from inputs.benchmarks import BenchmarkPrompts, read_benchmarks
from inputs.check_data import check_models, check_prompts
from inputs.check_rendering import rendering_findings
from inputs.check_templates import check_limits
from inputs.check_tokenizers import num_common_ids
from inputs.data_report import DataReport
from inputs.filters import HeldOut
from inputs.model_facts import ModelFacts, read_models
from inputs.models import Shape
from inputs.problems import OpenedProblems, Problem, read_problems
from inputs.prompt_data import TrainingPrompts, prepare_prompts
from inputs.rendering import Prompt, check_prompt_lengths, render_prompts
from inputs.templates import shared_children
from settings.checks import Checks
from settings.run import RunConfig
from settings.teachers import check_sources, role_of_source
from transport.stop_tokens import StopTokens

GOLDEN_TOKENS = 64
"""Length limit of the golden sequence that every weight load must reproduce."""


@dataclass(frozen=True)
class Inputs:
    """What was read. Every field is complete and checked."""

    tokenizer: PreTrainedTokenizerBase
    stops: StopTokens
    num_head_rows: int  # of the student; may be padded beyond the tokenizer
    num_shared_rows: int  # the smallest head's of student and teachers
    num_common_ids: int  # ids that every tokenizer knows; larger ones are never sampled
    shapes: Mapping[str, Shape]  # sizes of the models by role, of those that are known
    prompts: Sequence[Prompt]  # empty without training; looked up in a file with data.streaming
    data_report: DataReport  # what became of the training data; without sources if there is no training
    benchmarks: list[BenchmarkPrompts]  # empty without evaluation

    @property
    def evaluation_prompts(self) -> list[Prompt]:
        """The prompts of all benchmarks; empty without evaluation."""
        return [prompt for benchmark in self.benchmarks for prompt in benchmark.prompts]

    @property
    def golden_token_ids(self) -> list[int]:
        """A short natural sequence: the first prompt, repeated if it is a single token."""
        ids = self.prompts[0].token_ids[:GOLDEN_TOKENS]
        return ids if len(ids) > 1 else ids * 2


def read_inputs(config: RunConfig, *, with_training: bool = True, checks: Checks | None = None) -> Inputs:
    """Read and check all inputs, and enter what the checks found into `checks`.

    RefusedError with one line naming the field of the first mistake, unless they are collected; and then too if
    something could not be read.
    """
    with shared_children():
        return _read(config, with_training, checks or Checks())


def _read(config: RunConfig, with_training: bool, checks: Checks) -> Inputs:
    models = read_models(config, checks)
    student, tokenizer = models["student"], models["student"].tokenizer
    check_limits(models, config.data.template_arguments, checks)
    stops = _stop_tokens(config, models)
    context = min(model.max_tokens for model in models.values())
    sample, training, benchmarks = list[Problem](), None, list[BenchmarkPrompts]()
    with checks.guard("data", is_hard=True):
        benchmarks = read_benchmarks(config, lambda problems: _render(config, problems, tokenizer))
    if with_training:
        with checks.guard("data", is_hard=True):
            sample = _sample(config)
            training = _read_training(config, tokenizer, benchmarks)
    check_models(
        *(config, models, stops, checks),
        render=lambda other: _render(config, sample, other),
        with_training=with_training,
        has_prompts=bool(sample),
    )
    if sample:
        with checks.guard("chat_template", is_hard=True):
            given = {
                "system_prompt": config.data.system_prompt,
                "template_arguments": config.data.template_arguments,
            }
            if findings := rendering_findings(student, sample, **given):
                checks.add("chat_template", findings)
    if training is not None:
        check_prompts(config, models, training.prompts, training.report, checks)
    for each in benchmarks:
        with checks.guard("data", is_hard=True):
            unanswered = next((problem.prompt_id for problem in each.problems if problem.answer is None), None)
            _check_none_unanswered(unanswered, each.field)
        limit, limit_field = config.max_evaluation_tokens, "evaluation.max_response_tokens"
        given: dict[str, Any] = {"field": each.field, "limit_field": limit_field, "context": context}
        with checks.guard("context"):
            check_prompt_lengths(each.prompts, max_response_tokens=limit, **given)
    return Inputs(
        tokenizer=tokenizer,
        stops=stops,
        num_head_rows=student.num_head_rows,
        num_shared_rows=min(models[role].num_head_rows for role in ("student", *config.teacher_of_role)),
        num_common_ids=num_common_ids(models),
        shapes={role: model.shape for role, model in models.items() if model.shape is not None},
        prompts=training.prompts if training is not None else [],
        data_report=training.report if training is not None else DataReport([]),
        benchmarks=benchmarks,
    )


def _stop_tokens(config: RunConfig, models: Mapping[str, ModelFacts]) -> StopTokens:
    of_source = {source: models[role].stop_ids for source, role in role_of_source(config).items()}
    reference_ids = models["reference"].stop_ids if "reference" in models else ()
    return StopTokens(models["student"].stop_ids, models["teacher"].stop_ids, of_source, reference_ids)


def _sample(config: RunConfig) -> list[Problem]:
    """The first problems of every data set, on which chat templates are compared, and those with further keys."""
    sample = list[Problem]()
    for field, source in config.data.source_of_field.items():
        seen = set[str]()
        for index, problem in enumerate(islice(OpenedProblems(source, field), config.preflight.num_rows)):
            if index < config.preflight.num_samples or not problem.keys <= seen:
                sample.append(problem)
                seen |= problem.keys
    return sample


def _read_training(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, benchmarks: Sequence[BenchmarkPrompts]
) -> TrainingPrompts:
    held_out = _held_out(config, benchmarks) if config.data.decontaminate else None
    training = prepare_prompts(config.data, tokenizer, held_out)
    check_sources(config, [label for source in training.report.sources for label in source.kept_by_source])
    if config.outcome.rl_coef > 0:
        for source in training.report.sources:
            _check_none_unanswered(source.unanswered_id, source.setting)
    return training


def _held_out(config: RunConfig, benchmarks: Sequence[BenchmarkPrompts]) -> HeldOut:
    """The problems that must not be trained on; ValueError if there are none."""
    path_of_field = {f"data.decontaminate_paths.{i}": p for i, p in enumerate(config.data.decontaminate_paths)}
    if not path_of_field and not benchmarks:
        raise ValueError(
            "data.decontaminate needs problems to compare with, but there is no evaluation (nearest valid: set "
            "evaluation.data_path, evaluation.benchmarks or data.decontaminate_paths)"
        )
    problems_of_path = [(benchmark.path, benchmark.every_problem) for benchmark in benchmarks]
    problems_of_path += [(path, read_problems(path, field)) for field, path in path_of_field.items()]
    return HeldOut(
        (f"{Path(path).name}: {problem.prompt_id}", problem.text)
        for path, problems in problems_of_path
        for problem in problems
    )


def _check_none_unanswered(unanswered: str | None, field: str) -> None:
    if unanswered is not None:
        raise ValueError(f"{field}: problem {unanswered!r} has no answer to grade against")


def _render(config: RunConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    data = config.data
    arguments = data.template_arguments
    return render_prompts(problems, tokenizer, system_prompt=data.system_prompt, template_arguments=arguments)
