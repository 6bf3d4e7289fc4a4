"""The page's plots, as SVG text to stand in the page itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

mpl.rcParams |= {
    "svg.hashsalt": "ladle",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}

WIDTH, HEIGHT = 6.4, 3.2  # inches; the page scales them


def accuracy_plot(scores: Mapping[str, Mapping[str, Any]], benchmark: str) -> str:
    """Draw each model's accuracy on one benchmark with its 95 % interval.

    Args:
        scores: model name to {accuracy, low, high}, fractions of 1.
        benchmark: the plot's title.
    """
    figure, axes = _axes()
    values = [100 * score["accuracy"] for score in scores.values()]
    below = [100 * (score["accuracy"] - score["low"]) for score in scores.values()]
    above = [100 * (score["high"] - score["accuracy"]) for score in scores.values()]
    axes.bar(range(len(values)), values, color="#4c78a8", width=0.6)
    axes.errorbar(range(len(values)), values, yerr=[below, above], fmt="none", ecolor="#333333", capsize=4)
    axes.set_xticks(range(len(values)), list(scores))
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 100)
    axes.set_title(benchmark, loc="left")
    return _svg(figure)


def curve_plot(title: str, log: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Draw logged values over optimizer steps; entries without a value are left out."""
    figure, axes = _axes()
    for name in names:
        points = [(entry["step"], entry[name]) for entry in log if name in entry and "step" in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False)
    return _svg(figure)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
