"""The configuration of a run: one frozen, documented tree of settings, importable without torch, vLLM or Ray.

The string under each field is its documentation (`launch.py train --help` prints it). `settings/run_files.py`
reads it from YAML and dotted overrides. Commands check the objective's parameters with `rewards.validate`.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from settings.cluster import BalanceConfig, ClusterConfig, HealthConfig, limits_of
from settings.data import DataConfig
from settings.engine import (
    Count,
    EngineConfig,
    Fraction,
    NonNegative,
    Positive,
    ReferenceConfig,
    ResourcesConfig,
    Samples,
    ScorerConfig,
    Seconds,
    Section,
    TeacherConfig,
    TopK,
)
from settings.evaluation import EvaluationConfig
from settings.learner import CheckpointConfig, ExportConfig, LearnerConfig, WeightsConfig
from settings.objective import (
    ImportanceConfig,
    MasksConfig,
    ObjectiveConfig,
    OutcomeConfig,
    SurrogateConfig,
    TokenWeightsConfig,
)

MAX_NAME_LENGTH = 100
MAX_OPEN_ROLLOUTS = 10_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a run: it names a folder and a Ray actor, and is stored by other tools."""


def checked_run_name(name: str, field: str = "run_name") -> str:
    """Return the name; ValueError naming `field` if it could escape the runs' folder."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{field} must be letters, digits, '.', '_' and '-', the first a letter or digit, got {name[:80]!r}"
        )
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"{field} must have at most {MAX_NAME_LENGTH} characters, got {len(name)}")
    return name


WandbText = Annotated[str, Field(min_length=1, max_length=128)]


class LoggingConfig(Section):
    """Where progress is shown and recorded."""

    display: Literal["auto", "live", "plain"] = "auto"
    """live redraws a view of the run in the terminal; plain prints a line per step; auto is live on a terminal."""
    tensorboard: bool = True
    """Write TensorBoard events to the run folder."""
    diagnostics_every: NonNegative = 0
    """Steps between measurements that training does not need; 0 disables them: the gradient norm that the
    log-ratio reward would have had (`grad_norm/log_ratio`), which takes an extra forward and backward pass and
    temporarily a float32 copy of all gradients on every rank, not with learner.zero_stage 3; the effect of a
    baseline on the gradient's variance (`gradient_variance/ratio`); and, with full distributions,
    `topk/student_mass`."""
    save_batches: bool = False
    """Save every trained batch as Arrow files under `batches/`, to replay and inspect steps."""
    samples: NonNegative = 4
    """Problems whose responses before and after training are saved, with the reward of every token, to
    `samples.jsonl` for the report; 0 disables it."""
    prometheus: bool = True
    """Export metrics named `poweropd_...` through Ray, on the Prometheus port of the driver's node."""
    wandb_project: WandbText | None = None
    """Weights & Biases project; without it, nothing is sent. Needs the package `wandb` (`pip install
    'poweropd[wandb]'`). A resumed run continues the same W&B run."""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """offline writes to `wandb/` in the run folder, for `wandb sync`; disabled sends nothing."""
    wandb_entity: WandbText | None = None
    """User or team that owns the project; by default that of the login."""
    wandb_group: WandbText | None = None
    """W&B group of the run, e.g. for the seeds of one experiment."""
    wandb_tags: list[WandbText] = Field(default=[])
    """W&B tags of the run."""
    wandb_timeout_s: Seconds = 60.0
    """Maximum time for Weights & Biases to start, and to finish uploading at the end; the run waits no longer."""


class PreflightConfig(Section):
    """Limits of the checks made by `launch.py preflight`, and by `train` before it starts."""

    num_samples: Positive = 8
    """Prompts on which the chat templates of student and teachers are compared."""
    num_rows: Positive = 10_000
    """Number of prompts, from the first, whose lengths are counted."""
    max_memory_fraction: Fraction = 0.95
    """Maximum estimated memory of a role, as a fraction of its device's or node's."""
    min_free_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.2
    """Disk space, in GiB, to leave free for metrics, logs and ledger, in addition to checkpoints and export."""
    golden_limit: Annotated[float, Field(gt=0, le=1e12)] | None = None
    """Maximum mean absolute difference in log-probs of the golden sequence between two engines, or between an
    engine and the learner; by default 0.001 in float32 and 0.25 in bfloat16."""
    node_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Maximum time for each node of the cluster to report its resources."""


TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=50)]


class StudentConfig(Section):
    """The model that generates rollouts and is trained."""

    model_path: str
    """Hugging Face folder (or hub name) of the student, with its tokenizer and chat template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Review it first: it can do
    anything."""


class RolloutConfig(Section):
    """The pool of student engines, and how responses are sampled."""

    num_workers: Count = 1
    """Number of rollout workers (student engines)."""
    max_response_tokens: Positive = 1024
    """Maximum length of a response, which is then cut and counted as truncated."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Sampling temperature. Teachers are scored at temperature 1, so other values bias the reward."""
    top_p: Fraction = 1.0
    """Nucleus sampling; the PowerOPD paper uses 0.95."""
    top_k: TopK = -1
    """Sample from the k most likely tokens; -1 disables it. The PowerOPD paper uses 20."""
    stop_on: Literal["all", "student"] = "all"
    """Stop tokens that end a response: all, those of the student and its teachers, or the student's alone, as in
    the full-vocabulary runs of the PowerOPD paper's code. Evaluations end on all."""
    max_in_flight: Positive = 512
    """Maximum slots in flight on one worker; the start window also limits them."""
    max_attempts: Positive = 3
    """Attempts at a prompt that engines reject, before it is given up and counted, and its slot takes the next
    prompt. A prompt that has killed two engines on which it ran alone is given up too."""
    max_lost_attempts: Positive = 50
    """Attempts at a prompt that are lost with their workers or tables, before it is given up as `lost`."""
    resources: ResourcesConfig = ResourcesConfig()
    """Ray resources per worker."""
    engine: EngineConfig = EngineConfig()
    """vLLM settings."""


