"""Write the tables of docs/evidence.md that are made of benchmarks/results/*.json, between the page's two marks.

python docs/make_evidence.py
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "evidence.md"
BEGIN = "<!-- written by docs/make_evidence.py (`make evidence`) of what `make bench` left: change nothing here -->\n"
HEAD = """## Beside other tools

Each benchmark takes turns with what it is compared with, on one machine; the script's first lines say how.
`make bench` measures all, and `make evidence` writes this part.
"""
END = "<!-- end of what is written -->\n"


def evidence(page: str, folder: Path) -> str:
    """Return the page with a part for each result of the folder between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has lost its marks"
    parts = [part(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    return before + BEGIN + "".join(f"\n{text}" for text in [HEAD, *parts] if parts) + END + after


def part(result: dict[str, Any]) -> str:
    """Return one benchmark's part: what it does, how it was measured, ratios, and figures with their spread."""
    script = ROOT / "benchmarks" / f"{result['name']}.py"
    what = " ".join((ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    there = result["environment"]
    machine = [there["cpu"], f"{there['cores']} cores", *there["gpus"]]
    packages = [f"{name} {found}" for name, found in there["packages"].items() if found != "not installed"]
    lines = [
        f"### {result['name']}\n",
        f"{what}\n",
        f"`{result['command']}`, {result['date']}, on {', '.join(machine)}; Python {there['python']}, "
        f"{', '.join(packages)}; commit {there['commit']}.\n",
        "| peer's cost over Ladle's | ratio |\n|---|---|",
        *(f"| {name} | {ratio:,.2f} |" for name, ratio in result["ratios"].items()),
        "\n| figure | median | least | most | runs |\n|---|---|---|---|---|",
    ]
    for name, one in result["figures"].items():
        cells = (
            f"{one[key]:,.4g}" if abs(one[key]) < 1e4 else f"{one[key]:,.0f}" for key in ("median", "least", "most")
        )
        lines.append(f"| {name} | {' | '.join(cells)} | {one['runs']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(evidence(PAGE.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"), encoding="utf-8")
