"""The pictures of reproductions, drawn. No window is opened, and no global setting of matplotlib is read or changed."""

from __future__ import annotations

import io
import math
from typing import Any

from ..errors import MissingDependency
from ..experiments import Panel, Picture, Series

PALETTE = ("#0a7d6b", "#d1541f", "#3b62b8", "#a58a00", "#7d4a9c", "#5b676d", "#1d9bb5", "#a3304f", "#5c8a1c", "#222222")
WIDTH, HEIGHT = 5.2, 3.8
"""Of a panel, in inches."""
INK, LINE = "#1c2326", "#dde2e2"


def png(picture: Picture, dpi: int = 130) -> bytes:
    """The picture as a PNG file: the same for the same numbers. Needs matplotlib."""
    try:
        from matplotlib import rc_context, rcParamsDefault
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingDependency(
            f"MissingDependency in plots.png: matplotlib cannot be imported ({missing}). Install it: "
            f"pip install 'riemann-ng[plots]'."
        ) from None
    keep: Any = {key: value for key, value in rcParamsDefault.items() if key != "backend"}
    with rc_context(keep):
        figure = Figure(figsize=(WIDTH * len(picture.panels), HEIGHT), dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        for panel, axes in zip(picture.panels, figure.subplots(1, len(picture.panels), squeeze=False)[0], strict=True):
            _panel(axes, panel)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _panel(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=10.5, color=INK)
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_ylabel(panel.y, fontsize=9)
    if "x" in panel.log:
        axes.set_xscale("log")
    if "y" in panel.log:
        axes.set_yscale("log")
    bars = [series for series in panel.series if series.look == "bars"]
    for k, series in enumerate(panel.series):
        color = PALETTE[(k if series.color is None else series.color) % len(PALETTE)]
        aside = 0.5 * ((k + 0.5) / len(panel.series) - 0.5) if panel.categories and series.look == "points" else 0.0
        _series(axes, series, color, panel.log, bars.index(series) if series in bars else 0, len(bars), aside)
    if panel.limit is not None:
        axes.axhline(panel.limit, color="#8a9499", linewidth=1, linestyle=":")
    if panel.categories:
        axes.set_xticks(range(len(panel.categories)), panel.categories, rotation=25, ha="right")
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(series.label for series in panel.series):
        axes.legend(fontsize=7.5, framealpha=0.85, edgecolor=LINE)


def _series(axes: Any, series: Series, color: str, log: str, bar: int, bars: int, aside: float) -> None:
    """One curve, moved aside; what a logarithmic axis cannot show is left out."""
    points = [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and not ("x" in log and x <= 0) and not ("y" in log and y <= 0)
    ]
    xs, ys = [float(x) + aside for x, _ in points], [float(y) for _, y in points]
    label = series.label or None
    if series.look == "bars":
        width = 0.8 / bars
        axes.bar([x + (bar - (bars - 1) / 2) * width for x in xs], ys, width, color=color, label=label)
    elif series.look == "points":
        axes.plot(xs, ys, linestyle="", marker="o", markersize=4.5, color=color, label=label)
    else:
        style = "--" if series.look == "dashes" else "-"
        axes.plot(xs, ys, linestyle=style, linewidth=1.5, color=color, label=label)
