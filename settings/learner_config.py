"""Settings of the learner."""

from typing import Annotated, Any, Literal

from pydantic import Field

from settings.engine import Count, Dtype, Fraction, NonNegative, Positive, Rate, ResourcesConfig, Section


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
