"""A corpus of real, different documents for bench_mix, from what is at hand: given parquet files and the installed
packages' texts.

Every document occurs once (by content), so that no tokenizer cache is warm but for the words that real text repeats.
"""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

KINDS = {
    "code": (".py", ".pyi"),
    "headers": (".h", ".hpp", ".c", ".cpp", ".cuh"),
    "documents": (".md", ".rst", ".txt", ".html", ".xml", ".tex", ".js", ".json", ".cmake"),
}
LARGEST_FILE_BYTES = 2**20
ROWS_IN_GROUP = 500


@dataclass(frozen=True)
class Corpus:
    """A folder with one parquet file (column `text`) a source."""

    folder: Path
    size_bytes: dict[str, int]

    @property
    def sources(self) -> dict[str, Path]:
        """The file of each source."""
        return {name: self.folder / f"{name}.parquet" for name in self.size_bytes}

    @property
    def total_bytes(self) -> int:
        """Bytes of text in all."""
        return sum(self.size_bytes.values())


def gather_texts(given: Path | None, limit_bytes: int) -> dict[str, list[str]]:
    """Return different texts by source, in a fixed order, about `limit_bytes` in all."""
    texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    seen: set[bytes] = set()
    held = 0
    for kind, text in chain(_given_texts(given), _installed_texts()):
        digest = blake3(text.encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        held += len(text.encode())
        texts.setdefault(kind, []).append(text)
        if held >= limit_bytes:
            break
    return {kind: of_kind for kind, of_kind in texts.items() if of_kind}


def write_part(texts: dict[str, list[str]], share: float, folder: Path) -> Corpus:
    """Write an evenly drawn share of each source's texts."""
    folder.mkdir(parents=True)
    sizes = {}
    for kind, of_kind in texts.items():
        count = max(1, round(share * len(of_kind)))
        part = [of_kind[int(index * len(of_kind) / count)] for index in range(count)]
        sizes[kind] = sum(len(text.encode()) for text in part)
        pq.write_table(pa.table({"text": part}), folder / f"{kind}.parquet", row_group_size=ROWS_IN_GROUP)
    return Corpus(folder, sizes)


def _given_texts(given: Path | None) -> Iterator[tuple[str, str]]:
    for file in sorted(given.glob("*.parquet")) if given else []:
        for text in pq.read_table(file, columns=["text"])["text"].to_pylist():
            yield file.stem, text


def _installed_texts() -> Iterator[tuple[str, str]]:
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "/usr/share", "/usr/include"]
    found = [(kind, path) for root in roots for kind, path in _text_files(Path(root))]
    random.Random(233).shuffle(found)
    for kind, path in found:
        text = _read(path)
        if text is not None:
            yield kind, text


def _text_files(root: Path) -> Iterator[tuple[str, Path]]:
    by_suffix = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix in by_suffix and not path.is_symlink():
                yield by_suffix[path.suffix], path


def _read(path: Path) -> str | None:
    if not 50 <= path.stat().st_size <= LARGEST_FILE_BYTES:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
