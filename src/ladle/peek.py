"""A look at the rows of an artifact as they are trained on: documents, text, and which of it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ladle.artifacts.build import recorded_paths
from ladle.data.store import IGNORED_LABEL, MIXTURE_FILE, MixedDataset
from ladle.errors import UserError


@dataclass(frozen=True)
class TextRun:
    """Text of which all is trained on, or none."""

    text: str
    is_trained: bool


@dataclass(frozen=True)
class PackedRow:
    """One row of a mixture.

    Attributes:
        documents: their runs, one document after another.
        num_padding: tokens of padding at its end.
    """

    documents: list[list[TextRun]]
    num_padding: int


def peek(artifact: Path, rows: int, split: str = "train") -> list[PackedRow]:
    """Return the first rows of a mixture, in the order of training, decoded.

    Raises:
        UserError: the artifact has no packed rows, or no such split.
    """
    from ladle.models.load import model_dir
    from ladle.models.tokenizer import load_fast_tokenizer

    if not (artifact / MIXTURE_FILE).is_file():
        raise UserError(f"{artifact} has no packed rows to look at", "name a mix or sft/data step, RECIPE:STEP")
    dataset = MixedDataset(artifact, split)
    tokenizer = load_fast_tokenizer(model_dir(recorded_paths(artifact, "tokenizer")[0]))
    found = []
    for number in range(min(rows, len(dataset))):
        row, documents, start = dataset[number], [], 0
        for length in dataset.lengths_of_row(number):
            pairs = zip(row["input_ids"][start : start + length], row["labels"][start : start + length], strict=True)
            # nothing predicts a document's first token, so it counts with the one after it
            labelled = [(int(token), label != IGNORED_LABEL) for token, label in pairs]
            labelled[0] = labelled[0][0], labelled[min(1, length - 1)][1]
            runs = groupby(labelled, key=lambda pair: pair[1])
            documents.append([TextRun(str(tokenizer.decode([token for token, _ in run])), kind) for kind, run in runs])
            start += length
        found.append(PackedRow(documents, dataset.sequence_length - start))
    return found
