"""The `ladle` command: parses, calls `ladle.api`, prints, and turns outcomes into exit codes. Free of torch."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ladle import api, display, log
from ladle.artifacts.worker import leave_launcher
from ladle.errors import EXIT_BUG, EXIT_CHECK_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, LadleError, UserError
from ladle.evaluation.benchmark import PromptStyle
from ladle.executors import Shard

UsageError: Any = typer.BadParameter.__base__  # typer exports only this of its usage errors

app = typer.Typer(
    name="ladle",
    help="From an open base language model to an aligned, evaluated one: "
    "mix, pretrain, soup, rollout, KTO, evaluate, report.",
    epilog="Start with: ladle run recipes/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _complete_step(context: typer.Context, incomplete: str) -> list[str]:
    """Return the steps of the recipe that is named before, or in the `RECIPE:STEP` that is being typed."""
    named, colon, _ = incomplete.rpartition(":")
    recipe, before = (named, named + colon) if colon else (next(iter(context.args), ""), "")
    try:
        return [before + step for step in api.step_names(recipe)]
    except UserError:
        return []


# What several commands take, or would fill their signatures.
_STEPS: Any = {"autocompletion": _complete_step}
_KEYS = "Values that replace the recipe's, such as pretrain.trainer.max_steps=10."
_MEMBERS = "[RECIPE|MEMBER]... [KEY=VALUE]..."
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=_KEYS)]
RecipeAndOverrides = Annotated[list[str] | None, typer.Argument(metavar="RECIPE [KEY=VALUE]...", help=_KEYS)]
Members = Annotated[list[str] | None, typer.Argument(metavar=_MEMBERS, help="A recipe, or members, oldest first.")]
Reference = Annotated[str, typer.Argument(metavar="ARTIFACT", help="Its folder, or RECIPE:STEP.", **_STEPS)]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Its folder, a Hub id, or RECIPE:STEP.", **_STEPS)]
_TEMPLATES = f"One of {', '.join(api.TEMPLATES)}."
Template = Annotated[str, typer.Argument(help=_TEMPLATES, autocompletion=lambda: [*api.TEMPLATES])]
Results = Annotated[str, typer.Argument(help="A result file, a folder of them, or RECIPE:STEP.", **_STEPS)]
ConfigPath = Annotated[Path | None, typer.Option("--config", help="The recipe; keys are then this section's own.")]
Root = Annotated[Path, typer.Option(help="Where runs are kept; a recipe's run is ROOT/<recipe name>.")]
Out = Annotated[Path | None, typer.Option(help="The folder that becomes the artifact.")]
Data = Annotated[Path | None, typer.Option(help="Folder with <benchmark>/test.jsonl; unset takes the Hub's.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a name of the Hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Profile = Annotated[Path | None, typer.Option(help="What a cluster's jobs request, such as recipes/slurm/gpu.yaml.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Of each training on this machine; unset: one per GPU.")]
Export = Annotated[Literal["arrow"] | None, typer.Option(help="Also write OUT-arrow, which load_from_disk opens.")]
WithBase = Annotated[bool | None, typer.Option("--include-base/--no-base", help="Whether a recipe's base is a member.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Average only the tensors that all members have.")]
Recompute = Annotated[bool, typer.Option("--recompute", help="Also average a soup's members again, and compare.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens after which a completion is cut.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1, help="Probability mass to sample from; 1 is all.")]
Seed = Annotated[int, typer.Option(help="Decides the samples.")]
Shares = Annotated[str | None, typer.Option(metavar="I/N", help="One share of --only mix, rollout or evaluate/….")]
Rehearse = Annotated[bool, typer.Option("--rehearse", help="Run all in tiny amounts, and estimate the full run.")]
Version = Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")]
ROOT = Path(api.DEFAULT_ROOT)


def _print(*lines: object) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


@app.callback(invoke_without_command=True)
def _configure(show_version: Version = False) -> None:
    log.configure()
    if show_version:
        _print(f"ladle {version('ladle')}")
        raise typer.Exit


# Whole recipes.


@app.command()
def init(
    template: Template,
    out: Annotated[Path | None, typer.Option(help="The file to write; unset: TEMPLATE.yaml.")] = None,
) -> None:
    """Write a commented recipe to start from.

    Example:

      ladle init thumbs-to-kto --out my-recipe.yaml
    """
    _print(f"wrote {api.write_template(template, out)}: its first lines say how to go on")


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    root: Root = ROOT,
    only: Annotated[str | None, typer.Option(help="Build this one step, and what it needs.", **_STEPS)] = None,
    shard: Shares = None,
    rehearse: Rehearse = False,
    price: Annotated[float, typer.Option(min=0, help="With --rehearse: the price of a GPU-hour.")] = 0.0,
) -> None:
    """Run a recipe: finished steps are kept, others resume.

    Examples:

      ladle run recipes/quickstart.yaml

      ladle run recipes/quickstart.yaml pretrain.trainer.learning_rate=2e-3

      ladle run recipes/quickstart.yaml --only mix

      ladle run recipes/tiny.yaml --rehearse --price 2.5
    """
    if rehearse:
        return display.print_rehearsal(api.rehearse(recipe, overrides, root, price))
    opened = api.open(recipe, overrides, root, only=only)
    if shard is None:
        return _build(opened, recipe, overrides, root)
    if only is None:
        raise UserError("--shard is a share of one step", "name the step with --only")
    return opened.build_shard(only, Shard.parse(shard))


def _build(opened: api.Run, recipe: Path, overrides: list[str] | None, root: Path) -> None:
    opened.build()
    # RECIPE:STEP names a step of the recipe as it is written, in the usual place; any other by its folder
    is_plain = not overrides and root == ROOT
    display.print_results(opened, lambda step: f"{recipe}:{step}" if is_plain else str(opened.path_of(step)))


@app.command()
def plan(recipe: RecipePath, overrides: Overrides = None, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Show what a run does with each step, and why.

    Example:

      ladle plan recipes/quickstart.yaml pretrain.trainer.learning_rate=2e-3
    """
    display.print_plan(api.open(recipe, overrides, root).plan(), as_json)


