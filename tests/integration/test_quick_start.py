"""A new user follows the quick start: the demo, shortened, leaves a student, its numbers and its report."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = "--max-steps 3 --evaluation.max_problems 4"


def test_the_demo_of_the_quick_start_leaves_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text()
    assert f'make demo ARGS="{SHORT}"' in page
    command = ["make", "--old-file=install", "demo", f"ARGS={SHORT} --runs-path {tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "student after" in done.stdout
    folder = next(tmp_path.glob("demo-*"))
    assert str(folder / "export") in done.stdout.replace("\n", "")
    for name in ("metrics.jsonl", "eval.jsonl", "summary.json", "export/model.safetensors", "export/config.json"):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3
    assert [*(folder / "tensorboard").iterdir()]
    if (ROOT / "reporting" / "page").is_dir():
        assert "<html" in (folder / "report.html").read_text()[:500]
