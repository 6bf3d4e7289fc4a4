"""What the commands print: plans, status, results. Tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ladle.artifacts.build import Workspace
from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.record import RECORD_NAME, read_record
from ladle.artifacts.step import Step
from ladle.log import get_logger

logger = get_logger(__name__)

STAGE_ROW = "{:<10} {}"


def say_cached(planned: PlannedStep) -> None:
    """Say that a finished step is used as it is."""
    logger.info("%s: cached", planned.step.name)


@contextmanager
def building(planned: PlannedStep) -> Iterator[None]:
    """Say that a step starts and why, and how long it took."""
    why = f" ({'; '.join(planned.reasons)})" if planned.reasons else ""
    logger.info("%s: %s%s", planned.step.name, planned.state, why)
    started = time.monotonic()
    yield
    logger.info("%s: done in %.1f s", planned.step.name, time.monotonic() - started)


def print_plan(plan: list[PlannedStep], as_json: bool) -> None:
    """Print each step's state and the reasons for it."""
    rows = [{"step": p.step.name, "state": str(p.state), "reasons": list(p.reasons), "path": str(p.path)} for p in plan]
    if as_json:
        _print_json(rows)
    else:
        _print_table(["step", "state", "why"], [[row["step"], row["state"], "; ".join(row["reasons"])] for row in rows])


def print_status(plan: list[PlannedStep], as_json: bool, jobs: Mapping[str, str]) -> None:
    """Print which steps are done, in what time and size, and who builds the others.

    Args:
        plan: the steps.
        as_json: for a program.
        jobs: what became of the Slurm jobs of unfinished steps, by step.
    """
    rows = []
    for planned in plan:
        done = planned.state is State.CACHED
        record = read_record(planned.path) if done else {}
        holder = planned.path.with_name(f".{planned.path.name}.holder")
        rows.append(
            {
                "step": planned.step.name,
                "state": "done" if done else str(planned.state),
                "seconds": record.get("timings", {}).get("seconds"),
                "size_bytes": sum(entry["size_bytes"] for entry in record.get("files", {}).values()),
                "building": json.loads(holder.read_text()) if holder.is_file() and not done else None,
                "job": jobs.get(planned.step.name),
            }
        )
    if as_json:
        _print_json(rows)
        return
    table = [
        [
            row["step"],
            ", ".join(filter(None, [_state_of(row), row["job"]])),
            "" if row["seconds"] is None else f"{row['seconds']:.1f} s",
            f"{row['size_bytes'] / 1e6:,.1f} MB" if row["size_bytes"] else "",
        ]
        for row in rows
    ]
    _print_table(["step", "state", "time", "size"], table)


def _state_of(row: dict[str, Any]) -> str:
    holder = row["building"]
    return f"building by process {holder['pid']} on {holder['host']}" if holder else row["state"]


def print_results(steps: list[Step], workspace: Workspace) -> None:
    """Print accuracy, n and 95 % interval of each evaluated model, and where the report is."""
    evaluations = [step for step in steps if step.stage.name == "evaluate"]
    rows = [row for step in evaluations for row in _result_rows(step, workspace.path_of(step))]
    if rows:
        _print_table(["model", "benchmark", "accuracy", "n", "95 % interval"], rows)
    for step in steps:
        if step.stage.name == "report":
            sys.stdout.write(f"report: {workspace.path_of(step) / 'index.html'}\n")


def _result_rows(step: Step, folder: Path) -> list[list[str]]:
    if not (folder / RECORD_NAME).is_file():
        return []
    name = step.name.rsplit("/", 1)[-1]
    return [
        [name, benchmark, f"{m['accuracy']:.1%}", str(m["n"]), f"{m['low']:.1%} to {m['high']:.1%}"]
        for benchmark, m in read_record(folder)["metrics"].items()
    ]


def print_record(record: dict[str, Any], as_json: bool) -> None:
    """Print a record, for people without its file list."""
    if as_json:
        _print_json(record)
        return
    size = sum(entry["size_bytes"] for entry in record["files"].values())
    lines = {
        "step": record["name"],
        "fingerprint": record["fingerprint"],
        "digest": record["digest"],
        "files": f"{len(record['files'])}, {size / 1e6:,.1f} MB",
        "time": f"{record['timings']['seconds']:.1f} s",
        **{f"input {role}": ", ".join(_describe(item) for item in items) for role, items in record["inputs"].items()},
        **{f"count {name}": str(value) for name, value in record["counters"].items()},
        **{f"metric {name}": json.dumps(value) for name, value in record["metrics"].items()},
    }
    width = max(map(len, lines))
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in lines.items()))


def _describe(item: dict[str, Any]) -> str:
    if "artifact" in item:
        return item["artifact"]
    if "hub" in item:
        return f"{item['repo_id']}@{item['commit'][:12]}"
    return ", ".join(entry["path"] for entry in item["files"][:3]) + (", …" if len(item["files"]) > 3 else "")


