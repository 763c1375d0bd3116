"""Uploads of an export to a hub on this machine, and every reason why one does not begin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from records.files import read_rows
from tests.unit.hub import TOKEN, Hub, serving

ROOT = Path(__file__).resolve().parents[2]

CHECK = "import sys; from commands.export import check_push; check_push(sys.argv[1], '--push')"
PUSH = """
import asyncio, sys
from pathlib import Path
from records.events import Events
from settings.learner import ExportConfig
from commands.export import push_export
config = ExportConfig(push_to=sys.argv[2])
asyncio.run(push_export(Path(sys.argv[1]), config, Events(Path(sys.argv[3]))))
"""


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, since the hub's package reads its environment once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    line = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        line, cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=60, check=False
    )


def error_of(repository: str, **environment: str) -> str:
    """The error of a check that must fail."""
    done = run(CHECK, repository, **environment)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1].removeprefix("ValueError: ")


@pytest.fixture
def at_hub(tmp_path: Path) -> dict[str, str]:
    """An environment without any login of this machine."""
    return {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_a_push_that_cannot_succeed_is_one_clear_error_before_any_work(at_hub: dict[str, str]) -> None:
    with serving() as hub:
        there = at_hub | {"HF_ENDPOINT": hub.address}
        assert error_of("organisation/x", **there) == (
            "--push: not logged in to the hub; run `hf auth login` or set HF_TOKEN"
        )
        assert error_of("organisation/x", HF_TOKEN="wrong", **there).startswith(
            "--push: the hub refuses the login"
        )
        assert error_of("other/x", HF_TOKEN=TOKEN, **there) == (
            "--push: me may not write to other (may: me, organisation)"
        )
        assert error_of("a name", HF_TOKEN=TOKEN, **there).startswith("--push: ")
        assert run(CHECK, "organisation/x", HF_TOKEN=TOKEN, **there).returncode == 0
        hub.user = {"name": "me", "orgs": [{"name": "organisation", "roleInOrg": "read"}]}
        assert error_of("organisation/x", HF_TOKEN=TOKEN, **there) == (
            "--push: me may not write to organisation (may: me)"
        )
        hub.user = {"name": "me", "auth": {"accessToken": {"role": "read"}}}
        assert error_of("me/x", HF_TOKEN=TOKEN, **there) == (
            "--push: the token of the login may only read; make one that may write, and log in with it"
        )
        closed = hub.address
    offline = error_of("organisation/x", HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1", **at_hub)
    assert offline == "--push: the hub is switched off (HF_HUB_OFFLINE); unset it or do not push"
    gone = error_of("organisation/x", HF_TOKEN=TOKEN, HF_ENDPOINT=closed, **at_hub)
    assert gone.startswith("--push: the hub does not answer")


def pushed(hub: Hub, tmp_path: Path, environment: dict[str, str]) -> tuple[str, dict[str, object]]:
    """Push a small export; returns what was logged, and the event."""
    export = tmp_path / "export"
    export.mkdir(exist_ok=True)
    (export / "README.md").write_text("---\nlicense: mit\n---\n# Student\n")
    (export / "model.safetensors").write_bytes(bytes(100))
    there = environment | {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
    done = run(PUSH, str(export), "organisation/student", str(tmp_path / "events.jsonl"), **there)
    assert done.returncode == 0, done.stderr
    return done.stderr, read_rows(tmp_path / "events.jsonl")[-1]


def test_the_folder_of_a_finished_run_is_uploaded_to_a_private_repository(
    tmp_path: Path, at_hub: dict[str, str]
) -> None:
    with serving() as hub:
        _, event = pushed(hub, tmp_path, at_hub)
        assert hub.repositories["organisation/student"]["visibility"] == "private"
        assert hub.files["model.safetensors"] == bytes(100)
        assert b"license: mit" in hub.files["README.md"]
        assert (event["event"], event["repository"]) == ("pushed", "organisation/student")


def test_an_upload_that_fails_is_an_event_and_does_not_fail_the_run(
    tmp_path: Path, at_hub: dict[str, str]
) -> None:
    with serving() as hub:
        hub.refuses_commits = True
        said, event = pushed(hub, tmp_path, at_hub)
        assert "try again with: hf upload organisation/student" in said
        assert event["event"] == "push_failed"
        assert json.dumps(event)