class RunConfig(Section):
    """A whole run. Every key can be set in YAML or on the command line (`--rollout.num_workers 2`)."""

    run_name: Annotated[str, AfterValidator(checked_run_name)] = "run"
    """Name of the run and of its folder: letters, digits, '.', '_' and '-', at most 100."""
    runs_path: str = "runs"
    """Folder for run folders; it must be reachable from every node."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all randomness: prompt order, sampling, initialisation."""
    max_steps: Positive = 100
    """Number of optimizer steps."""
    batch_size: Positive = 32
    """Slots (prompts) per step."""
    num_samples_per_prompt: Samples = 1
    """Responses per prompt: a slot's group."""
    max_staleness: NonNegative = 8
    """Maximum age of a trained token, in weight versions since it was sampled; 0 is synchronous."""
    batches_ahead: NonNegative | None = None
    """Batches that may start ahead of the current one; by default min(2, max_staleness)."""
    student: StudentConfig
    """The student."""
    data: DataConfig
    """Training prompts."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The objective."""
    importance: ImportanceConfig = ImportanceConfig()
    """Off-policy correction."""
    masks: MasksConfig = MasksConfig()
    """Response tokens excluded from training."""
    token_weights: TokenWeightsConfig = TokenWeightsConfig()
    """Token weights of advantages."""
    surrogate: SurrogateConfig = SurrogateConfig()
    """The policy-gradient loss."""
    rollout: RolloutConfig = RolloutConfig()
    """Rollout workers."""
    teacher: TeacherConfig
    """Teacher workers."""
    teachers: dict[TeacherName, TeacherConfig] = Field(default={})
    """Additional teachers by name, each with the settings of `teacher` and its own `sources`."""
    reference: ReferenceConfig = ReferenceConfig()
    """Workers of the reference model."""
    outcome: OutcomeConfig = OutcomeConfig()
    """Graded answers as an additional reward."""
    learner: LearnerConfig = LearnerConfig()
    """The learner."""
    weights: WeightsConfig = WeightsConfig()
    """Published weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    export: ExportConfig = ExportConfig()
    """The exported student."""
    logging: LoggingConfig = LoggingConfig()
    """Progress and logging."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""
    health: HealthConfig = HealthConfig()
    """Fault handling."""
    balance: BalanceConfig = BalanceConfig()
    """Automatic balance of the pools."""
    preflight: PreflightConfig = PreflightConfig()
    """Checks before a run."""

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
    def _window_is_possible(self) -> Self:
        num_batches, num_samples = 1 + self.num_batches_ahead, self.num_samples_per_prompt
        if num_batches * self.batch_size * num_samples > MAX_OPEN_ROLLOUTS:
            nearest = MAX_OPEN_ROLLOUTS // (num_batches * num_samples)
            field = f"batch_size must be <= {nearest}" if nearest else "batches_ahead must be smaller"
            raise ValueError(
                f"{field}: at most {MAX_OPEN_ROLLOUTS} rollouts may be open, (1 + batches_ahead) x batch_size x "
                f"num_samples_per_prompt; got {num_batches} x {self.batch_size} x {num_samples}"
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
        """Initial number of workers of each pool of engines, by role; excludes the learner's ranks."""
        return {"rollout": self.rollout.num_workers} | {r: each.num_workers for r, each in self.scorers.items()}

    def trusts_code_of(self, role: str) -> bool:
        """Whether the model's own code may run, for `student` or a role that scores."""
        return {"student": self.student, "reference": self.reference, **self.teacher_of_role}[
            role
        ].trust_remote_code

    @property
    def num_batches_ahead(self) -> int:
        """`batches_ahead` with its default filled in."""
        assert self.batches_ahead is not None
        return self.batches_ahead

    @property
    def max_evaluation_tokens(self) -> int:
        """Maximum length of an evaluation response."""
        return self.evaluation.max_response_tokens or self.rollout.max_response_tokens

    @property
    def engine_dtype(self) -> str:
        """Precision of the student engines, and so of published weights."""
        return self.dtype_of(self.rollout.engine)

    def dtype_of(self, engine: EngineConfig) -> str:
        """Precision of engines with these settings."""
        return self.learner.dtype if engine.dtype == "auto" else engine.dtype

    @property
    def scorers(self) -> dict[str, ScorerConfig]:
        """The pools that score, by role: `teacher`, `teacher-NAME` for each additional one, `reference` if any."""
        scorers: dict[str, ScorerConfig] = {**self.teacher_of_role}
        return scorers if self.reference.model_path is None else scorers | {"reference": self.reference}

    @property
    def teacher_of_role(self) -> dict[str, TeacherConfig]:
        """The teachers by role: `teacher`, and `teacher-NAME` for each of `teachers`."""
        return {"teacher": self.teacher} | {f"teacher-{name}": each for name, each in self.teachers.items()}
