"""Run by test_against_vllm.py in vLLM's own environment: `python vllm_greedy.py MODEL REQUESTS.json SAMPLES.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ladle.generation.request import Request
from ladle.generation.vllm_backend import VllmGenerator


def main(model: Path, requests: Path, samples: Path) -> None:
    wanted = [Request(**row | {"stop": tuple(row["stop"])}) for row in json.loads(requests.read_text())]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    generator = VllmGenerator(model, tokenizer, batch_size=32)
    first = [asdict(sample) for sample in generator.generate(wanted)]
    again = [asdict(sample) for sample in generator.generate(wanted[::-1][: len(wanted) // 2])]
    samples.write_text(json.dumps({"first": first, "again": again}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
