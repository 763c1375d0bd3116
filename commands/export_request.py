"""`launch.py export`: what is exported, and to where; all of it checked before any work."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from commands.export import check_push
from records.checkpoint_store import CheckpointStore
from records.run_folder import RunFolder
from settings.run import RunConfig
from settings.run_files import load_config
from settings.run_name import checked_run_name


@dataclass(frozen=True)
class ExportRequest:
    """A checkpoint of a run, and the folder and repository that its student goes to."""

    folder: RunFolder
    config: RunConfig
    store: CheckpointStore
    step: int
    out: Path
    dtype: str
    push_to: str | None
    private: bool


def read_request(arguments: argparse.Namespace) -> ExportRequest:
    """The request of a command line; ValueError naming the option that is wrong."""
    path = Path(arguments.runs_path) / checked_run_name(arguments.run, "--run")
    folder = RunFolder(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"--run: there is no run folder {path} with a config.yaml")
    config = load_config(str(path / "config.yaml"), [])
    config = config.model_copy(update={"runs_path": str(path.parent), "run_name": path.name})
    store = CheckpointStore.of(config, folder)
    step = _chosen(store, arguments.step)
    out = Path(arguments.out) if arguments.out else path / f"export_step_{step}"
    if out.exists():
        raise ValueError(f"--out: {out} already exists; choose another folder with --out, or remove it")
    if not (parent := out.absolute().parent).is_dir():
        raise ValueError(f"--out: there is no folder {parent}")
    if arguments.private and arguments.push is None:
        raise ValueError("--private: only with --push")
    if arguments.push is not None:
        check_push(arguments.push, "--push")
    dtype = arguments.dtype or config.learner.dtype
    return ExportRequest(folder, config, store, step, out, dtype, arguments.push, arguments.private)


def _chosen(store: CheckpointStore, step: int | None) -> int:
    """The step asked for, or the newest; ValueError naming those that there are."""
    steps = store.steps()
    if not steps:
        raise ValueError(f"--run: {store.place} holds no checkpoint")
    if step is not None and step not in steps:
        raise ValueError(f"--step: {store.place} has no step {step} (there are: {', '.join(map(str, steps))})")
    return steps[-1] if step is None else step
