"""How far a run scales, on paper and in simulated time: 8 to 4,096 H200s, two pairs, three ways of the weights.

    .venv/bin/python benchmarks/scaling_study.py --save

Prints a JSON row for every point, and tables of them as those of docs/scaling.md. The counts come from the rates
(`benchmarks/scaling_model.py`), those of `launch.py plan`; then the real controller runs the chosen point in
simulated time. Of more than 64 devices it simulates one cell in so many: counts and batch divided, the times of a
weight version, of the reduction and of a step those of the whole cluster. Nothing depends on the machine.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rows import RESULTS_PATH, provenance  # noqa: E402
from benchmarks.scaling_model import (  # noqa: E402
    CELLS,
    Allocation,
    Limits,
    Network,
    Speeds,
    best,
    nodes_of,
    reduction_s,
    weight_sync,
)
from records.files import read_rows  # noqa: E402

PAIRS = {
    "0.6B from 4B": "configs/plan_h200_0.6b_from_4b.yaml",
    "4B from 32B": "configs/plan_h200_4b_from_32b.yaml",
}
DEVICES = (8, 64, 512, 4096)
TRANSPORTS = ("object_store", "tree", "nccl")
COLUMNS = (
    *(
        "pair",
        "devices",
        "used",
        "rollout, teacher, learner",
        "batch",
        "tokens/s",
        "steps/s",
        "staleness mean / max",
    ),
    *("rollouts/s", "controllers", "weights GB/s", "fetch", "reduction", "limit"),
)


def point(pair: str, num_devices: int, transport: str, network: Network, limits: Limits) -> dict[str, Any]:
    """The row of one point: counts, what they give, and the share of every limit that is used."""
    from cluster.connection import prepare_environment

    prepare_environment()
    config, rates, plan = planned(PAIRS[pair])
    speeds = speeds_of(config, rates, plan)
    chosen = best(speeds, num_devices, network, transport, limits)
    sync = weight_sync(speeds.weight_bytes, nodes_of(chosen.rollout), network, transport)
    reduce_s = reduction_s(speeds.num_parameters, chosen.learner, network)
    times = {"publish_s": sync.publish_s, "fetch_s": sync.fetch_s, "reduce_s": reduce_s}
    simulated = simulate_cell(config, rates, chosen, num_devices, **times, fixed_s=speeds.step_s)
    counts = {"rollout": chosen.rollout, "teacher": chosen.teacher, "learner": chosen.learner}
    row = {"pair": pair, "devices": num_devices, "transport": transport, "workers": counts, "batch": chosen.batch}
    row |= {"used_devices": sum(counts.values())}
    row |= simulated | {"paper_tokens_per_s": chosen.tokens_per_s}
    return row | rounded(times | loads(simulated, chosen, speeds, sync.fetch_s, limits, network, transport))


def planned(path: str) -> tuple[Any, Any, Any]:
    """Run configuration, rates and plan of a file, as `launch.py plan` has them,."""
    from commands.checks import load_checked
    from commands.compare.plan import options_of
    from commands.plan.estimate import planned_rates
    from commands.plan.plan_config import PlanConfig
    from settings.load import load_settings

    plan = load_settings(PlanConfig, str(ROOT / path), [])
    config = load_checked(str(ROOT / plan.base), options_of(plan.overrides))
    return config, planned_rates(plan, config).rates, plan


def speeds_of(config: Any, rates: Any, plan: Any) -> Speeds:
    """The rates as the model takes them; the optimizer's part of a step, which the ranks share, is left out."""
    from inputs.models import size_of

    student = size_of(plan.models.student, config.student.model_path, field="models.student")
    engine = rates.rollout
    return Speeds(
        prompt=rates.lengths.prompt,
        mean=rates.lengths.mean,
        engine_step_s=engine.step_s,
        sequence_s=engine.sequence_s,
        max_num_seqs=engine.max_num_seqs,
        prefill=engine.prefill_tokens_per_s,
        load_s=engine.load_s,
        teacher=rates.teacher.prefill_tokens_per_s,
        rank=rates.learner.tokens_per_s,
        step_s=plan.device.train_overhead_s,
        num_parameters=student.num_parameters,
        weight_bytes=student.weight_bytes,
    )


