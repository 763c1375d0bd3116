"""The upgrade of docs/operations.md: stop the run, put the new version on every node, submit the run again."""

import re
import shutil
from pathlib import Path

import pytest

from commands.submit.ray_jobs import find_package
from records.checkpoints import committed_steps
from records.run_folder import own_version
from settings.exit_codes import DRAINED, FINISHED
from tests.integration.namespaces import ROOT, NodeOptions, ray_nodes
from tests.integration.submitted_run import BATCH, SubmittedRun

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]
# One node that belongs to every group: the nodes of `ray_nodes` share /tmp/ray, and with it what a job uploads.
NODES = {"head": NodeOptions(num_cpus=4, custom={"head": 1, "rollout": 1, "teacher": 1, "learner": 1})}
NEW_VERSION = "99.0.0"


def test_a_run_that_is_stopped_continues_with_the_new_version_on_new_nodes_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    run = SubmittedRun(tmp_path)
    with ray_nodes(tmp_path, NODES, with_jobs=True):
        with run.followed("--node-groups", "--grace=120") as (process, _):
            run.until_steps(3, process)
            assert run.ask("--stop").returncode == FINISHED
            assert process.wait(60) == DRAINED
        last = run.check_drained()
    before = run.folder.ledger.read_bytes()

    run.root = new_version(tmp_path / "checkout")
    run.settings["max_steps"] = last + 3
    with ray_nodes(tmp_path, NODES, with_jobs=True):
        with run.followed("--node-groups", "--grace=120") as (process, _):
            assert process.wait(400) == FINISHED
        assert {job["status"] for job in run.jobs().values()} == {"SUCCEEDED"}

    assert run.folder.ledger.read_bytes().startswith(before)
    assert run.trained_slots() == list(range((last + 3) * BATCH))
    assert [row["step"] for row in run.events("resumed")] == [last]
    assert committed_steps(run.folder.checkpoints)[-1] == last + 3
    assert [row["version"] for row in run.events("run_started")] == [own_version(), NEW_VERSION]


def new_version(folder: Path) -> Path:
    """A copy of this checkout that says it is another version."""
    for name in find_package(ROOT).sizes:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    project = folder / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{NEW_VERSION}"', project.read_text()))
    return folder