@app.command()
def status(recipe: RecipePath, overrides: Overrides = None, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Show which steps are done, and who builds the others.

    Example:

      ladle status recipes/quickstart.yaml
    """
    display.emit(api.open(recipe, overrides, root).status(), as_json, display.show_status)


@app.command()
def watch(
    recipe: RecipePath,
    overrides: Overrides = None,
    root: Root = ROOT,
    once: Annotated[bool, typer.Option("--once", help="Print how far it is now, and end.")] = False,
) -> None:
    """Watch a run that goes on elsewhere, until it ends.

    It reads the run's folder, on a disk that both machines see, and the queue of Slurm. Exits 1 if nobody builds the
    run any more, and it is not finished.

    Example:

      ladle watch recipes/quickstart.yaml --once
    """
    opened = api.open(recipe, overrides, root)
    display.show_status(opened.status()) if once else opened.watch()


@app.command()
def report(recipe: RecipePath, overrides: Overrides = None, root: Root = ROOT) -> None:
    """Build a recipe's report and print its path.

    Example:

      ladle report recipes/quickstart.yaml
    """
    _print(api.open(recipe, overrides, root).build("report").path / "index.html")


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Look for all that would stop or spoil a run.

    Data, models, arguments, disk, memory, devices, the Hub. Each line is ok, a warning or an error, with the fix. Exits
    1 if there is an error.

    Examples:

      ladle doctor recipes/tiny.yaml

      ladle doctor recipes/quickstart.yaml pretrain.trainer.per_device_train_batch_size=4096 --json
    """
    found = api.doctor(recipe, overrides, root)
    display.emit(found, as_json, display.show_findings)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    docs/reference.md lists the same keys.

    Example:

      ladle schema
    """
    _print(json.dumps(api.recipe_schema(), indent=1, ensure_ascii=False))


@app.command()
def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit a Slurm job for each step, in their order.")] = False,
    profile: Profile = None,
    processes: Processes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts or commands and do nothing.")] = False,
    root: Root = ROOT,
    as_json: AsJson = False,
) -> None:
    """Run a recipe on all GPUs, or as jobs of a Slurm cluster.

    Examples:

      ladle launch recipes/tiny.yaml --processes 2 --dry-run

      ladle launch recipes/tiny.yaml --slurm --profile recipes/slurm/cpu.yaml --dry-run
    """
    if profile is not None and not slurm:
        raise UserError("--profile is for Slurm jobs", "add --slurm, or leave --profile out")
    if processes is not None and slurm:
        fix = f"with --slurm set it in the recipe: pretrain.processes={processes} kto.processes={processes}"
        raise UserError("--processes is for the trainings of this machine", fix)
    if slurm:
        launched = api.launch_on_slurm(recipe, overrides, profile, dry_run, root)
        return (display.print_scripts if dry_run else display.print_submitted)(launched, as_json)
    opened = api.open(recipe, overrides, root, processes=processes or api.num_gpus() or None)
    return display.print_commands(opened.plan()) if dry_run else _build(opened, recipe, overrides, root)


# The stages of a recipe.


def _split(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Return the arguments that name something, and the overrides."""
    given = arguments or []
    return [one for one in given if "=" not in one], [one for one in given if "=" in one]


def _build_stage(
    stage: str, arguments: list[str] | None, config: Path | None, out: Path | None, root: Path, **settings: object
) -> api.Artifact:
    """Build one step, by `RECIPE KEY=VALUE…` with absolute keys or by --config with relative ones; print its folder."""
    named, overrides = _split(arguments)
    if config is not None and named:
        raise UserError(f"{named[0]} is named beside --config {config}", "name one recipe")
    if config is None and len(named) != 1:
        problem = f"ladle {stage} needs one recipe, and {len(named)} are named"
        raise UserError(problem, f"ladle {stage} RECIPE [KEY=VALUE]...")
    section = "kto" if stage == "prefer" else stage
    prefix, relative_to = ("", section) if config else (f"{section}.", "")
    overrides += [f"{prefix}{key}={value}" for key, value in settings.items() if value is not None]
    made = api.open(config or named[0], overrides, root, only=stage, out=out, section=relative_to).build(stage)
    _print(made.path)
    return made


@app.command()
def mix(
    recipe: RecipeAndOverrides = None,
    config: ConfigPath = None,
    out: Out = None,
    root: Root = ROOT,
    workers: Annotated[int | None, typer.Option(help="Processes; they never change the data.")] = None,
    executor: Annotated[str | None, typer.Option(help="Where shards run: processes or ray.")] = None,
    export: Export = None,
) -> None:
    """Mix datasets by ratio into packed rows of tokens.

    Examples:

      ladle mix recipes/quickstart.yaml mix.seed=1 --out mixture

      ladle mix recipes/quickstart.yaml --out mixture --export arrow
    """
    made = _build_stage("mix", recipe, config, out, root, workers=workers, executor=executor)
    if export is not None:
        _print(api.export_arrow(made.path))


def _stage_command(stage: str, what: str) -> None:
    def command(
        recipe: RecipeAndOverrides = None, config: ConfigPath = None, out: Out = None, root: Root = ROOT
    ) -> None:
        _build_stage(stage, recipe, config, out, root)

    command.__doc__ = f"{what}\n\nExample:\n\n  ladle {stage} recipes/tiny.yaml --out {stage}-out"
    app.command(stage)(command)


_stage_command("pretrain", "Continue pretraining a model on a mixture.")
_stage_command("sft", "Fine-tune a model on the answers of conversations.")
_stage_command("rollout", "Sample completions and label them by their answers.")
_stage_command("prefer", "Join preference data into prompt, completion, label.")
_stage_command("kto", "Align a policy by KTO.")


@app.command()
def soup(
    arguments: Members = None,
    config: ConfigPath = None,
    include_base: WithBase = None,
    allow_missing: AllowMissing = False,
    out: Out = None,
    root: Root = ROOT,
) -> None:
    """Average models of one architecture, tensor by tensor.

    A member is a model's folder, a folder of checkpoints, a glob, a Hub id or RECIPE:STEP; members go from oldest to
    newest. Every tensor is accounted for.

    Examples:

      ladle soup base checkpoints/checkpoint-1000 checkpoints/checkpoint-2000 --out soup method=uniform

      ladle soup base checkpoints --out soup method=ema ema_alpha=0.2

      ladle soup recipes/quickstart.yaml --no-base --out soup
    """
    named, overrides = _split(arguments)
    flags = {"include_base": include_base, "allow_missing": allow_missing or None}
    if config is not None or (len(named) == 1 and Path(named[0]).is_file()):
        _build_stage("soup", arguments, config, out, root, **flags)
    else:
        given = {key: value for key, value in flags.items() if value is not None}
        _print(api.soup(named, out, overrides, root, **given).path)


@app.command()
def evaluate(
    model: Model,
    overrides: Overrides = None,
    benchmarks: Annotated[str, typer.Option(help="Names, or files of rows, separated by commas.")] = "gsm8k,math500",
    data: Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each benchmark, from the first.")] = None,
    revision: Revision = None,
    out: Out = None,
    root: Root = ROOT,
) -> None:
    """Score a model on benchmarks.

    Example:

      ladle evaluate my-model --benchmarks gsm8k,math500 --data benchmarks --out scores sampling.max_new_tokens=64
    """
    names = [name.strip() for name in benchmarks.split(",")]
    scores = api.evaluate(model, names, data, limit, out, overrides, root, revision)
    display.print_scores({"model": scores})
    _print(scores.path)


@app.command()
def fetch(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A Hub id, or a local folder.")] = None,
    overrides: Overrides = None,
    dataset: Annotated[str | None, typer.Option(help="A dataset of the Hub: org/name[:subset].")] = None,
    init: Annotated[Path | None, typer.Option(help="YAML of architecture and tokenizer: random weights.")] = None,
    revision: Revision = None,
    out: Out = None,
    root: Root = ROOT,
) -> None:
    """Bring a model or a dataset to disk, or make a model.

    Examples:

      ladle fetch BAAI/OpenSeek-Small-v1 --out base

      ladle fetch --dataset AI-MO/NuminaMath-CoT --out numina

      ladle fetch --init recipes/openseek/init.yaml tokenizer=DIR --out fresh
    """
    if model is not None and "=" in model:  # nothing is named to fetch, so this is the first override
        model, overrides = None, [model, *(overrides or [])]
    _print(api.fetch(model, dataset, init, revision, out, overrides, root).path)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A folder with a model, or RECIPE:STEP.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to complete, as they are.")],
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 1,
    root: Root = ROOT,
    as_json: AsJson = False,
) -> None:
    r"""Complete prompts with a model.

    Example:

      ladle generate recipes/tiny.yaml:kto "2 + 3 = " --max-new-tokens 16
    """
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    display.print_completions(prompts, api.generate(model, prompts, root, **settings), as_json)


