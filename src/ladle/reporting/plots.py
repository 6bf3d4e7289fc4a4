"""The report's plots, as SVG text that goes into the page itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

mpl.rcParams |= {"svg.hashsalt": "ladle", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def accuracy_plot(scores: Mapping[str, Mapping[str, Any]], benchmark: str) -> str:
    """Draw each model's accuracy on one benchmark with its 95 % interval.

    Args:
        scores: model name to {accuracy, low, high}, fractions of 1.
        benchmark: the plot's title.
    """
    figure, axes = _axes(benchmark)
    values = [100 * score["accuracy"] for score in scores.values()]
    below = [100 * (score["accuracy"] - score["low"]) for score in scores.values()]
    above = [100 * (score["high"] - score["accuracy"]) for score in scores.values()]
    axes.bar(list(scores), values, color="#4c78a8", width=0.6)
    axes.errorbar(list(scores), values, yerr=[below, above], fmt="none", ecolor="#333333", capsize=4)
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    return _svg(figure)


def pass_plot(scores: Mapping[str, Mapping[str, Any]], benchmark: str) -> str:
    """Draw each model's pass@k over k; empty where no model has several samples an item."""
    curves = {name: score["pass_at_k"] for name, score in scores.items() if score.get("pass_at_k")}
    if not curves:
        return ""
    figure, axes = _axes(f"{benchmark}: pass@k")
    for name, curve in curves.items():
        axes.plot(list(map(int, curve)), [100 * share for share in curve.values()], label=name, marker=".")
    axes.set(xlabel="k", ylabel="solved by one of k samples, %", ylim=(0, 100))
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False)
    return _svg(figure)


def curve_plot(title: str, log: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Draw logged values over optimizer steps; entries without a value are left out. Empty where nothing was logged."""
    entries = [entry for entry in log if "step" in entry]
    curves = {name: [(entry["step"], entry[name]) for entry in entries if name in entry] for name in names}
    if not any(curves.values()):
        return ""
    figure, axes = _axes(title)
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.4, marker="." if len(points) < 3 else None)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return _svg(figure)


def length_plot(sources: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw how many documents of each source have which length, in tokens, by powers of two.

    Args:
        sources: each with `name` and `length_histogram`, a range such as `64-127` to its number of documents.
        title: the plot's title.
    """
    figure, axes = _axes(title)
    names = {name for source in sources for name in source["length_histogram"]}
    ranges = sorted(names, key=lambda name: int(name.split("-")[0]))
    for source in sources:
        counts = [source["length_histogram"].get(name, 0) for name in ranges]
        axes.plot(ranges, [100 * count / max(1, sum(counts)) for count in counts], label=source["name"], marker=".")
    axes.tick_params(axis="x", labelrotation=45, labelsize=7)
    axes.set(xlabel="tokens in a document", ylabel="documents, %")
    axes.legend(frameon=False)
    return _svg(figure)


def _axes(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")  # in inches, which the page scales
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
