"""What starts Ray nodes without containers: the script of a node, the systemd units, the SLURM script."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.validators import ROOT, run, validator

NODE, BATCH = ROOT / "docker" / "ray_node.sh", ROOT / "docker" / "slurm" / "poweropd.sbatch"
UNITS = sorted((ROOT / "docker" / "systemd").glob("*.service"))
INSTALLED = "/opt/poweropd/app/docker/ray_node.sh"
TOKEN = {"RAY_AUTH_TOKEN": "0" * 64}
NOWHERE = {"POWEROPD_HEAD": "127.0.0.1:1", "POWEROPD_HEAD_TIMEOUT": "1"}


def ended(script: Path, *arguments: str, home: Path, **environment: str) -> tuple[int, str]:
    """Exit code and messages of a script that starts nothing; `home` is the home folder."""
    given = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home), **environment}
    done = subprocess.run([script, *arguments], env=given, capture_output=True, text=True, timeout=60)
    assert not done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize("script", [NODE, BATCH], ids=lambda path: path.name)
def test_the_scripts_are_executable_and_shellcheck_finds_nothing(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXUSR
    assert run(validator("shellcheck"), str(script)) == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "the first argument must be one of: head rollout teacher learner; got ''"),
        (["worker"], {}, "the first argument must be one of: head rollout teacher learner; got 'worker'"),
        (["rollout"], TOKEN, "POWEROPD_HEAD must be HOST:PORT of the head for a rollout node, got nothing"),
        (["teacher"], TOKEN | {"POWEROPD_HEAD": "h"}, r"got 'h' \(nearest valid: 'h:6379'\)"),
        (
            ["learner"],
            TOKEN | NOWHERE | {"POWEROPD_WORKERS": "0"},
            "POWEROPD_WORKERS must be a whole number above 0, got '0'",
        ),
        (["learner"], NOWHERE | {"RAY_AUTH_MODE": "off"}, "RAY_AUTH_MODE must be token or disabled, got 'off'"),
        (
            ["head"],
            {},
            "no token: set RAY_AUTH_TOKEN, or put one into /.*/.ray/auth_token, the same on every node",
        ),
        (["learner"], TOKEN | NOWHERE | {"PATH": "/usr/bin:/bin"}, "no 'ray' on the PATH: .*"),
    ],
)
def test_a_node_that_cannot_work_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], environment: Mapping[str, str], message: str
) -> None:
    code, error = ended(NODE, *arguments, home=tmp_path, **environment)
    assert (code, error.count("\n")) == (2, 1), error
    assert re.search(message, error), error


def test_the_head_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    code, error = ended(NODE, "learner", home=tmp_path, **TOKEN, **NOWHERE)
    assert code == 1
    assert error.splitlines() == [
        "ray_node: waiting for the head at 127.0.0.1:1, 1 s left",
        "ray_node: the head at 127.0.0.1:1 did not answer within 1 s",
    ]


def test_a_token_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    assert "others could read" in ended(NODE, "learner", home=tmp_path, **NOWHERE)[1]
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "others" not in ended(NODE, "learner", home=tmp_path, **NOWHERE)[1]
    token.write_text("\n")
    code, error = ended(NODE, "learner", home=tmp_path, **NOWHERE)
    assert (code, error) == (2, f"ray_node: the token's file {token} is empty\n")


def verified(folder: Path, texts: Mapping[str, str]) -> str:
    """What systemd says about units that name the script of this checkout."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    for name, text in texts.items():
        assert INSTALLED in text
        (folder / name).write_text(text.replace(INSTALLED, str(NODE)))
    line = ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in texts)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60).stderr


def test_systemd_takes_the_units_and_finds_a_misspelt_setting(tmp_path: Path) -> None:
    texts = {unit.name: unit.read_text() for unit in UNITS}
    assert list(texts) == ["poweropd-head.service", "poweropd-worker@.service"]
    assert verified(tmp_path, texts) == ""
    wrong = {name: text.replace("KillMode=", "KilMode=") for name, text in texts.items()}
    assert verified(tmp_path, wrong).count("KilMode") == len(UNITS)


def test_head_and_workers_are_supervised_alike() -> None:
    head, worker = ((ROOT / unit).read_text().partition("[Service]")[2].splitlines() for unit in UNITS)
    assert {line for line in [*head, *worker] if (line in head) != (line in worker)} == {
        *(f"ExecStart={INSTALLED} {role} $POWEROPD_RAY_OPTIONS" for role in ("head", "%i")),
        *("StateDirectory=poweropd", "StateDirectoryMode=0700"),
    }


def test_the_example_of_a_node_s_variables_names_those_that_are_read() -> None:
    example = (ROOT / "docker" / "systemd" / "node.env.example").read_text()
    names = set(re.findall(r"^#?([A-Z_]+)=", example, flags=re.MULTILINE))
    known = set(re.findall(r"[A-Z_]+", NODE.read_text().partition("set -euo")[0]))
    assert names - known == {"POWEROPD_RAY_OPTIONS"}, "which the units read"
    assert {"POWEROPD_HEAD", "RAY_AUTH_TOKEN_PATH", "POWEROPD_GCS_STORAGE"} <= names


def slurm(folder: Path, nodes: str) -> dict[str, str]:
    """Variables of a job with these nodes, and a `scontrol` that knows their names."""
    program = folder / "scontrol"
    program.write_text('#!/bin/bash\ntr , "\\n" <<<"$3"\n')
    program.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": nodes}
    return job | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_job_whose_nodes_are_not_those_of_its_groups_is_refused_in_one_line(tmp_path: Path) -> None:
    given = slurm(tmp_path, "a,b,c") | {"POWEROPD_ROLLOUT_NODES": "2"}
    code, error = ended(BATCH, home=tmp_path, **given)
    assert (code, error) == (
        2,
        "poweropd: --nodes must be 4 or 5 for 2 rollout, 1 teacher and 1 learner nodes, got 3\n",
    )
    code, error = ended(BATCH, home=tmp_path, **given | {"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert (code, "submit from a checkout" in error) == (2, True)
    assert not (tmp_path / ".ray").exists(), "no token was made"
