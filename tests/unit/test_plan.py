"""Plans: estimates with closed-form numbers, predictions of thinned-out runs, and the cheapest worker counts."""

import json
from pathlib import Path
from typing import Any

import pytest

import launch
from commands.plan.coarse import coarse_run
from commands.plan.data_sheets import DEVICES
from commands.plan.devices import DeviceConfig
from commands.plan.estimate import estimate_rates, planned_rates
from commands.plan.plan_config import PlanConfig, SimulationConfig, TargetConfig
from commands.plan.prediction import Prediction, gpus_of, predict, with_workers, workers_of
from commands.plan.prompts import LengthsConfig
from commands.plan.rates import RatesConfig
from commands.plan.search import CountSearch, Search
from commands.plan.timing import EngineRates
from commands.plan.workers import LearnerRates
from inputs.models import ModelConfig, ModelsConfig, size_of
from settings.exit_codes import BAD_INPUT, FINISHED
from settings.run import RunConfig

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
GPU = {"resources": {"num_gpus": 1}}
MODELS = ModelsConfig(
    student=ModelConfig(parameters_b=1, kv_bytes_per_token=1e5),
    teacher=ModelConfig(parameters_b=10, kv_bytes_per_token=2e5),
)
EQUAL = LengthsConfig(prompt=100, median=200, spread=0, max=1000)
EFFORT = SimulationConfig(responses=400, steps=8)


def run_config(**settings: Any) -> RunConfig:
    values: dict[str, Any] = {
        "student": {"model_path": "none"},
        "data": {"train_path": "none"},
        "rollout": GPU,
        "teacher": {"model_path": "none", **GPU},
        "learner": GPU,
        "batch_size": 16,
    }
    return RunConfig.model_validate(values | settings)


# -- estimates --


def test_a_roofline_estimate_has_the_numbers_of_its_formulas() -> None:
    device = DeviceConfig(
        type="h100", decode_fraction=0.5, prefill_fraction=0.5, training_fraction=0.5, step_overhead_s=0.001
    )
    rates = estimate_rates(run_config(), device, MODELS, EQUAL)
    h100 = DEVICES["h100"]
    sequence_s = 1e5 * (100 + 100) / (h100.bandwidth / 2)
    assert rates.rollout.sequence_s == pytest.approx(sequence_s, rel=0.01)
    assert rates.rollout.step_s == pytest.approx(0.001 + 2e9 / (h100.bandwidth / 2) + sequence_s, rel=0.01)
    assert rates.teacher.prefill_tokens_per_s == pytest.approx(h100.flops / 2 / (2 * 10e9))
    assert rates.learner.tokens_per_s == pytest.approx(h100.flops / 2 / 6e9)
    assert rates.learner.publish_s == pytest.approx(2e9 / device.publish_bytes_per_s)
    recomputing = run_config(learner={**GPU, "activation_checkpointing": True})
    again = estimate_rates(recomputing, device, MODELS, EQUAL)
    assert again.learner.tokens_per_s == pytest.approx(h100.flops / 2 / 8e9)


def test_the_memory_left_for_keys_and_values_bounds_the_sequences() -> None:
    small = LengthsConfig(prompt=100_000, median=200, spread=0, max=1000)
    rates = estimate_rates(
        run_config(), DeviceConfig(type="l4"), MODELS.model_copy(update={"teacher": MODELS.student}), small
    )
    assert rates.rollout.max_num_seqs == int((24e9 * 0.85 - 2e9) / (1e5 * 100_100))
    large = MODELS.model_copy(update={"teacher": ModelConfig(parameters_b=11)})
    with pytest.raises(ValueError, match=r"models.teacher: 22.0 GB .* raise teacher.engine.tensor_parallel_size"):
        estimate_rates(run_config(), DeviceConfig(type="l4"), large, EQUAL)


