"""What the benchmarks share: `--quick`, the last line for programs, and the file that docs/evidence.md is made of.

`publish` writes results/NAME.json: of every figure the median, the least, the most and the number of runs, and with
which command, when, on what machine, with which versions and of which commit it was measured. With `--quick` sizes are
small, so that all benchmarks together take minutes, and the file goes to results/quick/, which git ignores.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, stdev
from typing import Any

from ladle.artifacts.record import describe_environment

FOLDER = Path(__file__).parent / "results"
PEERS = ("trl",)
"""Packages that are compared with, beside those that Ladle's records name."""


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Return the command line's options; with --quick, `quick` has the defaults."""
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, and little more")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def publish(
    name: str, samples: Mapping[str, Sequence[float]], ratios: Mapping[str, float], quick: bool, **more: Any
) -> None:
    """Write the results file, and print the last line: `{"name", "ratios", "medians", "runs"}`.

    Args:
        name: the script's, without `.py`.
        samples: what each run measured, by figure; the unit is in the figure's name.
        ratios: the peer's cost over Ladle's, by peer.
        quick: whether sizes were small.
        more: what else the last line says.
    """
    spread = {figure: _spread(values) for figure, values in samples.items()}
    ratios = {peer: _rounded(ratio) for peer, ratio in ratios.items()}
    environment = describe_environment()
    environment["packages"] |= {package: _version(package) for package in PEERS}
    file = (FOLDER / "quick" if quick else FOLDER) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["python", f"benchmarks/{name}.py", *sys.argv[1:]]
    result = {"name": name, "command": shlex.join(command), "date": date.today().isoformat()}
    result |= {"ratios": ratios, "figures": spread, **more, "environment": environment}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    medians = {figure: of_runs["median"] for figure, of_runs in spread.items()}
    runs = max(len(values) for values in samples.values())
    print(json.dumps({"name": name, "ratios": ratios, "medians": medians, **more, "runs": runs}))


T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t, two-sided 95 %, by the number of values."""


def half_interval(values: Sequence[float]) -> float:
    """Return the half width of the 95 % interval of a mean over two to ten seeds."""
    return T_95[len(values)] * stdev(values) / math.sqrt(len(values))


def _spread(values: Sequence[float]) -> dict[str, float]:
    least, most = min(values), max(values)
    return {
        "median": _rounded(median(values)),
        "least": _rounded(least),
        "most": _rounded(most),
        "runs": len(values),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
