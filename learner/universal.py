"""A checkpoint for another number of ranks or ZeRO stage: DeepSpeed's universal form, made once beside it."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from records.checkpoints import CheckpointManifest, fsync, universal_path
from settings.learner import LearnerConfig

logger = logging.getLogger(__name__)

CHECKPOINT_TAG = "deepspeed"
"""Sub-folder of a checkpoint that DeepSpeed writes."""

TIMEOUT_S = 3600.0


def needs_conversion(manifest: CheckpointManifest, learner: LearnerConfig, *, world_size: int) -> bool:
    """True unless as many ranks with the same stage wrote it. Without ZeRO every rank reads the same file."""
    if manifest.zero_stage == learner.zero_stage == 0:
        return False
    return (manifest.world_size, manifest.zero_stage) != (world_size, learner.zero_stage)


def check_world(manifest: CheckpointManifest, learner: LearnerConfig, *, path: Path | str) -> None:
    """Raise ValueError if a learner with these settings cannot read the checkpoint at all."""
    if manifest.dtype != learner.dtype:
        raise ValueError(f"checkpoint {path} was written with learner.dtype {manifest.dtype}, not {learner.dtype}")
    kinds = [_kind(manifest.zero_stage), _kind(learner.zero_stage)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"checkpoint {path} was written with learner.zero_stage {manifest.zero_stage} and cannot be read with "
            f"{learner.zero_stage} (nearest valid: {_nearest(manifest.zero_stage)})"
        )


def _kind(zero_stage: int) -> str:
    return {0: "replicated", 1: "sharded optimizer", 2: "sharded optimizer", 3: "sharded weights"}[zero_stage]


def _nearest(zero_stage: int) -> str:
    return "1 or 2" if zero_stage in (1, 2) else str(zero_stage)


def convert(path: Path) -> float:
    """Make the universal form of a checkpoint, unless it is there; returns the seconds it took.

    It appears complete or not at all. RuntimeError with DeepSpeed's last words if it fails.
    """
    target = universal_path(path)
    if target.exists():
        return 0.0
    start = time.monotonic()
    temporary = Path(f"{target}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    folders = ["--input_folder", path / CHECKPOINT_TAG, "--output_folder", temporary / CHECKPOINT_TAG]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, "--inject_missing_state"]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        shutil.rmtree(temporary)
        raise RuntimeError(f"checkpoint {path} could not be converted: {' '.join(done.stderr.split())[-500:]}")
    for entry in temporary.rglob("*"):
        fsync(entry)
    os.replace(temporary, target)
    fsync(target.parent)
    logger.info("converted %s for other ranks", path)
    return time.monotonic() - start
