"""Bars and curves of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_curves(curves: Mapping[str, tuple[str, Sequence[tuple[float, float]]]], file: Path) -> None:
    """Draws a panel for each curve, side by side, all over logarithms of what grows.

    Args:
        curves: by title; what grows, and points.
        file: PNG to write.
    """
    columns = 2
    figure = Figure(figsize=(6 * columns, 3 * -(-len(curves) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(curves) // columns), columns, squeeze=False).flatten()
    for axes, (title, (what_grows, points)) in zip(panels, curves.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker=".")
        axes.set(title=title, xlabel=what_grows, xscale="log", ylim=(0, 1.15 * max(y for _, y in points) + 0.01))
        axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points], rotation=30)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def draw_ratios(cases: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws a bar for each case: how many times as fast as the best peer, and a mark for the aim.

    Args:
        cases: with "title", "times_faster" and maybe "target".
        file: PNG to write.
    """
    figure = Figure(figsize=(10, 0.32 * len(cases) + 1), layout="constrained")
    axes = figure.subplots()
    ratios = [case["times_faster"] for case in cases]
    bars = axes.barh([case["title"] for case in cases], ratios, color=["C0" if x >= 1 else "C1" for x in ratios])
    axes.bar_label(bars, [f" {ratio:.3g}" for ratio in ratios])
    for row, case in enumerate(cases):
        if "target" in case:
            axes.plot(case["target"], row, "|", color="black", markersize=14)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="times as fast as the best peer; | marks the aim", xlim=(None, 2 * max(ratios)))
    axes.invert_yaxis()
    figure.savefig(file, dpi=100)
