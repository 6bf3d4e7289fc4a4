"""The `ladle` command: parses, calls, prints, and turns outcomes into exit codes. Free of torch."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException  # typer carries its own click and exports only parts of it

from ladle import display, log
from ladle.artifacts.build import Workspace, build_shard, recorded_paths
from ladle.artifacts.plan import make_plan
from ladle.artifacts.record import read_record
from ladle.artifacts.record import verify as find_faults
from ladle.artifacts.step import in_build_order
from ladle.commands import doctor, launch, push, rehearsing
from ladle.commands.options import DEFAULT_ROOT, AsJson, ConfigPath, Out, Overrides, RecipePath, Root
from ladle.commands.running import build_all, load_steps
from ladle.errors import EXIT_BUG, EXIT_CHECK_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, LadleError, UserError
from ladle.executors import Shard

app = typer.Typer(
    name="ladle",
    help="From an open base language model to an aligned, evaluated one: "
    "mix, pretrain, soup, rollout, KTO, evaluate, report.",
    epilog="Start with: ladle run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _configure(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False) -> None:
    log.configure(verbose)


# Whole recipes.


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
    only: Annotated[str | None, typer.Option("--only", help="Build this one step, and what it still needs.")] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="With --only mix, rollout or evaluate/…: work one share of it."),
    ] = None,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Run every stage at its true shape in tiny amounts, and say what all takes."),
    ] = False,
    price: Annotated[float, typer.Option("--price", min=0, help="With --rehearse: the price of a GPU-hour.")] = 0.0,
) -> None:
    """Run a recipe from where it stands; finished steps are kept.

    Examples:

      ladle run recipes/quickstart.yaml

      ladle run recipes/quickstart.yaml pretrain.trainer.learning_rate=2e-3

      ladle run recipes/quickstart.yaml --only mix

      ladle run recipes/tiny.yaml --rehearse --price 2.5
    """
    if rehearse:
        rehearsing.rehearse(recipe, list(overrides or []), root, price)
        return
    steps, workspace = load_steps(recipe, overrides, root, only=only)
    if shard is not None:
        if only is None:
            raise UserError("--shard is a share of one step", "name the step with --only")
        build_all(steps[:-1], workspace)
        build_shard(steps[-1], workspace, Shard.parse(shard))
        return
    build_all(steps, workspace)
    display.print_results(steps, workspace)


@app.command()
def plan(recipe: RecipePath, overrides: Overrides = None, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show what a run would do with each step, and why.

    Example:

      ladle plan recipes/quickstart.yaml pretrain.trainer.learning_rate=2e-3
    """
    steps, workspace = load_steps(recipe, overrides, root)
    display.print_plan(make_plan(steps, workspace), as_json)


