"""The configuration of a run: one frozen, documented tree of settings, importable without torch, vLLM or Ray.

The string under each field is its documentation (`launch.py train --help` prints it). Reading YAML and dotted
overrides lives in `cluster/settings.py`. Objective parameters are checked by `rewards.validate`, which
`launch.py` calls, since this package imports nothing of ours.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cluster.balance_config import BalanceConfig, limits_of
from cluster.checkpoint_config import CheckpointConfig
from cluster.engine_config import (
    Count,
    Dtype,
    EngineConfig,
    Fraction,
    Gib,
    NonNegative,
    Positive,
    Rate,
    ReferenceConfig,
    ResourcesConfig,
    ScorerConfig,
    Seconds,
    Section,
    TeacherConfig,
)
from cluster.health_config import HealthConfig
from cluster.run_name import checked_run_name
from cluster.token_config import MasksConfig, NamedSection, SurrogateConfig, TokenWeightsConfig
from cluster.weights_config import WeightsConfig

TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=50)]


class StudentConfig(Section):
    """The model that is trained, and that generates."""

    model_path: str
    """Hugging Face folder (or hub name) of the student, with its tokenizer and chat template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Read it first: it can do anything."""


class DataConfig(Section):
    """Prompts to roll out on: JSON lines with a `problem` and, for evaluation, an `answer`."""

    train_path: str
    """JSONL file of training problems, one object per line: `{"id", "problem", "answer", "source"}`."""
    system_prompt: str | None = None
    """Text of a system message put before every problem; none by default."""
    template_arguments: dict[str, Any] = Field(default={})
    """Extra arguments of the chat template, e.g. `{enable_thinking: false}` for Qwen3."""


class RolloutConfig(Section):
    """The pool of student engines, and how responses are sampled."""

    num_workers: Count = 1
    """Rollout workers (student engines)."""
    max_response_tokens: Positive = 1024
    """A response is cut after this many tokens and counted as truncated."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Sampling temperature. Teachers are scored at temperature 1, so other values bias the reward."""
    top_p: Fraction = 1.0
    """Nucleus sampling; the PowerOPD paper uses 0.95."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Sample among the k most likely tokens; -1 is all. The PowerOPD paper uses 20."""
    max_in_flight: Positive = 512
    """Slots in flight on one worker; the start window bounds them further."""
    max_attempts: Positive = 3
    """Attempts for one prompt that engines refuse before it is given up, counted, and its slot takes the next
    prompt. A prompt that has killed two engines on which it was alone is given up too."""
    max_lost_attempts: Positive = 50
    """Attempts for one prompt that may be lost with their workers or tables; then it is given up as `lost`."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources of one worker."""
    engine: EngineConfig = EngineConfig()
    """vLLM settings."""


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
    head_chunk_tokens: Positive = 256
    """Positions per chunk of the log-prob head: peak memory is chunk x vocabulary, not batch x vocabulary."""
    head_kept_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.0
    """Keep up to so much of the log-prob head's softmax, in GiB, from forward to backward: saves one of the head's
    four products (tokens x vocabulary x 2 bytes in bfloat16 hold all of a micro-batch)."""
    activation_checkpointing: bool = False
    """Recompute layer activations in backward: less memory for about a third more time."""
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory (GPU learners)."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers; flash_attention_2 packs best on GPUs."""
    num_threads: Positive = 1
    """CPU threads of one rank."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources of one rank."""
    deepspeed: dict[str, Any] = Field(default={})
    """Further DeepSpeed settings, merged over the generated ones."""


class ObjectiveConfig(NamedSection):
    """What is optimized. Keys besides these are the objective's own parameters (`alpha`, `low`, ...)."""

    name: str = "power"
    """Reward of each sampled token (power, log_ratio, log_clip, log_tanh, ...), or divergence of the two
    distributions (reverse_kl, forward_kl, jsd, lsm, ...), which decides what the teacher sends."""
    normaliser: str = "none"
    """Normalisation of rewards over the window: none, zscore, sign_max_abs."""
    discount: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A token is credited with the rewards that follow it in its response too, each `discount` times less per
    token; taken of normalised rewards. 0, the default of every published method, credits its own reward alone."""
    baseline: Literal["none", "closed_form"] = "none"
    """closed_form subtracts from each reward what the student expects at its position (power, log_ratio,
    veto_reverse): the same gradient in expectation, with another variance; `gradient_variance/ratio` reports it.
    The teacher sends whole distributions then."""
    aggregate: Literal["window_token_mean", "seq_mean_token_mean", "seq_mean_token_sum"] = "window_token_mean"
    """How token losses become one number."""
    stop_mode: Literal["raw", "mask", "cross_eos"] = "mask"
    """The last token, if it is a stop token: raw trains it as sampled, mask drops it, cross_eos asks the
    teacher for its own stop token in the student's place."""


