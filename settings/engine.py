"""Settings of engine pools (worker resources, vLLM, scoring models), and the base of all sections."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]
MAX_WORKERS = 10_000
"""Maximum number of workers of one role, in settings and in requests."""
Count = Annotated[int, Field(ge=1, le=MAX_WORKERS)]
"""Of workers."""
Samples = Annotated[int, Field(ge=1, le=10_000)]
"""Of responses to one prompt."""
TopK = Annotated[int, Field(ge=-1, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=1e8)]
Gib = Annotated[float, Field(gt=0, le=2**20)]
Rate = Annotated[float, Field(ge=0, le=1e12)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Dtype = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys are errors, docstrings under fields are their help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


class ResourcesConfig(Section):
    """Resources that Ray reserves for one worker, in a placement group."""

    num_cpus: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """CPUs per worker; may be fractional."""
    num_gpus: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """GPUs per worker (per device, for an engine with several). Workers with a fraction share a device, and their
    `engine.gpu_memory_fraction` must add up to less than 1."""
    memory_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.0
    """Host memory per worker, in GiB (Ray's `memory`); 0 reserves none."""
    custom: dict[str, Annotated[float, Field(gt=0, le=1e9)]] = {}
    """Custom Ray resources per worker, e.g. `{teacher: 1}` to bind a pool to a group of nodes; per stage, for an
    engine with several pipeline stages."""


class EngineConfig(Section):
    """One vLLM engine; `extra` passes anything else to vLLM's `EngineArgs`."""

    dtype: Dtype | Literal["auto"] = "auto"
    """Precision of the engine's weights; `auto` follows `learner.dtype`."""
    max_model_len: Positive | None = None
    """Maximum length of prompt + response in tokens; by default the model's context length."""
    max_num_seqs: Positive = 128
    """Maximum number of sequences decoded together."""
    max_num_batched_tokens: Positive | None = None
    """Maximum tokens per engine step; limits the memory of prompt log-probs (the logits of a whole step). By
    default 8192, and 2048 on CPUs, where more do not fit into the caches."""
    kv_cache_gib: Gib | None = None
    """Size of the KV cache in GiB; by default 1 on CPUs, and what `gpu_memory_fraction` leaves on GPUs."""
    gpu_memory_fraction: Fraction = 0.85
    """Fraction of the device's memory that the engine may use."""
    tensor_parallel_size: Positive = 1
    """GPUs per engine (or per pipeline stage), on one node."""
    pipeline_parallel_size: Positive = 1
    """Pipeline stages per engine, each with `tensor_parallel_size` GPUs; they may be on different nodes. Not for
    rollout engines."""
    enforce_eager: bool = False
    """Disable CUDA graphs; always on for CPU engines."""
    num_threads: Positive = 1
    """CPU threads per engine (CPU engines only)."""
    extra: dict[str, Any] = {}
    """Additional `EngineArgs` of vLLM by name, e.g. `{quantization: fp8}`."""

    def step_tokens(self, device: str) -> int:
        """Tokens per engine step on a device of this type."""
        return self.max_num_batched_tokens or max(self.max_num_seqs, 2048 if device == "cpu" else 8192)

    @model_validator(mode="after")
    def _code_is_trusted_by_model(self) -> Self:
        if "trust_remote_code" in self.extra:
            raise ValueError(
                "engine.extra.trust_remote_code is not taken; set trust_remote_code of the model, e.g. "
                "student.trust_remote_code"
            )
        return self


class ScorerConfig(Section):
    """A pool of engines that score the student's tokens with a frozen model."""

    num_workers: Count = 1
    """Number of workers (engines)."""
    max_batch_tokens: Positive = 16384
    """Token budget of one scoring call (prompt and response tokens)."""
    max_calls_in_flight: Positive = 2
    """Maximum concurrent scoring calls per worker; the second hides the transfer of the first."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources per worker."""
    engine: EngineConfig = EngineConfig()
    """vLLM settings."""


class TeacherConfig(ScorerConfig):
    """The pool of engines of one teacher."""

    model_path: str
    """Hugging Face folder or hub name of the teacher; it must share the student's tokenizer."""
    sources: Annotated[list[str], Field(min_length=1)] | None = None
    """Values of `source` whose prompts this teacher scores. With `teachers`, each source of the training data must
    be named by exactly one teacher; without, the one teacher scores all prompts and this must be unset."""
    weight: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """Loss weight of this teacher's tokens."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Review it first: it can do
    anything."""


class ReferenceConfig(ScorerConfig):
    """The pool of engines of the reference model, for objectives that need one (g_opd)."""

    model_path: str | None = None
    """Hugging Face folder or hub name of the reference: the initial student, or the base model of the teacher. It
    must share the student's tokenizer. Required by objectives that use a reference, unused by others."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Review it first: it can do
    anything."""
