"""Estimates what the workers of each role need, with the arithmetic: weights, optimizer, activations, cache.

    learner   weights + gradients + optimizer (by ZeRO stage and ranks) + activations of one micro-batch + head
    engines   weights + key-value cache + the logits of one engine step

Estimates, of the right size for dense decoders; what allocators waste is in `max_memory_fraction`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from inputs.models import Shape
from learner.head_chunk import BLOCK_ELEMENTS, chunk_positions
from settings.engine import EngineConfig
from settings.run import RunConfig

GIB = 2**30
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_BYTES = 12
"""Per parameter: fp32 master weight and two moments."""
HOST_PROCESS_GIB = {"engine": 1.1, "learner": 0.7}
"""Resident memory of a worker process before its model: Python, torch, vLLM (an estimate for CPU builds)."""
DEVICE_PROCESS_GIB = 1.0
"""CUDA context, kernels and workspaces of one process on a GPU."""
QUANTISED_BYTES = {"fp8": 1.0}
"""Bytes per parameter of what vLLM quantises as it loads (`engine.extra.quantization`)."""
CPU_KV_CACHE_GIB = 1.0
"""Default cache of a CPU engine, as in `actors/vllm`."""


@dataclass(frozen=True)
class Part:
    """One summand."""

    name: str
    num_bytes: float
    how: str

    def __str__(self) -> str:
        return f"{self.name} {gib(self.num_bytes)} = {self.how}"


@dataclass(frozen=True)
class Need:
    """What one worker of a role needs on its device (per device), and of its node's memory."""

    role: str
    is_on_gpu: bool
    device: tuple[Part, ...]
    """Empty without a GPU."""
    host: tuple[Part, ...]
    device_fraction: float = 1.0
    """Share of the device that the worker may use."""
    cache: tuple[Part, ...] = ()
    """Least and configured size of the key-value cache, where it is given."""

    @property
    def device_bytes(self) -> float:
        """Of one device."""
        return sum(part.num_bytes for part in self.device)

    @property
    def host_bytes(self) -> float:
        """Of the node."""
        return sum(part.num_bytes for part in self.host)

    def lines(self) -> Iterator[str]:
        """The arithmetic for people."""
        if self.is_on_gpu:
            yield f"{self.role}: {gib(self.device_bytes)} per device: {'; '.join(map(str, self.device))}"
        yield f"{self.role}: {gib(self.host_bytes)} of node memory: {'; '.join(map(str, self.host))}"


