"""Ladle's slot loop against transformers' static `generate`: same requests and batch size, greedy, mixed lengths.

    python benchmarks/bench_generate.py [--requests 96] [--batch-size 32] [--runs 5] [--threads 2]

Static `generate` takes the requests batch by batch as they come, pads each batch to its longest prompt, and runs it
until its longest completion ends; a stopping criterion ends every row at its own length, as an end-of-sequence token
would. Both are timed from token ids to token ids, in turn, and only the completions' own tokens count. Models are
random, of two architectures.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

import results
from ladle.generation.request import Request
from ladle.generation.transformers_backend import TransformersGenerator

VOCAB_SIZE = 8192
SHARED = {"vocab_size": VOCAB_SIZE, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 128,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 64,
    },
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
}
Tokens = dict[str, list[int]]


class NoTokenizer:
    """Stands in for a tokenizer: tokens are compared, not text, and no id ends a completion."""

    eos_token_id = None
    chat_template = None

    def get_vocab(self) -> dict[str, int]:
        """Name no token."""
        return {}

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """Return no text."""
        return ""


class OwnLengths(StoppingCriteria):
    """Ends each row of a batch at its own length."""

    def __init__(self, prompt_columns: int, lengths: torch.Tensor) -> None:
        self.ends = lengths + prompt_columns

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Tell which rows have reached their length."""
        return input_ids.shape[1] >= self.ends


def make_model(shape: str) -> Any:
    """Return a random model of one of `SHAPES`."""
    torch.manual_seed(0)
    # Wider than the usual 0.02: with nearly flat logits, greedy would turn on the last bit of a sum.
    config = AutoConfig.for_model(
        shape, **SHARED, **SHAPES[shape], initializer_range=0.1, eos_token_id=None, pad_token_id=0
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_requests(count: int) -> list[Request]:
    """Prompts of 16 to 160 tokens; completions log-normal about 60 tokens, up to 256: most short, a few long."""
    rng = random.Random(0)
    return [
        Request(
            id=str(index),
            prompt_ids=[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(16, 160))],
            seed=index,
            max_new_tokens=min(256, max(8, round(rng.lognormvariate(4.1, 0.8)))),
            temperature=0,
        )
        for index in range(count)
    ]


def run_static(model: Any, requests: list[Request], batch_size: int) -> Tokens:
    """Complete the requests by `generate`, batch after batch."""
    tokens: Tokens = {}
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        columns = max(len(request.prompt_ids) for request in batch)
        pads = [columns - len(request.prompt_ids) for request in batch]
        lengths = [request.max_new_tokens for request in batch]
        output = model.generate(
            torch.tensor(
                [[0] * pad + each.prompt_ids for pad, each in zip(pads, batch, strict=True)], device=model.device
            ),
            attention_mask=torch.tensor([[0] * pad + [1] * (columns - pad) for pad in pads], device=model.device),
            do_sample=False,
            max_new_tokens=max(lengths),
            stopping_criteria=StoppingCriteriaList([OwnLengths(columns, torch.tensor(lengths, device=model.device))]),
            pad_token_id=0,
        )
        for request, row in zip(batch, output[:, columns:].tolist(), strict=True):
            tokens[request.id] = row[: request.max_new_tokens]
    return tokens


def run_ladle(model: Any, requests: list[Request], batch_size: int) -> Tokens:
    """Complete the requests by the slot loop."""
    generator = TransformersGenerator(model, NoTokenizer(), batch_size=batch_size)
    return {sample.id: sample.token_ids for sample in generator.generate(requests)}


def seconds_of(run: Callable[[], Tokens]) -> tuple[float, Tokens]:
    """Return the wall time of a call, and what it returned."""
    started = time.perf_counter()
    tokens = run()
    return time.perf_counter() - started, tokens


def measure(shape: str, options: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    """Time both ways in turn, after a warm-up batch of each, and print a line.

    Returns tokens per second of each way, run by run, and how many rows differ.
    """
    model, requests = make_model(shape), make_requests(options.requests)
    num_tokens = sum(request.max_new_tokens for request in requests)
    runs: dict[str, list[float]] = {"static": [], "ladle": []}
    differing = 0
    for warm_up in (True, *[False] * options.runs):
        some = requests[: options.batch_size] if warm_up else requests
        static, expected = seconds_of(lambda some=some: run_static(model, some, options.batch_size))
        ladle, tokens = seconds_of(lambda some=some: run_ladle(model, some, options.batch_size))
        if not warm_up:
            differing = sum(tokens[name] != expected[name] for name in expected)
            runs["static"].append(num_tokens / static)
            runs["ladle"].append(num_tokens / ladle)
    static, ladle = median(runs["static"]), median(runs["ladle"])
    print(f"{shape:<12} {static:>12,.0f} {ladle:>12,.0f} {ladle / static:>8.2f} {differing:>10}", flush=True)
    return runs, differing


def main() -> None:
    """Parse, measure every shape, print the table and the JSON line; exit 1 where a token differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = results.parse(parser, requests=16, batch_size=8, runs=1)
    torch.set_num_threads(options.threads)
    print(f"{'model':<12} {'static tok/s':>12} {'ladle tok/s':>12} {'ratio':>8} {'rows apart':>10}")
    samples, ratios, differing = {}, {}, {}
    for shape in SHAPES:
        runs, differing[shape] = measure(shape, options)
        samples |= {f"{shape}_{way}_tokens_per_second": rates for way, rates in runs.items()}
        ratios[f"{shape}_vs_static_generate"] = median(runs["ladle"]) / median(runs["static"])
    ratios = {"vs_static_generate": min(ratios.values()), **ratios}
    results.publish("bench_generate", samples, ratios, options.quick, differing_rows=differing)
    sys.exit(any(differing.values()))


if __name__ == "__main__":
    main()
