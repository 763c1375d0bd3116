"""Settings of the learner, its published weights, checkpoints, and the exported student."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from settings.engine import Count, Dtype, Fraction, NonNegative, Positive, Rate, ResourcesConfig, Seconds, Section


class CheckpointConfig(Section):
    """When checkpoints are written, how many are kept, and where."""

    every_steps: NonNegative = 50
    """Steps between checkpoints; 0 writes one only at the end and on shutdown."""
    keep: Positive = 2
    """Number of newest checkpoints to keep."""
    asynchronous: bool = True
    """Continue training while a checkpoint is written from a copy of the learner's state in host memory. If false,
    training waits, and only one file at a time is copied."""
    retry_steps: Positive = 10
    """Steps before retrying a checkpoint that failed because the disk was full, unless the next is due earlier."""
    path: str | None = None
    """Folder or fsspec URL (`s3://bucket/folder`, `gs://...`) for checkpoints, which go into a sub-folder named
    after the run; by default `checkpoints` in the run folder. For a URL, they are written to the run folder first
    and removed there once uploaded. Credentials are found as the storage's own tools find them."""

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
    """ValueError if checkpoints cannot be kept there; its text repeats no credentials."""
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


DECIDED_BY = {
    ("zero_optimization", "stage"): "learner.zero_stage decides it",
    ("bf16", "enabled"): "learner.dtype decides it",
    ("fp16", "enabled"): "learner.dtype decides it",
    ("data_types", "grad_accum_dtype"): "gradients of micro-batches add up in float32",
}
"""Settings of DeepSpeed that are not the user's."""


class LearnerConfig(Section):
    """The DeepSpeed learner: data-parallel ranks, one Ray actor each."""

    num_workers: Count = 1
    """Number of ranks; the batch is split over them by tokens."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: 0 replicates (float32 only), 1 shards optimizer state, 2 also gradients, 3 also parameters."""
    dtype: Dtype = "bfloat16"
    """Precision of forward and backward; the optimizer always holds fp32 master weights."""
    learning_rate: Rate = 5e-7
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after warm-up, over `max_steps`."""
    lr_final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at `max_steps` as a fraction of the peak (linear and cosine)."""
    warmup_steps: NonNegative = 0
    """Linear warm-up steps; the first step trains at peak / warmup_steps."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay rates for the first and second moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Rate = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Rate = 1.0
    """Global norm to which gradients are clipped; 0 disables clipping."""
    micro_batch_tokens: Positive = 8192
    """Token budget of one forward and backward pass; sequences are packed into it without padding."""
    head_chunk_tokens: Positive | Literal["auto"] = "auto"
    """Positions per chunk of the log-prob head: peak memory is chunk x vocabulary, not batch x vocabulary. `auto`
    gives chunks of 2^27 logits, 256 MiB in bfloat16."""
    head_kept_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.25
    """Memory, in GiB, for logits of the log-prob head kept from forward to backward, which saves one of the head's
    four matrix products. Keeping all of a micro-batch takes tokens x vocabulary x 2 bytes in bfloat16. The last
    chunk is always kept: backward reuses its memory."""
    activation_checkpointing: bool = False
    """Recompute layer activations in backward: saves memory for about a third more time."""
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory (GPU learners)."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers. `sdpa` processes the sequences of a micro-batch one by one;
    flash_attention_2 takes them in one call."""
    num_threads: Positive = 1
    """CPU threads per rank."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources per rank."""
    deepspeed: dict[str, Any] = Field(default={})
    """Additional DeepSpeed settings, merged over the generated ones."""

    @model_validator(mode="after")
    def _gradients_add_up_in_float32(self) -> Self:
        if self.zero_stage == 0 and self.offload_optimizer:
            raise ValueError("learner.offload_optimizer needs learner.zero_stage >= 1, got 0")
        if self.zero_stage == 0 and self.dtype == "bfloat16":
            raise ValueError(
                "learner.zero_stage must be >= 1 with learner.dtype bfloat16, got 0: without ZeRO, gradients of "
                "micro-batches add up in bfloat16 (nearest valid: 1)"
            )
        for (section, key), reason in DECIDED_BY.items():
            given = self.deepspeed.get(section)
            if isinstance(given, dict) and key in given:
                raise ValueError(f"learner.deepspeed.{section}.{key} must not be set: {reason}")
        return self


class WeightsConfig(Section):
    """Transfer of weights from the learner to the student engines."""

    transport: Literal["object_store", "nccl", "gloo"] = "object_store"
    """object_store: Ray's object store, which engines may join and leave at any time. nccl: a broadcast from the
    learner's first GPU to one GPU of each node with student engines. gloo: the same over TCP between hosts. If a
    broadcast fails or does not reach an engine, the object store is used."""
    broadcast_timeout_s: Seconds = 60.0
    """With `nccl` or `gloo`: maximum time to form the group, and for one broadcast. After that, the object store
    is used."""
    delta: bool = False
    """Also publish the exact differences from the previous version: engines that hold it fetch only these. The
    learner's first rank keeps a copy of the last published weights in memory."""
    full_every: Positive = 20
    """With `delta`: interval, in versions, at which all engines fetch the full weights instead of differences."""

    @property
    def is_broadcast(self) -> bool:
        """Whether the learner and the engines form a broadcast group."""
        return self.transport != "object_store"


class ExportConfig(Section):
    """Upload of the exported student at the end of a run."""

    push_to: Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", max_length=200)] | None = None
    """Model repository (`organisation/name`) on the Hugging Face hub to upload the export to. Log in with `hf auth
    login` or HF_TOKEN; the login is checked before the run starts."""
    private: bool = True
    """Whether a newly created repository is private."""
