"""The metrics of a run are on the Prometheus port of its node, under the names that the dashboard asks for."""

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.dashboard.consts import GPU_TAG_KEYS
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from cluster.pool import Pool
from controller.status import pools_status
from reporting.live.monitor import Monitor
from reporting.live.prometheus import EXPORTED, OTHERS, Prometheus, samples_of_row
from tests.simulated_run import run_config, simulated_run
from tests.unit.ray_metrics import GPU_METRICS, RAY_LABELS, RAY_METRICS

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(600)]

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]
OURS = ("run", "role", "queue", "stage", "state", "folder", "benchmark", "model")


def samples() -> Iterator[Sample]:
    """Everything on the port of this node."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        yield from family.samples


def exported(run_name: str) -> Series:
    """Values of a run by name and tags."""
    found: Series = {}
    for sample in samples():
        if sample.labels.get("run") == run_name:
            tags = tuple((key, sample.labels[key]) for key in OURS[1:] if key in sample.labels)
            found.setdefault(sample.name, {})[tags] = sample.value
    return found


async def trained(path: Path, run_name: str) -> set[str]:
    """A simulated run that tells Prometheus, with an evaluation and a death; returns what its rows told."""
    board = Prometheus(run_name)
    config = run_config(path, run_name=run_name, max_steps=3)
    monitor = Monitor(config)
    async with simulated_run(config, pool_class=Pool) as run:
        run.pipeline.on_step(board.step)
        run.pipeline.on_step(monitor.step)
        run.folder.on_evaluation(board.evaluation)
        await run.pipeline.run()
        values = {"avg_at_k": 0.5, "pass_at_k": 0.75, "k": 8}
        run.folder.add_evaluation({"step": 3, "model": "student_after", "benchmark": "sums", **values})
        for event in ("worker_died", "worker_restarted", "worker_suspect", "worker_given_up"):
            board.event({"event": event, "worker": "rollout-0"})
        for event in ("checkpoint", "checkpoint_failed", "checkpoint_damaged"):
            board.event({"event": event, "bytes": 7})
        board.step({"skipped": 1})
        pools = pools_status(run.pools)
        status = run.pipeline.status() | monitor.status(pools, is_running=True)
        board.status({"pools": pools, "disk": {"run": {"free": 5, "size": 50}}, **status})
        board.ended()
        return {sample.name for row in run.folder.metric_rows() for sample in samples_of_row(row)}


def test_every_metric_of_the_table_is_exported_with_the_tags_of_the_run(tmp_path: Path) -> None:
    told = asyncio.run(trained(tmp_path, "prometheus")) | {metric.name for metric in OTHERS}
    assert told >= {"step", "reward_mean", "reverse_kl", "throughput_tokens_per_second", "skipped_steps_total"}
    suffix = {"gauge": "", "counter": "", "histogram": "_bucket"}
    wanted = {f"ray_{metric.full_name}{suffix[metric.kind]}" for metric in EXPORTED if metric.name in told}
    deadline = time.monotonic() + 200
    while wanted - (found := exported("prometheus")).keys():
        assert time.monotonic() < deadline, f"missing: {sorted(wanted - found.keys())}; there: {sorted(found)}"
        time.sleep(1)
    assert found["ray_poweropd_step"] == {(): 3.0}
    assert found["ray_poweropd_workers"][("role", "rollout"), ("state", "healthy")] == 1.0
    assert found["ray_poweropd_evaluation_accuracy"] == {(("benchmark", "sums"), ("model", "student")): 0.5}
    assert found["ray_poweropd_deaths_total"] == {(("role", "rollout"),): 1.0}
    assert found["ray_poweropd_throughput_tokens_per_second"].keys() >= {(("role", "teacher"),)}
    assert found["ray_poweropd_workers_wanted"][(("role", "rollout"),)] == 1.0
    assert found["ray_poweropd_workers"][("role", "learner"), ("state", "healthy")] == 1.0
    assert found["ray_poweropd_disk_free_bytes"] == {(("folder", "run"),): 5.0}
    assert found["ray_poweropd_step_seconds_count"] == {(): 3.0}


def test_every_metric_of_ray_that_a_rule_names_is_exported_with_its_labels() -> None:
    held = ray.put(bytes(2**20))
    deadline = time.monotonic() + 200
    found = [*samples()]
    while missing := RAY_METRICS - {sample.name for sample in found}:
        assert time.monotonic() < deadline, f"missing: {missing}"
        time.sleep(1)
        found = [*samples()]
    assert {f"ray_{name}" for name in METRICS_GAUGES} >= GPU_METRICS
    labels = {label for sample in found if sample.name in RAY_METRICS for label in sample.labels}
    assert labels | set(GPU_TAG_KEYS) >= RAY_LABELS
    del held