@app.command()
def chat(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, RECIPE:STEP, or Hub ids.")],
    compare: Annotated[bool, typer.Option("--compare", help="Let each of several models answer.")] = False,
    prompt: Annotated[PromptStyle | None, typer.Option(help="Unset: the chat template, or plain.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Complete messages as they are, each alone.")] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt, where there is a chat template.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 1,
    root: Root = ROOT,
) -> None:
    """Talk to a model, or to several at once.

    Each line of standard input is a message. /reset forgets what was said; /quit, or on a terminal an empty line, ends.

    Examples:

      ladle chat BAAI/OpenSeek-Small-v1

      ladle chat recipes/quickstart.yaml:kto --prompt cot --temperature 0.6

      ladle chat --compare recipes/quickstart.yaml:soup recipes/quickstart.yaml:kto --plain
    """
    if (len(models) > 1) != compare:
        raise UserError(f"{len(models)} model(s) and {'' if compare else 'no '}--compare", "chat A, or --compare A B")
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    style = "plain" if plain else prompt
    display.talk({model: api.chat(model, style, system, root, **settings) for model in models})


# Artifacts.


@app.command()
def verify(artifact: Reference, recompute: Recompute = False, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Re-hash an artifact and all it was made from.

    Names each changed, missing or extra file and exits 1 if there is any.

    Examples:

      ladle verify soup

      ladle verify soup --recompute
    """
    faults = api.verify(artifact, recompute, root)
    display.print_faults(artifact, faults, recompute, as_json)
    if faults:
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def peek(
    artifact: Annotated[str, typer.Argument(metavar="RECIPE[:STEP]|ARTIFACT", help="A step, built or not; or all.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows, examples or prompts to print.")] = 3,
    split: Annotated[str, typer.Option(help="Of the data.")] = "train",
    root: Root = ROOT,
    as_json: AsJson = False,
) -> None:
    """Print what a model is given: rows, completions, prompts.

    Packed rows with their documents, labelled completions, the exact prompts of evaluations with what ends a completion
    and finds the answer in it. What is not trained on is in grey, or between ‹ and ›. Before a step is built, what its
    inputs show.

    Examples:

      ladle peek recipes/tiny.yaml:mix --rows 1

      ladle peek recipes/tiny.yaml:evaluate/base-few-shot --rows 1

      ladle peek recipes/quickstart.yaml
    """
    display.emit(api.peek(artifact, rows, split, root), as_json, display.show_excerpts)


@app.command("compare-records")
def compare_records(first: Reference, second: Reference, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Say whether two artifacts are equal, and why not.

    Settings, inputs, machine, versions and files that differ; exits 1 where the results do.

    Example:

      ladle compare-records recipes/tiny.yaml:pretrain recipes/tiny.yaml:base
    """
    is_equal, differences = api.compare_records(first, second, root)
    display.print_differences(is_equal, differences, as_json)
    if not is_equal:
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def show(artifact: Reference, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Print what an artifact is, and what it was made from.

    Example:

      ladle show recipes/tiny.yaml:kto
    """
    display.emit(api.artifact(artifact, root).record, as_json, display.show_record)


@app.command()
def grade(
    pairs: Annotated[Path | None, typer.Argument(help="Rows of gold, answer and optionally type.")] = None,
    gold: Annotated[str | None, typer.Option(help="The known answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="The answer to grade.")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    r"""Grade one answer, or a file of them.

    Examples:

      ladle grade --gold "\frac{1}{2}" --answer 0.5

      ladle grade pairs.jsonl --out verdicts.jsonl
    """
    if pairs is not None and out is not None:
        display.emit(api.grade_file(pairs, out), as_json, lambda counts: display.show_rows([counts]))
    elif gold is not None and answer is not None:
        one = api.grade(gold, answer)
        shown = {"verdict": one.verdict.value, "reason": one.reason, "seconds": one.seconds}
        display.emit(shown, as_json, lambda _: _print(f"{one.verdict.value}: {one.reason}"))
    else:
        problem = "nothing to grade" if pairs is None else f"the verdicts on {pairs} have no file to go to"
        raise UserError(problem, "give --gold and --answer, or PAIRS.jsonl and --out VERDICTS.jsonl")


@app.command()
def rescore(results: Results, data: Data = None, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Grade stored completions again, ours or upstream's.

    Lists every verdict that differs from the stored score.

    Example:

      ladle rescore scores
    """
    display.emit(api.rescore(results, data, root), as_json, display.show_rescored)


@app.command()
def compare(first: Results, second: Results, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Compare two models item by item.

    Prints the difference (second less first) with interval, test, and the smallest difference that could be detected.

    Example:

      ladle compare scores-before scores-after
    """
    display.emit(api.compare(first, second, root), as_json, display.show_comparison)


@app.command()
def push(
    artifact: Reference,
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; created if there is none.")],
    results: Annotated[list[str] | None, typer.Option(help="An evaluation for the card; may be repeated.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    root: Root = ROOT,
) -> None:
    """Put an artifact on the Hub, with a card, in one commit.

    Examples:

      ladle push recipes/quickstart.yaml:kto me/my-model --results recipes/quickstart.yaml:evaluate/kto

      ladle push runs/quickstart/mix/mix-0123456789ab me/my-mixture --private
    """
    _print(api.push(artifact, repo_id, results or [], private, message, root))


# Outcomes.


_ACCESS = "gain access to it, or choose a folder that you may write with --root or --out"
_SPACE = "free some space, or choose another disk with --root or --out, and run the same command again"
_PATH = "choose another path: a part of this one is a file"
FIXES = {errno.EACCES: _ACCESS, errno.EROFS: _ACCESS, errno.EPERM: _ACCESS, errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE}
FIXES |= {errno.EEXIST: _PATH, errno.ENOTDIR: _PATH}
FULL_DISK = ("No space left on device", "PytorchStreamWriter failed")
"""What libraries say of a full disk, without its error number."""


def _as_user_error(error: Exception) -> LadleError | None:
    """Return the foreseen outcome that an exception means: Ladle's own, a full disk, or a folder without access."""
    if isinstance(error, LadleError):
        return error
    number = errno.ENOSPC if any(text in str(error) for text in FULL_DISK) else getattr(error, "errno", None)
    if number not in FIXES:
        return None
    place = getattr(error, "filename", None)
    return UserError(os.strerror(number).lower() + (f" ({place})" if place else ""), FIXES[number])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the outcome's code (`ladle.errors`)."""
    # Threads that spin at a barrier cost a fourfold slowdown as soon as anything else runs on their core;
    # sleeping ones cost next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    leave_launcher()
    code = _run_and_explain(arguments)
    if code == EXIT_INTERRUPTED:  # which typer, too, makes of Ctrl-C
        command = shlex.join(["ladle", *(sys.argv[1:] if arguments is None else arguments)])
        sys.stderr.write(f"interrupted; to go on: {command}\n")
    sys.exit(code)


def _run_and_explain(arguments: list[str] | None) -> Any:
    try:
        return app(args=arguments, standalone_mode=False) or 0
    except typer.Exit as outcome:
        return outcome.exit_code
    except UsageError as error:
        error.show()
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where exceptions become exit codes; bugs keep their traceback
        if (outcome := _as_user_error(error)) is None:
            traceback.print_exc()
            return EXIT_BUG
        sys.stderr.write(f"error: {outcome}\n")
        return outcome.exit_code


if __name__ == "__main__":
    main()
