"""Rates from model sizes and data sheets: a roofline, before anything has run.

    decode step   (weight bytes + key-value bytes of every sequence) / bandwidth
    prefill       2 FLOP per parameter and token
    training      6 FLOP per parameter and token, 8 with activation checkpointing

Attention's own FLOP and the head's log-probs are left out; `commands/plan/devices.py` has what is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from commands.plan.devices import DeviceConfig
from commands.plan.fitting import fit_rates, read_run
from commands.plan.plan_config import PlanConfig
from commands.plan.prompts import LengthsConfig
from commands.plan.rates import RatesConfig, override
from commands.plan.timing import EngineRates
from commands.plan.workers import LearnerRates
from inputs.models import ModelsConfig, ModelSize, size_of
from settings.engine import EngineConfig
from settings.run import RunConfig

OPTIMIZER_BYTES = 28
"""Bytes per parameter that an optimizer step reads and writes: fp32 weights and two moments, gradients."""


def estimate_rates(
    config: RunConfig, device: DeviceConfig, models: ModelsConfig, lengths: LengthsConfig
) -> RatesConfig:
    """Rates of a run by the roofline; ValueError naming the model whose size is unknown or too large."""
    student = size_of(models.student, config.student.model_path, field="models.student")
    teacher = size_of(models.teacher, config.teacher.model_path, field="models.teacher")
    return RatesConfig(
        rollout=engine_rates("rollout", student, config.rollout.engine, device, lengths),
        teacher=engine_rates("teacher", teacher, config.teacher.engine, device, lengths),
        learner=learner_rates(config, student, device),
        lengths=lengths,
    )


def engine_rates(
    role: str, size: ModelSize, engine: EngineConfig, device: DeviceConfig, lengths: LengthsConfig
) -> EngineRates:
    """Rates of one engine over its devices."""
    one, num_devices = device.of(role), engine.tensor_parallel_size
    bandwidth = num_devices * one.bandwidth * device.decode_fraction
    flops = num_devices * one.flops * device.prefill_fraction
    free = num_devices * one.memory * engine.gpu_memory_fraction - size.weight_bytes
    context = lengths.prompt + _mean_progress(lengths)
    num_seqs = int(free / (size.kv_bytes_per_token * context))
    if num_seqs < 1:
        model = "student" if role == "rollout" else "teacher"
        raise ValueError(
            f"models.{model}: {size.weight_bytes / 1e9:.1f} GB of weights leave no space "
            f"on {num_devices} device(s) of {one.memory / 1e9:g} GB; raise {role}.engine.tensor_parallel_size"
        )
    per_sequence = max(size.kv_bytes_per_token * context / bandwidth, 2 * size.num_active / flops)
    return EngineRates(
        step_s=device.step_overhead_s + size.weight_bytes / bandwidth + per_sequence,
        sequence_s=per_sequence,
        max_num_seqs=min(engine.max_num_seqs, num_seqs),
        prefill_tokens_per_s=flops / (2 * size.num_active),
        call_s=device.call_overhead_s,
        fetch_s=size.weight_bytes / device.publish_bytes_per_s,
        load_s=size.weight_bytes / device.load_bytes_per_s,
    )


def learner_rates(config: RunConfig, student: ModelSize, device: DeviceConfig) -> LearnerRates:
    """Rates of the learner."""
    one = device.of("learner")
    flop_per_token = (8 if config.learner.activation_checkpointing else 6) * student.num_active
    shards = config.learner.num_workers if config.learner.zero_stage > 0 else 1
    optimizer_s = OPTIMIZER_BYTES * student.num_parameters / shards / one.bandwidth
    return LearnerRates(
        step_s=device.train_overhead_s + optimizer_s,
        tokens_per_s=one.flops * device.training_fraction / flop_per_token,
        publish_s=student.weight_bytes / device.publish_bytes_per_s,
    )


def _mean_progress(lengths: LengthsConfig) -> float:
    """Response tokens that a sequence has, on average over the tokens that are decoded: E[n^2] / 2 E[n]."""
    drawn = lengths.draw(4096, seed=0)
    return sum(num * num for num in drawn) / (2 * sum(drawn))


# -- planned rates -----------------------------------------------------------------------------------------
# The rates that a plan goes by, and where each of them comes from.


ENOUGH = {"rollout": "step_s", "teacher": "prefill_tokens_per_s", "learner": "tokens_per_s"}
"""With these three given, nothing has to be estimated."""


@dataclass(frozen=True)
class PlannedRates:
    """Rates, and what they are."""

    rates: RatesConfig
    origin: str
    """Where values come from that were not given: `estimated`, `fitted` or `default`."""
    given: Mapping[str, Any]

    def origin_of(self, section: str, name: str) -> str:
        """`given`, or where else a value comes from."""
        values = self.given.get(section, {}) if section else self.given
        return "given" if name in values else self.origin


def planned_rates(plan: PlanConfig, config: RunConfig) -> PlannedRates:
    """Rates given, fitted or estimated, in this order; ValueError if something cannot be known."""
    given = plan.rates.given()
    lengths = _lengths(config, given.get("lengths", {}))
    engine = {"max_num_seqs": config.rollout.engine.max_num_seqs}
    if plan.from_run is not None:
        origin, rates = "fitted", override(fit_rates(read_run(plan.from_run)), {"rollout": engine})
    elif all(name in given.get(section, {}) for section, name in ENOUGH.items()):
        origin, rates = "default", override(RatesConfig(lengths=lengths), {"rollout": engine})
    else:
        origin, rates = "estimated", estimate_rates(config, plan.device, plan.models, lengths)
    return PlannedRates(override(rates, given), origin, given)


def _lengths(config: RunConfig, given: Mapping[str, Any]) -> LengthsConfig:
    """Response lengths as given; the limit is that of the run."""
    most = config.rollout.max_response_tokens
    values: dict[str, Any] = {"median": min(300.0, max(1.0, most / 2)), "max": most} | dict(given)
    return override(RatesConfig(), {"lengths": values}).lengths
