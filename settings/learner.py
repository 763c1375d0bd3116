"""Settings of checkpoints: when, how many, where."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from settings.engine import Count, Dtype, Fraction, NonNegative, Positive, Rate, ResourcesConfig, Seconds, Section


class CheckpointConfig(Section):
    """When checkpoints are written, how many are kept, and where."""

    every_steps: NonNegative = 50
    """Checkpoint every this many steps; 0 only at the end and on shutdown."""
    keep: Positive = 2
    """Newest checkpoints kept."""
    asynchronous: bool = True
    """Train on while a checkpoint is written, from a copy of the learner's state in host memory; false writes it
    while training waits, and needs memory for a copy of one file at a time."""
    retry_steps: Positive = 10
    """After a checkpoint that a full disk did not take, try again after so many steps, or when the next is due."""
    path: str | None = None
    """Folder or fsspec URL (`s3://bucket/folder`, `gs://...`) under which checkpoints are kept, in a sub-folder
    with the name of the run; by default `checkpoints` in the run folder. For a URL they are written in the run
    folder first and removed there once they are uploaded. Credentials come from where the storage's own tools
    look for them."""

    @model_validator(mode="after")
    def _path_is_usable(self) -> Self:
        if self.path is not None:
            check_location(self.path)
        return self

    @property
    def url(self) -> str | None:
        """The path if it is a URL."""
        return self.path if self.path is not None and "://" in self.path else None


def check_location(path: str) -> None:
    """Raise ValueError if checkpoints cannot be kept there; its text repeats no credentials."""
    if not path.strip():
        raise ValueError("checkpoint.path must not be empty (nearest valid: null)")
    scheme, has_scheme, rest = path.partition("://")
    if not has_scheme:
        return
    parts = urlsplit(path)
    is_account = scheme in ("abfs", "abfss", "az") and ":" not in parts.netloc  # container@account
    if parts.query or ("@" in parts.netloc and not is_account):
        raise ValueError(
            f"checkpoint.path must not hold credentials, got a {scheme}:// URL with some: it is written to "
            f"config.yaml (nearest valid: {scheme}://{parts.netloc.rpartition('@')[2]}{parts.path})"
        )
    if not rest.strip("/"):
        raise ValueError(f"checkpoint.path must name a folder, got {path!r}")
    if scheme == "memory":
        raise ValueError("checkpoint.path must outlive the run, got a memory:// URL (nearest valid: null)")
    _check_protocol(scheme)


def _check_protocol(scheme: str) -> None:
    from fsspec import available_protocols, get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(f"checkpoint.path: {scheme}:// needs a package that is missing: {error}") from error
    except ValueError as error:
        import difflib

        close = difflib.get_close_matches(scheme, available_protocols(), n=1, cutoff=0.5)
        nearest = f" (nearest valid: {close[0]}://)" if close else ""
        raise ValueError(f"checkpoint.path: unknown protocol {scheme}://{nearest}") from error


# -- learner config ----------------------------------------------------------------------------------------
# Settings of the learner.


class LearnerConfig(Section):
    """The DeepSpeed learner: data-parallel ranks, one Ray actor each."""

    num_workers: Count = 1
    """Ranks; the batch is split over them by tokens."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 0 replicates, 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    dtype: Dtype = "bfloat16"
    """Precision of forward and backward; the optimizer always holds fp32 master weights."""
    learning_rate: Rate = 5e-7
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after warm-up, over `max_steps`."""
    lr_final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at `max_steps` as a share of the peak (linear and cosine)."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up; the first step already trains, at peak / warmup_steps."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Rate = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this global norm; 0 switches clipping off."""
    micro_batch_tokens: Positive = 8192
    """Token budget of one forward and backward; sequences are packed into it without padding."""
    head_chunk_tokens: Positive | Literal["auto"] = "auto"
    """Positions per chunk of the log-prob head: peak memory is chunk x vocabulary, not batch x vocabulary. `auto`:
    as many as have 2^27 logits, 256 MiB in bfloat16."""
    head_kept_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.25
    """Keep up to so much of the log-prob head's logits, in GiB, from forward to backward: saves one of the head's
    four products (tokens x vocabulary x 2 bytes in bfloat16 hold all of a micro-batch). The last chunk is
    kept in any case: backward needs its room."""
    activation_checkpointing: bool = False
    """Recompute layer activations in backward: less memory for about a third more time."""
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory (GPU learners)."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers. With `sdpa` the sequences of a micro-batch are attended to one by
    one; flash_attention_2 takes them in one call."""
    num_threads: Positive = 1
    """CPU threads of one rank."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources of one rank."""
    deepspeed: dict[str, Any] = Field(default={})
    """Further DeepSpeed settings, merged over the generated ones."""


# -- weights config ----------------------------------------------------------------------------------------
# Settings of how published weights travel to the student engines.


class WeightsConfig(Section):
    """Weights on their way from the learner to the student engines."""

    transport: Literal["object_store", "nccl", "gloo"] = "object_store"
    """How weights travel: object_store, Ray's (engines may join, leave or die at any time); nccl, a broadcast from
    the learner's first GPU to a GPU of each node with student engines; gloo, the same over TCP between hosts.
    Where a broadcast fails, and for engines that it does not reach, the object store serves."""
    broadcast_timeout_s: Seconds = 60.0
    """With `nccl` or `gloo`: limit of forming the group, and of one broadcast. The learner waits so long for an
    engine that is missing, before the object store serves."""
    delta: bool = False
    """Also publish what changed since the version before, exactly: an engine that holds that version fetches only
    this. The learner's first rank keeps a copy of the last published weights in memory."""
    full_every: Positive = 20
    """With `delta`: every so many-th version is published without differences, so that every engine fetches it in
    full."""

    @property
    def is_broadcast(self) -> bool:
        """Whether a group of the learner and the engines is formed."""
        return self.transport != "object_store"


# -- export config -----------------------------------------------------------------------------------------
# Settings of the exported student.


class ExportConfig(Section):
    """What happens with the exported student at the end of a run."""

    push_to: Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", max_length=200)] | None = None
    """Model repository (`organisation/name`) on the Hugging Face hub that the export is uploaded to at the end.
    The login is that of `hf auth login` or HF_TOKEN, and is checked before the run starts."""
    private: bool = True
    """Whether a repository that is made for it is private."""
