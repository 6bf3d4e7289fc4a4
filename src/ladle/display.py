"""What the commands print: plans, status, results. Tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from ladle.api import Evaluation, Run, StepStatus
from ladle.artifacts.files import readable_size
from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.worker import torchrun_command

if TYPE_CHECKING:
    from ladle.checkup import Finding
    from ladle.evaluation.compare import Comparison
    from ladle.evaluation.rescore import Rescored
    from ladle.generation.request import Sample
    from ladle.launch.queue import Launched
    from ladle.preflight.rehearse import Rehearsal


def emit(value: Any, as_json: bool, show: Callable[[Any], object]) -> None:
    """Print a result: by `show` for people, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=_plain, indent=2, ensure_ascii=False) + "\n")
    else:
        show(value)


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of ours: the fields of a dataclass, the text of a path."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def print_plan(plan: list[PlannedStep], as_json: bool) -> None:
    """Print each step's state and the reasons for it."""
    rows = [{"step": one.step.name, "state": one.state, "reasons": one.reasons, "path": one.path} for one in plan]
    lines = [[one.step.name, one.state, "; ".join(one.reasons)] for one in plan]
    emit(rows, as_json, lambda _: _print_table(["step", "state", "why"], lines))


def show_status(rows: list[StepStatus]) -> None:
    """Print which steps are done, in what time and size, and who builds the others."""
    table = []
    for row in rows:
        by = row.building
        state = f"building by process {by['pid']} on {by['host']}" if by else row.state
        seconds = "" if row.seconds is None else f"{row.seconds:.1f} s"
        size = readable_size(row.size_bytes) if row.size_bytes else ""
        table.append([row.step, ", ".join(filter(None, [state, row.job])), seconds, size])
    _print_table(["step", "state", "time", "size"], table)


def print_results(run: Run) -> None:
    """Print what the steps warn of, the scores of each evaluated model, and where the report is."""
    if warnings := [[step, text] for step in run.steps for text in run[step].warnings]:
        _print_table(["step", "warning"], warnings)
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


