"""Everything a run reads, read and checked before anything starts: models, tokenizers, prompts, stop tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from actors.engine import EngineSettings, Sampling
from inputs.benchmarks import BenchmarkPrompts, read_benchmarks
from inputs.check_tokenizers import num_common_ids
from inputs.data_report import DataReport
from inputs.model_facts import ModelFacts, model_paths, read_models
from inputs.overlap import HeldOut
from inputs.preflight import check_models, check_prompts
from inputs.problems import OpenedProblems, Problem, read_problems
from inputs.prompt_data import TrainingPrompts, prepare_prompts
from inputs.rendering import Prompt, check_prompt_lengths, render_prompts
from inputs.shapes import Shape
from inputs.tokenizers import head_width
from settings.checks import Checks
from settings.run import EngineConfig, ResourcesConfig, RunConfig
from settings.teachers import check_sources, role_of_source
from transport.stop_tokens import StopTokens
from transport.teacher_signal import SAMPLED, TeacherSignal

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
    checks = checks or Checks()
    models = read_models(config, checks)
    student, tokenizer = models["student"], models["student"].tokenizer
    stops = _stop_tokens(config, models)
    room = min(model.room for model in models.values())
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
    if training is not None:
        check_prompts(config, models, training.prompts, training.report, checks)
    for each in benchmarks:
        with checks.guard("data", is_hard=True):
            unanswered = next((problem.prompt_id for problem in each.problems if problem.answer is None), None)
            _check_none_unanswered(unanswered, each.field)
        limit, limit_field = evaluation_sampling(config).max_tokens, "evaluation.max_response_tokens"
        given: dict[str, Any] = {"field": each.field, "limit_field": limit_field, "context": room}
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
    """The first problems of every data set, on which chat templates are compared."""
    num = config.preflight.num_samples
    opened = (OpenedProblems(source, field) for field, source in config.data.source_of_field.items())
    return [problem for problems in opened for problem in islice(problems, num)]


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


def rollout_sampling(config: RunConfig) -> Sampling:
    """How training responses are drawn."""
    rollout = config.rollout
    return Sampling(
        max_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
    )


def evaluation_sampling(config: RunConfig) -> Sampling:
    """How evaluation responses are drawn."""
    evaluation = config.evaluation
    return Sampling(
        max_tokens=evaluation.max_response_tokens or config.rollout.max_response_tokens,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        top_k=evaluation.top_k,
    )


def student_settings(config: RunConfig, inputs: Inputs) -> EngineSettings:
    """The engine of a rollout worker."""
    path, rollout = config.student.model_path, config.rollout
    settings = _settings(path, config.engine_dtype, config, rollout.engine, rollout.resources, inputs)
    shares_weights = config.weights.is_broadcast or config.weights.delta
    trusts = config.student.trust_remote_code
    return replace(settings, trust_remote_code=trusts, shares_weights=shares_weights)


def scorer_settings(
    config: RunConfig, inputs: Inputs, role: str = "teacher", signal: TeacherSignal = SAMPLED
) -> EngineSettings:
    """The engine of a worker that scores: of a teacher or of the reference."""
    path, scorer = model_paths(config)[role], config.scorers[role]
    dtype = config.dtype_of(scorer.engine)
    settings = _settings(path, dtype, config, scorer.engine, scorer.resources, inputs)
    return replace(settings, signal=signal, trust_remote_code=config.trusts_code_of(role))


def teacher_signal(
    config: RunConfig, inputs: Inputs, *, kind: Literal["token", "topk", "full"], k: int
) -> TeacherSignal:
    """The signal of this kind with its sizes; ValueError if k or the teacher's head does not allow it."""
    if kind == "topk":
        if k > inputs.num_shared_rows:
            raise ValueError(f"objective.k must be <= {inputs.num_shared_rows}, the vocabulary, got {k}")
        return TeacherSignal("topk", k=k)
    if kind == "full":
        teacher = config.teacher
        trusts = teacher.trust_remote_code
        width = head_width(teacher.model_path, "teacher.model_path", trust_remote_code=trusts)
        return TeacherSignal("full", hidden_size=width, dtype=config.dtype_of(config.teacher.engine))
    return SAMPLED


def _settings(
    path: str, dtype: str, config: RunConfig, engine: EngineConfig, resources: ResourcesConfig, inputs: Inputs
) -> EngineSettings:
    return EngineSettings(
        model_path=path,
        dtype=dtype,
        device="cuda" if resources.num_gpus > 0 else "cpu",
        seed=config.seed,
        vocab_size=inputs.num_common_ids,
        stop_token_ids=inputs.stops.ids,
        config=engine,
    )


def _render(config: RunConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    data = config.data
    arguments = data.template_arguments
    return render_prompts(problems, tokenizer, system_prompt=data.system_prompt, template_arguments=arguments)
