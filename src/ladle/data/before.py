"""Data before it is read: does it hold what the recipe takes from it (split, columns, usable rows), and enough of it.

The first rows of every source are read, as the stage itself would read them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ladle.artifacts.inputs import find_local
from ladle.checkup import Checkup, Finding, Shrinking, error, guarded, ok, warning
from ladle.data.config import EVERY_SPLIT, BudgetConfig, MixConfig, PreferenceSource, SourceConfig, ValidationConfig
from ladle.data.documents import HARMLESS, columns_of, read_documents
from ladle.data.files import SUFFIXES, kind_of, split_of
from ladle.data.formats import fill, read_conversation
from ladle.data.prefer import Findings, unpaired_rows
from ladle.data.rows import Unreadable, read_piece, read_rows, scan_rows
from ladle.data.tokenize import find_pieces
from ladle.errors import UserError
from ladle.hub import files_of, resolve_commit, snapshot

SAMPLE_ROWS = 200
# Fewer than a real tokenizer's (4 for English, 3 for Chinese, 3 for code): only a clear shortage is reported.
BYTES_A_TOKEN = 3.0
# How much larger text is than its compressed file, on the large side.
PACKED_SHARE = {"parquet": 3.0, "gz": 3.5, "zst": 4.0, "xz": 5.0, "bz2": 5.0}

# Rows of a rehearsed mixture that are held out, and beyond those that the steps take.
SPARE_ROWS = 2
# Tokens of the sources' samples in a rehearsal, if they have as many: a few seconds of work, beside which starting is
# little.
TOKENIZED = 2**21
# So that each source of a full sample has shards to resume from.
SHARD_BYTES = 2**19
# More than any text of the usual tokenizers takes, so that the sample does not fall short.
SAMPLED_BYTES_A_TOKEN = 8
MOST_ROWS = 20_000


def check_mix(check: Checkup) -> Iterator[Finding]:
    """Yield a finding for each source of a mixture that is on this machine."""
    mix: MixConfig = check.config
    for source, share in zip(mix.sources, mix.shares(), strict=True):
        if paths := check.local(f"source:{source.name}"):
            found = partial(_check_source, check, source, paths, float(share) * mix.budget_tokens)
            yield from guarded("data", f"{check.key}.sources.{source.name}", found)


def _check_source(check: Checkup, source: SourceConfig, paths: list[Path], wanted_tokens: float) -> Iterator[Finding]:
    key, folder = f"{check.key}.sources.{source.name}", check.tokenizer_folder or Path()
    pieces = find_pieces(source, paths, 2**26)
    seen = [*islice((document for piece in pieces for document in read_documents(piece, source, folder)), SAMPLE_ROWS)]
    reasons = Counter(one.reason for one in seen if isinstance(one, Unreadable))
    documents = len(seen) - reasons.total()
    bad = Counter({reason: count for reason, count in reasons.items() if reason not in HARMLESS})
    if not documents:
        message = f"none of the first {len(seen)} rows of {source.dataset} gives a document ({_listed(reasons)})"
        yield error("data", key, message, f"set {key}.format and its column to what the rows hold")
    elif bad.total() > max(1, check.config.max_bad_fraction * (documents + bad.total())):
        fix = "fix the rows, or raise mix.max_bad_fraction if that share is expected"
        yield _cannot_be_used(key, source.dataset, bad, fix)
    else:
        yield ok("data", key, f"{documents} of the first {documents + bad.total()} rows give documents")
    yield from check_split(key, source.dataset, source.split, paths)
    size_bytes = sum(piece.size_bytes * PACKED_SHARE.get(piece.kind.rpartition(".")[2], 1.0) for piece in pieces)
    size = size_bytes / BYTES_A_TOKEN
    if source.format != "input_ids" and size * source.max_epochs < wanted_tokens:
        message = (
            f"{source.dataset} has about {size:,.0f} tokens at most, and the budget takes {wanted_tokens:,.0f} of it: "
            f"more than {source.max_epochs:g} passes"
        )
        yield error("data", key, message, f"lower its ratio or the budget, add data, or raise {key}.max_epochs")


def check_split(key: str, name: str, split: str, paths: list[Path]) -> Iterator[Finding]:
    """Yield a warning if a split is named and a file is taken whole, whose name does not speak of the split."""
    files = [path for path in paths if path.is_file() and split_of(Path(path.name), split) != split]
    if split not in ("train", EVERY_SPLIT) and files:
        message = f"split {split!r} is not looked for: {name} names files, which are taken whole"
        yield warning("data", key, message, "leave split out, or name a folder with a file for each split")


def check_problems(check: Checkup, prompts: Any) -> Iterator[Finding]:
    """Yield whether problems that are on this machine have questions and answers."""
    key = f"{check.key}.prompts"
    if paths := check.local("prompts"):
        yield from guarded("data", key, lambda: _check_problems(key, prompts, paths))


def _check_problems(key: str, prompts: Any, paths: list[Path]) -> Iterator[Finding]:
    rows = list(islice(read_rows(paths, prompts.split), SAMPLE_ROWS))
    for row in rows:
        if prompts.messages is None:
            fill(prompts.question, row, f"{key}.question")
        else:
            read_conversation(row.get(prompts.messages), row)
    answered = sum(bool(fill(prompts.answer, row, f"{key}.answer").strip()) for row in rows)
    if not rows:
        yield error("data", key, f"{prompts.dataset} holds no rows", "name another dataset or split")
    elif not answered:
        message = f"no row of {prompts.dataset} has an answer in {prompts.answer!r}"
        yield error("data", key, message, f"set {key}.answer to the column with the known answer")
    else:
        yield ok("data", key, f"{answered} of the first {len(rows)} rows have an answer")
    yield from check_split(key, prompts.dataset, prompts.split, paths)


def check_preference(check: Checkup, allow_single_label: bool) -> Iterator[Finding]:
    """Yield a finding for each source of preference data that is on this machine, and whether one label is missing."""
    key, labels, is_known = f"{check.key}.data", set[bool](), True
    for index, source in enumerate(check.config.data):
        paths = check.local(f"source:{index}")
        is_known = is_known and bool(paths)
        if paths:
            yield from guarded("data", key, partial(_check_preference_source, key, source, paths, labels))
    if is_known and len(labels) == 1 and not allow_single_label:
        message = f"every example is labelled {labels.pop()}: z0 would grow with the reward and the policy drift"
        fix = "add examples of the other label (a `rollout:` section makes them), or set kto.allow_single_label=true"
        yield error("data", key, message, fix)


def _check_preference_source(
    key: str, source: PreferenceSource, paths: list[Path], labels: set[bool]
) -> Iterator[Finding]:
    findings = Findings()
    examples = list(unpaired_rows(islice(scan_rows(paths, source.split), SAMPLE_ROWS), source, findings))
    labels.update(example["label"] for example in examples)
    if not examples:
        message = f"no row of {source.dataset} becomes an example ({_listed(findings.bad)})"
        yield error("data", key, message, "set the source's format, columns and label to what the rows hold")
    elif findings.bad:
        yield _cannot_be_used(key, source.dataset, findings.bad, "fix the rows, or raise max_bad_fraction")
    else:
        yield ok("data", key, f"{len(examples)} examples from the first rows of {source.dataset}")
    yield from check_split(key, source.dataset, source.split, paths)


def _cannot_be_used(key: str, dataset: str, bad: Counter[str], fix: str) -> Finding:
    return warning("data", key, f"{bad.total()} of the first rows of {dataset} cannot be used ({_listed(bad)})", fix)


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common()) or "it is empty"


# The rehearsal.


def shrink_mix(mix: MixConfig, shrinking: Shrinking) -> MixConfig:
    """Return a mixture of the first rows of each source, copied aside; a dataset that the recipe makes stays itself."""
    rows = max(2 * SPARE_ROWS, min(128, TOKENIZED // (4 * mix.sequence_length))) + SPARE_ROWS
    needed = max((rows + 2 * SPARE_ROWS) * mix.sequence_length, TOKENIZED)
    sources = []
    for source, share in zip(mix.sources, mix.shares(), strict=True):
        changes: dict[str, Any] = {"max_epochs": 1000}
        if shrinking.true is not None and shrinking.true.parent(f"source:{source.name}") is None:
            out = shrinking.samples / f"{shrinking.key}.{source.name}.jsonl"
            sample = _sample_source(source, int(share * needed) + mix.sequence_length, out)
            changes |= {"dataset": str(sample.absolute()), "split": "train", "revision": None, "subset": None}
        sources.append(source.model_copy(update=changes))
    return mix.model_copy(
        update={
            "sources": tuple(sources),
            "budget": BudgetConfig(sequences=rows, tokens=None),
            "validation": mix.validation and ValidationConfig(sequences=SPARE_ROWS, fraction=None),
            "shard_size_bytes": SHARD_BYTES,
            "cache": None,
            "executor": "processes",
        }
    )


def _sample_source(source: SourceConfig, tokens: int, out: Path) -> Path:
    """Write the first rows of a source, about `tokens` tokens of them, as jsonl and return the file.

    Raises:
        UserError: the source does not exist, or holds nothing that can be read.
    """
    paths = list(find_local(source.dataset)) or [_one_file_of_the_hub(source)]
    columns = columns_of(source)
    rows = (row for piece in find_pieces(source, paths, 2**24) for row in read_piece(piece, columns))
    out.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with out.open("w", encoding="utf-8") as lines:
        for row in islice((row for row in rows if not isinstance(row, Unreadable)), MOST_ROWS):
            written += lines.write(json.dumps(row, default=str) + "\n")
            if written >= tokens * SAMPLED_BYTES_A_TOKEN:
                break
    if not written:
        raise UserError(f"{source.dataset} holds no rows to rehearse with", "run `ladle doctor` on the recipe")
    return out


def _one_file_of_the_hub(source: SourceConfig) -> Path:
    """Fetch one data file of a Hub dataset, the smallest whose path names the split and the subset, if any does."""
    repo_id = source.dataset.partition(":")[0]
    commit = resolve_commit("dataset", repo_id, source.revision)
    sizes = {path: size for path, size in files_of("dataset", repo_id, commit).items() if kind_of(Path(path))}
    if not sizes:
        problem = f"dataset {repo_id} has no file that can be read"
        raise UserError(problem, f"it needs files ending in {', '.join(SUFFIXES)}")
    wanted = [word for word in (source.hub_subset(), source.split) if word]
    best = min(sizes, key=lambda path: (-sum(word in path for word in wanted), sizes[path]))
    return snapshot("dataset", repo_id, commit, best)