@app.command()
def status(recipe: RecipePath, overrides: Overrides = None, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show which steps are done, with their time and size, and which one is being built by whom."""
    from ladle.launch.queue import SLURM_FOLDER, describe_jobs

    steps, workspace = load_steps(recipe, overrides, root)
    planned = make_plan(steps, workspace)
    display.print_status(planned, as_json, describe_jobs(planned, workspace.folder / SLURM_FOLDER))


@app.command()
def report(recipe: RecipePath, overrides: Overrides = None, root: Root = DEFAULT_ROOT) -> None:
    """Build a recipe's report (and whatever it still needs) and print its path."""
    steps, workspace = load_steps(recipe, overrides, root, only="report")
    build_all(steps, workspace)
    sys.stdout.write(f"{workspace.path_of(steps[-1]) / 'index.html'}\n")


# Artifacts.


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")],
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also average a soup's members again and compare every tensor.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Re-hash an artifact and all it was made from; name each changed, missing or extra file and exit 1 if any.

    Examples:

      ladle verify soup

      ladle verify soup --recompute
    """
    faults = list(find_faults(artifact))
    if recompute and not any(fault.startswith("missing") for fault in faults):
        from ladle.soup.write import recompute as find_different

        different = find_different(artifact, recorded_paths(artifact, "members"))
        faults += [f"not the mean of the members: {name} in {artifact}" for name in different]
    sys.stdout.write(
        json.dumps({"artifact": str(artifact), "faults": faults}) + "\n"
        if as_json
        else "".join(f"{f}\n" for f in faults)
    )
    if faults:
        raise typer.Exit(EXIT_CHECK_FAILED)
    if not as_json:
        sys.stdout.write(f"{artifact}: every file is as it was recorded, and so is all it was made from\n")
        if recompute:
            sys.stdout.write(f"{artifact}: every tensor is the mean of the members\n")


@app.command()
def show(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")], as_json: AsJson = False) -> None:
    """Print what an artifact is: its step, digest, inputs, counters and metrics."""
    display.print_record(read_record(artifact), as_json)


# Single stages of a recipe.


def _stage_command(name: str, what: str) -> None:
    def command(config: ConfigPath, overrides: Overrides = None, out: Out = None, root: Root = DEFAULT_ROOT) -> None:
        steps, workspace = load_steps(
            config, overrides, root, only=name, section="kto" if name == "prefer" else name, out=out
        )
        build_all(steps, workspace)
        sys.stdout.write(f"{workspace.path_of(steps[-1])}\n")

    command.__doc__ = f"{what}\n\nExample:\n\n  ladle {name} --config recipes/quickstart.yaml --out {name}-out"
    app.command(name)(command)


@app.command()
def mix(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Out = None,
    root: Root = DEFAULT_ROOT,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; they never change the data.")] = None,
    executor: Annotated[str | None, typer.Option("--executor", help="Where shards run: processes or ray.")] = None,
    export: Annotated[
        str | None, typer.Option("--export", help="arrow: also write OUT-arrow, which load_from_disk opens.")
    ] = None,
) -> None:
    """Mix datasets by ratio into packed rows of tokens.

    Examples:

      ladle mix --config recipes/quickstart.yaml --out mixture

      ladle mix --config recipes/quickstart.yaml --out mixture --export arrow
    """
    if export not in (None, "arrow"):
        raise UserError(f"unknown form --export {export}", "use --export arrow")
    options = [f"{name}={value}" for name, value in (("workers", workers), ("executor", executor)) if value is not None]
    steps, workspace = load_steps(config, [*(overrides or []), *options], root, only="mix", section="mix", out=out)
    build_all(steps, workspace)
    path = workspace.path_of(steps[-1])
    sys.stdout.write(f"{path}\n")
    if export == "arrow":
        from ladle.data.arrow import export_arrow

        arrow = path.with_name(path.name + "-arrow")
        export_arrow(path, arrow)
        sys.stdout.write(f"{arrow}\n")


_stage_command("pretrain", "Continue pretraining a model on a mixture.")
_stage_command("rollout", "Sample completions of the policy and label them by their answers.")
_stage_command("prefer", "Join preference data into prompt, completion and label.")
_stage_command("kto", "Align a policy by KTO.")


# Stages that stand alone.


@app.command()
def soup(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[MEMBER|KEY=VALUE]...")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="A recipe, instead of members.")] = None,
    include_base: Annotated[
        bool | None, typer.Option("--include-base/--no-base", help="Whether a recipe's base is a member.")
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Average only the tensors that all members have; the rest is counted."),
    ] = False,
    out: Out = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Average models of one architecture, every tensor accounted for.

    A member is a model's folder, a folder of checkpoints, a glob, or a Hub id; members go from oldest to newest.

    Examples:

      ladle soup base checkpoints/checkpoint-1000 checkpoints/checkpoint-2000 --out soup method=uniform

      ladle soup base checkpoints --out soup method=ema ema_alpha=0.2

      ladle soup --config recipes/quickstart.yaml --no-base --out soup
    """
    from ladle.pipeline import soup_step

    members = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [argument for argument in arguments or [] if "=" in argument]
    flags = {"include_base": include_base, "allow_missing": allow_missing or None}
    overrides += [f"{key}={str(value).lower()}" for key, value in flags.items() if value is not None]
    if config is not None:
        if members:
            raise UserError(f"{members[0]} is named beside a recipe", "leave it out, or set members=[…]")
        steps, workspace = load_steps(config, overrides, root, only="soup", section="soup", out=out)
    else:
        steps, workspace = [soup_step(members, overrides, root, out)], _place("soup", out, root)
    build_all(steps, workspace)
    sys.stdout.write(f"{workspace.path_of(steps[-1])}\n")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder with a model, or a Hub id.")],
    overrides: Overrides = None,
    benchmarks: Annotated[
        str, typer.Option("--benchmarks", help="Names, or jsonl files of questions and answers, separated by commas.")
    ] = "gsm8k,math500",
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with <benchmark>/test.jsonl; unset fetches from the Hub.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Items of each benchmark, from the first.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub model.")] = None,
    out: Out = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Score a model on benchmarks.

    Example:

      ladle evaluate my-model --benchmarks gsm8k,math500 --data benchmarks --out scores sampling.max_new_tokens=64
    """
    from ladle.pipeline import evaluate_step

    settings = {
        "models": [{"model": model, "name": "model", "revision": revision}],
        "benchmarks": benchmarks.split(","),
        "data": str(data) if data else None,
        "limit": limit,
    }
    step = evaluate_step(settings, overrides or [], root)
    workspace = _place(step.name, out, root)
    build_all(in_build_order([step]), workspace)
    display.print_results([step], workspace)
    sys.stdout.write(f"{workspace.path_of(step)}\n")


@app.command()
def fetch(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A Hub id, or a local folder.")] = None,
    overrides: Overrides = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="A dataset of the Hub: org/name[:subset].")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="A YAML file with architecture and tokenizer: random weights.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    out: Out = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Bring a model or a dataset to disk, or make a model with random weights.

    Examples:

      ladle fetch BAAI/OpenSeek-Small-v1 --out base

      ladle fetch --dataset AI-MO/NuminaMath-CoT --out numina

      ladle fetch --init recipes/openseek/init.yaml tokenizer=DIR --out fresh
    """
    from ladle.pipeline import fetch_step

    if model is not None and "=" in model:  # nothing is named to fetch, so this is the first override
        model, overrides = None, [model, *(overrides or [])]
    step = fetch_step(model, dataset, init, revision, overrides or [], root)
    workspace = _place(step.name, out, root)
    build_all([step], workspace)
    sys.stdout.write(f"{workspace.path_of(step)}\n")


@app.command()
def grade(
    pairs: Annotated[
        Path | None, typer.Argument(metavar="[PAIRS.jsonl]", help="Rows of gold, answer and optionally type.")
    ] = None,
    gold: Annotated[str | None, typer.Option("--gold", help="The known answer.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The answer to grade.")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    r"""Grade one answer, or a file of them.

    Examples:

      ladle grade --gold "\frac{1}{2}" --answer 0.5

      ladle grade pairs.jsonl --out verdicts.jsonl
    """
    from ladle.evaluation.grade_file import grade_file, grade_one

    if pairs is not None and out is not None:
        counts = grade_file(pairs, out)
        sys.stdout.write(
            json.dumps(counts) + "\n" if as_json else "".join(f"{name}: {count}\n" for name, count in counts.items())
        )
    elif gold is not None and answer is not None:
        display.print_grade(grade_one(gold, answer), as_json)
    elif pairs is not None:
        raise UserError(f"there is no file to write the verdicts on {pairs} to", "add --out VERDICTS.jsonl")
    else:
        raise UserError("nothing to grade", "give --gold and --answer, or PAIRS.jsonl and --out VERDICTS.jsonl")


@app.command()
def rescore(
    results: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A result file, or a folder of them.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with <benchmark>/test.jsonl, for gold answers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Grade stored completions again, ours or upstream's, and list every verdict that differs from the stored score.

    Example:

      ladle rescore scores
    """
    from ladle.evaluation.rescore import rescore as grade_again
    from ladle.grading.grade import GraderConfig

    display.print_rescored(grade_again(results, GraderConfig(), data), as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Result file or folder of one model.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Result file or folder of the other.")],
    as_json: AsJson = False,
) -> None:
    """Compare two models item by item: difference with interval, test, and the smallest difference that could be seen.

    Example:

      ladle compare scores-before scores-after
    """
    from ladle.evaluation.compare import compare_runs

    display.print_comparison(compare_runs(first, second), as_json)


# Commands with files of their own.

app.command()(doctor.doctor)
app.command()(launch.launch)
app.command()(push.push)


# What the commands share.


def _place(name: str, out: Path | None, root: Path) -> Workspace:
    return Workspace(root / "standalone", ((name, out),) if out is not None else ())


_DISK_ERRORS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_ACCESS_ERRORS = {
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EPERM: "not permitted",
}


def _as_user_error(error: BaseException) -> LadleError | None:
    """Return the foreseen outcome an exception stands for: Ladle's own, a full disk, or a folder closed to writing."""
    if isinstance(error, LadleError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if number in _ACCESS_ERRORS:
        return UserError(
            f"{_ACCESS_ERRORS[number]}{place}",
            "gain access to it, or choose a folder that you may write with --root or --out",
        )
    if number in _DISK_ERRORS or "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error):
        what = _DISK_ERRORS.get(number or errno.ENOSPC, "the disk is full")
        return UserError(
            f"{what}{place}", "free some space, or choose another disk with --root, and run the same command again"
        )
    return None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the outcome's code (`ladle.errors`)."""
    # Threads that spin at a barrier cost a fourfold slowdown as soon as anything else runs on their core;
    # sleeping ones cost next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(_run_and_explain(arguments))


def _run_and_explain(arguments: list[str] | None) -> Any:
    try:
        return app(args=arguments, standalone_mode=False) or 0
    except typer.Exit as outcome:
        return outcome.exit_code
    except ClickException as error:
        error.show()
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where exceptions become exit codes; bugs keep their traceback
        outcome = _as_user_error(error)
        if outcome is None:
            traceback.print_exc()
            return EXIT_BUG
        sys.stderr.write(f"error: {outcome}\n")
        return outcome.exit_code


if __name__ == "__main__":
    main()
