"""Does the data hold what the recipe reads from it: the split, the columns, rows that can be used, and enough of them.

The first rows of every source are read, as the stage itself would read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ladle.artifacts.inputs import find_local
from ladle.data.config import EVERY_SPLIT, MixConfig, SourceConfig
from ladle.data.documents import HARMLESS, columns_of, make_formatter, to_document
from ladle.data.files import split_of
from ladle.data.formats import fill
from ladle.data.prefer import unpaired_rows
from ladle.data.rows import Piece, Unreadable, read_piece, read_rows
from ladle.data.tokenize import find_pieces
from ladle.doctor.finding import Finding, error, guarded, ok, warning
from ladle.doctor.references import alignments_of, mixes_of
from ladle.evaluation.benchmark import load_items
from ladle.evaluation.config import BenchmarkChoice
from ladle.recipe import Recipe

FAMILY = "data"
SAMPLE_ROWS = 200
BYTES_A_TOKEN = 3.0
"""Fewer than a real tokenizer's (4 for English, 3 for Chinese, 3 for code), so that only a clear shortage is told."""
PACKED_SHARE = {"parquet": 3.0, "gz": 3.5, "zst": 4.0, "xz": 5.0, "bz2": 5.0}
"""How much larger text is than its compressed file, on the large side."""


def check_data(recipe: Recipe) -> Iterator[Finding]:
    """Yield a finding for each source, prompt set, preference source and benchmark that is on this machine."""
    for section, mix in mixes_of(recipe):
        yield from _check_mix(section, mix, _tokenizer_folder(recipe))
    rollout = recipe.rollout
    if rollout is not None and (paths := find_local(rollout.prompts.dataset)):
        yield from guarded(FAMILY, "rollout.prompts", lambda: _check_prompts(rollout.prompts, list(paths)))
    for key, section in alignments_of(recipe):
        yield from _check_preference(f"{key}.data", section)
    evaluate = recipe.evaluate
    for choice in evaluate.benchmarks if evaluate is not None else ():
        assert evaluate is not None
        place = choice.dataset or (str(Path(evaluate.data) / choice.name / "test.jsonl") if evaluate.data else None)
        if place is not None and (paths := find_local(place)):
            key = f"evaluate.benchmarks.{choice.name}"
            yield from guarded(FAMILY, key, lambda c=choice, p=paths, k=key: _check_benchmark(k, c, list(p)))


def _tokenizer_folder(recipe: Recipe) -> Path:
    if recipe.base is None:
        return Path()
    init = recipe.base.init
    return Path(recipe.base.model or (init.tokenizer if init is not None and isinstance(init.tokenizer, str) else ""))


# Mixtures.


def _check_mix(section: str, mix: MixConfig, tokenizer: Path) -> Iterator[Finding]:
    for source, share in zip(mix.sources, mix.shares(), strict=True):
        paths = find_local(source.dataset)
        if paths:
            key = f"{section}.sources.{source.name}"
            wanted = float(share) * _budget_tokens(mix)
            yield from guarded(
                FAMILY,
                key,
                lambda k=key, s=source, p=paths, w=wanted: _check_source(
                    k, s, list(p), w, mix.max_bad_fraction, tokenizer
                ),
            )


def _budget_tokens(mix: MixConfig) -> float:
    return float(mix.budget.tokens or (mix.budget.sequences or 0) * mix.sequence_length)


def _check_source(
    key: str, source: SourceConfig, paths: list[Path], wanted_tokens: float, max_bad: float, tokenizer: Path
) -> Iterator[Finding]:
    pieces = find_pieces(source, paths, 2**26)
    reasons, documents = _read_sample(source, pieces, tokenizer)
    bad = sum(count for reason, count in reasons.items() if reason not in HARMLESS)
    if not documents:
        yield error(
            FAMILY,
            key,
            f"none of the first {sum(reasons.values())} rows of {source.dataset} gives a document ({_listed(reasons)})",
            f"set {key}.format and its column to what the rows hold",
        )
    elif bad > max(1, max_bad * (documents + bad)):
        yield warning(
            FAMILY,
            key,
            f"{bad} of the first {documents + bad} rows of {source.dataset} cannot be used ({_listed(reasons)})",
            "mend the rows, or raise mix.max_bad_fraction if that share is expected",
        )
    else:
        yield ok(FAMILY, key, f"{documents} of the first {documents + bad} rows give documents")
    yield from _check_split(key, source.dataset, source.split, paths)
    yield from _check_amount(key, source, pieces, wanted_tokens)


