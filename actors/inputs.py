"""Everything a run reads, read and checked before anything starts: models, tokenizers, prompts, stop tokens."""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from actors.engine import EngineSettings, Sampling
from actors.prompts import Prompt, check_prompt_lengths, read_problems, render_prompts
from actors.tokenizers import (
    check_model_folder,
    check_same_vocabulary,
    head_width,
    load_tokenizer,
    model_limits,
    num_known_ids,
    stop_tokens,
)
from cluster.config import EngineConfig, ResourcesConfig, RunConfig
from cluster.stop_tokens import StopTokens
from cluster.teacher_signal import SAMPLED, TeacherSignal

GOLDEN_TOKENS = 64
"""Length limit of the golden sequence that every weight load must reproduce."""


@dataclass(frozen=True)
class Inputs:
    """What was read. Every field is complete and checked."""

    tokenizer: PreTrainedTokenizerBase
    stops: StopTokens
    num_head_rows: int  # of the student; may be padded beyond the tokenizer
    num_shared_rows: int  # the smaller head's of student and teacher
    prompts: list[Prompt]
    evaluation_prompts: list[Prompt]  # empty without evaluation

    @property
    def golden_token_ids(self) -> list[int]:
        """A short natural sequence: the first prompt, repeated if it is a single token."""
        ids = self.prompts[0].token_ids[:GOLDEN_TOKENS]
        return ids if len(ids) > 1 else ids * 2


def read_inputs(config: RunConfig, *, with_training: bool = True) -> Inputs:
    """Read and check all inputs; ValueError with one line naming the field of the first mistake."""
    check_model_folder(config.student.model_path, "student.model_path")
    check_model_folder(config.teacher.model_path, "teacher.model_path")
    tokenizer = load_tokenizer(config.student.model_path, "student.model_path")
    teacher_tokenizer = load_tokenizer(config.teacher.model_path, "teacher.model_path")
    check_same_vocabulary(tokenizer, teacher_tokenizer)
    context, num_head_rows = model_limits(config.student.model_path, "student.model_path")
    teacher_context, num_teacher_rows = model_limits(config.teacher.model_path, "teacher.model_path")
    context = min(config.rollout.engine.max_model_len or context, context)
    # A scored sequence needs one position more: the engine generates a token after it.
    context = min(context, min(config.teacher.engine.max_model_len or teacher_context, teacher_context) - 1)
    prompts = _read_prompts(config, config.data.train_path, "data.train_path", tokenizer) if with_training else []
    if prompts:
        limit = config.rollout.max_response_tokens
        check_prompt_lengths(prompts, max_response_tokens=limit, context=context, field="data.train_path")
    evaluation_prompts: list[Prompt] = []
    if config.evaluation.data_path is not None:
        field = "evaluation.data_path"
        evaluation_prompts = _read_prompts(config, config.evaluation.data_path, field, tokenizer)
        evaluation_prompts = evaluation_prompts[: config.evaluation.max_problems]
        limit = evaluation_sampling(config).max_tokens
        check_prompt_lengths(evaluation_prompts, max_response_tokens=limit, context=context, field=field)
        unanswered = next((p.prompt_id for p in evaluation_prompts if p.answer is None), None)
        if unanswered is not None:
            raise ValueError(f"{field}: problem {unanswered!r} has no answer to grade against")
    return Inputs(
        tokenizer=tokenizer,
        stops=stop_tokens(
            config.student.model_path, config.teacher.model_path, student=tokenizer, teacher=teacher_tokenizer
        ),
        num_head_rows=num_head_rows,
        num_shared_rows=min(num_head_rows, num_teacher_rows),
        prompts=prompts,
        evaluation_prompts=evaluation_prompts,
    )


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
    return _settings(path, config.engine_dtype, config, rollout.engine, rollout.resources, inputs)


def teacher_settings(config: RunConfig, inputs: Inputs, signal: TeacherSignal = SAMPLED) -> EngineSettings:
    """The engine of a teacher worker."""
    path, teacher = config.teacher.model_path, config.teacher
    settings = _settings(path, config.teacher_dtype, config, teacher.engine, teacher.resources, inputs)
    return replace(settings, signal=signal)


def teacher_signal(
    config: RunConfig, inputs: Inputs, *, kind: Literal["token", "topk", "full"], k: int
) -> TeacherSignal:
    """The signal of this kind with its sizes; ValueError if k or the teacher's head does not allow it."""
    if kind == "topk":
        if k > inputs.num_shared_rows:
            raise ValueError(f"objective.k must be <= {inputs.num_shared_rows}, the vocabulary, got {k}")
        return TeacherSignal("topk", k=k)
    if kind == "full":
        width = head_width(config.teacher.model_path, "teacher.model_path")
        return TeacherSignal("full", hidden_size=width, dtype=config.teacher_dtype)
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


def _read_prompts(config: RunConfig, path: str, field: str, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return render_prompts(
        read_problems(path, field),
        tokenizer,
        system_prompt=config.data.system_prompt,
        template_arguments=config.data.template_arguments,
    )
