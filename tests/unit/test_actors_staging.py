"""Published buckets as one file per node, fetched once and removed by its last user, or in place."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from actors.vllm import shared_file
from actors.vllm.shared_file import hold, remove_left_over
from actors.vllm.staging import WeightCache, bucket_tensors, stage_in_place
from tests.unit.buckets_in_place import BucketsInPlace
from transport.differences import encode
from transport.weights import WeightManifest, bucket_sizes, checksum, plan_buckets

pytestmark = pytest.mark.timeout(30)

BUCKETS = [np.arange(40, dtype=np.uint8), np.arange(100, 116, dtype=np.uint8)]
for each in BUCKETS:
    each.flags.writeable = False  # as they come from the object store


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared memory and temporary folder of this test alone."""
    folder = tmp_path / "memory"
    folder.mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(shared_file, "SHARED_MEMORY", folder)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return folder


SHAPES = [("a", (2, 3)), ("b", (4,)), ("c", (4,))]


def manifest_of(buckets: Sequence[np.ndarray], version: int = 1, **fields: Any) -> WeightManifest:
    plan = plan_buckets([[(name, shape, "float32")] for name, shape in SHAPES], max_bytes=40)
    return WeightManifest(
        incarnation=0,
        version=version,
        dtype="float32",
        tensors=plan,
        bucket_bytes=bucket_sizes(plan),
        checksums=tuple(checksum(np.ascontiguousarray(bucket)) for bucket in buckets),
        golden_token_ids=(1, 2),
        golden_log_probs=(-1.0,),
        **fields,
    )


MANIFEST = manifest_of(BUCKETS)


@dataclass
class CountingSource:
    """Buckets that take a while to come; counts how often they are asked for."""

    buckets: Sequence[np.ndarray]
    differences: Sequence[np.ndarray] = ()
    seconds: float = 0.0
    fetches: list[str] = field(default_factory=list)

    def fetch(self) -> Sequence[np.ndarray]:
        self.fetches.append("full")
        time.sleep(self.seconds)
        return self.buckets

    def fetch_differences(self) -> Sequence[np.ndarray]:
        self.fetches.append("differences")
        return self.differences


def content(update: dict[str, Any]) -> bytes:
    return Path(update["path"]).read_bytes()


