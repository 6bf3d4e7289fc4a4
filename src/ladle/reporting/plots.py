"""The report's charts: where curves and ticks lie in an SVG of 480 × 240, which the page draws in its own colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

LEFT, RIGHT, TOP, BOTTOM = 70, 452, 14, 194
"""The frame that the curves lie in."""
MAX_POINTS = 400
"""Points of a curve that are drawn: of more, the lowest and the highest of each stretch."""

Point = tuple[float, float]


class Line(NamedTuple):
    """One curve: its name, its points in the SVG by round, and its last value."""

    name: str
    rounds: list[list[Point]]
    last: str


class Chart(NamedTuple):
    """Curves in one frame: places and texts of ticks, and the places at which a round ends and the next begins."""

    title: str
    x_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    ends: list[float]


def draw(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    x_label: str = "step",
    categories: Sequence[str] = (),
    ends: Sequence[float] = (),
) -> Chart | None:
    """Return the chart of curves of (x, y) points; None if no y is finite.

    Args:
        title: what is drawn.
        curves: points in order of x, by the curve's name.
        x_label: what x is.
        categories: texts of x = 0, 1, 2, …, in place of numbers.
        ends: x at which a round ends and the next begins; no curve is drawn across.
    """
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    kept = {name: points for name, points in finite.items() if points}
    if not kept:
        return None
    xs, ys = zip(*(point for points in kept.values() for point in points), strict=True)
    y_ticks = _round_ticks(min(ys), max(ys))
    x_ticks = [*map(float, range(len(categories)))] or _round_ticks(min(xs), max(xs))

    def place_x(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * _share(x, x_ticks), 1)

    def place_y(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * _share(y, y_ticks), 1)

    def line(name: str, points: list[Point]) -> Line:
        bounds = [-math.inf, *ends, math.inf]
        rounds = [[point for point in points if low < point[0] <= high] for low, high in pairwise(bounds)]
        placed = [[(place_x(x), place_y(y)) for x, y in _thin(own)] for own in rounds if own]
        return Line(name, placed, _text(points[-1][1], 4))

    return Chart(
        title,
        x_label,
        [line(*one) for one in kept.items()],
        [(place_x(x), text) for x, text in zip(x_ticks, categories or map(_text, x_ticks), strict=True)],
        [(place_y(y), _text(y)) for y in y_ticks],
        [place_x(end) for end in ends],
    )


def draw_pass_at_k(scores: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """Return the chart of each model's pass@k; None if no model has several samples an item."""
    curves = {name: score["pass_at_k"] for name, score in scores.items() if score.get("pass_at_k")}
    ks = sorted({int(k) for curve in curves.values() for k in curve})
    shares = {
        name: [(float(ks.index(int(k))), 100 * share) for k, share in curve.items()] for name, curve in curves.items()
    }
    return draw("solved by one of k samples, %", shares, "k", [*map(str, ks)])


def draw_lengths(sources: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Return the chart of how many of each source's documents have which length in tokens, by powers of two.

    Args:
        sources: each with `name` and `length_histogram`, a range such as `64-127` to its number of documents.
    """
    counts = [{int(name.split("-")[0]): n for name, n in source["length_histogram"].items()} for source in sources]
    lows = sorted({low for own in counts for low in own})
    ranges = [2**power for power in range(lows[0].bit_length() - 1, lows[-1].bit_length())] if lows else []
    curves = {
        source["name"]: [
            (float(at), 100 * own.get(low, 0) / max(1, sum(own.values()))) for at, low in enumerate(ranges)
        ]
        for source, own in zip(sources, counts, strict=True)
    }
    return draw("documents, %", curves, "tokens in a document, from", [*map(str, ranges)])


def _thin(points: list[Point]) -> list[Point]:
    """Return the points, or of many the lowest and the highest of each stretch."""
    if len(points) <= MAX_POINTS:
        return points
    length = math.ceil(2 * len(points) / MAX_POINTS)
    stretches = [points[start : start + length] for start in range(0, len(points), length)]
    extremes = [{choose(own, key=lambda point: point[1]) for choose in (min, max)} for own in stretches]
    return [point for own in extremes for point in sorted(own)]


def _round_ticks(low: float, high: float) -> list[float]:
    """Return numbers 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    least = ((high - low) or abs(high) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _share(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0]) if len(ticks) > 1 else 0.5


def _text(value: float, digits: int = 10) -> str:
    return f"{value:,.{digits}g}"
