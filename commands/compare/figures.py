"""Pictures of a comparison, as PNG and SVG: curves by step, and rewards over the probability plane."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm

Curves = list[dict[int, float]]
"""Value by step, one for each seed."""

COLORS = mpl.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
STYLES = ("-", "--", ":", "-.")
MAGNITUDES = (1e-3, 10.0)
"""Range of the colours of a reward plane; beyond it they stay the same."""
VISIBLE = 0.01
"""Magnitude at which a reward counts as a signal, as in the metric `reward/frac_abs_gt_0.01`."""


@dataclass(frozen=True)
class CurveFigure:
    """One figure by step: the metric (`eval/...` from eval.jsonl), axis label, scale."""

    file: str
    key: str
    ylabel: str
    is_log: bool = False
    smoothing: float = 0.0
    """Share of the steps in the running median; 0 shows every value as it is."""


CURVES = (
    CurveFigure("accuracy", "eval/avg_at_k", "held-out accuracy avg@k"),
    CurveFigure("response_length", "response_length/mean", "mean response length (tokens)", smoothing=0.05),
    CurveFigure("grad_norm", "grad_norm", "gradient norm before clipping", is_log=True, smoothing=0.05),
    CurveFigure("kl_reverse", "kl/reverse", "reverse KL to the teacher (nats per token)", smoothing=0.05),
)


def draw_curves(figure: CurveFigure, curves: Mapping[str, Curves], path: Path) -> None:
    """Draw the mean over seeds by step, and one standard deviation around it as a band."""
    canvas, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for index, (label, seeds) in enumerate(curves.items()):
        steps = sorted(set.intersection(*(set(values) for values in seeds)))
        values_KS = np.array([[values[step] for step in steps] for values in seeds], dtype=float)
        values_KS = np.array([running_median(values_S, figure.smoothing) for values_S in values_KS])
        mean_S = values_KS.mean(0)
        color, style = COLORS[index % len(COLORS)], STYLES[index // 4 % len(STYLES)]
        marker = "o" if len(steps) <= 20 else ""
        axes.plot(steps, mean_S, style, color=color, marker=marker, markersize=4, linewidth=1.6, label=label)
        if len(seeds) > 1:
            spread_S = values_KS.std(0, ddof=1)
            low_S = np.maximum(mean_S - spread_S, values_KS.min(0)) if figure.is_log else mean_S - spread_S
            axes.fill_between(steps, low_S, mean_S + spread_S, color=color, alpha=0.18, linewidth=0)
    if figure.is_log:
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(figure.ylabel)
    axes.grid(alpha=0.25, which="both" if figure.is_log else "major")
    num_seeds = max(len(seeds) for seeds in curves.values())
    title = "objective" if num_seeds == 1 else f"objective (mean and std\nover {num_seeds} seeds)"
    canvas.legend(loc="outside right upper", title=title, frameon=False)
    _save(canvas, path)


def draw_positions(positions: Mapping[str, tuple[Any, Any]], path: Path) -> None:
    """Draw the reward by tenth of the response, (mean, standard deviation) for each label: a panel each.

    Panels have a scale of their own: rewards differ by orders of magnitude, the shape is what compares.
    """
    columns = min(len(positions), 4)
    rows = -(-len(positions) // columns)
    size = (2.9 * columns + 0.6, 2.2 * rows + 0.6)
    canvas, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", sharex=True, squeeze=False)
    for index, (panel, (label, (mean_P, std_P))) in enumerate(zip(axes.flat, positions.items(), strict=False)):
        color = COLORS[index % len(COLORS)]
        middle_P = (np.arange(len(mean_P)) + 0.5) / len(mean_P)
        panel.plot(middle_P, mean_P, color=color, marker="o", markersize=3, linewidth=1.6)
        panel.fill_between(middle_P, mean_P - std_P, mean_P + std_P, color=color, alpha=0.18, linewidth=0)
        panel.axhline(0.0, color="gray", linewidth=0.6)
        panel.set_title(label, fontsize=10)
        panel.set_xlim(0.0, 1.0)
        panel.grid(alpha=0.25)
    for panel in axes.flat[len(positions) :]:
        panel.axis("off")
    canvas.supxlabel("position in the response (0 first token, 1 last)")
    canvas.supylabel("reward, mean and std over tokens")
    _save(canvas, path)


def draw_planes(p: Any, planes: Mapping[str, Any], path: Path) -> None:
    """Draw the magnitude of each reward over the two probabilities `p`; all panels share one scale of colours."""
    columns = min(len(planes), 4)
    rows = -(-len(planes) // columns)
    size = (2.9 * columns + 1.4, 2.9 * rows + 0.6)
    canvas, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    image = None
    for panel, (label, reward) in zip(axes.flat, planes.items(), strict=False):
        size_PP = np.abs(np.asarray(reward, dtype=float))
        shown_PP = np.maximum(size_PP, MAGNITUDES[0])
        image = panel.pcolormesh(p, p, shown_PP, norm=LogNorm(*MAGNITUDES), cmap="viridis", rasterized=True)
        if size_PP.min() < VISIBLE < size_PP.max():
            panel.contour(p, p, size_PP, levels=[VISIBLE], colors="white", linewidths=1.0)
        panel.set_title(label, fontsize=10)
        panel.set_aspect("equal")
    for panel in axes.flat[len(planes) :]:
        panel.axis("off")
    canvas.supxlabel("student probability pS of the sampled token")
    canvas.supylabel("teacher probability pT")
    assert image is not None, "without planes there is nothing to draw"
    canvas.colorbar(image, ax=axes, label="|reward|, before normalisation (white: 0.01)", extend="both")
    _save(canvas, path)


def running_median(values_S: Any, share: float) -> Any:
    """The median over a centred window of this share of the values, cut off at both ends."""
    half = int(len(values_S) * share / 2 + 0.5)
    return np.array([np.median(values_S[max(0, i - half) : i + half + 1]) for i in range(len(values_S))])


def _save(canvas: Any, path: Path) -> None:
    """Write PNG and SVG, and free the figure."""
    canvas.savefig(path.with_suffix(".png"), dpi=150)
    canvas.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(canvas)
