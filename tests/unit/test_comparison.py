"""The plan, the numbers and the figures of a comparison, from run folders written here."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.checks import load_checked
from commands.compare.command import memory_of, run_all
from commands.compare.figures import CURVES, draw_curves
from commands.compare.plan import ATTEMPTS, CompareConfig, PlannedRun, describe, plan_runs
from commands.compare.results import build_rows, positions_of, to_markdown, write_results
from records.files import append_row
from settings.load import save_config

pytestmark = pytest.mark.timeout(60)

MAX_STEPS = 4
BASE = """
max_steps: 4
student: {model_path: student}
teacher: {model_path: teacher}
data: {train_path: train.jsonl}
evaluation: {data_path: heldout.jsonl, every_steps: 2}
"""


def compare_config(folder: Path, **changes: Any) -> CompareConfig:
    (folder / "base.yaml").write_text(BASE)
    values: dict[str, Any] = {
        "base": str(folder / "base.yaml"),
        "runs_path": str(folder / "runs"),
        "output_path": str(folder / "results"),
        "seeds": [3, 5],
        "objectives": [
            {"label": "vanilla", "settings": {"objective.name": "log_ratio"}},
            {"label": "power alpha 5", "settings": {"objective.name": "power", "objective.alpha": 5}},
        ],
    }
    return CompareConfig.model_validate(values | changes)


def planned(folder: Path, **changes: Any) -> list[PlannedRun]:
    return plan_runs(compare_config(folder, **changes))


def finish(
    run: PlannedRun, *, accuracies: tuple[float, ...], norms: tuple[float, ...], wall_s: float = 10.0
) -> None:
    """Write what a finished run leaves, with these accuracies at steps 0, 2, 4 and norms of steps 1 to 4."""
    folder = run.folder
    folder.path.mkdir(parents=True)
    save_config(run.config, folder.path / "config.yaml")
    for step, accuracy in zip((0, 2, 4), accuracies, strict=True):
        name = {0: "student_before", 4: "student_after"}.get(step, "student")
        row = {"step": step, "model": name, "avg_at_k": accuracy, "pass_at_k": 1.0, "mean_length": 20.0 + step}
        append_row(folder.evaluations, row)
    for step, norm in enumerate(norms, start=1):
        row = {
            "step": step,
            "grad_norm": norm,
            "tokens_trained": 100,
            "kl/reverse": 0.5,
            "response_length/mean": 9.0,
        }
        row |= {f"reward/position_{i}": 0.1 * i for i in range(10)}
        row |= {f"reward_std/position_{i}": 0.2 for i in range(10)}
        append_row(folder.metrics, row)
        append_row(folder.ledger, {"step": step, "uids": [f"{step}-0-p-0"]})
    folder.summary.write_text(json.dumps({"steps": MAX_STEPS, "wall_s": 1.0}))
    append_row(
        folder.path.parent / ATTEMPTS,
        {"run": run.config.run_name, "exit_code": 0, "wall_s": wall_s, "peak_memory_gib": 2.0},
    )


def test_every_objective_has_its_first_seed_before_any_has_its_second(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    names = [run.config.run_name for run in runs]
    assert names == ["vanilla-seed3", "power-alpha-5-seed3", "vanilla-seed5", "power-alpha-5-seed5"]
    assert [run.config.seed for run in runs] == [3, 3, 5, 5]
    assert runs[1].config.objective.parameters["alpha"] == 5
    assert "--objective.alpha=5" in runs[1].options
    assert {describe(run) for run in runs} == {"new"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"objectives": [{"label": "a b"}, {"label": "A-b"}]}, "is there twice"),
        ({"overrides": {"seed": 1}}, "seed is set by the comparison itself"),
        ({"objectives": [{"label": "a", "settings": {"max_steps": 9}}]}, "a: max_steps must be the same for all"),
        (
            {"objectives": [{"label": "a", "settings": {"evaluation.k": 1}}]},
            r"a: evaluation\.k must be the same for all",
        ),
        ({"objectives": [{"label": "a", "settings": {"rollout.top_p": 2}}]}, r"a: rollout\.top_p must be <= 1"),
    ],
)
def test_runs_of_one_name_or_that_cannot_be_compared_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        planned(tmp_path, **changes)


def test_a_run_folder_made_with_other_settings_is_refused_and_named(tmp_path: Path) -> None:
    finish(planned(tmp_path)[0], accuracies=(0.1, 0.2, 0.3), norms=(1.0,) * 4)
    assert describe(planned(tmp_path)[0]) == "finished"
    with pytest.raises(ValueError, match=r"vanilla-seed3 was made with batch_size 32, now it is 8"):
        planned(tmp_path, overrides={"batch_size": 8})
    planned(tmp_path, overrides={"logging.display": "plain"})


def test_the_table_has_mean_and_spread_over_seeds_of_each_number(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    finish(runs[0], accuracies=(0.1, 0.5, 0.5), norms=(8.0, 2.0, 4.0, 2.0), wall_s=10.0)
    finish(runs[2], accuracies=(0.1, 0.3, 0.7), norms=(4.0, 1.0, 1.0, 1.0), wall_s=20.0)
    finish(runs[1], accuracies=(0.1, 0.2, 0.9), norms=(1.0, 1.0, 1.0, 1.0))
    vanilla, power = build_rows(runs)
    assert vanilla.seeds == [3, 5]
    assert vanilla.mean["avg_at_k"] == pytest.approx(0.6)
    assert vanilla.spread["avg_at_k"] == pytest.approx(0.1 * math.sqrt(2))
    assert vanilla.mean["steps_to_90_percent"] == 3.0  # 2 and 4
    assert vanilla.mean["first_grad_norm"] == 6.0
    assert vanilla.mean["median_grad_norm"] == 2.0  # 3 and 1
    assert vanilla.mean["wall_s"] == 15.0
    assert vanilla.mean["tokens_trained"] == 400
    assert power.seeds == [3]
    assert power.spread["avg_at_k"] is None
    text = to_markdown([vanilla, power], k=8)
    assert "| vanilla | 3 5 | 0.600 \u00b1 0.141 |" in text
    assert "| power alpha 5 | 3 | 0.900 |" in text


def test_any_metric_of_the_steps_can_be_a_column(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    finish(runs[0], accuracies=(0.1, 0.5, 0.5), norms=(1.0,) * 4)
    rows = build_rows(runs, ["kl/reverse", "never/recorded"])
    assert rows[0].mean["kl/reverse"] == 0.5
    assert rows[0].mean["never/recorded"] is None
    text = to_markdown(rows, k=8)
    assert "`kl/reverse`" in text
    assert "never" not in text


def test_a_comparison_cut_short_writes_what_it_has_and_names_what_is_missing(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    finish(runs[0], accuracies=(0.1, 0.5, 0.5), norms=(8.0, 2.0, 4.0, 2.0))

    said: list[str] = []
    write_results(compare_config(tmp_path), runs, say=said.append)
    folder = tmp_path / "results"
    text = (folder / "table.md").read_text()
    assert "Not finished, and not in the table: power-alpha-5-seed3, vanilla-seed5, power-alpha-5-seed5." in text
    table = json.loads((folder / "table.json").read_text())
    assert table["objectives"][0]["mean"]["avg_at_k"] == 0.5
    assert table["objectives"][1]["mean"]["avg_at_k"] is None
    for name in ("accuracy", "grad_norm", "kl_reverse", "response_length", "reward_by_position", "reward_plane"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.svg").stat().st_size > 1000
    assert "results" in said[-1]


def test_the_spread_by_position_is_that_of_all_tokens_together(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    finish(runs[0], accuracies=(0.1, 0.5, 0.5), norms=(1.0,) * 4)
    mean_P, std_P = positions_of(runs)["vanilla"]
    np.testing.assert_allclose(mean_P, 0.1 * np.arange(10))
    np.testing.assert_allclose(std_P, 0.2)


def test_curves_of_seeds_are_drawn_over_their_common_steps(tmp_path: Path) -> None:
    draw_curves(CURVES[0], {"a": [{0: 0.1, 2: 0.2}, {0: 0.2, 2: 0.3, 4: 0.4}]}, tmp_path / "curve")
    assert (tmp_path / "curve.png").is_file()


def test_runs_that_are_finished_are_skipped_and_a_failed_one_does_not_stop_the_others(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    finish(runs[0], accuracies=(0.1, 0.5, 0.5), norms=(1.0,) * 4)
    started: list[str] = []

    def command_of(run: PlannedRun) -> list[str]:
        started.append(run.config.run_name)
        return ["false" if len(started) == 1 else "true"]

    assert run_all(runs, command_of, say=lambda text: None) == 1
    assert started == ["power-alpha-5-seed3", "vanilla-seed5", "power-alpha-5-seed5"]


def test_a_refused_run_ends_the_comparison_with_its_exit_code(tmp_path: Path) -> None:
    commands = iter([["sh", "-c", "exit 2"]])
    assert run_all(planned(tmp_path), lambda run: next(commands), say=lambda text: None) == 2


def test_the_memory_of_a_process_counts_its_children() -> None:
    alone = memory_of(os.getpid())
    script = "import time; x = b'1' * 2**26; print('up', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        grown = memory_of(os.getpid()) - alone
        child.kill()
    assert grown > 2**26


def test_the_configuration_that_a_run_resolves_to_is_the_one_checked(tmp_path: Path) -> None:
    for run in planned(tmp_path):
        assert load_checked(str(tmp_path / "base.yaml"), run.options) == run.config
        assert run.config.runs_path == str(tmp_path / "runs")
