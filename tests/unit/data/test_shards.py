from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.data.store import ShardWriter, open_shard
from ladle.data.tokenize import add_boundaries
from ladle.errors import CheckFailed


def write_shard(path: Path, dtype: str, batches: list[list[list[int]]]) -> None:
    with path.open("wb") as stream:
        writer = ShardWriter(stream, dtype)
        for documents in batches:
            tokens = np.array([token for document in documents for token in document], np.uint32)
            writer.write(tokens, np.array([len(document) for document in documents]))
        writer.note_dropped(1, "empty")
        writer.finish()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_a_shard_reads_back(tmp_path: Path, dtype: str):
    write_shard(tmp_path / "s", dtype, [[[1, 2, 3], []], [], [[4, 60_000]]])
    shard = open_shard(tmp_path / "s")
    assert shard.tokens().tolist() == [1, 2, 3, 4, 60_000]
    assert shard.lengths().tolist() == [3, 0, 2]
    assert (shard.num_tokens, shard.num_rows, shard.max_token) == (5, 3, 60_000)
    assert (shard.dropped, shard.examples) == ({"empty": 1}, [[1, "empty"]])
    assert (shard.tokens().dtype.str, shard.tokens().flags.writeable) == (dtype, False)


def test_a_shard_may_be_empty(tmp_path: Path):
    write_shard(tmp_path / "s", "<u2", [])
    shard = open_shard(tmp_path / "s")
    assert (len(shard.tokens()), len(shard.lengths())) == (0, 0)


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_cut_shard_is_refused(tmp_path: Path, kept: int):
    write_shard(tmp_path / "s", "<u2", [[[1, 2, 3]]])
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:kept])
    with pytest.raises(CheckFailed, match="not a whole token shard"):
        open_shard(tmp_path / "s")


@given(documents=st.lists(st.lists(st.integers(0, 4), max_size=5), max_size=8), with_bos=st.booleans())
def test_boundaries(documents: list[list[int]], with_bos: bool):
    eos, bos = 0, 1
    ids = np.array([token for document in documents for token in document], np.uint32)
    tokens, lengths = add_boundaries(
        ids, np.array([len(d) for d in documents], np.int64), eos, bos if with_bos else None
    )
    expected = []
    for document in documents:
        begun = [bos] if with_bos and document and document[0] != bos else []
        ended = [eos] if document and document[-1] != eos else []
        expected.append([*begun, *document, *ended])
    assert lengths.tolist() == [len(document) for document in expected]
    assert tokens.tolist() == [token for document in expected for token in document]