def test_model_sizes_come_from_the_folder_or_must_be_given(tmp_path: Path) -> None:
    qwen3_0_6b = {
        **{"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8},
        **{"head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(qwen3_0_6b))
    size = size_of(ModelConfig(), str(tmp_path), field="models.student")
    assert size.num_parameters == pytest.approx(0.596e9, rel=0.01)
    assert size.kv_bytes_per_token == 28 * 2 * 8 * 128 * 2
    with pytest.raises(ValueError, match=r"models.student.parameters_b: required"):
        size_of(ModelConfig(), "none", field="models.student")
    (tmp_path / "config.json").write_text(json.dumps(qwen3_0_6b | {"num_experts": 8}))
    with pytest.raises(ValueError, match=r"models.student.parameters_b: required"):
        size_of(ModelConfig(), str(tmp_path), field="models.student")


def test_given_rates_replace_estimates_and_say_so() -> None:
    plan = PlanConfig.model_validate({"base": "x", "models": MODELS, "rates": {"rollout": {"step_s": 0.5}}})
    planned = planned_rates(plan, run_config(rollout={**GPU, "max_response_tokens": 77}))
    assert planned.rates.rollout.step_s == 0.5
    assert planned.origin_of("rollout", "step_s") == "given"
    assert planned.origin_of("rollout", "sequence_s") == "estimated"
    assert planned.rates.rollout.sequence_s != EngineRates().sequence_s
    assert planned.rates.lengths.max == 77
    everything = {"rollout": {"step_s": 1}, "teacher": {"prefill_tokens_per_s": 2}, "learner": {"tokens_per_s": 3}}
    planned = planned_rates(PlanConfig.model_validate({"base": "x", "rates": everything}), run_config())
    assert planned.origin == "default"
    assert planned.rates.learner.tokens_per_s == 3


# -- predictions --

RATES = RatesConfig(
    rollout=EngineRates(step_s=0.02, sequence_s=0.0004, max_num_seqs=256),
    teacher=EngineRates(prefill_tokens_per_s=40_000),
    learner=LearnerRates(step_s=0.3, tokens_per_s=30_000, publish_s=0.1),
    lengths=LengthsConfig(prompt=50, median=200, spread=0.8, max=2048),
)


def test_a_thinned_out_run_predicts_what_the_whole_one_does() -> None:
    config = run_config(batch_size=128, max_staleness=4, batches_ahead=1)
    whole = predict(config, RATES, SimulationConfig(responses=2048, steps=12))
    thin = predict(config, RATES, SimulationConfig(responses=900, steps=12))
    assert (whole.responses_per_simulated, thin.responses_per_simulated) == (1, 2)
    assert thin.tokens_per_s == pytest.approx(whole.tokens_per_s, rel=0.1)
    assert thin.staleness_mean == pytest.approx(whole.staleness_mean, abs=0.4)


def test_small_batches_are_simulated_for_more_steps_and_large_ones_thinned_out() -> None:
    small = coarse_run(run_config(batch_size=8), RATES, SimulationConfig(responses=800, steps=10))
    assert (small.factor, small.config.max_steps, small.num_warm_up) == (1, 6 + 100, 6)
    large = coarse_run(
        run_config(batch_size=1024, num_samples_per_prompt=8), RATES, SimulationConfig(responses=4000)
    )
    assert large.factor == 64  # 128 responses are left, in 22 steps
    assert (large.config.batch_size, large.config.num_samples_per_prompt) == (16, 8)


def test_equal_lengths_in_a_synchronous_run_take_the_sum_of_the_stages() -> None:
    rates = RATES.model_copy(update={"lengths": LengthsConfig(prompt=0, median=100, spread=0, max=100)})
    found = predict(run_config(max_staleness=0), rates, EFFORT)
    decode_s = 100 * (0.02 + 15 * 0.0004)
    score_s, train_s = 1600 / 40_000, 0.3 + 1600 / 30_000
    assert found.step_s == pytest.approx(decode_s + score_s + train_s + 0.1 + 0.2, rel=0.01)
    assert found.tokens_per_s == pytest.approx(1600 / found.step_s)
    assert (found.gpus, found.staleness_max) == (3, 0)
    assert found.gpu_hours_per_million_tokens == pytest.approx(3 / 3600 / (found.tokens_per_s / 1e6))


def test_workers_of_every_role_can_be_counted_and_changed() -> None:
    code = {"model_path": "none", "sources": ["code"], **GPU}
    config = run_config(teacher={"model_path": "none", "sources": ["math"], **GPU}, teachers={"code": code})
    assert workers_of(config) == {"rollout": 1, "teacher": 1, "teacher-code": 1, "learner": 1}
    changed = with_workers(config, {"rollout": 4, "teacher-code": 3, "learner": 2})
    assert workers_of(changed) == {"rollout": 4, "teacher": 1, "teacher-code": 3, "learner": 2}
    assert (gpus_of(config), gpus_of(changed)) == (4, 10)


# -- search --


def modelled(speeds: dict[str, float]) -> Any:
    """A prediction of a run whose every role has a speed per worker, and the slowest limits it."""

    def prediction(config: RunConfig) -> Prediction:
        workers = workers_of(config)
        each = {role: speeds[role] * count for role, count in workers.items()}
        slowest = min(each, key=lambda role: each[role])
        spare = 0.01 * sum(each.values()) / len(each) / 1000  # all help a little
        speed = each[slowest] * (1 + min(spare, 0.05))
        shares = {"rollout_wait": 0.3, "score_wait": 0.3, "train": 0.3, "publish": 0.1}
        gpus = float(sum(workers.values()))
        return Prediction(workers, 1.0, speed, 3600, 0, 0, shares, slowest, "advice", gpus, gpus, 1)

    return prediction


def searched(target: dict[str, Any], speeds: dict[str, float]) -> Search:
    lengths = LengthsConfig(prompt=0, median=100, spread=0, max=100)
    fast = RatesConfig(
        rollout=EngineRates(step_s=0.001, sequence_s=0),
        teacher=EngineRates(prefill_tokens_per_s=1e6),
        learner=LearnerRates(step_s=0, tokens_per_s=1e6, publish_s=0),
        lengths=lengths,
    )
    return CountSearch(run_config(), fast, TargetConfig.model_validate(target), modelled(speeds)).run()


def test_the_search_finds_the_cheapest_counts() -> None:
    found = searched({"tokens_per_s": 1000}, {"rollout": 260, "teacher": 400, "learner": 700})
    assert found.chosen is not None
    assert found.chosen.workers == {"rollout": 4, "teacher": 3, "learner": 2}
    assert len(found.candidates) <= 20
    assert found.chosen in found.candidates


def test_a_target_that_one_worker_of_each_reaches_needs_no_more() -> None:
    found = searched({"hours": 100}, {"rollout": 2000, "teacher": 2000, "learner": 2000})
    assert found.chosen is not None
    assert found.chosen.workers == {"rollout": 1, "teacher": 1, "learner": 1}
    assert len(found.candidates) == 1


def test_limits_are_kept_and_what_cannot_be_reached_is_said() -> None:
    limits = {"tokens_per_s": 1000, "max_workers": {"rollout": 2}}
    found = searched(limits, {"rollout": 260, "teacher": 400, "learner": 700})
    assert found.chosen is None
    assert "the target is not reached" in found.reason
    assert max(each.workers["rollout"] for each in found.candidates) == 2
    with pytest.raises(
        ValueError, match=r"target.max_workers: no role 'rollouts' \(roles: rollout, teacher, learner\)"
    ):
        searched({"tokens_per_s": 1, "max_workers": {"rollouts": 2}}, {})


def test_targets_that_the_rates_alone_rule_out_are_refused_before_any_simulation() -> None:
    slow = RATES.model_copy(update={"learner": LearnerRates(step_s=5, publish_s=1)})
    for rates, hours, reason in [
        (slow, 0.1, "learner's fixed part"),
        (RATES, 0.014, "it takes 5 rollout workers"),
    ]:
        target = TargetConfig(hours=hours, max_workers={"rollout": 3})
        found = CountSearch(run_config(), rates, target, lambda run: pytest.fail("simulated")).run()
        assert (found.chosen, found.candidates) == (None, [])
        assert reason in found.reason


def test_a_real_search_adds_workers_where_they_help() -> None:
    config = run_config(max_staleness=8)
    rates = RATES.model_copy(update={"rollout": EngineRates(step_s=0.05, sequence_s=0.005, max_num_seqs=256)})
    before = predict(config, rates, EFFORT)
    target = TargetConfig(tokens_per_s=1.5 * before.tokens_per_s)
    found = CountSearch(config, rates, target, lambda run: predict(run, rates, EFFORT)).run()
    assert found.chosen is not None
    assert found.chosen.workers["rollout"] >= 2
    assert (found.chosen.workers["teacher"], found.chosen.workers["learner"]) == (1, 1)
    assert found.chosen.tokens_per_s >= 1.5 * before.tokens_per_s


# -- the command --


def test_the_command_prints_numbers_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "plan",
        "--config",
        str(ROOT / "configs/plan.yaml"),
        "--base",
        str(ROOT / "configs/qwen3/0.6b_from_4b.yaml"),
    ]
    arguments += ["--simulation.responses", "64", "--simulation.steps", "4", "--target.tokens_per_s", "100"]
    assert launch.main([*arguments, "--json"]) == FINISHED
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["prediction"]["workers"] == {"rollout": 4, "teacher": 2, "learner": 2}
    assert numbers["options"] == "--rollout.num_workers 1 --teacher.num_workers 1 --learner.num_workers 1"
    assert launch.main(arguments) == FINISHED
    text = capsys.readouterr().out
    assert "chosen" in text
    assert "scale: --run NAME --rollout 1 --teacher 1" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target.hours", "2"], "target must have tokens_per_s or hours, not both"),
        (["--device.type", "h1000"], "nearest valid: h100"),
        (["--rates.rollout.step", "1"], "did you mean rates.rollout.step_s?"),
        (["--overrides.rollout.num_worker", "1"], "did you mean rollout.num_workers?"),
        (["--from_run", "runs/nothing-here"], "from_run: runs/nothing-here is no run folder"),
        (["--rates.lengths.median", "5000"], "lengths.median must be <= lengths.max"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_simulated(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "plan",
        "--config",
        str(ROOT / "configs/plan.yaml"),
        "--base",
        str(ROOT / "configs/qwen3/0.6b_from_4b.yaml"),
    ]
    assert launch.main([*arguments, *options]) == BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
