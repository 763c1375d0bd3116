"""The training library behind the learner: the only module that imports DeepSpeed.

It builds the engine for ZeRO 0 to 3 in float32 or bfloat16, runs micro-batches so that gradients add up to
exactly the window's, and hides where parameters lie. Import it only after RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT are set.

Shapes: T response tokens of a micro-batch.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from learner.checkpoint_writer import CheckpointWriter, WriterEngine
from learner.collate import PackedBatch
from learner.engine_memory import REDUCE_BUCKET_ELEMENTS, convert_in_blocks
from learner.log_probs import HeadLimits, PositionFacts, PositionValue
from learner.packed_attention import use_packed_attention
from learner.ranks import Ranks
from learner.student import StudentModel
from learner.universal import CHECKPOINT_TAG
from records.checkpoints import universal_path
from settings.learner import LearnerConfig
from settings.run import RunConfig
from transport.collective import open_store

COMPILER_SWITCH = "TORCHDYNAMO_DISABLE"

HYPERPARAMETERS = ("betas", "eps", "weight_decay")
"""Of the optimizer: a checkpoint holds those that it was written with."""

LossOf = Callable[[PackedBatch, Tensor, Tensor], Tensor]
"""(micro-batch, logp_T with gradient, entropy_T) -> loss."""


@dataclass(frozen=True)
class StepOutcome:
    """What `step` did: the gradient norm before clipping, and whether a non-finite one stopped the update."""

    grad_norm: float
    was_skipped: bool


class DeepSpeedBackend:
    """The student under a DeepSpeed engine. Every method but `gathered` with ZeRO < 3 is a collective."""

    def __init__(self, config: RunConfig, *, ranks: Ranks, vocab_size: int) -> None:
        """Load the student and build the engine; log-probs are over the first `vocab_size` ids."""
        self.ranks = ranks
        self.zero_stage = config.learner.zero_stage
        settings = engine_settings(config.learner, world_size=ranks.world_size, device_type=ranks.device.type)
        student = load_student(config, settings, vocab_size=vocab_size)
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        is_compiled = str(settings["optimizer"]["type"]).lower() == "muon"  # by `learner.deepspeed` only
        self.engine: Any
        with nullcontext() if is_compiled else compiler_unused():
            self.engine, *_ = deepspeed.initialize(
                model=student,
                model_parameters=parameters,  # pyright: ignore[reportArgumentType]
                config=settings,
                dist_init_required=False,
            )
        convert_in_blocks(self.engine.optimizer)
        # It would copy a script to the folder, past our writer; `deepspeed.utils.zero_to_fp32` is that script.
        self.engine._copy_recovery_script = lambda save_path: None

    @property
    def student(self) -> StudentModel:
        """The module under the engine; with ZeRO-3 its parameters are empty outside `gathered`."""
        return self.engine.module

    def log_probs(
        self,
        batch: PackedBatch,
        position_value: PositionValue | None = None,
        position_facts: PositionFacts | None = None,
    ) -> tuple[Tensor, ...]:
        """Return (logp_T with gradient unless torch.no_grad is on, entropy_T, and what `StudentModel` adds)."""
        return self.engine(*_student_inputs(batch), position_value, position_facts)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this rank's `loss`; losses of all ranks and micro-batches count as one sum.

        DeepSpeed averages gradients over ranks, hence the factor. Every rank must make the same number of
        calls, and reductions over ranks end with the one that `is_last`.
        """
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * self.ranks.world_size, scale_wrt_gas=False)

    def gradient_norm(self, batches: Iterable[PackedBatch], loss_of: LossOf) -> float:
        """Return the norm of the gradient of losses that are not trained on; the training state stays as it is.

        The engine takes no part in it: `torch.autograd.grad` leaves its buffers, hooks and counters alone.
        Gradients add up in float32, which takes 4 bytes per parameter on every rank. ValueError with ZeRO-3,
        where no rank has memory for all of them.
        """
        if self.zero_stage == 3:
            raise ValueError("a second gradient is not measured with learner.zero_stage 3")
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        for batch in batches:
            loss = loss_of(batch, *self.student(*_student_inputs(batch)))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total += gradient
        squares = [self.ranks.sum(total).square().sum(dtype=torch.float64) for total in totals]
        return float(torch.stack(squares).sum().sqrt())

    def step(self, *, learning_rate: float) -> StepOutcome:
        """Clip, update and clear the gradients; a gradient that is not finite is cleared without an update."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.zero_stage == 0:
            return self._plain_step()
        self.engine.step()
        return StepOutcome(float(self.engine.get_global_grad_norm()), not self.engine.was_step_applied())

    def _plain_step(self) -> StepOutcome:
        """Step without ZeRO, in float32, where DeepSpeed neither measures nor checks the gradient."""
        gradients = [parameter.grad for parameter in self.student.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if is_finite := bool(norm.isfinite()):
            self.engine.step()
        else:
            self.engine.optimizer.zero_grad()
        return StepOutcome(float(norm), was_skipped=not is_finite)

    def gathered(self, parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Make full parameters readable inside the context; with ZeRO-3 every rank must enter it."""
        if self.zero_stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(list(parameters))

    def save(self, writer: CheckpointWriter) -> None:
        """Hand model, optimizer and master weights of this rank to the writer."""
        stock, self.engine.checkpoint_engine = self.engine.checkpoint_engine, WriterEngine(writer)
        try:
            self.engine.save_checkpoint(str(writer.folder), tag=CHECKPOINT_TAG, save_latest=False)
        finally:
            self.engine.checkpoint_engine = stock

    def load(self, path: Path) -> None:
        """Restore what `save` wrote, with the same number of ranks. The optimizer's settings are today's."""
        groups = self.engine.optimizer.param_groups
        configured = [{name: group[name] for name in HYPERPARAMETERS if name in group} for group in groups]
        loaded, _ = self.engine.load_checkpoint(str(path), tag=CHECKPOINT_TAG)
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {path / CHECKPOINT_TAG}")
        for group, values in zip(self.engine.optimizer.param_groups, configured, strict=True):
            group.update(values)

    def load_universal(self, path: Path) -> None:
        """Restore what `save` wrote with another number of ranks, after `learner.universal.convert`."""
        settings = self.engine._config
        settings.load_universal_checkpoint = True
        try:
            self.load(universal_path(path))
        finally:
            settings.load_universal_checkpoint = False

    def shutdown(self) -> None:
        """Leave the process group."""
        self.engine.destroy()
        deepspeed.comm.destroy_process_group()


