"""Everything a run reads, read and checked before anything starts: models, tokenizers, prompts, stop tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from actors.benchmark_prompts import BenchmarkPrompts, read_benchmarks
from actors.data_report import DataReport
from actors.engine import EngineSettings, Sampling
from actors.overlap import HeldOut
from actors.problems import Problem, read_problems
from actors.prompt_data import TrainingPrompts, prepare_prompts
from actors.rendering import Prompt, check_longest, check_prompt_lengths, render_prompts
from actors.tokenizers import (
    check_model_folder,
    check_same_vocabulary,
    head_width,
    load_tokenizer,
    model_limits,
    num_known_ids,
    stop_ids,
)
from cluster.config import EngineConfig, ResourcesConfig, RunConfig
from cluster.stop_tokens import StopTokens
from cluster.teacher_signal import SAMPLED, TeacherSignal
from cluster.teachers import check_sources, field_of, role_of_source

GOLDEN_TOKENS = 64
"""Length limit of the golden sequence that every weight load must reproduce."""


@dataclass(frozen=True)
class Inputs:
    """What was read. Every field is complete and checked."""

    tokenizer: PreTrainedTokenizerBase
    stops: StopTokens
    num_head_rows: int  # of the student; may be padded beyond the tokenizer
    num_shared_rows: int  # the smallest head's of student and teachers
    prompts: Sequence[Prompt]  # empty without training; looked up in a file with data.streaming
    data_report: DataReport | None  # what became of the training data; None without training
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


@dataclass(frozen=True)
class FrozenModel:
    """What was read of a teacher or of the reference model."""

    stop_ids: tuple[int, ...]
    context: int
    num_head_rows: int


def read_inputs(config: RunConfig, *, with_training: bool = True) -> Inputs:
    """Read and check all inputs; ValueError with one line naming the field of the first mistake."""
    check_model_folder(config.student.model_path, "student.model_path")
    for role, path in _frozen_paths(config).items():
        check_model_folder(path, f"{field_of(role)}.model_path")
    trusts = {"trust_remote_code": config.student.trust_remote_code}
    tokenizer = load_tokenizer(config.student.model_path, "student.model_path", **trusts)
    frozen = {role: _read_frozen(config, role, path, tokenizer) for role, path in _frozen_paths(config).items()}
    context, num_head_rows = model_limits(config.student.model_path, "student.model_path", **trusts)
    context = min(config.rollout.engine.max_model_len or context, context)
    # A scored sequence needs one position more: the engine generates a token after it.
    context = min(context, *(model.context - 1 for model in frozen.values()))
    benchmarks = read_benchmarks(config, lambda problems: _render(config, problems, tokenizer))
    training = _read_training(config, tokenizer, context, benchmarks) if with_training else None
    for each in benchmarks:
        limit, limit_field = evaluation_sampling(config).max_tokens, "evaluation.max_response_tokens"
        given: dict[str, Any] = {"field": each.field, "limit_field": limit_field, "context": context}
        check_prompt_lengths(each.prompts, max_response_tokens=limit, **given)
        unanswered = next((problem.prompt_id for problem in each.problems if problem.answer is None), None)
        _check_none_unanswered(unanswered, each.field)
    return Inputs(
        tokenizer=tokenizer,
        stops=_stop_tokens(
            config, stop_ids(config.student.model_path, tokenizer, field="student.model_path", **trusts), frozen
        ),
        num_head_rows=num_head_rows,
        num_shared_rows=min(num_head_rows, *(frozen[role].num_head_rows for role in config.teacher_of_role)),
        prompts=training.prompts if training is not None else [],
        data_report=training.report if training is not None else None,
        benchmarks=benchmarks,
    )


def _frozen_paths(config: RunConfig) -> dict[str, str]:
    """Model folders of the teachers, and of the reference if there is one, by role."""
    paths = {role: each.model_path for role, each in config.teacher_of_role.items()}
    reference = config.reference.model_path
    return paths if reference is None else paths | {"reference": reference}


def _read_frozen(
    config: RunConfig, role: str, path: str, student_tokenizer: PreTrainedTokenizerBase
) -> FrozenModel:
    field, trusts = f"{field_of(role)}.model_path", {"trust_remote_code": config.trusts_code_of(role)}
    tokenizer = load_tokenizer(path, field, **trusts)
    check_same_vocabulary(student_tokenizer, tokenizer, field=field, who=role.replace("-", " ", 1))
    context, num_head_rows = model_limits(path, field, **trusts)
    max_model_len = config.scorers[role].engine.max_model_len
    return FrozenModel(
        stop_ids(path, tokenizer, field=field, **trusts), min(max_model_len or context, context), num_head_rows
    )


def _stop_tokens(config: RunConfig, student_ids: tuple[int, ...], frozen: dict[str, FrozenModel]) -> StopTokens:
    of_source = {source: frozen[role].stop_ids for source, role in role_of_source(config).items()}
    reference_ids = frozen["reference"].stop_ids if "reference" in frozen else ()
    return StopTokens(student_ids, frozen["teacher"].stop_ids, of_source, reference_ids)


def _read_training(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, context: int, benchmarks: Sequence[BenchmarkPrompts]
) -> TrainingPrompts:
    held_out = _held_out(config, benchmarks) if config.data.decontaminate else None
    training = prepare_prompts(config.data, tokenizer, held_out)
    limits: dict[str, Any] = {"max_response_tokens": config.rollout.max_response_tokens, "context": context}
    for source in training.report.sources:
        check_longest(source.longest_id, source.longest_tokens, field=source.setting, **limits)
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
    return replace(settings, trust_remote_code=config.student.trust_remote_code)


def scorer_settings(
    config: RunConfig, inputs: Inputs, role: str = "teacher", signal: TeacherSignal = SAMPLED
) -> EngineSettings:
    """The engine of a worker that scores: of a teacher or of the reference."""
    path, scorer = _frozen_paths(config)[role], config.scorers[role]
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
        vocab_size=num_known_ids(inputs.tokenizer),
        stop_token_ids=inputs.stops.ids,
        config=engine,
    )


def _render(config: RunConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return render_prompts(
        problems,
        tokenizer,
        system_prompt=config.data.system_prompt,
        template_arguments=config.data.template_arguments,
    )
