"""The site of the documents builds without a warning, and its pages fetch nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOADED = re.compile(
    r"""<(?:script|img|source|iframe|link(?![^>]*rel="?canonical))[^>]*\b(?:src|href)=["']?([^"'\s>]+)"""
)


def test_the_site_builds_strictly_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    loaded = {target for page in pages for target in LOADED.findall(page.read_text(encoding="utf-8"))}
    assert any(target.endswith("assets/data_flow.svg") for target in loaded)
    assert [target for target in loaded if "//" in target] == []
