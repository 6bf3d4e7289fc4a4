"""Arbitrary files and folders through the reader and the whole command: rows and results, or one clear refusal.

LADLE_FUZZ_SECONDS sets how long each test looks (10); examples follow from the seed alone.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import shutil
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from ladle import cli
from ladle.data.rows import Unreadable, read_rows, scan_rows
from ladle.errors import UserError

SECONDS = float(os.environ.get("LADLE_FUZZ_SECONDS", "10"))
SUFFIXES = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.bz2", "csv.xz", "tsv.zst")

texts = st.text(st.characters(exclude_categories=()) | st.sampled_from('{}[]",:\\\n\r\t\x00\x1c\ufeffé'), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", ""]), "content": scalars})
values = st.recursive(scalars | st.lists(turns, max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
columns = st.sampled_from(["text", "messages", "input_ids", "attention_mask", "q", "a", "", "\ud800"])
rows = st.dictionaries(columns, values | st.lists(st.integers(0, 400), max_size=9), max_size=4)


def dump(value: Any, is_ascii: bool) -> bytes:
    return json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")


def table(columns: dict[str, list[Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


lines = st.builds(dump, rows | values, st.booleans()) | st.binary(max_size=20) | st.just(b'{"a":' + b"[" * 2000)
jsonl = st.builds(
    lambda parts, end: end.join(parts), st.lists(lines, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\r"])
)
wholes = st.builds(dump, st.lists(rows | values, max_size=4) | rows, st.booleans())
cells = st.text(st.sampled_from('text,"\n\r\t qa\x000é\ufeff'), max_size=40)
tables_of_text = st.builds(
    lambda head, body, coding: (head + body).encode(coding, "ignore"),
    st.sampled_from(["text\n", "text,n\n", "text\tn\r\n", "text,text\n", '"te\nxt",n\n', ""]),
    cells,
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"]),
)
parquet = st.sampled_from([table({"text": ["a", None, "b"]}), table({"text": [[{"role": "user", "content": None}]]})])
packers: list[Callable[[bytes], bytes]] = [
    *(bytes, gzip.compress, bz2.compress, lzma.compress),
    lambda content: pa.compress(content, "zstd", asbytes=True),
    lambda content: gzip.compress(content)[:-4],
    lambda content: content[: len(content) // 2],
    lambda content: content.replace(b"a", b"\xff"),
]
contents = st.builds(
    lambda pack, content: pack(content),
    st.sampled_from(packers),
    jsonl | wholes | tables_of_text | parquet | st.binary(max_size=60),
)
good = st.just(b'{"text": "good", "q": "a", "a": "b"}\n')
names = st.builds(
    "{}.{}".format, st.sampled_from(["train", "extra", "eval-x", "d/test_1", "\u00e9", "0"]), st.sampled_from(SUFFIXES)
)
described = st.sampled_from(["README.md", "dataset_infos.json", "state.json", "dataset_dict.json", "dataset_info.json"])
folders = st.dictionaries(names | described, contents | good, min_size=1, max_size=4)
formats = st.sampled_from(
    [
        *({}, {"text": "a"}, {"format": "messages"}, {"format": "input_ids"}, {"template": "{q}"}),
        *({"format": "template", "template": template} for template in ("{q}{a[0]}", "{a!r:>9}", "{q.x}{a:.2f}")),
    ]
)


def look(check: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Run a check on examples of one seed after the other until the time is over."""
    quiet = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    stop = time.monotonic() + SECONDS
    for number in count(233):
        seed(number)(quiet(given(**strategies)(check)))()
        if time.monotonic() > stop:
            return


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_reader_gives_rows_or_a_clear_refusal(tmp_path: Path):
    def check(files: dict[str, bytes], split: str) -> None:
        folder = lay_out(tmp_path / "data", files)
        for paths in ([folder], sorted(path for path in folder.rglob("*") if path.is_file())):
            try:
                found = [row for _, row in scan_rows(paths, split)]
            except UserError:
                continue
            for row in found:
                assert isinstance(row, (dict, Unreadable))
                if isinstance(row, dict):
                    json.dumps(row, ensure_ascii=False).encode("utf-8")
            if any(isinstance(row, Unreadable) for row in found):
                with pytest.raises(UserError):
                    list(read_rows(paths, split))

    look(check, files=folders, split=st.sampled_from(["train", "test", "eval-x", "*"]))


def test_a_mixture_is_whole_or_not_there(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def check(files: dict[str, bytes], fields: dict[str, str], bad: float) -> None:
        lay_out(tmp_path / "data", files)
        shutil.rmtree("out", ignore_errors=True)
        source = {"name": "s", "dataset": "data", "ratio": 1.0, "max_epochs": 1e9, **fields}
        section = {"tokenizer": str(tokenizer_folder), "sources": [source], "budget": {"tokens": 64}, "workers": 1}
        recipe = {"name": "m", "mix": {**section, "sequence_length": 32, "max_bad_fraction": bad}}
        Path("recipe.yaml").write_text(json.dumps(recipe))
        with pytest.raises(SystemExit) as outcome:
            cli.main(["mix", "recipe.yaml", "--out", "out"])
        assert outcome.value.code in (0, 2)
        assert Path("out/mixture.json").is_file() == Path("out/record.json").is_file() == (outcome.value.code == 0)

    level = logging.getLogger("ladle").level
    look(check, files=folders, fields=formats, bad=st.sampled_from([0.0, 0.5, 1.0]))
    logging.getLogger("ladle").handlers.clear()
    logging.getLogger("ladle").setLevel(level)
    logging.getLogger("ladle").propagate = True
