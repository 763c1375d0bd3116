"""The configuration of a run: one frozen, documented tree of settings, importable without torch, vLLM or Ray.

The string under each field is its documentation (`launch.py train --help` prints it). Reading YAML and dotted
overrides lives in `settings/load.py`. Objective parameters are checked by `rewards.validate`, which
`launch.py` calls, since this package imports nothing of ours.
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
    ScorerConfig,
    Seconds,
    Section,
    TeacherConfig,
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

# -- run name ----------------------------------------------------------------------------------------------
# Which names a run may have: its name is that of a folder, of an actor, and part of what other tools store.


MAX_LENGTH = 100
ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def checked_run_name(name: str, field: str = "run_name") -> str:
    """Return the name; ValueError naming `field` if it could lead out of the runs' folder, or is not portable."""
    if not ALLOWED.fullmatch(name):
        raise ValueError(
            f"{field} must be letters, digits, '.', '_' and '-', the first a letter or digit, got {name[:80]!r}"
        )
    if len(name) > MAX_LENGTH:
        raise ValueError(f"{field} must have at most {MAX_LENGTH} characters, got {len(name)}")
    if name.endswith("."):
        raise ValueError(f"{field} must not end in a dot, got {name!r} (nearest valid: {name.rstrip('.')})")
    return name


# -- logging config ----------------------------------------------------------------------------------------
# Settings of what a person sees of a run: the live view, dashboards, what is kept.


WandbText = Annotated[str, Field(min_length=1, max_length=128)]


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
    samples: NonNegative = 4
    """Problems whose responses before and after training are kept, token by token with their rewards, in
    `samples.jsonl` for the report; 0 is none."""
    prometheus: bool = True
    """Metrics named `poweropd_...` through Ray, on the Prometheus port of the driver's node."""
    wandb_project: WandbText | None = None
    """Weights & Biases project; nothing is sent without it. The package `wandb` must be installed
    (`pip install 'poweropd[wandb]'`); a resumed run continues the same run there."""
    wandb_mode: Literal["online", "offline", "disabled"] = "online"
    """offline writes to `wandb/` in the run folder, for `wandb sync`; disabled is like no project."""
    wandb_entity: WandbText | None = None
    """User or team that the project belongs to; by default that of the login."""
    wandb_group: WandbText | None = None
    """Group of the run, e.g. for seeds of one experiment."""
    wandb_tags: list[WandbText] = Field(default=[])
    """Tags of the run."""
    wandb_timeout_s: Seconds = 60.0
    """So long Weights & Biases may take to begin and, at the end, to send the rest; the run never waits longer."""


# -- preflight config --------------------------------------------------------------------------------------
# Settings of the checks before a run.


class PreflightConfig(Section):
    """Limits of the checks that `launch.py preflight` makes, and `train` before it starts."""

    num_samples: Positive = 8
    """Prompts on which the chat templates of student and teachers are rendered and compared."""
    num_rows: Positive = 10_000
    """Prompts whose lengths are counted; the first so many."""
    max_memory_fraction: Fraction = 0.95
    """A role's estimated memory may be this share of what its device or node has."""
    min_free_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.2
    """Disk space that must stay free beside checkpoints and export, in GiB: metrics, logs, ledger."""
    golden_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest mean absolute difference of log-probs of the golden sequence between two engines, or between an
    engine and the learner; by default 0.001 in float32 and 0.25 in bfloat16."""
    node_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Wait so long for every node of the cluster to say what it has."""


TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=50)]


class StudentConfig(Section):
    """The model that is trained, and that generates."""

    model_path: str
    """Hugging Face folder (or hub name) of the student, with its tokenizer and chat template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model (`auto_map`), on every node. Read it first: it can do anything."""


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
    export: ExportConfig = ExportConfig()
    """The exported student."""
    logging: LoggingConfig = LoggingConfig()
    """Progress."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray."""
    health: HealthConfig = HealthConfig()
    """Faults."""
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
    def max_evaluation_tokens(self) -> int:
        """Tokens after which an evaluation response is cut."""
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
        """The pools that score, by role: `teacher`, `teacher-NAME` of each further one, `reference` if any."""
        scorers: dict[str, ScorerConfig] = {**self.teacher_of_role}
        return scorers if self.reference.model_path is None else scorers | {"reference": self.reference}

    @property
    def teacher_of_role(self) -> dict[str, TeacherConfig]:
        """The teachers by role: `teacher`, and `teacher-NAME` for each of `teachers`."""
        return {"teacher": self.teacher} | {f"teacher-{name}": each for name, each in self.teachers.items()}