def print_submitted(submitted: list[tuple[Any, str]], queued: list[tuple[str, str]], as_json: bool) -> None:
    """Print each Slurm job that was submitted, its id and what it waits for; and those that were in the queue before.

    Args:
        submitted: jobs with their ids.
        queued: (name, id) of those that an earlier launch submitted.
        as_json: for a program.
    """
    if as_json:
        _print_json([{"job": job.name, "id": number, "after": list(job.after)} for job, number in submitted])
        return
    if submitted:
        _print_table(["job", "id", "after"], [[job.name, number, ", ".join(job.after)] for job, number in submitted])
    if queued:
        names = ", ".join(f"{name} ({number})" for name, number in queued)
        sys.stdout.write(f"in the queue from an earlier launch: {names}\n")
    if not submitted:
        sys.stdout.write("every other step is finished: " if queued else "every step is finished: ")
        sys.stdout.write("nothing to submit\n")


def print_findings(found: list[Any], as_json: bool) -> None:
    """Print what the doctor found: level, where, what, and the fix."""
    if as_json:
        _print_json([asdict(finding) for finding in found])
        return
    rows = [[finding.level, finding.family, finding.subject, finding.message, finding.fix] for finding in found]
    _print_table(["", "", "what", "seen", "fix"], rows)
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    sys.stdout.write(f"{counts['error']} error(s), {counts['warning']} warning(s)\n")


def print_rehearsal(lines: list[Any], changes: list[str], seconds: float, gpus: int) -> None:
    """Print the rehearsal's table, what it made smaller, and the totals."""
    rows = [
        [
            line.stage,
            f"{line.seconds:,.0f} s",
            f"{line.peak_bytes / 1e9:.2f} GB",
            *([f"{line.gpu_peak_bytes / 1e9:.2f} GB"] if gpus else []),
            "unknown" if line.full_seconds is None else f"{line.full_seconds / 3600:,.2f} h",
            f"{line.full_bytes / 1e9:,.2f} GB",
            "" if line.cost is None else f"{line.cost:,.2f}",
            line.note,
        ]
        for line in lines
    ]
    on_gpus = ["on GPUs"] if gpus else []
    _print_table(["step", "rehearsal", "peak memory", *on_gpus, "full run", "full disk", "cost", ""], rows)
    for change in changes:
        sys.stdout.write(f"not tried at its true size: {change}\n")
    full = sum(line.full_seconds or 0 for line in lines) / 3600
    cost = sum(line.cost or 0 for line in lines)
    where = f"{gpus} GPU(s)" if gpus else "these CPU cores"
    sys.stdout.write(f"rehearsed in {seconds:,.0f} s; the full run takes about {full:,.1f} h on {where}\n")
    how = "" if gpus else ", of the trainings on H100s, reckoned from their FLOPs at 40 % of the peak"
    sys.stdout.write(f"cost about {cost:,.2f}{how}\n")


def print_grade(grade: dict[str, Any], as_json: bool) -> None:
    """Print one verdict and its reason."""
    if as_json:
        _print_json(grade)
    else:
        sys.stdout.write(f"{grade['verdict']}: {grade['reason']}\n")


def print_rescored(rescored: list[Any], as_json: bool) -> None:
    """Print each file's accuracy before and after, and every changed verdict with its reason."""
    if as_json:
        files = [{**asdict(file), "path": str(file.path)} for file in rescored]
        _print_json(files)
        return
    for file in rescored:
        before, after = file.accuracy_before, file.accuracy_after
        sys.stdout.write(f"{file.path}: {file.num_answers} answers, {before:.1%} stored, {after:.1%} now\n")
        rows = [[str(c.idx), str(c.stored), c.verdict, c.reason, c.gold, c.answer] for c in file.changes]
        if rows:
            _print_table(["item", "stored", "now", "why", "gold", "answer"], rows)


def print_comparison(comparison: Any, as_json: bool) -> None:
    """Print the paired difference on each benchmark and over all items, and how many items flipped."""
    if as_json:
        _print_json(asdict(comparison))
        return
    rows = [
        [
            result.benchmark,
            str(result.n),
            f"{result.first:.1%}",
            f"{result.second:.1%}",
            f"{result.difference:+.1%}",
            f"{result.low:+.1%} to {result.high:+.1%}",
            f"{result.p_value:.3g} ({result.test})",
            "-" if result.minimum_detectable_effect is None else f"{result.minimum_detectable_effect:.1%}",
        ]
        for result in [*comparison.benchmarks, comparison.overall]
    ]
    _print_table(["benchmark", "n", "A", "B", "B - A", "95 % interval", "p", "detectable"], rows)
    sys.stdout.write(f"{len(comparison.flipped)} items flipped (--json lists them)\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
