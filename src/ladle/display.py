"""What the commands print: plans, status, results. Tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import yaml

from ladle.api import Evaluation, Run
from ladle.artifacts.files import readable_size
from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.worker import torchrun_command

if TYPE_CHECKING:
    from ladle.checkup import Finding
    from ladle.evaluation.compare import Comparison
    from ladle.evaluation.rescore import Rescored
    from ladle.generation.request import Sample
    from ladle.launch.queue import Launched
    from ladle.peek import PackedRow
    from ladle.preflight.rehearse import Rehearsal

SIGNIFICANT = 0.05
"""The p below which one model is called better than the other."""


def emit(value: Any, as_json: bool, show: Callable[[Any], object]) -> None:
    """Print a result: by `show` for people, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=_plain, indent=2, ensure_ascii=False) + "\n")
    else:
        show(value)


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of ours: the fields of a dataclass, the text of a path."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def show_rows(rows: Sequence[Any]) -> None:
    """Print dataclasses or dicts as a table: a column for each field with values, in the units of the fields' names."""
    fields = [row if isinstance(row, dict) else vars(row) for row in rows]
    cells = [{name: _cell(name, value) for name, value in row.items()} for row in fields]
    if not cells:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = [name for name in cells[0] if any(row[name] for row in cells)]
    for name in names:
        table.add_column(name.replace("_bytes", "").replace("_seconds", "_time").replace("_", " "), overflow="fold")
    for row in cells:
        table.add_row(*(row[name] for name in names))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(table)