def in_process(work: Callable[..., None], *args: Any) -> Any:
    """Start a process, which inherits this test's folders; the caller ends it."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args, daemon=True)
    process.start()
    return process


def writing(content: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def test_the_file_holds_the_buckets_and_says_where_each_tensor_lies() -> None:
    cache = WeightCache()
    update = cache.stage(MANIFEST, BucketsInPlace(BUCKETS)).update
    assert content(update) == b"".join(bucket.tobytes() for bucket in BUCKETS)
    assert update["bucket_bytes"] == (40, 16)
    parts = bucket_tensors(update["path"], (), update["bucket_bytes"])
    assert [part.numpy().tobytes() for part in parts] == [bucket.tobytes() for bucket in BUCKETS]
    placed = [("a", (2, 3), "float32", 0, 0), ("b", (4,), "float32", 0, 24), ("c", (4,), "float32", 1, 0)]
    assert update["tensors"] == placed
    cache.close()


@pytest.mark.filterwarnings("error")
def test_an_engine_of_one_process_gets_checked_buckets_without_a_file_or_copy(memory: Path) -> None:
    staged = stage_in_place(MANIFEST, BucketsInPlace(BUCKETS))
    tensors = bucket_tensors(staged.update["path"], staged.update["buckets"], staged.update["bucket_bytes"])
    assert [tensor.data_ptr() for tensor in tensors] == [bucket.ctypes.data for bucket in BUCKETS]
    assert (staged.bytes_fetched, list(memory.iterdir())) == (56, [])
    with pytest.raises(ValueError, match="bucket 0"):
        stage_in_place(replace(MANIFEST, checksums=(1, 2)), BucketsInPlace(BUCKETS))


def test_engines_of_a_node_fetch_a_version_once_and_the_last_one_removes_it(memory: Path) -> None:
    first, second, source = WeightCache(), WeightCache(), CountingSource(BUCKETS)
    one, other = first.stage(MANIFEST, source), second.stage(MANIFEST, source)
    assert source.fetches == ["full"]
    assert (one.bytes_fetched, other.bytes_fetched) == (56, 0)
    assert one.update == other.update
    first.close()
    assert content(other.update) == b"".join(bucket.tobytes() for bucket in BUCKETS)
    second.close()
    assert not list(memory.iterdir())


def test_engines_that_load_at_the_same_time_fetch_once(memory: Path) -> None:
    source, found = CountingSource(BUCKETS, seconds=0.2), list[int]()
    caches = [WeightCache() for _ in range(6)]

    def work(cache: WeightCache) -> None:
        found.append(cache.stage(MANIFEST, source).bytes_fetched)

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert source.fetches == ["full"]
    assert sorted(found) == [0, 0, 0, 0, 0, 56]
    for cache in caches:
        cache.close()
    assert not list(memory.iterdir())


def test_a_superseded_version_is_removed_by_its_last_user(memory: Path) -> None:
    first, second, newer = WeightCache(), WeightCache(), manifest_of(BUCKETS, 2)
    old = Path(first.stage(MANIFEST, BucketsInPlace(BUCKETS)).update["path"])
    second.stage(MANIFEST, BucketsInPlace(BUCKETS))
    new = Path(first.stage(newer, BucketsInPlace(BUCKETS)).update["path"])
    assert set(memory.iterdir()) == {old, new}
    second.stage(newer, BucketsInPlace(BUCKETS))
    assert set(memory.iterdir()) == {new}


def test_weight_sets_that_differ_in_anything_do_not_share_a_file() -> None:
    sets = [MANIFEST, replace(MANIFEST, incarnation=1), replace(MANIFEST, golden_log_probs=(-2.0,))]
    sets += [replace(MANIFEST, version=11), replace(MANIFEST, incarnation=11, version=1)]
    sets.append(manifest_of([BUCKETS[0] ^ 1, BUCKETS[1]]))
    assert len({each.key for each in sets}) == len(sets)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_bucket_leaves_nothing_behind_and_the_version_held_stays(memory: Path, damage: str) -> None:
    cache, newer = WeightCache(), manifest_of(BUCKETS, 2)
    held = cache.stage(MANIFEST, BucketsInPlace(BUCKETS)).update["path"]
    bad = [BUCKETS[0], BUCKETS[1] ^ 1] if damage == "changed" else BUCKETS[:1]
    with pytest.raises(ValueError, match=r"checksum of bucket 1 differs|expected 2 buckets, got 1"):
        cache.stage(newer, BucketsInPlace(bad))
    assert [str(path) for path in memory.iterdir()] == [held]
    assert cache.stage(newer, BucketsInPlace(BUCKETS)).bytes_fetched == 56


def hold_forever(seconds: float, is_written: Any) -> None:
    def write(file: Any) -> None:
        file.write(b"half")
        if seconds:
            is_written.set()
            time.sleep(seconds)

    held = hold(MANIFEST.key, write, num_bytes=4)
    is_written.set()
    time.sleep(60)
    held.release()


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["holding", "writing"])
def test_files_of_a_killed_process_are_removed_and_those_of_a_living_one_stay(
    memory: Path, seconds: float
) -> None:
    is_written = multiprocessing.get_context("fork").Event()
    process = in_process(hold_forever, seconds, is_written)
    assert is_written.wait(10)
    (path,) = memory.iterdir()
    assert path.name.endswith(".part") == (seconds > 0)
    assert remove_left_over() == []
    process.kill()
    process.join(10)
    assert remove_left_over() == [path]
    assert not list(memory.iterdir())


def test_a_file_half_written_by_a_killed_process_is_written_anew(memory: Path) -> None:
    is_written = multiprocessing.get_context("fork").Event()
    process = in_process(hold_forever, 60.0, is_written)
    assert is_written.wait(10)
    process.kill()
    process.join(10)
    assert [path.suffix for path in memory.iterdir()] == [".part"]
    staged = hold(MANIFEST.key, writing(b"whole"), num_bytes=5)
    assert staged.was_written_here
    assert staged.read().tobytes() == b"whole"


def test_a_frozen_writer_is_not_waited_for_beyond_the_limit(memory: Path) -> None:
    is_written = multiprocessing.get_context("fork").Event()
    process = in_process(hold_forever, 60.0, is_written)
    assert is_written.wait(10)
    os.kill(process.pid, signal.SIGSTOP)
    staged = hold(MANIFEST.key, writing(b"own"), num_bytes=3, wait_s=0.2)
    assert staged.read().tobytes() == b"own"
    process.kill()
    process.join(10)
    staged.release()
    remove_left_over()
    assert not list(memory.iterdir())


def test_a_closed_cache_refuses_weights_and_leaves_no_file(memory: Path) -> None:
    cache = WeightCache()
    cache.stage(MANIFEST, BucketsInPlace(BUCKETS))
    cache.close()
    cache.close()
    with pytest.raises(RuntimeError, match="the engine has ended"):
        cache.stage(MANIFEST, BucketsInPlace(BUCKETS))
    assert not list(memory.iterdir())


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_file_of_the_version_before_is_overwritten_where_no_other_engine_uses_it(
    memory: Path, is_shared: bool
) -> None:
    cache, other, newer = WeightCache(), WeightCache(), manifest_of([bucket[::-1] for bucket in BUCKETS], 2)
    old = Path(cache.stage(MANIFEST, BucketsInPlace(BUCKETS)).update["path"])
    if is_shared:
        other.stage(MANIFEST, BucketsInPlace(BUCKETS))
    inode = old.stat().st_ino
    update = cache.stage(newer, BucketsInPlace([bucket[::-1].copy() for bucket in BUCKETS])).update
    assert (Path(update["path"]).stat().st_ino == inode) is not is_shared
    assert content(update) == b"".join(bucket[::-1].tobytes() for bucket in BUCKETS)
    assert old.exists() is is_shared
    if is_shared:
        assert content({"path": old}) == b"".join(bucket.tobytes() for bucket in BUCKETS)
    for each in (cache, other):
        each.close()
    assert not list(memory.iterdir())


def test_an_overwritten_file_is_as_long_as_the_new_version(memory: Path) -> None:
    long = hold("long", writing(b"a long one"), num_bytes=10)
    short = hold("short", writing(b"short"), num_bytes=5, prepare=lambda: long)
    assert [path.name for path in memory.iterdir()] == [short.path.name]
    assert short.read().tobytes() == b"short"
    long.release()  # no longer held: nothing happens
    assert short.path.exists()
    found = hold("short", writing(b"other"), num_bytes=5)
    assert (found.was_written_here, found.read().tobytes()) == (False, b"short")
    for file in (found, short):
        file.release()
    assert not list(memory.iterdir())


def test_an_overwritten_file_that_cannot_be_written_leaves_nothing_behind(memory: Path) -> None:
    def write(file: BinaryIO) -> None:
        raise OSError("no space")

    old = hold("old", writing(b"old"), num_bytes=3)
    with pytest.raises(OSError, match="no space"):
        hold("new", write, num_bytes=3, prepare=lambda: old)
    old.release()
    assert not list(memory.iterdir())


CHANGED = [BUCKETS[0].copy(), BUCKETS[1]]
CHANGED[0][4:8] = 200
DIFFERENCES = [encode(old, new, item_bytes=4) for old, new in zip(BUCKETS, CHANGED, strict=True)]
NEXT = manifest_of(CHANGED, 2, base_version=1, difference_bytes=tuple(each.nbytes for each in DIFFERENCES))
"""Version 2, with differences to version 1."""


def test_an_engine_that_holds_the_base_fetches_only_differences() -> None:
    cache, source = WeightCache(), CountingSource(CHANGED, DIFFERENCES)
    cache.stage(MANIFEST, BucketsInPlace(BUCKETS))
    assert NEXT.total_difference_bytes == 2 * 16 + 2 + 4  # headers, a bitmap, a value
    staged = cache.stage(NEXT, source)
    assert source.fetches == ["differences"]
    assert staged.bytes_fetched == NEXT.total_difference_bytes
    assert content(staged.update) == b"".join(bucket.tobytes() for bucket in CHANGED)


@pytest.mark.parametrize("held", [None, manifest_of(BUCKETS, 0), replace(MANIFEST, incarnation=3)])
def test_an_engine_that_does_not_hold_the_base_fetches_everything(held: WeightManifest | None) -> None:
    cache, source = WeightCache(), CountingSource(CHANGED, DIFFERENCES)
    if held is not None:
        cache.stage(held, BucketsInPlace(BUCKETS))
    staged = cache.stage(NEXT, source)
    assert source.fetches == ["full"]
    assert staged.bytes_fetched == 56
    assert content(staged.update) == b"".join(bucket.tobytes() for bucket in CHANGED)


def test_differences_that_do_not_give_the_published_bytes_are_not_used() -> None:
    cache = WeightCache()
    cache.stage(MANIFEST, BucketsInPlace(BUCKETS))
    wrong = [encode(old, old ^ 1, item_bytes=4) for old in BUCKETS]
    source = CountingSource(CHANGED, wrong)
    staged = cache.stage(NEXT, source)
    assert source.fetches == ["differences", "full"]
    assert content(staged.update) == b"".join(bucket.tobytes() for bucket in CHANGED)


@pytest.mark.parametrize("reason", ["no shared memory", "too small"])
def test_without_shared_memory_the_temporary_folder_is_used(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "no shared memory":
        monkeypatch.setattr(shared_file, "SHARED_MEMORY", tmp_path / "none")
    file = hold("large", lambda file: None, num_bytes=2**62 if reason == "too small" else 1)
    assert file.path.parent == tmp_path / "temporary"
    file.release()
    assert not file.path.exists()