def _check_split(key: str, name: str, split: str, paths: list[Path]) -> Iterator[Finding]:
    """Yield a warning where a split is named and a file is taken whole, whose name does not speak of the split."""
    files = [path for path in paths if path.is_file() and split_of(Path(path.name), split) != split]
    if split not in ("train", EVERY_SPLIT) and files:
        yield warning(
            FAMILY,
            key,
            f"split {split!r} is not looked for: {name} names files, which are taken whole",
            "leave split out, or name a folder with a file for each split",
        )


def _read_sample(source: SourceConfig, pieces: list[Piece], tokenizer: Path) -> tuple[Counter[str], int]:
    formatter = make_formatter(source, tokenizer)
    batches = (batch for piece in pieces for batch in read_piece(piece, columns_of(source)))
    rows = islice((row for batch in batches for row in batch), SAMPLE_ROWS)
    seen = [to_document(row, formatter) for row in rows]
    reasons = Counter(document.reason for document in seen if isinstance(document, Unreadable))
    return reasons, len(seen) - sum(reasons.values())


def _check_amount(key: str, source: SourceConfig, pieces: list[Piece], wanted_tokens: float) -> Iterator[Finding]:
    size = sum(piece.size_bytes * PACKED_SHARE.get(piece.kind.rpartition(".")[2], 1.0) for piece in pieces)
    have = size / BYTES_A_TOKEN * source.max_epochs
    if source.format != "input_ids" and have < wanted_tokens:
        yield error(
            FAMILY,
            key,
            f"{source.dataset} has about {size / BYTES_A_TOKEN:,.0f} tokens at most, and the budget takes "
            f"{wanted_tokens:,.0f} of it: more than {source.max_epochs:g} passes",
            f"lower its ratio or the budget, add data, or raise {key}.max_epochs",
        )


# Prompts, preference data, benchmarks.


def _check_prompts(prompts: Any, paths: list[Path]) -> Iterator[Finding]:
    rows = list(islice(read_rows(paths, prompts.split), SAMPLE_ROWS))
    if not rows:
        yield error(FAMILY, "rollout.prompts", f"{prompts.dataset} holds no rows", "name another dataset or split")
        return
    answers = [fill(prompts.answer, row, "rollout.prompts.answer").strip() for row in rows]
    for row in rows:
        fill(prompts.question, row, "rollout.prompts.question")
    empty = answers.count("")
    if empty == len(rows):
        yield error(
            FAMILY,
            "rollout.prompts",
            f"no row of {prompts.dataset} has an answer in {prompts.answer!r}",
            "set rollout.prompts.answer to the column with the known answer",
        )
    else:
        yield ok(FAMILY, "rollout.prompts", f"{len(rows) - empty} of the first {len(rows)} rows have an answer")
    yield from _check_split("rollout.prompts", prompts.dataset, prompts.split, paths)


def _check_preference(key: str, section: Any) -> Iterator[Finding]:
    labels: set[bool] = set()
    is_known = True
    for source in section.data:
        paths = find_local(source.dataset)
        if not paths:
            is_known = False
            continue
        yield from guarded(FAMILY, key, lambda s=source, p=paths: _check_preference_source(key, s, list(p), labels))
    if is_known and len(labels) == 1 and not section.allow_single_label:
        yield error(
            FAMILY,
            key,
            f"every example is labelled {labels.pop()}: z0 would grow with the reward and the policy drift",
            "add examples of the other label (a `rollout:` section makes them), or set kto.allow_single_label=true",
        )


def _check_preference_source(key: str, source: Any, paths: list[Path], labels: set[bool]) -> Iterator[Finding]:
    bad: Counter[str] = Counter()
    rows = islice(read_rows(paths, source.split), SAMPLE_ROWS)
    examples = list(unpaired_rows(rows, source, bad))
    labels.update(example["label"] for example in examples)
    if not examples:
        yield error(
            FAMILY,
            key,
            f"no row of {source.dataset} becomes an example ({_listed(bad)})",
            "set the source's format, columns and label to what the rows hold",
        )
    elif bad:
        yield warning(
            FAMILY,
            key,
            f"{sum(bad.values())} of the first rows of {source.dataset} cannot be used ({_listed(bad)})",
            "mend the rows, or raise kto.max_bad_fraction",
        )
    else:
        yield ok(FAMILY, key, f"{len(examples)} examples from the first rows of {source.dataset}")
    yield from _check_split(key, source.dataset, source.split, paths)


def _check_benchmark(key: str, choice: BenchmarkChoice, paths: list[Path]) -> Iterator[Finding]:
    items = load_items(choice.definition(), paths, choice.split)
    if items:
        yield ok(FAMILY, key, f"{len(items)} items with question and answer")
    else:
        yield error(FAMILY, key, f"{paths[0]} holds no items", "name a file with one problem a row")


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common()) or "it is empty"