def simulate_cell(
    config: Any,
    rates: Any,
    chosen: Allocation,
    num_devices: int,
    *,
    publish_s: float,
    fetch_s: float,
    reduce_s: float,
    fixed_s: float,
) -> dict[str, Any]:
    """Run the controller on one of so many equal parts of the cluster; throughputs are those of all parts."""
    from commands.plan.plan_config import SimulationConfig
    from commands.plan.prediction import predict, with_workers
    from commands.plan.rates import override

    parts = max(1, num_devices // CELLS)
    counts = {"rollout": chosen.rollout, "teacher": chosen.teacher, "learner": chosen.learner}
    run = with_workers(config, {role: count // parts for role, count in counts.items()})
    run = run.model_copy(update={"batch_size": max(1, chosen.batch // parts)})
    learner = {"step_s": fixed_s + reduce_s, "publish_s": publish_s}
    given = {"learner": learner, "rollout": {"fetch_s": fetch_s}}
    found = predict(run, override(rates, given), SimulationConfig(responses=4000, steps=24))
    return rounded(
        {
            "tokens_per_s": parts * found.tokens_per_s,
            "step_s": found.step_s,
            "steps_per_s": 1 / found.step_s,
            "staleness_mean": found.staleness_mean,
            "staleness_max": found.staleness_max,
            **{f"share_{name}": share for name, share in found.shares.items()},
        }
    ) | {"limit": found.limit, "parts": parts, "responses_per_simulated": found.responses_per_simulated}


def loads(
    simulated: dict[str, Any],
    chosen: Allocation,
    speeds: Speeds,
    fetch_s: float,
    limits: Limits,
    network: Network,
    transport: str,
) -> dict[str, float]:
    """What the point asks of controller and networks, as amounts and as shares of what they give."""
    rollouts = simulated["tokens_per_s"] / speeds.mean
    step_s, num_nodes = simulated["step_s"], nodes_of(chosen.rollout)
    table = (speeds.prompt + speeds.mean) * limits.token_bytes
    sent = num_nodes * speeds.weight_bytes
    return {
        "rollouts_per_s": rollouts,
        "controller_share": rollouts / limits.controller_rollouts_per_s,
        "controllers": -(-rollouts // limits.controller_rollouts_per_s),
        "groups_of_8_per_s": rollouts / 8,
        "loads_per_s": chosen.rollout / step_s,
        "sync_bytes_per_s": num_nodes * speeds.weight_bytes / step_s,
        "egress_share": sent / step_s / network.egress if transport == "object_store" else 0.0,
        "fetch_in_steps": fetch_s / step_s,
        "tables_bytes_per_s": 2 * rollouts * table,
        "fixed_share": (speeds.step_s + reduction_s(speeds.num_parameters, chosen.learner, network)) / step_s,
        "one_controller_tokens_per_s": min(rollouts, limits.controller_rollouts_per_s) * speeds.mean,
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    """To four significant digits."""
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        counts = ", ".join(f"{count:,}" for count in row["workers"].values())
        stale = f"{row['staleness_mean']:.1f} / {row['staleness_max']:.0f}"
        cells = [
            row["pair"],
            f"{row['devices']:,}",
            f"{row['used_devices']:,}",
            counts,
            f"{row['batch']:,}",
            f"{row['tokens_per_s']:,.0f}",
        ]
        cells += [f"{row['steps_per_s']:.3g}", stale, f"{row['rollouts_per_s']:,.0f}", f"{row['controllers']:.0f}"]
        cells += [f"{row['sync_bytes_per_s'] / 1e9:.2g}", f"{row['fetch_s']:.2g} s", f"{row['reduce_s']:.2g} s"]
        lines.append("| " + " | ".join([*cells, row["limit"]]) + " |")
    return "\n".join(lines) + "\n"


def save(rows: list[dict[str, Any]]) -> None:
    """Put these points into the results, in the place of the same points of before."""
    origin = {"benchmark": "scaling_study", **{k: v for k, v in provenance().items() if k in ("date", "commit")}}
    kept = {key_of(row): row for row in read_rows(RESULTS_PATH / "scaling_study.jsonl")}
    kept |= {key_of(row): origin | row for row in rows}
    lines = [json.dumps(kept[key]) + "\n" for key in sorted(kept)]
    (RESULTS_PATH / "scaling_study.jsonl").write_text("".join(lines), encoding="utf-8")


def key_of(row: dict[str, Any]) -> tuple[int, int, int]:
    """Which point it is."""
    return [*PAIRS].index(row["pair"]), TRANSPORTS.index(row["transport"]), row["devices"]


def main() -> None:
    """All points that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=[*PAIRS], choices=[*PAIRS])
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    parser.add_argument("--transports", nargs="+", default=TRANSPORTS, choices=TRANSPORTS)
    parser.add_argument("--save", action="store_true", help="put the points into benchmarks/results/")
    arguments = parser.parse_args()
    network, limits = Network(), Limits()
    for pair in arguments.pairs:
        for transport in arguments.transports:
            rows = list[dict[str, Any]]()
            for num_devices in arguments.devices:
                rows.append(point(pair, num_devices, transport, network, limits))
                print(json.dumps(rows[-1]), flush=True)
            print(f"\n{pair}, {transport}\n\n{table(rows)}", file=sys.stderr)
            if arguments.save:
                save(rows)


if __name__ == "__main__":
    main()