class ImportanceConfig(NamedSection):
    """Off-policy correction of stale tokens. Keys besides `name` are its parameters (`low`, `high`)."""

    name: str = "truncated"
    """Weight of a token: none, or truncated (`min(exp(logp - behaviour_logp), high)`). Divergences take none."""


class OutcomeConfig(Section):
    """Graded final answers as a second reward: `rl_coef * advantage + opd_coef * reward` on every token."""

    rl_coef: Rate = 0.0
    """Coefficient of the advantage of a response among the responses to its prompt; 0 grades nothing."""
    opd_coef: Rate = 1.0
    """Coefficient of the objective's reward, after its normaliser; 0 is reinforcement learning alone."""
    std: Literal["sample", "population", "none"] = "sample"
    """What a group's advantages are divided by: its sample or population standard deviation, or nothing."""


class EvaluationConfig(Section):
    """Held-out evaluation with the rollout workers."""

    data_path: str | None = None
    """JSONL file of held-out problems with answers; no evaluation without it."""
    benchmark: str = "heldout"
    """Name of the benchmark in `eval.jsonl`."""
    every_steps: NonNegative = 0
    """Evaluate every this many steps; 0 only before and after training."""
    num_samples: Positive = 8
    """Responses per problem (n)."""
    k: Positive = 8
    """avg@k and pass@k are taken over the first k responses."""
    max_problems: Positive | None = None
    """Use only the first so many problems."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature at evaluation."""
    top_p: Fraction = 1.0
    """Nucleus sampling at evaluation."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Top-k sampling at evaluation; -1 is all."""
    max_response_tokens: Positive | None = None
    """Response limit at evaluation; by default the rollout's."""
    teacher: bool = True
    """Evaluate every teacher once before training; not with objectives on whole distributions (reverse_kl, ...),
    for which its engines have no output head."""

    @model_validator(mode="after")
    def _k_within_samples(self) -> Self:
        if self.k > self.num_samples:
            raise ValueError(f"evaluation.k must be <= evaluation.num_samples ({self.num_samples}), got {self.k}")
        return self


class LoggingConfig(Section):
    """Where progress goes."""

    display: Literal["auto", "live", "plain"] = "auto"
    """Live view on a terminal, one plain line per step otherwise."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    diagnostics_every: NonNegative = 10
    """Measure on every so many-th step, from the first, what the log-ratio's gradient norm would have been
    (`grad_norm/log_ratio`): one more forward and backward, and for that time a float32 copy of all gradients on
    every rank, next to those of a micro-batch. Not with learner.zero_stage 3. 0 is never."""
    save_batches: bool = False
    """Keep every trained batch as Arrow files under `batches/`, so that steps can be replayed and examined."""
    wandb_project: str | None = None
    """Weights & Biases project; the `wandb` package must be installed."""


class ClusterConfig(Section):
    """The Ray cluster, and how long anything is waited for."""

    address: str | None = None
    """Address of a Ray cluster (`auto`, `HOST:6379`, `ray://...`); by default RAY_ADDRESS or a local Ray."""
    num_cpus: Positive | None = None
    """Logical CPUs of a local Ray; by default those of the machine."""
    object_store_gib: Gib = 1.0
    """Object store of a local Ray."""
    dashboard: bool = False
    """Start the dashboard of a local Ray, at port 8265."""
    dashboard_host: Annotated[str, Field(pattern=r"^[0-9A-Za-z.:_-]{1,253}$")] = "127.0.0.1"
    """Address the dashboard of a local Ray listens at; other machines reach it at any but a loopback address, and
    its pages, though not its jobs API, are shown without the token."""
    learner_strategy: Literal["pack", "strict_pack", "spread"] = "pack"
    """Nodes of the learner's ranks: few, one (or none start), or as many as there are."""
    teacher_strategy: Literal["pack", "spread"] = "pack"
    """Nodes of the workers of each teacher and of the reference: few, or as many as there are."""
    rollout_strategy: Literal["pack", "spread"] = "spread"
    """Nodes of the rollout workers: few, or as many as there are."""
    placement_timeout_s: Seconds = 300.0
    """Wait so long for the cluster to provide resources that it could have."""
    start_timeout_s: Seconds = 900.0
    """Wait so long for engines and ranks to start."""
    rollout_timeout_s: Seconds = 1800.0
    """Longest wait for the next finished rollout."""
    score_timeout_s: Seconds = 600.0
    """Longest wait for a scoring call."""
    step_timeout_s: Seconds = 1800.0
    """Longest wait for a training step, publish or checkpoint; a frozen rank is found by it."""
    load_timeout_s: Seconds = 600.0
    """Longest wait for an engine to load weights."""
    drain_timeout_s: Seconds = 120.0
    """So long a worker that is scaled away may take to finish what it has; the rest is done by others."""


