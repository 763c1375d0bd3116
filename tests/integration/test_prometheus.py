"""The metrics of a run are on the Prometheus port of its node, under the names that the dashboard asks for."""

import asyncio
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from cluster.dashboards.monitor import Monitor
from cluster.dashboards.prometheus import Prometheus
from cluster.dashboards.prometheus_table import METRICS
from cluster.status import pools_status
from tests.integration.simulated_run import run_config, simulated_run

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(120)]

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]
OURS = ("run", "role", "queue", "stage", "state", "benchmark", "model")


def exported(run_name: str) -> Series:
    """Values of a run by name and tags, from the port of this node."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("run") == run_name:
                tags = tuple((key, sample.labels[key]) for key in OURS[1:] if key in sample.labels)
                found.setdefault(sample.name, {})[tags] = sample.value
    return found


async def trained(path: Path, run_name: str) -> None:
    """A simulated run of three steps that tells Prometheus, with an evaluation and a death."""
    board = Prometheus(run_name)
    config = run_config(path, run_name=run_name, max_steps=3)
    monitor = Monitor(config)
    async with simulated_run(config) as run:
        run.pipeline.on_step(board.step)
        run.pipeline.on_step(monitor.step)
        run.folder.on_evaluation(board.evaluation)
        await run.pipeline.run()
        values = {"avg_at_k": 0.5, "pass_at_k": 0.75, "k": 8}
        run.folder.add_evaluation({"step": 3, "model": "student_after", "benchmark": "sums", **values})
        for event in ("worker_died", "worker_restarted", "worker_suspect"):
            board.event({"event": event, "worker": "rollout-0"})
        pools = pools_status(run.pools)
        board.status({"pools": pools, **monitor.status(pools, is_running=True)})


def test_every_metric_of_the_table_is_exported_with_the_tags_of_the_run(tmp_path: Path) -> None:
    asyncio.run(trained(tmp_path, "prometheus"))
    absent = {"mismatch_kl", "entropy", "importance_capped_fraction", "loss", "learning_rate"}  # no real learner
    suffix = {"gauge": "", "counter": "", "histogram": "_bucket"}
    wanted = {f"ray_{metric.full_name}{suffix[metric.kind]}" for metric in METRICS if metric.name not in absent}
    deadline = time.monotonic() + 60
    while wanted - (found := exported("prometheus")).keys():
        assert time.monotonic() < deadline, f"missing: {sorted(wanted - found.keys())}; there: {sorted(found)}"
        time.sleep(1)
    assert found["ray_poweropd_step"] == {(): 3.0}
    assert found["ray_poweropd_workers"][("role", "rollout"), ("state", "healthy")] == 1.0
    assert found["ray_poweropd_evaluation_accuracy"] == {(("benchmark", "sums"), ("model", "student")): 0.5}
    assert found["ray_poweropd_deaths_total"] == {(("role", "rollout"),): 1.0}
    assert found["ray_poweropd_throughput_tokens_per_second"].keys() >= {(("role", "teacher"),)}
    assert found["ray_poweropd_step_seconds_count"] == {(): 3.0}
