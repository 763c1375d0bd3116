"""Tries what a run does for the first time at its end, so that nothing of it fails after the training.

The student's folder is exported without its weights and read back, the model card and the report are made, where
checkpoints go is written to, and the login of an upload is looked at. What is written is removed again.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from commands.report import write_report
from records.checkpoint_store import CheckpointStore
from records.run_folder import RunFolder
from reporting.live.wandb import check_wandb
from reporting.model_card import model_card
from settings.checks import Checks, Finding, RefusedError
from settings.exit_codes import unbroken
from settings.load import save_config
from settings.run import RunConfig

if TYPE_CHECKING:  # transformers takes seconds to import
    from transport.stop_tokens import StopTokens


def check_ending(config: RunConfig, folder: RunFolder, stops: "StopTokens", checks: Checks) -> None:
    """Try everything; what fails is an error of the check `export`. RefusedError unless errors are collected."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="poweropd-preflight-") as made:
        with _tried(checks, f"student.model_path: {config.student.model_path} could not be exported"):
            from learner.export import try_export  # torch

            try_export(config, Path(made) / "export", stops=stops)
        with _tried(checks, "student.model_path: the model card of the export could not be written"):
            model_card(folder, config, step=config.max_steps, name=config.export.push_to or config.run_name)
        with _tried(checks, "run_name: the report of the run could not be drawn"):
            _draw_report(config, folder, Path(made))
    with _tried(checks, "checkpoint.path: checkpoints could not be written"):
        CheckpointStore.of(config, folder).try_writing()
    with checks.guard("export"):
        check_wandb(config.logging)
        if config.export.push_to is not None:
            from commands.export import check_push  # the hub's library

            check_push(config.export.push_to, "export.push_to")
    done = "export, model card, report, checkpoints" + ("" if config.export.push_to is None else ", upload")
    checks.add("export", [Finding("ok", f"tried: {done}")], seconds=time.monotonic() - start)


def _draw_report(config: RunConfig, folder: RunFolder, made: Path) -> None:
    """Of what the run has left so far, or of its settings alone."""
    if not (folder.path / "config.yaml").is_file():
        folder = RunFolder(made / config.run_name)
        folder.path.mkdir()
        save_config(config, folder.path / "config.yaml")
    write_report([folder], made / "report.html")


@contextmanager
def _tried(checks: Checks, what: str) -> Iterator[None]:
    """Take whatever is raised inside for an error: libraries and storages have errors of every kind."""
    with checks.guard("export"):
        try:
            yield
        except RefusedError:
            raise
        except Exception as error:
            raise ValueError(f"{what}: {unbroken(error)}") from error
