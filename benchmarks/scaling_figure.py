"""Draws docs/assets/scaling.png from the rows of the scaling study: throughput and limits against devices.

.venv/bin/python benchmarks/scaling_figure.py
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rows import RESULTS_PATH  # noqa: E402
from benchmarks.scaling_model import Limits  # noqa: E402
from records.files import read_rows  # noqa: E402

PATH = ROOT / "docs" / "assets" / "scaling.png"
STYLES = {"object_store": ("-", "o"), "tree": ("--", "s"), "nccl": (":", "^")}
NAMES = {"object_store": "object store", "tree": "object store, tree", "nccl": "NCCL"}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A column for each pair: tokens per second above, seconds of a step's parts below."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    canvas, panels = plt.subplots(2, len(pairs), figsize=(10, 7), layout="constrained", sharex=True, squeeze=False)
    for column, pair in enumerate(pairs):
        of_pair = [row for row in rows if row["pair"] == pair]
        _throughput(panels[0][column], of_pair)
        _times(panels[1][column], [row for row in of_pair if row["transport"] == "object_store"])
        panels[0][column].set_title(f"Qwen3-{pair}")
        panels[1][column].set_xlabel("H200 devices")
        for panel in (panels[0][column], panels[1][column]):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks([8, 64, 512, 4096], ["8", "64", "512", "4,096"])
            panel.grid(alpha=0.25)
            panel.legend(fontsize=8, frameon=False)
    panels[0][0].set_ylabel("response tokens per second")
    panels[1][0].set_ylabel("seconds")
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _throughput(panel: Any, rows: list[dict[str, Any]]) -> None:
    for transport, (style, marker) in STYLES.items():
        found = [row for row in rows if row["transport"] == transport]
        devices = [row["devices"] for row in found]
        panel.plot(devices, [row["tokens_per_s"] for row in found], style, marker=marker, label=NAMES[transport])
    first = next(row for row in rows if row["devices"] == min(each["devices"] for each in rows))
    devices = sorted({row["devices"] for row in rows})
    linear = [first["tokens_per_s"] * num / first["devices"] for num in devices]
    panel.plot(devices, linear, color="gray", linewidth=0.8, label="linear from 8")
    most = Limits().controller_rollouts_per_s * first["tokens_per_s"] / first["rollouts_per_s"]
    panel.axhline(most, color="tab:red", linewidth=1.0, label="one controller, as measured")


def _times(panel: Any, rows: list[dict[str, Any]]) -> None:
    devices = [row["devices"] for row in rows]
    parts = {
        "step_s": "a step",
        "publish_s": "publishing",
        "fetch_s": "fetching, last engine",
        "reduce_s": "reduction",
    }
    for key, name in parts.items():
        panel.plot(devices, [row[key] for row in rows], marker="o", label=name)


if __name__ == "__main__":
    draw(read_rows(RESULTS_PATH / "scaling_study.jsonl"), PATH)
