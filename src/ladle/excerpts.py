"""A look at what a model is given, as text: rows that are trained on, labelled completions, prompts.

Each stage that has such text names the function here that looks at its steps: at what they hold or, where that is
possible before they are built, at what their inputs show of it. The others show their data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladle.artifacts.build import input_paths, recorded_paths
from ladle.artifacts.record import RECORD_NAME, read_record
from ladle.artifacts.step import StepOutput
from ladle.data.store import IGNORED_LABEL, MixedDataset
from ladle.errors import UserError
from ladle.models.config import model_dir
from ladle.models.tokenizer import load_fast_tokenizer, read_json
from ladle.stage import Stage, find_stage

if TYPE_CHECKING:
    from ladle.api import Run

DATA_ROLES = ("mixture", "reference", "preference")


@dataclass(frozen=True)
class Excerpt:
    """A document, an example or a prompt.

    Attributes:
        place: where it is.
        runs: its text, in parts of which all is trained on, or none.
        facts: what belongs to it, such as a label, or what ends a prompt's completion.
    """

    place: str
    runs: list[tuple[str, bool]]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """What to look at.

    Attributes:
        step: the step's name.
        config: its config; of an artifact as JSON.
        folder: its artifact; None before it is built.
        inputs: returns the folders and files of a role. Raises UserError where those of another step are missing.
        split: of the data.
        count: rows, examples or prompts.
    """

    step: str
    config: Any
    folder: Path | None
    inputs: Callable[[str], list[Path]]
    split: str
    count: int

    def artifact(self) -> Path:
        """Return the artifact.

        Raises:
            UserError: it is not built.
        """
        if self.folder is None:
            raise UserError(f"{self.step} is not built", f"ladle run RECIPE --only {self.step}")
        return self.folder

    def tokenizer(self, role: str) -> Any:
        """Return the tokenizer of an input."""
        return load_fast_tokenizer(model_dir(self.inputs(role)[0]))


def of_artifact(folder: Path, split: str, count: int) -> list[Excerpt]:
    """Return what a finished step has to look at.

    Raises:
        UserError: it has nothing, or no such split.
    """
    record, inputs = read_record(folder), partial(recorded_paths, folder)
    stage = find_stage(record["stage"])
    if stage.peek is None and (data := [path for role in DATA_ROLES for path in inputs(role)]):
        return of_artifact(data[0], split, count)
    return _peek(stage, Look(record["name"], record["config"], folder, inputs, split, count))


def of_step(run: Run, name: str, split: str, count: int) -> list[Excerpt]:
    """Return what a step of a recipe has to look at, built or not.

    Raises:
        UserError: it has nothing, no such split, or needs a step that is not built.
    """
    path, step = run.path_of(name), run.steps[name]
    if (path / RECORD_NAME).is_file():
        return of_artifact(path, split, count)
    items = [item for role in DATA_ROLES for item in step.inputs.get(role, ()) if isinstance(item, StepOutput)]
    if items:
        return of_step(run, items[0].step.name, split, count)

    def inputs(role: str) -> list[Path]:
        items = step.inputs.get(role, ())
        for parent in (item.step.name for item in items if isinstance(item, StepOutput)):
            _ = run[parent]  # which says that it is not built
        return [path for item in items for path in input_paths(item, run.workspace)]

    return _peek(step.stage, Look(name, step.config, None, inputs, split, count))


def _peek(stage: Stage, look: Look) -> list[Excerpt]:
    if stage.peek is None:
        problem = f"there is nothing to look at in {look.step}, in which no model is given text"
        raise UserError(problem, "name a mixture, preference data, rollouts, a training or an evaluation")
    return [*stage.peek(look)]


def packed_documents(look: Look) -> Iterator[Excerpt]:
    """Yield the documents of the first rows of a mixture, in the order of training."""
    dataset, tokenizer = MixedDataset(look.artifact(), look.split), look.tokenizer("tokenizer")
    for number in range(min(look.count, len(dataset))):
        row, start = dataset[number], 0
        for place, length in enumerate(dataset.lengths_of_row(number), start=1):
            pairs = zip(row["input_ids"][start : start + length], row["labels"][start : start + length], strict=True)
            # nothing predicts a document's first token, so it counts with the one after it
            labelled = [(int(token), label != IGNORED_LABEL) for token, label in pairs]
            labelled[0] = labelled[0][0], labelled[min(1, length - 1)][1]
            runs = groupby(labelled, key=lambda pair: pair[1])
            texts = [(str(tokenizer.decode([token for token, _ in run])), is_trained) for is_trained, run in runs]
            start += length
            facts = {"tokens": int(length), "left of the row": int(dataset.sequence_length - start)}
            yield Excerpt(f"row {number + 1}, document {place}", texts, facts)


def preferences(look: Look) -> Iterator[Excerpt]:
    """Yield the first labelled completions of preference data; before it is built, of each source."""
    from datasets import load_from_disk

    from ladle.data.prefer import DATASET, Findings, read_examples, unpaired_rows
    from ladle.data.rows import scan_rows

    if look.folder is not None:
        data: Any = load_from_disk(look.folder / DATASET)
        if look.split not in data:
            raise UserError(f"{look.step} has no split {look.split!r}", f"set --split {' or '.join(data)}")
        yield from _examples(read_examples(data[look.split]), look, look.split)
        return
    for index, source in enumerate(look.config.data):
        rows = scan_rows(look.inputs(f"source:{index}"), source.split)
        yield from _examples(unpaired_rows(rows, source, Findings()), look, source.dataset)


def rollouts(look: Look) -> Iterator[Excerpt]:
    """Yield the first labelled completions of rollouts."""
    from ladle.data.rows import read_rows

    yield from _examples(read_rows([look.artifact()], look.split), look, look.split)


def evaluation_prompts(look: Look) -> Iterator[Excerpt]:
    """Yield each benchmark's first prompts as the model reads them, what ends a completion, and what is read of it."""
    from ladle.evaluation.config import EvaluateModelConfig
    from ladle.evaluation.evaluate import make_tasks
    from ladle.generation.request import stop_token_ids

    config, tokenizer = EvaluateModelConfig.model_validate(look.config), look.tokenizer("model")
    settings = read_json(model_dir(look.inputs("model")[0]) / "generation_config.json")
    ends = tokenizer.convert_ids_to_tokens(stop_token_ids(settings.get("eos_token_id"), tokenizer))
    roles = ["examples", *(f"benchmark:{choice.name}" for choice in config.benchmarks)]
    for task in make_tasks(config, {role: look.inputs(role) for role in roles}, tokenizer):
        for item, prompt in islice(zip(task.items, task.prompts, strict=True), look.count):
            stop = [*prompt.stop, *config.sampling.stop]
            facts = {"prompt": prompt.style, "tokens": len(prompt.ids), "stop texts": stop, "end tokens": ends}
            facts |= {"extraction": config.extraction, "known answer": item.gold}
            yield Excerpt(f"{task.name} {item.idx}", [(tokenizer.decode(prompt.ids), False)], facts)


def _examples(rows: Iterable[dict[str, Any]], look: Look, of: str) -> Iterator[Excerpt]:
    for number, row in enumerate(islice(rows, look.count), start=1):
        runs = [(_text(row["prompt"]), False), (_text(row["completion"]), True)]
        yield Excerpt(f"{of} {number}", runs, {"label": row["label"]})


def _text(side: str | list[dict[str, Any]]) -> str:
    return side if isinstance(side, str) else "".join(f"[{turn['role']}] {turn.get('content')}\n" for turn in side)
