"""Write docs/images/quickstart.svg, the README's figure, from the quickstart's table in docs/evidence.md.

python docs/make_figure.py > docs/images/quickstart.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from statistics import median

STAGES = ("base", "pretrained", "soup", "kto")
LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 56, 30, 34, 44, 640, 320
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328 } .small { font-size: 12px; fill: #59636e }
.grid { stroke: #d1d9e0 } .seed { fill: none; stroke: #818b98; stroke-width: 1.5 } .dot { fill: #818b98 }
.median { fill: none; stroke: #0969da; stroke-width: 3.5 } .median-dot { fill: #0969da } .bold { font-weight: 600 }
.value { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round; font-size: 14px }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .grid { stroke: #3d444d } .seed { stroke: #656c76 }
  .dot { fill: #656c76 } .median { stroke: #4493f8 } .median-dot { fill: #4493f8 } .value { stroke: #0d1117 } }"""


def read_accuracies(page: str) -> dict[str, list[float]]:
    """Return the percentages of each stage, seed by seed, as the table of the page has them."""
    lines = page[page.index("| seed | base |") :].split("\n\n")[0].splitlines()
    columns = [cell.strip() for cell in lines[0].split("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[2:] if re.match(r"\| \d", line)]
    return {stage: [float(row[columns.index(stage)].rstrip("%")) for row in rows] for stage in STAGES}


def x(stage: int) -> float:
    """Return where a stage is, from the left."""
    return LEFT + 30 + stage * (WIDTH - LEFT - RIGHT - 60) / (len(STAGES) - 1)


def y(percent: float) -> float:
    """Return where an accuracy is, from the top."""
    return round(HEIGHT - BOTTOM - percent * (HEIGHT - TOP - BOTTOM) / 100, 1)


def draw(accuracies: dict[str, list[float]]) -> str:
    """Return the figure: a line for each seed, and one through the medians, with their values."""
    seeds = list(zip(*accuracies.values(), strict=True))
    medians = [median(accuracies[stage]) for stage in STAGES]
    described = ", ".join(f"{stage} {value:.0f} %" for stage, value in zip(STAGES, medians, strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>Accuracy after each stage of the quickstart, medians of {len(seeds)} seeds: {described}</title>",
        f"<style>{STYLE}</style>",
        f'<text x="{LEFT}" y="18" class="bold">Accuracy on 1,000 unseen word problems</text>',
        f'<text x="{WIDTH - RIGHT}" y="18" text-anchor="end" class="small">{len(seeds)} seeds, and their median</text>',
    ]
    for percent in range(0, 101, 20):
        parts.append(f'<path class="grid" d="M{LEFT} {y(percent)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(percent) + 4}" text-anchor="end" class="small">{percent} %</text>')
    for values, line, dot, radius in [
        *((seed, "seed", "dot", 2.5) for seed in seeds),
        (medians, "median", "median-dot", 5),
    ]:
        points = [(x(stage), y(percent)) for stage, percent in enumerate(values)]
        parts.append(f'<path class="{line}" d="M{" L".join(f"{a:g} {b:g}" for a, b in points)}"/>')
        parts += [f'<circle class="{dot}" cx="{a:g}" cy="{b:g}" r="{radius}"/>' for a, b in points]
    for stage, (name, percent) in enumerate(zip(STAGES, medians, strict=True)):
        below = y(percent) + (24 if percent > 15 else -12)  # or above, where the stage's name is below
        place = f'x="{x(stage):g}" y="{below:g}" text-anchor="middle"'
        parts.append(f'<text {place} class="bold value">{percent:.0f} %</text>')
        parts.append(f'<text x="{x(stage):g}" y="{HEIGHT - 18}" text-anchor="middle">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def figure() -> str:
    """Return the figure of the page as it is."""
    return draw(read_accuracies((Path(__file__).parent / "evidence.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.stdout.write(figure())
