"""A few rows of a source, copied aside in the form it is read in: enough for the rehearsal's few rows."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from ladle.artifacts.inputs import find_local
from ladle.data.config import SourceConfig
from ladle.data.documents import columns_of
from ladle.data.files import CORPUS_SUFFIXES
from ladle.data.rows import Unreadable, read_piece
from ladle.data.tokenize import find_pieces
from ladle.errors import UserError

BYTES_A_TOKEN = 8
"""More than any text of the usual tokenizers takes, so that the sample does not fall short."""
MOST_ROWS = 20_000


def sample_source(source: SourceConfig, tokens: int, out: Path) -> Path:
    """Write the first rows of a source, about `tokens` tokens of them, as jsonl and return the file.

    Raises:
        UserError: the source is nowhere, or holds nothing that can be read.
    """
    pieces = find_pieces(source, list(_files_of(source)), 2**24)
    batches = (batch for piece in pieces for batch in read_piece(piece, columns_of(source)))
    rows = (row for batch in batches for row in batch if not isinstance(row, Unreadable))
    out.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with out.open("w", encoding="utf-8") as lines:
        for row in islice(rows, MOST_ROWS):
            written += lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            if written >= tokens * BYTES_A_TOKEN:
                break
    if not written:
        raise UserError(f"{source.dataset} holds no rows to rehearse with", "run `ladle doctor` on the recipe")
    return out


def _files_of(source: SourceConfig) -> tuple[Path, ...]:
    return find_local(source.dataset) or (_one_file_of_the_hub(source),)


def _one_file_of_the_hub(source: SourceConfig) -> Path:
    """Fetch one data file of a Hub dataset, the smallest whose path names the split and the subset, if any does."""
    from ladle.hub import files_of, resolve_commit, snapshot

    repo_id = source.dataset.partition(":")[0]
    commit = resolve_commit("dataset", repo_id, source.revision)
    sizes = {
        path: size
        for path, size in files_of("dataset", repo_id, commit).items()
        if path.endswith(tuple(CORPUS_SUFFIXES))
    }
    if not sizes:
        raise UserError(
            f"dataset {repo_id} has no file that can be read", f"it needs files ending in {', '.join(CORPUS_SUFFIXES)}"
        )
    wanted = [word for word in (source.hub_subset(), source.split) if word]
    best = min(sizes, key=lambda path: (-sum(word in path for word in wanted), sizes[path]))
    return snapshot("dataset", repo_id, commit, best)
