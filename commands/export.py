"""Upload of an exported folder to the Hugging Face hub, with the login of its own tools."""

import asyncio
import logging
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from records.events import Events, reason_of
from settings.export_config import ExportConfig

logger = logging.getLogger(__name__)


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
    owners = [str(user["name"]), *(str(org["name"]) for org in user.get("orgs", ()))]
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
