"""What the commands print: plans, status, results. Tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ladle.api import Artifact, Evaluation, Run, StepStatus
from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.worker import torchrun_command

if TYPE_CHECKING:
    from ladle.checkup import Finding
    from ladle.evaluation.compare import Comparison
    from ladle.evaluation.rescore import Rescored
    from ladle.generation.request import Sample
    from ladle.grading.verdict import Grade
    from ladle.launch.queue import Launched
    from ladle.preflight.rehearse import Rehearsal


def print_plan(plan: list[PlannedStep], as_json: bool) -> None:
    """Print each step's state and the reasons for it."""
    rows = [{"step": p.step.name, "state": str(p.state), "reasons": list(p.reasons), "path": str(p.path)} for p in plan]
    if as_json:
        _print_json(rows)
    else:
        _print_table(["step", "state", "why"], [[row["step"], row["state"], "; ".join(row["reasons"])] for row in rows])


def print_status(rows: list[StepStatus], as_json: bool) -> None:
    """Print which steps are done, in what time and size, and who builds the others."""
    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    table = []
    for row in rows:
        by = row.building
        state = f"building by process {by['pid']} on {by['host']}" if by else row.state
        seconds = "" if row.seconds is None else f"{row.seconds:.1f} s"
        size = f"{row.size_bytes / 1e6:,.1f} MB" if row.size_bytes else ""
        table.append([row.step, ", ".join(filter(None, [state, row.job])), seconds, size])
    _print_table(["step", "state", "time", "size"], table)


def print_results(run: Run) -> None:
    """Print the scores of each evaluated model, and where the report is."""
    print_scores(run.scores)
    if run.report:
        sys.stdout.write(f"report: {run.report}\n")


def print_scores(evaluations: Mapping[str, Evaluation]) -> None:
    """Print accuracy, n and 95 % interval of each model on each benchmark."""
    rows = [
        [model, benchmark, f"{one.accuracy:.1%}", str(one.n), f"{one.interval[0]:.1%} to {one.interval[1]:.1%}"]
        for model, scores in evaluations.items()
        for benchmark, one in scores.items()
    ]
    if rows:
        _print_table(["model", "benchmark", "accuracy", "n", "95 % interval"], rows)


