"""Two real engines on one node, in processes of their own, fetch each published version once between them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray

from actors.rollout_worker import RolloutWorker
from actors.vllm import open_engine
from actors.vllm.shared_file import PREFIX, SHARED_MEMORY
from learner.publisher import WeightHistory
from tests.integration.test_engine_scene import perturb, publish, read_model, save_model, settings
from transport.notes import LoadReport
from transport.weight_sources import ObjectStoreSource
from transport.weights import WeightManifest

pytestmark = pytest.mark.timeout(240)

TIMEOUT_S = 120.0

LOADED: set[str] = set()
"""Keys of the weight sets of these tests."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def workers(local_ray: None, path: str) -> Iterator[list[Any]]:
    remote: Any = ray.remote(RolloutWorker).options(max_concurrency=10)
    actors = [remote.remote(settings(path, max_num_seqs=8), open_engine) for _ in range(2)]
    get([actor.start.remote() for actor in actors])
    yield actors
    get([actor.shutdown.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    assert staged_files() == set()


def get(refs: list[Any]) -> list[Any]:
    return ray.get(refs, timeout=TIMEOUT_S)


def staged_files() -> set[str]:
    """Names of the files of weights that were loaded here: other runs on this machine have files of their own."""
    found = {path.name for path in SHARED_MEMORY.glob(f"{PREFIX}*")}
    return {name for name in found if any(name.startswith(f"{PREFIX}{key}") for key in LOADED)}


def stored(manifest: WeightManifest, parts: list[np.ndarray]) -> ObjectStoreSource:
    return ObjectStoreSource.of(manifest, [ray.put(part) for part in parts], TIMEOUT_S)


def load(workers: list[Any], manifest: WeightManifest, source: ObjectStoreSource) -> list[LoadReport]:
    LOADED.add(manifest.key)
    reports = get([worker.load_weights.remote(manifest, source) for worker in workers])
    assert [(report.incarnation, report.version) for report in reports] == [(0, manifest.version)] * len(workers)
    assert max(report.golden_difference for report in reports) < 1e-4
    return reports


def test_each_version_is_fetched_and_staged_once_and_then_only_its_changes(workers: list[Any], path: str) -> None:
    model, published = read_model(path), partial(publish, history=WeightHistory(full_every=3))
    fetched: list[list[int]] = []
    manifests: list[WeightManifest] = []
    for version in range(1, 5):
        manifest, parts = published(model, version)
        reports = load(workers, manifest, stored(manifest, parts))
        fetched.append(sorted(report.bytes_fetched for report in reports))
        manifests.append(manifest)
        assert staged_files() == {f"{PREFIX}{manifest.key}"}
        perturb(model, "layers.1.", seed=version)
        perturb(model, "model.norm", seed=version)
    assert [manifest.base_version for manifest in manifests] == [None, 1, 2, None]
    whole = manifests[0].total_bytes
    assert fetched == [[0, whole], *([0, m.total_difference_bytes] for m in manifests[1:3]), [0, whole]]
    assert 0 < manifests[1].total_difference_bytes < 0.4 * whole


def test_an_engine_that_finds_the_file_does_not_need_the_buckets(workers: list[Any], path: str) -> None:
    manifest, buckets = publish(read_model(path), 10)
    load(workers[:1], manifest, stored(manifest, buckets))
    (report,) = load(workers[1:], manifest, ObjectStoreSource((), (), TIMEOUT_S))
    assert report.bytes_fetched == 0


def test_an_engine_that_skipped_the_base_fetches_in_full(workers: list[Any], path: str) -> None:
    model, published = read_model(path), partial(publish, history=WeightHistory(full_every=10))
    manifest, parts = published(model, 20)
    source = stored(manifest, parts)
    load(workers, manifest, source)
    sources = []
    for version in (21, 22):
        perturb(model, "layers.0.mlp", seed=version)
        manifest, parts = published(model, version)
        sources.append((manifest, stored(manifest, parts)))
    (report,) = load(workers[:1], *sources[1])
    assert sources[1][0].base_version == 21
    assert report.bytes_fetched == sources[1][0].total_bytes


@pytest.mark.slow
def test_a_killed_engine_leaves_files_that_the_next_one_removes(local_ray: None, path: str) -> None:
    before = staged_files()
    left = SHARED_MEMORY / f"{PREFIX}left-over"
    LOADED.add("left-over")
    manifest, buckets = publish(read_model(path), 30)
    remote: Any = ray.remote(RolloutWorker).options(max_concurrency=10)
    first = remote.remote(settings(path, max_num_seqs=8), open_engine)
    get([first.start.remote()])
    load([first], manifest, stored(manifest, buckets))
    assert staged_files() - before == {f"{PREFIX}{manifest.key}"}
    ray.kill(first)
    left.touch()
    second = remote.remote(settings(path, max_num_seqs=8), open_engine)
    get([second.start.remote()])
    assert staged_files() == before
    ray.kill(second)


def test_published_parts_that_do_not_fit_the_manifest_are_an_error(path: str) -> None:
    manifest, buckets = publish(read_model(path), 1)
    with pytest.raises(ValueError, match=rf"weights v1: {len(buckets) - 1} parts for {len(buckets)} buckets"):
        ObjectStoreSource.of(manifest, buckets[1:], TIMEOUT_S)
