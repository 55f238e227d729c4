"""Bars and curves of results."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

LONGEST_LABEL = 64  # letters in a line, so that the bars have half of the width


def draw_curves(curves: Mapping[str, tuple[str, Sequence[tuple[float, float]]]], file: Path) -> None:
    """Draws a panel for each curve, side by side, both axes logarithmic: what grows in proportion has a slope of one.

    Args:
        curves: by title; what grows, and points.
        file: PNG to write.
    """
    columns = 2
    figure = Figure(figsize=(6 * columns, 3 * -(-len(curves) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(curves) // columns), columns, squeeze=False).flatten()
    for axes, (title, (what_grows, points)) in zip(panels, curves.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker=".")
        low, high = min(y for _, y in points), max(y for _, y in points)
        axes.set(title=title, xlabel=what_grows, xscale="log", yscale="log", ylim=(low / 3, 3 * high))
        axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points], rotation=30)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # or a curve within one decade has a single tick
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def draw_ratios(bars: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draws a bar for each comparison: how many times as fast as the peer, its quartiles, and a mark for the aim.

    Args:
        bars: by title; with "times_faster", "quartiles" and "aim", which may be None, as `compare` gives them.
        file: PNG to write.
    """
    labels = [textwrap.fill(title, LONGEST_LABEL) for title in bars]
    num_lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(11, 0.1 * num_lines + 0.25 * len(bars) + 1), layout="constrained")
    axes = figure.subplots()
    ratios = [one["times_faster"] for one in bars.values()]
    spreads = [[one["times_faster"] - one["quartiles"][0] for one in bars.values()]]
    spreads += [[one["quartiles"][1] - one["times_faster"] for one in bars.values()]]
    colors = ["C0" if one["times_faster"] >= (one["aim"] or 1) else "C1" for one in bars.values()]
    axes.barh(labels, ratios, color=colors, xerr=spreads, error_kw={"elinewidth": 0.8})
    for row, one in enumerate(bars.values()):
        end = max(one["times_faster"], one["quartiles"][1])
        if one["aim"]:
            axes.plot(one["aim"], row, "|", color="black", markersize=14)
            if end < one["aim"] < 1.3 * end:  # the figure would lie over the mark
                end = one["aim"]
        axes.annotate(f"{one['times_faster']:.3g}", (end, row), (6, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="black", linewidth=0.8)
    highest = max(max(one["times_faster"], one["aim"] or 0) for one in bars.values())
    label = "times as fast as the peer, with quartiles\n| marks the aim; orange is short of it"
    axes.set(xscale="log", xlabel=label, xlim=(None, 2 * highest))
    axes.tick_params(axis="y", labelsize=9)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    figure.savefig(file, dpi=100)
