"""Selects and packs 40 sources from synthetic length tables; prints seconds, peak memory and what came out, as JSON.

    python -m tests.unit.data.plan_at_scale TOKENS FOLDER

One source is far larger than the rest (Pareto shares), lengths are log-normal like web pages' (mean about 810 tokens).
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ladle.data.config import MixConfig
from ladle.data.mixing import select, write_split
from ladle.data.store import TokenShard
from ladle.data.tokenize import TokenizedSource

NUM_SOURCES = 40
MEAN_TOKENS = 812
SHARD_DOCUMENTS = 20_000
ONE_MORE = 1.05
"""Sources hold this many times their share, so that the last of 30 billion tokens does not run out by chance."""


@dataclass(frozen=True)
class SyntheticShard(TokenShard):
    """A shard that has lengths and no tokens."""

    def lengths(self) -> np.ndarray:
        """Return the lengths that the shard's number stands for."""
        source = np.random.default_rng(int(self.path.name))
        return source.lognormal(6.2, 1.0, self.num_rows).clip(1, 10**6).astype("<u4")


def make_source(config: MixConfig, index: int, tokens: float, first_shard: int) -> TokenizedSource:
    num_shards = max(1, round(tokens / MEAN_TOKENS / SHARD_DOCUMENTS))
    rows = round(tokens / MEAN_TOKENS / num_shards) + 1
    shards = []
    for number in range(first_shard, first_shard + num_shards):
        empty = SyntheticShard(Path(str(number)), "<u4", 0, rows)
        shards.append(SyntheticShard(empty.path, "<u4", int(empty.lengths().sum()), rows))
    return TokenizedSource(config.sources[index], tuple(shards), tuple(shard.path for shard in shards), first_shard)


def peak_bytes() -> int:
    """Return this program's peak memory; `ru_maxrss` would hand down that of the process which started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main(num_tokens: int, folder: Path) -> None:
    shares = np.random.default_rng(1).pareto(1.2, NUM_SOURCES) + 0.2
    shares /= shares.sum()
    names = [{"name": f"s{i}", "dataset": "none", "ratio": float(share)} for i, share in enumerate(shares)]
    config = MixConfig.model_validate({"sources": names, "normalize": True, "budget": {"tokens": num_tokens}})
    sources: list[TokenizedSource] = []
    for index, share in enumerate(shares):
        first_shard = sum(len(source.shards) for source in sources)
        sources.append(make_source(config, index, share * num_tokens * ONE_MORE, first_shard))
    started = time.monotonic()
    selections = select(sources, [np.empty(0, np.int64)] * NUM_SOURCES, config)
    split = write_split(selections, config, "train", folder)
    result = {
        "seconds": time.monotonic() - started,
        "peak_bytes": peak_bytes(),
        "tokens": split["tokens"],
        "documents": sum(len(source.lengths) for source in sources),
        "padding_share": split["padding_share"],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
