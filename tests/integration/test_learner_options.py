"""Every option of the objective with the real learner, on policy: the student comes closer to the teacher.

A tiny student samples its own responses, a tiny teacher scores them, and each batch is trained twice, the second
time one version stale. The reverse KL is exact, over the whole vocabulary, at the sampled prefixes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from learner.served import check_objective, signal_kind
from settings.objective import ImportanceConfig, ObjectiveConfig
from settings.run import RunConfig
from tests.integration.test_learner_ranks import (
    LENGTHS,
    READ_OUT_GRADIENT,
    make_rank,
    parameters_on_disk,
    read_weights,
    relative,
    run_ranks,
    share,
)
from tests.unit.test_learner_scene import (
    run_config,
    save_student,
    scored_table,
)
from transport.batches import SAMPLED, TeacherSignal, scored_schema

pytestmark = pytest.mark.timeout(1200)

HIDDEN, NUM_ROWS, PROMPT, RESPONSE, NUM_STEPS = 64, 48, 3, 8, 8
FULL = TeacherSignal("full", hidden_size=HIDDEN, dtype="float32")

OWN_RATIO = {"importance": {"name": "none"}}
OPTIONS: dict[str, dict[str, Any]] = {
    "log_ratio": {"objective": {"name": "log_ratio"}},
    "log_clip": {"objective": {"name": "log_clip"}},
    "log_tanh": {"objective": {"name": "log_tanh"}},
    "veto_reverse": {"objective": {"name": "veto_reverse", "beta_start": 0.2}},
    "opd_plus fkl": {"objective": {"name": "opd_plus", "divergence": "fkl", "log_ratio_bound": 2.0}},
    "opd_plus rkl": {"objective": {"name": "opd_plus", "divergence": "rkl"}},
    "opd_plus jsd": {"objective": {"name": "opd_plus", "divergence": "jsd"}},
    "reopold": {"objective": {"name": "reopold", "switch_step": 2, "entropy_top": 0.5}},
    "discount": {"objective": {"name": "log_ratio", "discount": 0.5}},
    "iw_opd": {"token_weights": {"name": "iw_opd"}},
    "special tokens": {"special_token_ids": [5, 9]},
    "truncated": {"masks": {"drop_truncated": True}},
    "entropy_top": {"masks": {"selection": "entropy_top", "top_fraction": 0.5}},
    "fire_opd mask": {"masks": {"selection": "fire_opd"}},
    "decoupled weight": {"importance": {"name": "decoupled"}},
    "unclipped": {"surrogate": {"name": "unclipped"}, **OWN_RATIO},
    "ppo": {"surrogate": {"name": "ppo"}, **OWN_RATIO},
    "decoupled_ppo": {"surrogate": {"name": "decoupled_ppo"}, **OWN_RATIO},
    "dppo": {"surrogate": {"name": "dppo"}, **OWN_RATIO},
    "tip": {"masks": {"selection": "tip"}},
    "fire_opd weight": {"token_weights": {"name": "fire_opd"}},
    "baseline of power": {"objective": {"baseline": "closed_form"}},
    "baseline of log_ratio": {"objective": {"name": "log_ratio", "baseline": "closed_form"}},
    "baseline of veto_reverse": {
        "objective": {"name": "veto_reverse", "beta_start": 0.2, "baseline": "closed_form"}
    },
}


@torch.no_grad()
def roll_out(student: Any, teacher: Any, signal: TeacherSignal, *, version: int) -> tuple[pa.Table, float]:
    """Return a scored table of responses that the student samples, and its exact reverse KL to the teacher."""
    generator = torch.Generator().manual_seed(version)
    ids_BN = torch.randint(0, 60, (NUM_ROWS, PROMPT), generator=generator)
    for _ in range(RESPONSE):
        p_BV = student(input_ids=ids_BN).logits[:, -1].softmax(-1)
        ids_BN = torch.cat([ids_BN, p_BV.multinomial(1, generator=generator)], dim=1)
    response_BT, predicting = ids_BN[:, PROMPT:], slice(PROMPT - 1, -1)
    hidden_BTH = teacher.model(input_ids=ids_BN).last_hidden_state[:, predicting]
    log_p_BTV = student(input_ids=ids_BN).logits[:, predicting].log_softmax(-1)
    log_t_BTV = teacher.lm_head(hidden_BTH).log_softmax(-1)

    def sampled(log_probs_BTV: Tensor) -> list[list[float]]:
        return log_probs_BTV.gather(2, response_BT[:, :, None])[:, :, 0].tolist()

    behaviour, scores = sampled(log_p_BTV), sampled(log_t_BTV)
    rows = []
    for row, base in enumerate(scored_table([(PROMPT, RESPONSE)] * NUM_ROWS, version=version).to_pylist()):
        response = response_BT[row].tolist()
        base |= {"prompt_token_ids": ids_BN[row, :PROMPT].tolist(), "response_token_ids": response}
        base |= {"teacher_target_ids": response, "behaviour_log_probs": behaviour[row]}
        base |= {"teacher_log_probs": scores[row], "teacher_hidden": hidden_BTH[row].numpy().tobytes()}
        rows.append(base | {"finish_reason": "stop" if row % 2 else "length"})
    schema = scored_schema(signal)
    rows = [{name: row[name] for name in schema.names} for row in rows]
    return pa.Table.from_pylist(rows, schema=schema), float(
        (log_p_BTV.exp() * (log_p_BTV - log_t_BTV)).sum(-1).mean()
    )


def configured(name: str, paths: dict[str, str], **learner: Any) -> tuple[RunConfig, TeacherSignal, list[int]]:
    """Return the checked configuration of an option, what the teacher sends for it, and its special tokens."""
    given = {section: dict(values) for section, values in OPTIONS[name].items() if section != "special_token_ids"}
    objective = given.pop("objective", {"name": "power", "alpha": 1.0})
    given["logging"] = {"diagnostics_every": int(objective.get("baseline") == "closed_form")}
    config = run_config(paths["student"], learner={"learning_rate": 2e-3, **learner}, **given)
    config = config.model_copy(
        update={
            "teacher": config.teacher.model_copy(update={"model_path": paths["teacher"]}),
            "objective": ObjectiveConfig.model_validate({"stop_mode": "raw", **objective}),
            "importance": ImportanceConfig.model_validate(given.get("importance", {})),
        }
    )
    config = check_objective(config)
    signal = FULL if signal_kind(config) == "full" else SAMPLED
    return config, signal, OPTIONS[name].get("special_token_ids", [])


def open_learner(name: str, paths: dict[str, str], rank: int, world_size: int, port: int, **learner: Any) -> Any:
    config, signal, special_token_ids = configured(name, paths, **learner)
    settings = {"signal": signal, "special_token_ids": special_token_ids}
    return make_rank(config, rank, world_size, port, **settings)


def read(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def train_options(rank: int, world_size: int, port: int, paths: dict[str, str], out: str) -> None:
    """Train each option for a few steps; leaves exact KLs and metrics in a file."""
    teacher, found = read(paths["teacher"]), {}
    for name in OPTIONS:
        learner = open_learner(name, paths, rank, world_size, port)
        student = learner.backend.student.causal_lm
        divergences, metrics = [], []
        for step in range(NUM_STEPS + 1):
            table, divergence = roll_out(student, teacher, learner.signal, version=2 * step)
            divergences.append(divergence)
            if step < NUM_STEPS:
                metrics += [learner.train_step(2 * step + again, table).metrics for again in (0, 1)]
        found[name] = {"divergences": divergences, "metrics": metrics}
    Path(out).write_text(json.dumps(found))


OVER_THE_WINDOW = ["entropy_top", "tip", "fire_opd mask", "fire_opd weight", "reopold", "decoupled_ppo"]


def one_step_of_each(rank: int, world_size: int, port: int, paths: dict[str, str], folder: str) -> None:
    teacher, student = read(paths["teacher"]), read(paths["student"])
    for name in OVER_THE_WINDOW:
        learner = open_learner(name, paths, rank, world_size, port, **READ_OUT_GRADIENT)
        table, _ = roll_out(student, teacher, learner.signal, version=0)
        # Unequal shares: the second rank has a third of the rows.
        rows = [row for row in range(NUM_ROWS) if world_size == 1 or (row % 3 == 0) == (rank == 1)]
        metrics = learner.train_step(0, table.take(rows)).metrics
        parts = list(learner.publish(0, 1))
        if rank == 0:
            torch.save({"weights": read_weights(parts)[0], "metrics": metrics}, f"{folder}/{name}_{world_size}.pt")


def test_what_looks_at_the_window_sees_all_ranks(tmp_path: Path) -> None:
    paths = {
        "student": save_student(tmp_path / "student"),
        "teacher": save_student(tmp_path / "teacher", tied=False, seed=7),
    }
    start = parameters_on_disk(paths["student"])
    for world_size in (1, 2):
        run_ranks(one_step_of_each, world_size, paths, str(tmp_path))
    for name in OVER_THE_WINDOW:
        alone, together = (torch.load(tmp_path / f"{name}_{world_size}.pt") for world_size in (1, 2))
        assert relative(together["weights"], alone["weights"], start) <= 1e-5, name
        assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_every_option_brings_the_student_closer_to_the_teacher(tmp_path: Path) -> None:
    paths = {
        "student": save_student(tmp_path / "student"),
        "teacher": save_student(tmp_path / "teacher", tied=False, seed=7),
    }
    out = tmp_path / "found.json"
    run_ranks(train_options, 1, paths, str(out))
    found = json.loads(out.read_text())
    assert found.keys() == OPTIONS.keys()
    for name, run in found.items():
        assert all(np.isfinite(value) for step in run["metrics"] for value in step.values()), name
        assert run["divergences"][-1] < 0.95 * run["divergences"][0], (name, run["divergences"])
        check_metrics(name, run["metrics"])


def check_metrics(name: str, steps: list[dict[str, float]]) -> None:
    """What an option must show in its metrics besides training."""
    num_tokens = NUM_ROWS * RESPONSE
    trained = [step["tokens_trained"] for step in steps]
    if name in ("entropy_top", "tip"):
        assert trained == [num_tokens / 2] * len(steps)
    elif name == "truncated":
        assert steps[0]["masked/truncated"] == num_tokens / 2 == trained[0]
    elif name == "special tokens":
        assert 0 < steps[0]["masked/special"] == num_tokens - trained[0]
    elif name == "reopold":
        assert steps[0]["masked/selection"] > 0
        assert trained[2:] == [num_tokens / 2] * (len(steps) - 2)
    elif name.startswith("baseline"):
        assert all(step["gradient_variance/raw"] > 0 for step in steps)
        assert all(step["gradient_variance/ratio"] > 0 for step in steps)
        assert 0 < steps[0]["topk/student_mass"] < 1
    elif name in ("unclipped", "ppo", "dppo"):
        assert steps[1]["importance/min"] < 1 < steps[1]["importance/max"]


def with_and_without_diagnostics(rank: int, world_size: int, port: int, model_path: str, folder: str) -> None:
    table = scored_table(LENGTHS, ends_with=62)
    for stage, dtype in ((0, "float32"), (1, "bfloat16"), (2, "float32"), (2, "bfloat16")):
        found = {}
        for every in (0, 1):
            config = run_config(
                model_path,
                learner={"zero_stage": stage, "dtype": dtype, "max_grad_norm": 0.05},
                objective={"name": "log_ratio"},
                logging={"diagnostics_every": every},
            )
            objective = ObjectiveConfig(name="log_ratio", stop_mode="raw")
            config = config.model_copy(update={"objective": objective})
            learner = make_rank(config, rank, world_size, port)
            metrics = [learner.train_step(step, share(table, rank, world_size)).metrics for step in range(3)]
            parts = list(learner.publish(0, 3))
            found[every] = {"metrics": metrics, "weights": read_weights(parts)[0] if rank == 0 else {}}
        if rank == 0:
            torch.save(found, f"{folder}/{stage}_{dtype}.pt")


def test_the_log_ratios_gradient_is_measured_without_a_trace_in_training(tmp_path: Path) -> None:
    run_ranks(with_and_without_diagnostics, 2, save_student(tmp_path / "student"), str(tmp_path))
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 4
    for file in files:
        found = torch.load(file)
        without, measured = found[0], found[1]
        assert without["weights"].keys() == measured["weights"].keys()
        for name, value in without["weights"].items():
            assert torch.equal(value, measured["weights"][name]), (file.name, name)
        for off, on in zip(without["metrics"], measured["metrics"], strict=True):
            norm = on.pop("grad_norm/log_ratio")
            assert off == on, file.name
            # In bfloat16 DeepSpeed rounds what it sends between ranks.
            rel = 1e-3 if "bfloat16" in file.name else 1e-5
            assert norm == pytest.approx(on["grad_norm"], rel=rel), file.name
            assert norm > 0.05
