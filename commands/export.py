"""`launch.py export`: writes the student of a checkpoint as a Hugging Face folder, and uploads it if wanted.

Everything is checked before any work. The login is that of the hub's own tools.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from records.checkpoint_store import CheckpointStore
from records.checkpoints import DamagedCheckpointError
from records.events import Events, reason_of
from records.run_folder import RunFolder
from reporting.model_card import write_model_card
from settings.exit_codes import FAILED, FINISHED
from settings.learner import ExportConfig
from settings.run import RunConfig, checked_run_name
from settings.run_files import load_config
from settings.teachers import field_of
from transport.stop_tokens import StopTokens

logger = logging.getLogger(__name__)


def export_command(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Write the folder; returns the exit code. ValueError means that nothing was written."""
    if options:
        raise ValueError(f"unexpected argument {options[0]!r}; see launch.py export --help")
    request = read_request(arguments)
    stops = read_stops(request.config)
    from learner.export import export_checkpoint  # torch

    config, out = request.config, request.out
    try:
        found = request.store.fetch(request.step)
        export_checkpoint(config, found.path, found.manifest, out=out, stops=stops, dtype=request.dtype)
        write_model_card(request.folder, config, out, step=request.step, name=request.push_to)
        print(f"step {request.step} of {arguments.run} is in {out}")
        if request.push_to is not None:
            print(f"uploaded to {push(out, request.push_to, private=request.private)}")
    except (DamagedCheckpointError, PushError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    return FINISHED


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


def read_stops(config: RunConfig) -> StopTokens:
    """Stop tokens of student and teachers, from their folders alone; ValueError naming one that cannot be read."""
    from inputs.tokenizers import check_model_folder, load_tokenizer, stop_ids  # transformers

    def read(field: str, path: str, trusts: bool) -> tuple[int, ...]:
        check_model_folder(path, field)
        tokenizer = load_tokenizer(path, field, trust_remote_code=trusts)
        arguments = config.data.template_arguments
        return stop_ids(path, tokenizer, field=field, trust_remote_code=trusts, template_arguments=arguments)

    student, teachers = config.student, config.teacher_of_role
    of_role = {
        role: read(f"{field_of(role)}.model_path", each.model_path, each.trust_remote_code)
        for role, each in teachers.items()
    }
    own = read("student.model_path", student.model_path, student.trust_remote_code)
    return StopTokens(own, of_role["teacher"], of_role)


# -- the hub ----------------------------------------------------------------------------------------------


def check_push(repo_id: str, field: str) -> None:
    """ValueError naming `field` unless the hub answers and the login may write to that repository's owner."""
    try:
        validate_repo_id(repo_id)
        owner, _, name = repo_id.partition("/")
        if not name:
            raise ValueError(f"{field}: a repository is named organisation/name, got {repo_id!r}")
        user = HfApi().whoami()
    except HFValidationError as error:
        raise ValueError(f"{field}: {error}") from error
    except OfflineModeIsEnabled as error:
        raise ValueError(f"{field}: the hub is switched off (HF_HUB_OFFLINE); unset it or do not push") from error
    except LocalTokenNotFoundError as error:
        raise ValueError(f"{field}: not logged in to the hub; run `hf auth login` or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{field}: the hub refuses the login: {_first_line(error)}") from error
    except (OSError, httpx2.HTTPError) as error:
        raise ValueError(f"{field}: the hub does not answer: {_first_line(error)}") from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(
            f"{field}: the token of the login may only read; make one that may write, and log in with it"
        )
    orgs = [org for org in user.get("orgs", ()) if org.get("roleInOrg") != "read"]
    owners = [str(user["name"]), *(str(org["name"]) for org in orgs)]
    if owner not in owners:
        raise ValueError(f"{field}: {user['name']} may not write to {owner} (may: {', '.join(owners)})")


class PushError(Exception):
    """An upload failed; the message says why, and how to try again."""


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload the folder, making the repository if need be; returns its address. PushError if that fails."""
    api = HfApi()
    try:
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Student distilled with poweropd")
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise PushError(
            f"{folder} could not be uploaded: {_first_line(error)}; try again with: hf upload {repo_id} {folder}"
        ) from error
    logger.info("uploaded %s to %s", folder, address)
    return address


async def push_export(folder: Path, config: ExportConfig, events: Events) -> None:
    """Upload a finished run's export. A failure is an event and a logged error; the folder stays as it is."""
    assert config.push_to is not None
    try:
        address = await asyncio.to_thread(push, folder, config.push_to, private=config.private)
    except PushError as error:
        events.add("push_failed", repository=config.push_to, reason=reason_of(error))
        logger.error("%s", error)
    else:
        events.add("pushed", repository=config.push_to, address=address)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
