"""The check of the pinned packages finds what it should."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """requirements/audit.py, which is a script."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / "requirements" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mistakes(audit: ModuleType, path: Path, text: str, *bad: str) -> list[str]:
    """What is wrong with a file of this text."""
    (path / "x.txt").write_text(text)
    return list(audit.mistakes_of(path / "x.txt", bad))


def test_the_pins_of_this_repository_are_exact(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--offline"]) == audit.CLEAN
    assert "pins are exact, and none is known to be bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["numpy", "numpy>=1", "numpy==1.*", "numpy==1,<2", "git+https://x/y", "-e .", "a @ x"]
)
def test_what_is_no_exact_pin_is_found(audit: ModuleType, tmp_path: Path, line: str) -> None:
    assert mistakes(audit, tmp_path, f"torch==2.13.0+cpu\n{line}\n") == [
        f"{line!r} is not pinned as name==version"
    ]


def test_a_version_that_is_known_to_be_bad_or_has_no_hash_or_is_there_twice_is_found(
    audit: ModuleType, tmp_path: Path
) -> None:
    assert mistakes(audit, tmp_path, "Num_Py==1.0\n", "num-py==1.0") == ["num-py==1.0 is in known_bad.txt"]
    assert mistakes(audit, tmp_path, "a==1\nA==2\n") == ["a is there twice"]
    hashed = f"a==1 \\\n    --hash=sha256:{'0' * 64}\n"
    assert mistakes(audit, tmp_path, hashed) == []
    assert mistakes(audit, tmp_path, hashed + "b==1\n") == ["b has no hash, others have"]


def test_a_package_that_was_not_looked_up_is_not_called_clean(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "not found"}
    advisory = {"id": "X-1", "fix_versions": ["2"]}
    assert audit.report([clean], "pypi") == audit.CLEAN
    assert audit.report([clean, skipped], "pypi") == audit.UNKNOWN
    assert audit.report([clean | {"vulns": [advisory]}, skipped], "pypi") == audit.FOUND
    assert "a==1: X-1, fixed in ['2']" in capsys.readouterr().out