def read_checkpoint_weights(path: Path, *, zero_stage: int) -> dict[str, Tensor]:
    """The student's weights in a checkpoint that `save` wrote, on the CPU, by the names of its causal model.

    With ZeRO they are the float32 master weights, put together from the parts of all ranks; without it they are
    what the model held. Needs no ranks, and memory for all of them.
    """
    if zero_stage == 0:
        [file] = (path / CHECKPOINT_TAG).glob("mp_rank_00_model_states.pt")
        weights = torch.load(file, map_location="cpu", weights_only=False)["module"]
    else:
        with redirect_stdout(io.StringIO()):  # it prints what it finds
            weights = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=CHECKPOINT_TAG) or {}
    prefix = "causal_lm."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _student_inputs(batch: PackedBatch) -> tuple[Tensor, ...]:
    return batch.input_ids_N, batch.position_ids_N, batch.source_positions_T, batch.target_ids_T


def join_process_group(*, rank: int, world_size: int, timeout_s: float, address: str, port: int) -> Ranks:
    """Connect the ranks, which meet where the first one listens; blocks until all are there.

    The device is the accelerator of this process.
    """
    accelerator: Any = get_accelerator()
    if accelerator.device_name() == "cpu":
        # Otherwise the start compiles a shared-memory all-reduce for a minute; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        device = torch.device("cpu")
    else:
        accelerator.set_device(0)
        device = torch.device(accelerator.device_name(0))
    # DeepSpeed's ZeRO-3 calls it in every step.
    warnings.filterwarnings("ignore", message=r".*reduce_scatter_tensor` is deprecated", category=FutureWarning)
    backend, timeout = accelerator.communication_backend_name(), timedelta(seconds=timeout_s)
    if not torch.distributed.is_initialized():
        store = open_store(address, port, is_host=rank == 0, world_size=world_size, timeout_s=timeout_s)
        torch.distributed.init_process_group(
            backend, timeout=timeout, world_size=world_size, rank=rank, store=store
        )
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    return Ranks(rank, world_size, device)


