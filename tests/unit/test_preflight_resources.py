"""Estimates of memory and disk by their arithmetic, and what nodes are found to lack."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.nodes import Node
from cluster.placement import plan
from commands.preflight.memory import GIB, Need, engine_need, learner_need, needs_of
from commands.preflight.nodes import (
    NodeFacts,
    checkpoint_bytes,
    describe_node,
    memory_findings,
    path_findings,
    placement_findings,
    roles_by_node,
    wanted_of,
)
from inputs.models import Shape
from settings.checks import Checks, Finding, RefusedError
from settings.learner import CheckpointConfig
from settings.run import RunConfig

pytestmark = pytest.mark.timeout(30)

QWEN3_8B = {
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151_936,
}
LARGE = Shape.of(QWEN3_8B, num_parameters=8.19e9)
assert LARGE is not None
SMALL = Shape(1e9, 28, 2048, 2048, 1024, 6144, 151_936)
H100 = 80 * 10**9


def settings(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "student": {"model_path": "s"},
        "teacher": {"model_path": "t"},
        "data": {"train_path": "d"},
    }
    for name, section in sections.items():
        base[name] = base.get(name, {}) | section
    return RunConfig.model_validate(base)


GPU = {"resources": {"num_gpus": 1}, "engine": {"max_model_len": 4096}}
ON_GPUS: dict[str, Any] = {"rollout": GPU, "teacher": GPU, "learner": {"resources": {"num_gpus": 1}}}


def node(memory_gib: float = 64.0, *, gpus: tuple[int, ...] = (), missing: tuple[str, ...] = ()) -> NodeFacts:
    return NodeFacts(int(memory_gib * GIB), int(memory_gib * GIB), gpus, missing, is_writable=True)


def part(need: Need, name: str) -> float:
    return next(each.num_bytes for each in (*need.device, *need.host) if each.name == name)


def test_a_cache_of_one_token_of_qwen3_8b_takes_144_kib() -> None:
    assert LARGE is not None
    assert LARGE.kv_bytes_per_token(2) == 144 * 1024  # 2 x 36 layers x 8 heads x 128 x 2 bytes


@pytest.mark.parametrize(
    ("stage", "weights", "summed", "optimizer"), [(0, 4, 4, 12), (1, 2, 4, 3), (2, 2, 1, 3), (3, 0.5, 1, 3)]
)
def test_stages_of_zero_divide_by_four_ranks_what_they_shard(
    stage: int, weights: float, summed: float, optimizer: float
) -> None:
    dtype = "bfloat16" if stage else "float32"
    need = learner_need(settings(learner={"zero_stage": stage, "num_workers": 4, "dtype": dtype}), SMALL)
    found = [part(need, name) / 1e9 for name in ("weights", "summed gradients", "optimizer")]
    assert found == pytest.approx([weights, summed, optimizer])


def test_activation_checkpointing_keeps_inputs_of_layers_alone() -> None:
    plain, checkpointed = (
        part(learner_need(settings(learner={"activation_checkpointing": on}), SMALL), "activations")
        for on in (False, True)
    )
    per_layer = SMALL.activation_bytes_per_token(2)
    assert plain == 8192 * 28 * per_layer
    assert checkpointed == 8192 * (28 * 2 * 2048 + per_layer)


def test_tensor_parallel_engines_share_weights_and_quantised_ones_are_half_as_large() -> None:
    config = settings(teacher={"engine": {"tensor_parallel_size": 2, "extra": {"quantization": "fp8"}}})
    need = engine_need("teacher", SMALL, config.teacher.engine, "bfloat16", is_on_gpu=True)
    assert part(need, "weights") == 1e9 * 1 / 2


def test_a_teacher_too_large_for_its_gpu_is_named() -> None:
    assert LARGE is not None
    config = settings(**ON_GPUS)
    needs = needs_of(config, {"student": SMALL, "teacher": LARGE})
    roles = {"node": Counter({"teacher": 1, "rollout": 1, "learner": 1})}
    fits, details = memory_findings(config, needs, roles, {"node": node(gpus=(H100,) * 3)})
    assert [each.status for each in fits] == ["ok"]
    assert any(
        line.startswith("teacher: ") and "8.19 B parameters x 2 bytes" in line for line in details["arithmetic"]
    )
    found, _ = memory_findings(config, needs, roles, {"node": node(gpus=(24 * 10**9,) * 3)})
    assert {each.message.split(":")[0] for each in found} == {"teacher", "learner"}
    assert {each.status for each in found} == {"error"}


def test_a_learner_that_shares_its_gpu_has_what_the_engines_leave() -> None:
    shared: dict[str, Any] = {
        "resources": {"num_gpus": 0.3},
        "engine": {"max_model_len": 512, "gpu_memory_fraction": 0.4},
    }
    config = settings(rollout=shared, teacher=shared, learner={"resources": {"num_gpus": 0.4}})
    needs = needs_of(config, {"student": SMALL, "teacher": SMALL})
    roles = {"node": Counter({"teacher": 1, "rollout": 1, "learner": 1})}
    [found], _ = memory_findings(config, needs, roles, {"node": node(gpus=(H100,))})
    assert found.message.startswith("learner: ")
    assert "may use 11.18 GiB of the 74.51 GiB" in found.message  # 0.95 - 2 x 0.4 = 0.15 of 80 GB


def test_workers_without_gpus_share_the_memory_of_their_node() -> None:
    config = settings()
    needs = needs_of(config, {"student": SMALL, "teacher": SMALL})
    roles = {"small": Counter({"learner": 1, "rollout": 1}), "large": Counter({"teacher": 1})}
    found, _ = memory_findings(config, needs, roles, {"small": node(16), "large": node(64)})
    [error] = [each for each in found if each.status == "error"]
    assert "node small: the workers need about" in error.message
    assert "1 x learner" in error.message
    assert "learner.micro_batch_tokens" in error.remedy


def test_models_of_unknown_size_are_a_warning() -> None:
    found, _ = memory_findings(settings(), [], {"node": Counter({"learner": 1})}, {"node": node()})
    assert [each.status for each in found] == ["warning"]
    assert "learner, rollout, teacher" in found[0].message


def test_a_node_that_lacks_a_model_is_an_error_only_if_it_gets_workers() -> None:
    facts = {"head": node(missing=("models/teacher",)), "gpu": node(missing=("models/teacher",)), "silent": node()}
    del facts["silent"]
    roles = {"head": Counter[str](), "gpu": Counter({"teacher": 1}), "silent": Counter({"rollout": 1})}
    found, _ = path_findings(facts, roles, runs_path="/runs")
    assert [(each.status, each.message) for each in found] == [
        ("warning", "node head has no models/teacher"),
        ("error", "node gpu has no models/teacher"),
        ("warning", "node silent did not say what it has"),
    ]


def test_a_plan_says_which_roles_a_node_gets() -> None:
    nodes = [Node("one", {"CPU": 2.0}), Node("two", {"CPU": 2.0})]
    roles = roles_by_node(plan(settings(rollout={"num_workers": 2})), nodes)
    assert sum(roles.values(), Counter()) == Counter({"learner": 1, "teacher": 1, "rollout": 2})
    assert [each.status for each in placement_findings(plan(settings(rollout={"num_workers": 2})), roles)] == [
        "ok"
    ]


def test_workers_that_wait_for_capacity_are_counted() -> None:
    demands = plan(settings(rollout={"num_workers": 5}))
    [found] = placement_findings(demands, roles_by_node(demands, [Node("one", {"CPU": 4.0})]))
    assert (found.status, found.message) == ("warning", "there is no capacity now for 3 of rollout")


def test_a_machine_tells_what_it_has(tmp_path: Path) -> None:
    facts = describe_node([str(tmp_path), str(tmp_path / "missing")], str(tmp_path))
    assert facts.missing == (str(tmp_path / "missing"),)
    assert facts.is_writable
    assert facts.memory_bytes >= facts.available_bytes > 0


def test_disks_hold_one_checkpoint_more_than_are_kept_and_those_that_are_there_count(tmp_path: Path) -> None:
    assert checkpoint_bytes(SMALL, item_bytes=2) == 14e9
    config = settings().model_copy(update={"checkpoint": CheckpointConfig(keep=3)})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "old").write_bytes(bytes(1000))
    checkpoints, export, rows = wanted_of(config, SMALL, run_folder=tmp_path, checkpoints=tmp_path / "checkpoints")
    assert checkpoints.num_bytes == 4 * 14e9 - 1000
    assert export.num_bytes == 2e9
    assert rows.num_bytes == pytest.approx(0.2 * GIB)


def test_findings_of_one_check_add_up_and_what_was_well_gives_way() -> None:
    checks = Checks(collects=True)
    checks.add("data", [Finding("ok", "fine")])
    checks.add("data", [Finding("error", "no file"), Finding("warning", "odd")])
    checks.add("data", [Finding("ok", "fine again")])
    [result] = checks.results
    assert (result.status, result.message) == ("error", "no file")


def test_an_error_that_nothing_could_run_with_is_not_forced() -> None:
    checks = Checks(force=["data"])
    checks.add("data", [Finding("error", "soft")])
    assert checks.forced == ["data"]
    with pytest.raises(RefusedError, match=r"soft; hard \(check data\)"):
        checks.add("data", [Finding("error", "hard", is_hard=True)])
