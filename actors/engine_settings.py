"""Run configuration -> engine settings, sampling parameters and the signal asked of teachers."""

from dataclasses import replace
from typing import Literal

from actors.engine import EngineSettings, Sampling
from inputs.inputs import Inputs
from inputs.models import model_paths
from inputs.tokenizers import head_width
from settings.engine import EngineConfig, ResourcesConfig
from settings.run import RunConfig
from transport.batches import SAMPLED, TeacherSignal


def rollout_sampling(config: RunConfig, inputs: Inputs) -> Sampling:
    """How training responses are sampled."""
    rollout = config.rollout
    return Sampling(
        max_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop_token_ids=inputs.stops.student_ids if rollout.stop_on == "student" else (),
    )


def evaluation_sampling(config: RunConfig) -> Sampling:
    """How evaluation responses are sampled."""
    evaluation = config.evaluation
    return Sampling(
        max_tokens=config.max_evaluation_tokens,
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
        asked, num_rows = inputs.stops.teacher_ids[0], inputs.num_shared_rows
        if config.objective.stop_mode == "cross_eos" and asked >= num_rows:
            raise ValueError(
                f"objective.stop_mode must be raw or mask with {config.objective.name} as configured, got "
                f"cross_eos: distributions are over the {num_rows} ids that the models share, and the teacher's "
                f"stop token {asked} is none of them"
            )
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