def show_record(record: dict[str, Any]) -> None:
    """Print a record without its file list."""
    size = sum(entry["size_bytes"] for entry in record["files"].values())
    lines = {
        "step": record["name"],
        "fingerprint": record["fingerprint"],
        "digest": record["digest"],
        "files": f"{len(record['files'])}, {readable_size(size)}",
        "time": f"{record['timings']['seconds']:.1f} s",
        **{f"input {role}": ", ".join(_describe(item) for item in items) for role, items in record["inputs"].items()},
        **{f"count {name}": str(value) for name, value in record["counters"].items()},
        **{f"metric {name}": json.dumps(value) for name, value in record["metrics"].items()},
        **{f"warning {number}": text for number, text in enumerate(record.get("warnings", []), start=1)},
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
    lines = faults or [f"{artifact}: every file is as it was recorded, and so is all it was made from"]
    if recomputed and not faults:
        lines.append(f"{artifact}: every tensor is the mean of the members")
    emit({"artifact": artifact, "faults": faults}, as_json, lambda _: sys.stdout.write("\n".join(lines) + "\n"))


def print_commands(plan: list[PlannedStep]) -> None:
    """Print how each step would be started on this machine."""
    for planned in plan:
        processes = getattr(planned.step.config, "processes", 1)
        how = "in this process" if processes == 1 else shlex.join(torchrun_command(processes, {}))
        sys.stdout.write(f"{planned.step.name}: {'cached' if planned.state is State.CACHED else how}\n")


def print_scripts(launched: Launched, as_json: bool) -> None:
    """Print the Slurm scripts and the commands that would submit them."""
    from ladle.launch.queue import sbatch_command

    rows = [{"job": one.job.name, "after": one.job.after, "script": one.text} for one in launched.scripts]
    text = ""
    for script in launched.scripts:
        command = " ".join(sbatch_command(script.job, {name: f"<{name}>" for name in script.job.after}))
        text += f"# ---- {script.path}: {command}\n{script.text}\n"
    emit(rows, as_json, lambda _: sys.stdout.write(text))


def print_submitted(launched: Launched, as_json: bool) -> None:
    """Print each Slurm job that was submitted, its id and what it waits for; and those that were queued before."""
    submitted, queued = launched.submitted, launched.queued

    def show(rows: list[dict[str, Any]]) -> None:
        if rows:
            _print_table(["job", "id", "after"], [[row["job"], row["id"], ", ".join(row["after"])] for row in rows])
        if queued:
            names = ", ".join(f"{job.name} ({job.id})" for job in queued)
            sys.stdout.write(f"in the queue from an earlier launch: {names}\n")
        if not rows:
            sys.stdout.write(f"{'every other step' if queued else 'every step'} is finished: nothing to submit\n")

    emit([{"job": job.name, "id": number, "after": job.after} for job, number in submitted], as_json, show)


def show_findings(found: Sequence[Finding]) -> None:
    """Print what the doctor found: level, where, what, and the fix."""
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
            readable_size(line.peak_bytes),
            *([readable_size(line.gpu_peak_bytes)] if gpus else []),
            "unknown" if line.full_seconds is None else f"{line.full_seconds / 3600:,.2f} h",
            readable_size(line.full_bytes),
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
    unknown = [line.step for line in rehearsal.lines if line.full_seconds is None]
    cost = sum(line.cost or 0 for line in rehearsal.lines)
    where = f"{gpus} GPU(s)" if gpus else "these CPU cores"
    where += f", beside {', '.join(unknown)}, whose time is not known" if unknown else ""
    sys.stdout.write(f"rehearsed in {rehearsal.seconds:,.0f} s; the full run takes about {full:,.1f} h on {where}\n")
    how = "" if gpus else ", of the trainings on H100s, estimated from their FLOPs at 40 % of the peak"
    sys.stdout.write(f"cost about {cost:,.2f}{how}\n")


def print_completions(prompts: Sequence[str], samples: list[list[Sample]], as_json: bool) -> None:
    """Print each prompt with its completions."""
    completions = [[one.text for one in own] for own in samples]
    text = "".join(f"{prompt}{one}\n" for prompt, own in zip(prompts, completions, strict=True) for one in own)
    rows = [{"prompt": prompt, "completions": own} for prompt, own in zip(prompts, completions, strict=True)]
    emit(rows, as_json, lambda _: sys.stdout.write(text))


def show_counts(counts: Mapping[str, int]) -> None:
    """Print how many answers got each verdict."""
    sys.stdout.write("".join(f"{name}: {count}\n" for name, count in counts.items()))


def show_grade(grade: Mapping[str, Any]) -> None:
    """Print one verdict and its reason."""
    sys.stdout.write(f"{grade['verdict']}: {grade['reason']}\n")


def show_rescored(rescored: Sequence[Rescored]) -> None:
    """Print each file's accuracy before and after, and every changed verdict with its reason."""
    for file in rescored:
        before, after = file.accuracy_before, file.accuracy_after
        sys.stdout.write(f"{file.path}: {file.num_answers} answers, {before:.1%} stored, {after:.1%} now\n")
        rows = [[str(c.idx), str(c.stored), c.verdict, c.reason, c.gold, c.answer] for c in file.changes]
        if rows:
            _print_table(["item", "stored", "now", "why", "gold", "answer"], rows)


def show_comparison(comparison: Comparison) -> None:
    """Print the paired difference on each benchmark and over all items, and how many items flipped."""
    rows = [
        [
            *(one.benchmark, str(one.n), f"{one.first:.1%}", f"{one.second:.1%}", f"{one.difference:+.1%}"),
            *(f"{one.low:+.1%} to {one.high:+.1%}", f"{one.p_value:.3g} ({one.test})"),
            "-" if one.minimum_detectable_effect is None else f"{one.minimum_detectable_effect:.1%}",
        ]
        for one in [*comparison.benchmarks, comparison.overall]
    ]
    _print_table(["benchmark", "n", "A", "B", "B - A", "95 % interval", "p", "detectable"], rows)
    sys.stdout.write(f"{len(comparison.flipped)} items flipped (--json lists them)\n")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(table)