def engine_settings(config: LearnerConfig, *, world_size: int, device_type: str) -> dict[str, Any]:
    """Return DeepSpeed's settings, with `config.deepspeed` merged over them.

    Batch sizes are nominal: micro-batches are counted in tokens, and their boundary is set explicitly.
    """
    # DeepSpeed's own AdamW is compiled on first use. On GPUs it is only needed where offloading moves the
    # optimizer to the CPU.
    adam: dict[str, Any] = {"torch_adam": not (config.offload_optimizer and device_type != "cpu")}
    if device_type == "cpu":
        adam["fused"] = True  # one pass over memory; the default there is a loop of a dozen
    settings: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 2**31,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "betas": list(config.betas),
                "eps": config.eps,
                "weight_decay": config.weight_decay,
                **adam,
            },
        },
    }
    if config.offload_optimizer:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": device_type != "cpu"}
    return _merged(settings, config.deepspeed)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        is_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if is_nested else value
    return merged


def load_student(config: RunConfig, settings: dict[str, Any], *, vocab_size: int) -> StudentModel:
    """Return the student in the learner's dtype; with ZeRO-3 no rank ever holds all of it."""
    learner, path, trusts = config.learner, config.student.model_path, config.student.trust_remote_code
    with _partitioned_loading(settings) if learner.zero_stage == 3 else nullcontext():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            config=without_dropout(AutoConfig.from_pretrained(path, trust_remote_code=trusts)),
            trust_remote_code=trusts,
            use_safetensors=True,
            dtype=learner.dtype,
            attn_implementation=learner.attention,
        )
    causal_lm, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        raise ValueError(f"student.model_path: {path} has no {missing[0]} ({len(missing)} tensors are missing)")
    use_packed_attention(causal_lm)
    causal_lm.train()  # activation checkpointing is off in eval mode
    if learner.activation_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    limits = HeadLimits(
        vocab_size, chunk_tokens=learner.head_chunk_tokens, kept_bytes=int(learner.head_kept_gib * 2**30)
    )
    return StudentModel(causal_lm, limits)


def without_dropout(model_config: Any) -> Any:
    """Return the model configuration with every dropout rate at 0: the policy that sampled had none."""
    for name, value in model_config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(model_config, name, 0.0)
    return model_config


class _PartitionedLoading:
    """What transformers asks of its own HfDeepSpeedConfig, which needs the accelerate package."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.config = settings

    def is_zero3(self) -> bool:
        """Make `from_pretrained` build the model under `deepspeed.zero.Init`."""
        return True


@contextmanager
def _partitioned_loading(settings: dict[str, Any]) -> Iterator[None]:
    marker = _PartitionedLoading(settings)
    set_hf_deepspeed_config(marker)  # held by a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()


@contextmanager
def compiler_unused() -> Iterator[None]:
    """Let `torch.compile` return functions as they are, for the functions that it is given meanwhile.

    DeepSpeed decorates Muon's update with it, whatever the optimizer is. The decorator alone imports the whole
    compiler, which takes longer than everything else that DeepSpeed does at its start.
    """
    before = os.environ.get(COMPILER_SWITCH)
    os.environ[COMPILER_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[COMPILER_SWITCH]
        else:
            os.environ[COMPILER_SWITCH] = before