def gib(num_bytes: float) -> str:
    """An amount for people."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 100 else f"{num_bytes / 2**20:.2f} MiB"


def needs_of(config: RunConfig, shapes: Mapping[str, Shape], *, holds_teacher_head: bool = False) -> list[Need]:
    """The needs of every role whose model's shape is known; shapes by role, the student's under `student`.

    `holds_teacher_head`: the objective needs the teacher's output head in every rank.
    """
    needs = list[Need]()
    if "student" in shapes:
        needs.append(
            learner_need(config, shapes["student"], shapes.get("teacher") if holds_teacher_head else None)
        )
    for role, scorer in config.scorers.items():
        if role in shapes:
            dtype = config.dtype_of(scorer.engine)
            is_on_gpu = scorer.resources.num_gpus > 0
            needs.append(engine_need(role, shapes[role], scorer.engine, dtype, is_on_gpu=is_on_gpu))
    if "student" in shapes:
        rollout = config.rollout
        is_on_gpu = rollout.resources.num_gpus > 0
        needs.append(
            engine_need("rollout", shapes["student"], rollout.engine, config.engine_dtype, is_on_gpu=is_on_gpu)
        )
    return needs


def engine_need(role: str, shape: Shape, engine: EngineConfig, dtype: str, *, is_on_gpu: bool) -> Need:
    """What one engine needs per device.

    To score, it takes the logits of a whole engine step and their log-softmax; to generate, of one token of every
    sequence.
    """
    item, num = ITEM_BYTES[dtype], engine.tensor_parallel_size * engine.pipeline_parallel_size
    split = f" / {num} devices" if num > 1 else ""
    parameters = f"{shape.num_parameters / 1e9:.4g} B parameters"
    stored = QUANTISED_BYTES.get(str(engine.extra.get("quantization")), shape.quantised_bytes or item)
    weights = Part("weights", shape.num_parameters * stored / num, f"{parameters} x {stored:g} bytes{split}")
    positions = engine.max_num_seqs if role == "rollout" else engine.step_tokens("cuda" if is_on_gpu else "cpu")
    how = f"2 x {positions} positions x {shape.num_rows} rows x 4 bytes{split}"
    logits = Part("logits", 8.0 * positions * shape.num_rows / num, how)
    per_token = shape.kv_bytes_per_token(item)
    length = engine.max_model_len or shape.context
    least = Part("cache", per_token * length / num, f"{length} tokens x {per_token:.0f} bytes{split}")
    given = engine.kv_cache_gib or (None if is_on_gpu else CPU_KV_CACHE_GIB)
    cache = least if given is None else Part("cache", given * GIB, f"kv_cache_gib {given:g}")
    process = _process("engine", is_on_gpu=is_on_gpu)
    caches = () if given is None else (least, cache)
    if not is_on_gpu:
        return Need(role, False, (), (weights, cache, logits, process), cache=caches)
    on_device = (weights, cache, logits, Part("process", DEVICE_PROCESS_GIB * GIB, "CUDA context"))
    return Need(role, True, on_device, (process,), engine.gpu_memory_fraction, cache=caches)


def learner_need(config: RunConfig, student: Shape, teacher: Shape | None = None) -> Need:
    """What one rank needs; `teacher` is given for objectives that hold its head."""
    learner = config.learner
    parts = [*_state_parts(config, student), *_step_parts(config, student)]
    if teacher is not None:
        item = ITEM_BYTES[config.dtype_of(config.teacher.engine)]
        size = teacher.num_rows * teacher.hidden * item
        parts.append(Part("teacher's head", size, f"{teacher.num_rows} rows x {teacher.hidden} x {item} bytes"))
    optimizer, copied = _optimizer(config, student), _checkpoint_copy(config, student)
    is_on_gpu = learner.resources.num_gpus > 0
    process = _process("learner", is_on_gpu=is_on_gpu)
    if not is_on_gpu:
        return Need("learner", False, (), (*parts, optimizer, copied, process))
    context = Part("process", DEVICE_PROCESS_GIB * GIB, "CUDA context")
    host, device = [copied, process], [*parts, context]
    (host if learner.offload_optimizer else device).append(optimizer)
    return Need("learner", True, tuple(device), tuple(host))


def _state_parts(config: RunConfig, student: Shape) -> list[Part]:
    learner, num = config.learner, student.num_parameters
    item, ranks, stage = ITEM_BYTES[learner.dtype], learner.num_workers, learner.zero_stage
    of_weights = ranks if stage == 3 else 1
    of_gradients = ranks if stage >= 2 else 1
    parameters = f"{num / 1e9:.4g} B parameters"
    return [
        Part("weights", num * item / of_weights, f"{parameters} x {item} bytes / {of_weights} (stage {stage})"),
        Part("gradients", num * item / of_weights, f"{parameters} x {item} bytes / {of_weights}"),
        Part("summed gradients", num * 4 / of_gradients, f"{parameters} x 4 bytes / {of_gradients}"),
    ]


def _optimizer(config: RunConfig, student: Shape) -> Part:
    ranks = config.learner.num_workers if config.learner.zero_stage >= 1 else 1
    num = student.num_parameters
    how = f"{num / 1e9:.4g} B parameters x {OPTIMIZER_BYTES} bytes / {ranks}"
    return Part("optimizer", num * OPTIMIZER_BYTES / ranks, how)


def _checkpoint_copy(config: RunConfig, student: Shape) -> Part:
    """An asynchronous checkpoint is written from a copy in the node's memory."""
    if not config.checkpoint.asynchronous:
        return Part("checkpoint copy", 0.0, "none, checkpoint.asynchronous is false")
    optimizer = _optimizer(config, student)
    weights = student.num_parameters * ITEM_BYTES[config.learner.dtype]
    return Part("checkpoint copy", optimizer.num_bytes + weights, "optimizer + weights")


def _step_parts(config: RunConfig, student: Shape) -> list[Part]:
    learner = config.learner
    item, tokens, layers = ITEM_BYTES[learner.dtype], learner.micro_batch_tokens, student.num_layers
    per_layer = student.activation_bytes_per_token(item)
    if learner.activation_checkpointing:
        inputs = item * student.hidden
        activations = tokens * (layers * inputs + per_layer)
        how = f"{tokens} tokens x ({layers} layers x {inputs} + {per_layer:.0f} bytes of one layer)"
    else:
        activations, how = (
            tokens * layers * per_layer,
            f"{tokens} tokens x {layers} layers x {per_layer:.0f} bytes",
        )
    rows = student.num_rows
    chunk = min(chunk_positions(learner.head_chunk_tokens, vocab_size=rows), tokens)
    kept = min(learner.head_kept_gib * GIB, float((tokens - chunk) * rows * item))
    # Logits of a chunk, two float32 blocks of it, and the sum of the weight's gradient.
    block = 2.0 * 4 * min(BLOCK_ELEMENTS, chunk * rows)
    summed = 4 if tokens > chunk else item
    head = chunk * rows * item + block + summed * rows * student.hidden
    how_head = f"{rows} rows x ({chunk} positions x {item} + {student.hidden} x {summed} bytes) + {gib(block)}"
    parts = [Part("activations", activations, how), Part("head", head, how_head)]
    return [*parts, Part("kept logits", kept, f"head_kept_gib {learner.head_kept_gib:g}")] if kept else parts


def _process(kind: str, *, is_on_gpu: bool) -> Part:
    size = HOST_PROCESS_GIB[kind] + (1.0 if is_on_gpu else 0.0)
    return Part("process", size * GIB, "Python, torch and their libraries")