def print_record(artifact: Artifact, as_json: bool) -> None:
    """Print a record, for people without its file list."""
    record = artifact.record
    if as_json:
        _print_json(record)
        return
    size = sum(entry["size_bytes"] for entry in record["files"].values())
    lines = {
        "step": record["name"],
        "fingerprint": record["fingerprint"],
        "digest": record["digest"],
        "files": f"{len(record['files'])}, {size / 1e6:,.1f} MB",
        "time": f"{artifact.seconds:.1f} s",
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


def print_faults(artifact: str, faults: list[str], recomputed: bool, as_json: bool) -> None:
    """Print a line for each fault of an artifact, or that there is none."""
    if as_json:
        sys.stdout.write(json.dumps({"artifact": artifact, "faults": faults}) + "\n")
        return
    lines = faults or [
        f"{artifact}: every file is as it was recorded, and so is all it was made from",
        *([f"{artifact}: every tensor is the mean of the members"] if recomputed else []),
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_commands(plan: list[PlannedStep]) -> None:
    """Print how each step would be started on this machine."""
    for planned in plan:
        processes = getattr(planned.step.config, "processes", 1)
        how = "in this process" if processes == 1 else shlex.join(torchrun_command(processes, {}))
        sys.stdout.write(f"{planned.step.name}: {'cached' if planned.state is State.CACHED else how}\n")


def print_scripts(launched: Launched, as_json: bool) -> None:
    """Print the Slurm scripts and the commands that would submit them."""
    from ladle.launch.queue import sbatch_command

    if as_json:
        _print_json([{"job": s.job.name, "after": list(s.job.after), "script": s.text} for s in launched.scripts])
        return
    for script in launched.scripts:
        ids = {name: f"<{name}>" for name in script.job.after}
        sys.stdout.write(f"# ---- {script.path}: {' '.join(sbatch_command(script.job, ids))}\n{script.text}\n")


def print_submitted(launched: Launched, as_json: bool) -> None:
    """Print each Slurm job that was submitted, its id and what it waits for; and those that were queued before."""
    submitted, queued = launched.submitted, launched.queued
    if as_json:
        _print_json([{"job": job.name, "id": number, "after": list(job.after)} for job, number in submitted])
        return
    if submitted:
        _print_table(["job", "id", "after"], [[job.name, number, ", ".join(job.after)] for job, number in submitted])
    if queued:
        names = ", ".join(f"{job.name} ({job.id})" for job in queued)
        sys.stdout.write(f"in the queue from an earlier launch: {names}\n")
    if not submitted:
        sys.stdout.write(f"{'every other step' if queued else 'every step'} is finished: nothing to submit\n")


def print_findings(found: Sequence[Finding], as_json: bool) -> None:
    """Print what the doctor found: level, where, what, and the fix."""
    if as_json:
        _print_json([asdict(finding) for finding in found])
        return
    rows = [[finding.level, finding.family, finding.subject, finding.message, finding.fix] for finding in found]
    _print_table(["", "", "what", "seen", "fix"], rows)
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    sys.stdout.write(f"{counts['error']} error(s), {counts['warning']} warning(s)\n")


def print_rehearsal(rehearsal: Rehearsal) -> None:
    """Print the rehearsal's table, what it made smaller, and the totals."""
    gpus = rehearsal.gpus
    rows = [
        [
            line.step,
            f"{line.seconds:,.0f} s",
            f"{line.peak_bytes / 1e9:.2f} GB",
            *([f"{line.gpu_peak_bytes / 1e9:.2f} GB"] if gpus else []),
            "unknown" if line.full_seconds is None else f"{line.full_seconds / 3600:,.2f} h",
            f"{line.full_bytes / 1e9:,.2f} GB",
            "" if line.cost is None else f"{line.cost:,.2f}",
            line.note,
        ]
        for line in rehearsal.lines
    ]
    on_gpus = ["on GPUs"] if gpus else []
    _print_table(["step", "rehearsal", "peak memory", *on_gpus, "full run", "full disk", "cost", ""], rows)
    for change in rehearsal.changes:
        sys.stdout.write(f"not tried at its true size: {change}\n")
    full = sum(line.full_seconds or 0 for line in rehearsal.lines) / 3600
    cost = sum(line.cost or 0 for line in rehearsal.lines)
    where = f"{gpus} GPU(s)" if gpus else "these CPU cores"
    sys.stdout.write(f"rehearsed in {rehearsal.seconds:,.0f} s; the full run takes about {full:,.1f} h on {where}\n")
    how = "" if gpus else ", of the trainings on H100s, estimated from their FLOPs at 40 % of the peak"
    sys.stdout.write(f"cost about {cost:,.2f}{how}\n")


def print_completions(prompts: Sequence[str], samples: list[list[Sample]], as_json: bool) -> None:
    """Print each prompt with its completions."""
    rows = [
        {"prompt": prompt, "completions": [one.text for one in own]}
        for prompt, own in zip(prompts, samples, strict=True)
    ]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        sys.stdout.write("".join(f"{row['prompt']}{completion}\n" for completion in row["completions"]))


def print_counts(counts: Mapping[str, int], as_json: bool) -> None:
    """Print how many answers got each verdict."""
    text = json.dumps(counts) if as_json else "\n".join(f"{name}: {count}" for name, count in counts.items())
    sys.stdout.write(text + "\n")


def print_grade(grade: Grade, as_json: bool) -> None:
    """Print one verdict and its reason."""
    if as_json:
        _print_json({"verdict": grade.verdict.value, "reason": grade.reason, "seconds": grade.seconds})
    else:
        sys.stdout.write(f"{grade.verdict.value}: {grade.reason}\n")


def print_rescored(rescored: Sequence[Rescored], as_json: bool) -> None:
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


def print_comparison(comparison: Comparison, as_json: bool) -> None:
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
