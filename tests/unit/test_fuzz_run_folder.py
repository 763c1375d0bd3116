"""Files of run folders, which other processes wrote, may be broken: commands that read them say so in one line."""

from pathlib import Path

import pytest

from settings.exit_codes import BAD_INPUT, FINISHED
from tests.unit.conftest import ROOT
from tests.unit.fuzzing import DEAD, DEMO, check, refusal

BROKEN = {
    "nothing": b"",
    "bytes": b"\xff\x00\n",
    "a list": b"[1]\n",
    "a number": b"7\n",
    "a text": b'"step"\n',
    "other keys": b'{"a": 1}\n',
    "other types": b'{"step": [], "uids": 3, "host": 1, "pid": "x", "address": []}\n',
    "half": b'{"step": 1, "ui\n{"a',
    "deep": b"[" * 100_000 + b"\n",
}
ROWS = {
    "config.yaml": (ROOT / "configs" / "demo.yaml").read_bytes(),
    "metrics.jsonl": b"".join(b'{"step": %d}\n' % step for step in range(20)),
    "ledger.jsonl": b"".join(b'{"step": %d, "uids": []}\n' % step for step in range(20)),
    "events.jsonl": b'{"event": "x"}\n',
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose files are read as a run's."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for name, content in ROWS.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("name", ROWS)
def test_a_plan_from_a_broken_run_is_refused(run: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    line = refusal(["plan", f"--base={DEMO}", f"--from_run={run}"], tmp_path)
    assert "from_run" in line or "config.yaml" in line or "required, but not set" in line


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("command", [["status"], ["stop"], ["scale", "--rollout=2"]])
def test_a_broken_cluster_file_is_named(run: Path, tmp_path: Path, command: list[str], content: bytes) -> None:
    (run / "cluster.json").write_bytes(content)
    line = refusal([*command, "--run=mine", f"--runs-path={run.parent}"], tmp_path)
    assert "cluster.json" in line
    other = refusal([*command, "--run=other", f"--runs-path={run.parent}", f"--address={DEAD}"], tmp_path)
    assert "cluster.json" in other


@pytest.mark.parametrize(
    "address", [DEAD, "127.0.0.1:99999", "no.such.host.invalid:6379", ":", "::::", "http://x"]
)
def test_an_address_where_no_ray_answers_is_refused(tmp_path: Path, address: str) -> None:
    line = refusal(["status", "--run=x", f"--runs-path={tmp_path}", f"--address={address}"], tmp_path)
    assert f"no Ray answers at {address}" in line


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_comparison_with_a_broken_summary_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "c" / "a-seed0"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_bytes(content)
    comparison = tmp_path / "compare.yaml"
    comparison.write_text(f"base: {DEMO}\nruns_path: {tmp_path / 'c'}\nobjectives: [{{label: a}}]\n")
    code = check(["compare", "--config", str(comparison), "--dry-run"], tmp_path)
    assert code == (FINISHED if content.startswith(b"{") and b"}" in content else BAD_INPUT)