def _cell(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return readable_size(value) if value else ""
    if name.endswith("seconds") and value is not None:
        return f"{value:,.1f} s" if value < 3600 else f"{value / 3600:,.2f} h"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(value)
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


def print_plan(plan: list[PlannedStep], as_json: bool) -> None:
    """Print each step's state and the reasons for it."""
    rows = [{"step": one.step.name, "state": one.state, "reasons": one.reasons} for one in plan]
    if as_json:
        rows = [row | {"path": one.path} for row, one in zip(rows, plan, strict=True)]
    emit(rows, as_json, show_rows)


def print_differences(is_equal: bool, differences: Sequence[Any], as_json: bool) -> None:
    """Print whether two results are equal, and what their records say differently."""

    def show(value: dict[str, Any]) -> None:
        sys.stdout.write("the results are equal\n" if value["equal"] else "the results differ\n")
        show_rows(value["differences"])

    emit({"equal": is_equal, "differences": differences}, as_json, show)


def show_packed(rows: list[PackedRow]) -> None:
    """Print packed rows as text, each document under a rule; what is not trained on is in grey, or between ‹ and ›."""
    grey, plain = ("\x1b[90m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    for number, row in enumerate(rows, start=1):
        for place, document in enumerate(row.documents, start=1):
            sys.stdout.write(f"--- row {number}, document {place}\n")
            runs = [run.text if run.is_trained else f"{grey}‹{run.text}›{plain}" for run in document]
            sys.stdout.write("".join(runs).rstrip("\n") + "\n")
        if row.num_padding:
            sys.stdout.write(f"--- row {number} ends in {row.num_padding} tokens of padding\n")


def print_results(run: Run) -> None:
    """Print what the steps warn of, each evaluated model's scores and what it changed, and where the report is."""
    steps: dict[str, list[str]] = {}
    for step in run.steps:
        for text in run[step].warnings:
            steps.setdefault(text, []).append(step)
    show_rows([{"step": ", ".join(warned), "warning": text} for text, warned in steps.items()])
    print_scores(run.scores)
    for before, after, change in run.changes:
        what = "better than" if change.difference > 0 else "worse than"
        what = what if change.p_value < SIGNIFICANT else "not shown to differ from"
        points = f"{100 * change.difference:+.1f} points on {change.n:,} items, p = {change.p_value:.2g}"
        sys.stdout.write(f"{after} is {what} {before} ({points})\n")
    if run.report:
        sys.stdout.write(f"report: {run.report}\n")


def print_scores(evaluations: Mapping[str, Evaluation]) -> None:
    """Print accuracy, n and 95 % interval of each model on each benchmark."""
    rows = []
    for model, scores in evaluations.items():
        for benchmark, one in scores.items():
            interval = f"{one.interval[0]:.1%} to {one.interval[1]:.1%}"
            row = {"model": model, "benchmark": benchmark, "accuracy": f"{one.accuracy:.1%}", "n": one.n}
            curve = ", ".join(f"{share:.1%} at {k}" for k, share in one.pass_at_k.items() if k > 1)
            rows.append(row | {"95 % interval": interval, "pass@k": curve})
    show_rows(rows)


def show_record(record: dict[str, Any]) -> None:
    """Print a record as YAML, without its lists of files."""
    names = ("name", "stage", "fingerprint", "digest", "counters", "metrics", "warnings", "timings")
    shown = {name: record[name] for name in names if name in record}
    shown["size"] = readable_size(sum(entry["size_bytes"] for entry in record["files"].values()))
    for role, items in record["inputs"].items():
        shown[f"input {role}"] = [{key: item[key] for key in item if key != "files"} for item in items]
    sys.stdout.write(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))


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

    rows, text = [], ""
    for job, script in launched.scripts:
        rows.append({"job": job.name, "after": job.after, "script": script})
        command = " ".join(sbatch_command(job, {name: f"<{name}>" for name in job.after}))
        text += f"# ---- {job.name.replace('/', '-')}.sbatch: {command}\n{script}\n"
    emit(rows, as_json, lambda _: sys.stdout.write(text))


def print_submitted(launched: Launched, as_json: bool) -> None:
    """Print each Slurm job that was submitted, its id and what it waits for; and those that were queued before."""
    rows = [{"job": job.name, "id": job.id, "after": job.after} for job in launched.submitted]
    emit(rows, as_json, show_rows)
    if as_json:
        return
    if queued := ", ".join(f"{job.name} ({job.id})" for job in launched.queued):
        sys.stdout.write(f"in the queue from an earlier launch: {queued}\n")
    if not rows:
        sys.stdout.write(f"every {'other ' if queued else ''}step is finished: nothing to submit\n")


def show_findings(found: Sequence[Finding]) -> None:
    """Print what the doctor found: level, where, what, and the fix."""
    show_rows(found)
    counts = {level: sum(finding.level == level for finding in found) for level in ("error", "warning")}
    sys.stdout.write(f"{counts['error']} error(s), {counts['warning']} warning(s)\n")


def print_rehearsal(rehearsal: Rehearsal) -> None:
    """Print the rehearsal's table, what it made smaller, and the totals."""
    show_rows(rehearsal.lines)
    for change in rehearsal.changes:
        sys.stdout.write(f"not tried at its true size: {change}\n")
    full = sum(line.full_seconds or 0 for line in rehearsal.lines) / 3600
    unknown = [line.step for line in rehearsal.lines if line.full_seconds is None]
    where = f"{rehearsal.gpus} GPU(s)" if rehearsal.gpus else "these CPU cores"
    where += f", beside {', '.join(unknown)}, whose time is not known" if unknown else ""
    how = "" if rehearsal.gpus else ", of the trainings on H100s, estimated from their FLOPs at 40 % of the peak"
    sys.stdout.write(
        f"rehearsed in {rehearsal.seconds:,.0f} s; the full run takes about {full:,.1f} h on {where}\n"
        f"cost about {sum(line.cost or 0 for line in rehearsal.lines):,.2f}{how}\n"
    )


def print_completions(prompts: Sequence[str], samples: list[list[Sample]], as_json: bool) -> None:
    """Print each prompt with its completions."""
    texts = [[one.text for one in own] for own in samples]
    rows = [{"prompt": prompt, "completions": own} for prompt, own in zip(prompts, texts, strict=True)]
    text = "".join(f"{prompt}{one}\n" for prompt, own in zip(prompts, texts, strict=True) for one in own)
    emit(rows, as_json, lambda _: sys.stdout.write(text))


def show_rescored(rescored: Sequence[Rescored]) -> None:
    """Print each file's accuracy before and after, and every changed verdict with its reason."""
    for file in rescored:
        before, after = file.accuracy_before, file.accuracy_after
        sys.stdout.write(f"{file.path}: {file.num_answers} answers, {before:.1%} stored, {after:.1%} now\n")
        show_rows(file.changes)


def show_comparison(comparison: Comparison) -> None:
    """Print the paired difference on each benchmark and over all items, and how many items flipped."""
    rows = []
    for one in [*comparison.benchmarks, comparison.overall, *comparison.pass_at_k]:
        effect = one.minimum_detectable_effect
        row = {
            "benchmark": one.benchmark if one.k == 1 else f"{one.benchmark}, pass@{one.k}",
            "n": one.n,
            "A": f"{one.first:.1%}",
            "B": f"{one.second:.1%}",
        }
        row |= {"B - A": f"{one.difference:+.1%}", "95 % interval": f"{one.low:+.1%} to {one.high:+.1%}"}
        row |= {"p": f"{one.p_value:.3g} ({one.test})", "detectable": "-" if effect is None else f"{effect:.1%}"}
        rows.append(row)
    show_rows(rows)
    sys.stdout.write(f"{len(comparison.flipped)} items flipped (--json lists them)\n")