class RunConfig(Section):
    """A whole run. Every key can be set in YAML or on the command line (`--rollout.num_workers 2`)."""

    run_name: Annotated[str, AfterValidator(checked_run_name)] = "run"
    """Name of the run and of its folder: letters, digits, '.', '_' and '-', at most 100."""
    runs_path: str = "runs"
    """Folder that holds run folders; it must be reachable from every node."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every random choice: prompt order, sampling, initialisation."""
    max_steps: Positive = 100
    """Optimizer steps."""
    batch_size: Positive = 32
    """Slots (prompts) per step."""
    num_samples_per_prompt: Positive = 1
    """Responses per prompt: a slot's group."""
    max_staleness: NonNegative = 8
    """No trained token was sampled more than this many weight versions earlier; 0 is synchronous."""
    batches_ahead: NonNegative | None = None
    """Batches that may be started beyond the current one; default min(2, max_staleness)."""
    student: StudentConfig
    """The student."""
    data: DataConfig
    """Training prompts."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The objective."""
    importance: ImportanceConfig = ImportanceConfig()
    """Off-policy correction."""
    masks: MasksConfig = MasksConfig()
    """Response tokens that are left out."""
    token_weights: TokenWeightsConfig = TokenWeightsConfig()
    """Weights of advantages."""
    surrogate: SurrogateConfig = SurrogateConfig()
    """The loss of an advantage."""
    rollout: RolloutConfig = RolloutConfig()
    """Rollout workers."""
    teacher: TeacherConfig
    """Teacher workers."""
    teachers: dict[TeacherName, TeacherConfig] = Field(default={})
    """Further teachers by name, each with the settings of `teacher` and its own `sources`."""
    reference: ReferenceConfig = ReferenceConfig()
    """Workers of the reference model."""
    outcome: OutcomeConfig = OutcomeConfig()
    """Graded answers as a second reward."""
    learner: LearnerConfig = LearnerConfig()
    """The learner."""
    weights: WeightsConfig = WeightsConfig()
    """Published weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    logging: LoggingConfig = LoggingConfig()
    """Progress."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray."""
    health: HealthConfig = HealthConfig()
    """Faults."""
    balance: BalanceConfig = BalanceConfig()
    """Automatic balance of the pools."""

    @model_validator(mode="after")
    def _staleness_is_consistent(self) -> Self:
        if self.batches_ahead is None:
            object.__setattr__(self, "batches_ahead", min(2, self.max_staleness))
        if self.num_batches_ahead > self.max_staleness:
            raise ValueError(
                f"batches_ahead must be <= max_staleness ({self.max_staleness}), got {self.batches_ahead}"
            )
        return self

    @model_validator(mode="after")
    def _transport_is_possible(self) -> Self:
        if self.weights.transport == "nccl":
            for name, section in (("learner", self.learner), ("rollout", self.rollout)):
                if section.resources.num_gpus == 0:
                    raise ValueError(
                        f"weights.transport must be 'object_store' without GPUs, got 'nccl' with "
                        f"{name}.resources.num_gpus 0 (nearest valid: object_store)"
                    )
        return self

    @model_validator(mode="after")
    def _balance_is_possible(self) -> Self:
        if self.balance.enabled:
            if self.max_staleness == 0:
                raise ValueError(
                    "balance.enabled must be false with max_staleness 0, whose stages take turns, got true "
                    "(nearest valid: max_staleness 1)"
                )
            limits_of(self.balance, self.workers_of_role)
        return self

    @property
    def workers_of_role(self) -> dict[str, int]:
        """Workers of every pool of engines at the start, by role; the learner's ranks are not among them."""
        return {"rollout": self.rollout.num_workers} | {r: each.num_workers for r, each in self.scorers.items()}

    def trusts_code_of(self, role: str) -> bool:
        """Whether the code that comes with a model may run: of `student` or of a role that scores."""
        return {"student": self.student, "reference": self.reference, **self.teacher_of_role}[
            role
        ].trust_remote_code

    @property
    def num_batches_ahead(self) -> int:
        """`batches_ahead` with its default filled in."""
        assert self.batches_ahead is not None
        return self.batches_ahead

    @property
    def engine_dtype(self) -> str:
        """Precision of the student engines, and so of published weights."""
        return self.dtype_of(self.rollout.engine)

    def dtype_of(self, engine: EngineConfig) -> str:
        """Precision of engines with these settings."""
        return self.learner.dtype if engine.dtype == "auto" else engine.dtype

    @property
    def scorers(self) -> dict[str, ScorerConfig]:
        """The pools that score, by role: `teacher`, `teacher-NAME` of each further one, `reference` if any."""
        scorers: dict[str, ScorerConfig] = {**self.teacher_of_role}
        return scorers if self.reference.model_path is None else scorers | {"reference": self.reference}

    @property
    def teacher_of_role(self) -> dict[str, TeacherConfig]:
        """The teachers by role: `teacher`, and `teacher-NAME` for each of `teachers`."""
        return {"teacher": self.teacher} | {f"teacher-{name}": each for name, each in self.teachers.items()}
