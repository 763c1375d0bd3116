"""Settings of the pools of engines: what a worker reserves, its vLLM engine, and the models that score.

The base of every section is here too; `settings/run.py` has the rest of the configuration.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=10_000)]
"""Of workers."""
Seconds = Annotated[float, Field(gt=0, le=1e8)]
Gib = Annotated[float, Field(gt=0, le=2**20)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Dtype = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings under fields are their help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


class ResourcesConfig(Section):
    """What Ray reserves for one worker, in a placement group."""

    num_cpus: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """CPUs reserved per worker; may be fractional."""
    num_gpus: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """GPUs reserved per worker (per device of an engine that has several); a fraction shares one device, and
    `engine.gpu_memory_fraction` of all that share it must then add up to less than 1."""
    memory_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.0
    """Memory of the node reserved per worker, in GiB (Ray's `memory`); 0 reserves none."""
    custom: dict[str, Annotated[float, Field(gt=0, le=1e9)]] = {}
    """Custom Ray resources per worker, e.g. `{teacher: 1}` to bind a pool to a group of nodes; of an engine with
    several pipeline stages, per stage."""


class EngineConfig(Section):
    """Settings of one vLLM engine; `extra` passes anything else to vLLM's `EngineArgs` unchanged."""

    dtype: Dtype | Literal["auto"] = "auto"
    """Precision of the engine's weights; `auto` follows `learner.dtype`."""
    max_model_len: Positive | None = None
    """Longest prompt + response in tokens; by default what the model's configuration allows."""
    max_num_seqs: Positive = 128
    """Sequences decoded together."""
    max_num_batched_tokens: Positive | None = None
    """Tokens of one engine step; bounds the memory of prompt log-probs (a whole step's logits). By default 8192,
    and 2048 on CPUs, where more only falls out of the caches."""
    kv_cache_gib: Gib | None = None
    """Size of the key-value cache in GiB; by default 1 on CPUs, and what `gpu_memory_fraction` leaves on GPUs."""
    gpu_memory_fraction: Fraction = 0.85
    """Share of the device's memory the engine may use."""
    tensor_parallel_size: Positive = 1
    """Devices one engine (or each of its pipeline stages) is spread over, on one node."""
    pipeline_parallel_size: Positive = 1
    """Stages one engine is cut into, each with `tensor_parallel_size` GPUs; they may lie on several nodes. Not for
    rollout engines."""
    enforce_eager: bool = False
    """Skip graph capture; always on for CPU engines."""
    num_threads: Positive = 1
    """CPU threads of one engine (CPU engines only)."""
    extra: dict[str, Any] = {}
    """Further `EngineArgs` of vLLM by name, e.g. `{quantization: fp8}`."""

    def step_tokens(self, device: str) -> int:
        """Tokens of one engine step on a device of this type."""
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
    """Workers (engines)."""
    max_batch_tokens: Positive = 16384
    """Token budget of one scoring call (prompt and response tokens)."""
    max_calls_in_flight: Positive = 2
    """Scoring calls outstanding per worker; the second hides the hand-over of the first."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources of one worker."""
    engine: EngineConfig = EngineConfig()
    """vLLM settings."""


class TeacherConfig(ScorerConfig):
    """The pool of engines of one teacher."""

    model_path: str
    """Hugging Face folder (or hub name) of the teacher; it must share the student's tokenizer."""
    sources: Annotated[list[str], Field(min_length=1)] | None = None
    """Prompts with these values of `source` are this teacher's. With `teachers` every source of the training data
    must be named by exactly one teacher; without, all prompts are the one teacher's, and this stays unset."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor of the loss of this teacher's tokens: how much of the mixture it is."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Read it first: it can do anything."""


class ReferenceConfig(ScorerConfig):
    """The pool of engines of the reference model, for objectives that compare with one (g_opd)."""

    model_path: str | None = None
    """Hugging Face folder (or hub name) of the reference: the initial student, or the base model of the teacher.
    It must share the student's tokenizer. Required where the objective compares with one, unused elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Read it first: it can do anything."""
