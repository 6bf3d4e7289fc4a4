"""What the commands print: plans, status, results. Tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import yaml

from ladle.api import Evaluation, Run, StepStatus
from ladle.artifacts.files import readable_size
from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.step import StepOutput
from ladle.artifacts.worker import torchrun_command
from ladle.errors import UserError
from ladle.evaluation.config import EvaluateModelConfig

if TYPE_CHECKING:
    from ladle.checkup import Finding
    from ladle.conversation import Chat
    from ladle.evaluation.compare import Comparison
    from ladle.evaluation.rescore import Rescored
    from ladle.excerpts import Excerpt
    from ladle.generation.request import Sample
    from ladle.launch.queue import Launched
    from ladle.preflight.rehearse import Rehearsal
    from ladle.reporting.collect import Change


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
    """Print dataclasses or dicts as a table."""
    if rows:
        from rich.console import Console

        from ladle.live import make_table

        Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(make_table(rows))


def show_status(rows: Sequence[StepStatus]) -> None:
    """Print how far each step is, and all of them."""
    from ladle.live import summary

    show_rows(rows)
    sys.stdout.write(f"{summary(rows)}\n")


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


def show_excerpts(excerpts: Iterable[Excerpt]) -> None:
    """Print each excerpt under a rule with what it is; what is not trained on is in grey, or between ‹ and ›."""
    grey, plain = ("\x1b[90m", "\x1b[0m") if sys.stdout.isatty() else ("‹", "›")
    for one in excerpts:
        facts = "".join(f", {name} {value}" for name, value in one.facts.items())
        runs = [text if is_trained else f"{grey}{text}{plain}" for text, is_trained in one.runs]
        sys.stdout.write(f"--- {one.place}{facts}\n" + "".join(runs).rstrip("\n") + "\n")


def print_results(run: Run, reference: Callable[[str], str]) -> None:
    """Print warnings, each evaluated model's scores and what it changed, where the report is, and what to do next.

    Args:
        run: a finished run.
        reference: returns what a command calls a step of it.
    """
    steps: dict[str, list[str]] = {}
    for step in run.steps:
        for text in run[step].warnings:
            steps.setdefault(text, []).append(step)
    show_rows([{"step": ", ".join(warned), "warning": text} for text, warned in steps.items()])
    print_scores(run.scores)
    for change in (changes := run.changes):
        sys.stdout.write(f"{change.verdict}\n")
    if run.report:
        sys.stdout.write(f"report: {run.report}\n")
    for words in _next_commands(run, changes, reference):
        sys.stdout.write(f"next: ladle {shlex.join(words)}\n")


def _next_commands(run: Run, changes: Sequence[Change], reference: Callable[[str], str]) -> list[list[str]]:
    """Return commands that go on from a finished run: to talk to its model, see what it gained, and verify it."""
    *_, (name, step) = (named for named in run.steps.items() if named[0] != "report")
    commands = [["show", reference(name)], ["verify", reference(name)]]
    if changes:
        commands[0] = ["compare", *(reference(f"evaluate/{one}") for one in changes[-1][:2])]
    if step.stage.name == "evaluate":
        config, given = cast(EvaluateModelConfig, step.config), cast(Any, step.inputs["model"][0])
        style = config.style(config.benchmarks[0])
        model = reference(given.step.name) if isinstance(given, StepOutput) else str(given.paths[0])
        commands.insert(0, ["chat", model, *(() if style == "chat" else ("--prompt", style))])
    elif any((run.path_of(name) / place).is_file() for place in ("config.json", "model/config.json")):
        commands.insert(0, ["chat", reference(name)])
    elif step.stage.peek is not None:
        commands.insert(0, ["peek", reference(name)])
    return commands


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


def talk(chats: Mapping[str, Chat]) -> None:
    """Let each conversation answer the lines of standard input, until they end; answers appear as they are written."""
    is_terminal, show = sys.stdin.isatty(), partial(print, end="", flush=True)
    if is_terminal:
        import readline  # noqa: F401 - lets a line be edited, and brings back earlier ones

        sys.stderr.write("an empty line ends, /reset forgets what was said\n")
    for message in _messages("> " if is_terminal else ""):
        for name, chat in chats.items():
            if message == "/reset":
                chat.reset()
                continue
            show(f"--- {name}\n" if len(chats) > 1 else "")
            try:
                sample = chat.answer(message, show)
            except (KeyboardInterrupt, UserError) as why:
                if not is_terminal:
                    raise
                sys.stderr.write(f"\n({why or 'stopped'})\n")
                continue
            show("\n")
            if sample.finish_reason == "length":
                sys.stderr.write(f"(cut after {len(sample.token_ids or ())} tokens: see --max-new-tokens)\n")


def _messages(prompt: str) -> Iterator[str]:
    """Yield the lines of standard input up to /quit or, where there is a prompt, an empty one."""
    with suppress(EOFError):
        while (line := input(prompt)).strip() != "/quit" and (line.strip() or not prompt):
            if line.strip():
                yield line


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
