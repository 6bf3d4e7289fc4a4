"""One GPU in ten minutes: Ladle right and fast on it, beside what people use.

    PYTHONPATH=src python benchmarks/gpu.py [--size openseek|tiny] [--device cuda|cpu] [--phases NAME,…]

Each phase (gpu_phases.py) is a process of its own with a time limit, so that a crash or a hang costs that phase alone.
What it prints goes to `--out` as JSON lines; at the end the same stands as a Markdown table for docs/gpu.md, with
device, driver, versions and date. Peers that are not installed are skipped by name. `--size tiny` takes minutes on a
CPU, and is what a test runs. Exit code 1 where a phase failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = {
    "machine": 60, "prepare": 120, "tiny": 150, "documents": 60, "head": 60, "attention": 90, "train": 240,
    "precision": 90, "kto": 150, "generation": 120, "resume": 120,
}  # fmt: skip
"""Each phase's time limit. On an H200 they should need about half of it."""
Row = dict[str, Any]


def run_phase(name: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Run a phase and return what it measured, its end last."""
    command = [sys.executable, str(Path(__file__).with_name("gpu_phases.py")), name]
    command += [options.size, options.device, str(folder)]
    started = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        limit = SECONDS[name] * options.patience
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
        output, errors, state = done.stdout, done.stderr, "ended" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired as expired:
        output, errors = (
            text.decode() if isinstance(text, bytes) else text or "" for text in (expired.stdout, expired.stderr)
        )
        state = "ran out of time"
    rows = [json.loads(line) | {"phase": name} for line in output.splitlines() if line.startswith('{"what"')]
    end = {"phase": name, "what": "end", "state": state, "seconds": round(time.perf_counter() - started, 1)}
    if state != "ended":
        end["error"] = "\n".join(errors.splitlines()[-30:])
    return [*rows, end]


def table(rows: list[Row]) -> str:
    """Return the measurements as Markdown, under a line that says of what machine they are."""
    machine = next((row for row in rows if row["what"] == "versions"), {})
    said = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("what", "phase"))
    lines = [f"{time.strftime('%Y-%m-%d')}: {said}", "", "| phase | what | figures |", "|---|---|---|"]
    for row in rows:
        if row["what"] == "versions":
            continue
        if row["what"] == "end":
            error = f": {row['error'].splitlines()[-1]}" if row.get("error") else ""
            lines.append(f"| {row['phase']} | {row['state']} | {row['seconds']} s{error} |")
            continue
        figures = ", ".join(f"{name} {show(value)}" for name, value in row.items() if name not in ("what", "phase"))
        lines.append(f"| {row['phase']} | {row['what']} | {figures} |")
    return "\n".join(lines)


def show(value: Any) -> str:
    """Return a figure with the digits that matter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the phases one after another, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["openseek", "tiny"], default="openseek")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--phases", default=",".join(SECONDS), help="which, by name")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies the time limits")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, options.out.open("w", encoding="utf-8") as out:
        for phase in options.phases.split(","):
            for row in run_phase(phase, options, Path(name)):
                rows.append(row)
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(json.dumps(row), flush=True)
    print(f"\n{table(rows)}")
    sys.exit(any(row.get("state", "ended") != "ended" for row in rows))


if __name__ == "__main__":
    main()
