"""Published buckets as one file for the engine's processes."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.vllm import staging
from actors.vllm.staging import staged_file
from cluster.weights import WeightManifest, bucket_sizes, checksum, plan_buckets

pytestmark = pytest.mark.timeout(20)

BUCKETS = [np.arange(40, dtype=np.uint8), np.arange(100, 116, dtype=np.uint8)]


@pytest.fixture
def manifest() -> WeightManifest:
    plan = plan_buckets([("a", (2, 3)), ("b", (4,)), ("c", (4,))], dtype="float32", max_bytes=40)
    return WeightManifest(
        incarnation=0,
        version=1,
        dtype="float32",
        tensors=plan,
        bucket_bytes=bucket_sizes(plan, dtype="float32"),
        checksums=tuple(map(checksum, BUCKETS)),
        golden_token_ids=(1, 2),
        golden_log_probs=(-1.0,),
    )


def test_the_file_holds_the_buckets_and_says_where_each_tensor_lies(manifest: WeightManifest) -> None:
    with staged_file(manifest, BUCKETS) as update:
        content = Path(update["path"]).read_bytes()
        assert content == b"".join(bucket.tobytes() for bucket in BUCKETS)
        assert update["num_bytes"] == len(content) == 56
        assert update["dtype"] == "float32"
        assert update["tensors"] == [("a", (2, 3), 0), ("b", (4,), 24), ("c", (4,), 40)]


def test_read_only_buckets_are_staged(manifest: WeightManifest) -> None:
    buckets = [bucket.copy() for bucket in BUCKETS]
    for bucket in buckets:
        bucket.flags.writeable = False
    with staged_file(manifest, buckets) as update:
        assert Path(update["path"]).stat().st_size == 56


def test_the_file_is_removed_also_after_an_error(manifest: WeightManifest) -> None:
    paths = []
    with staged_file(manifest, BUCKETS) as update:
        paths.append(Path(update["path"]))

    def fail() -> None:
        with staged_file(manifest, BUCKETS) as update:
            paths.append(Path(update["path"]))
            raise RuntimeError("load failed")

    with pytest.raises(RuntimeError, match="load failed"):
        fail()
    assert len(paths) == 2
    assert not any(path.exists() for path in paths)


def test_no_file_is_left_when_writing_fails(
    manifest: WeightManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SHARED_MEMORY", tmp_path)
    with pytest.raises(AttributeError), staged_file(manifest, [BUCKETS[0], "no bucket"]):  # pyright: ignore[reportArgumentType]
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reason", ["no shared memory", "no room"])
def test_without_room_in_shared_memory_the_temporary_folder_serves(
    manifest: WeightManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    memory, folder = tmp_path / "memory", tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(staging, "SHARED_MEMORY", memory)
    if reason == "no room":
        memory.mkdir()
        full = replace(manifest, bucket_bytes=(40, 2**62))
    else:
        full = manifest
    with staged_file(full, BUCKETS) as update:
        assert Path(update["path"]).parent == folder


def test_shared_memory_is_used_where_there_is_room(
    manifest: WeightManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SHARED_MEMORY", tmp_path)
    with staged_file(manifest, BUCKETS) as update:
        assert Path(update["path"]).parent == tmp_path
