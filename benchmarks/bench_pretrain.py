"""Train the same model on the same rows with Ladle and with plain Trainer + DataCollatorForLanguageModeling.

    python benchmarks/bench_pretrain.py [--runs 5] [--threads 2] [--vocab-sizes 4096,151936]

Two processes, one a contender, take optimizer steps in turn (one row of 2,560 tokens), so that what else
the machine does hits both. Time is a step's, its data included and the first step left out; memory is the process's
peak. Ladle keeps documents apart and updates router biases meanwhile; the plain Trainer does neither.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import results

HERE = Path(__file__).parent
WAYS = ("trainer", "ladle")
VOCAB_NAMES = {4096: "4k", 151936: "152k"}


def start(way: str, vocab_size: int, steps: int, threads: int) -> subprocess.Popen[str]:
    """Start a contender; it takes its first step by itself."""
    command = [sys.executable, str(HERE / "pretrain_contenders.py"), way, str(vocab_size), str(steps), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def read(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next thing a contender reports, skipping lines of its libraries."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and '"' in line:
            return json.loads(line)
    raise SystemExit(f"a contender ended with code {process.wait()}")


def take_step(process: subprocess.Popen[str]) -> None:
    """Let a contender take its next step."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def measure(vocab_size: int, runs: int, threads: int) -> dict[str, dict[str, Any]]:
    """Return for each contender its seconds a step, in order, and its peak memory in MiB."""
    contenders = {}
    for way in WAYS:
        contenders[way] = start(way, vocab_size, runs + 1, threads)
        read(contenders[way])  # the first step: memory is touched, kernels are chosen
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for run in range(runs):
        for way in WAYS if run % 2 == 0 else reversed(WAYS):
            take_step(contenders[way])
            seconds[way].append(read(contenders[way])["seconds"])
    measured = {}
    for way, process in contenders.items():
        take_step(process)
        end = read(process)
        process.wait()
        measured[way] = {"seconds": seconds[way], "memory_mib": end["memory_mib"], "losses": end["losses"]}
    return measured


def publish(measured: dict[int, dict[str, dict[str, Any]]], quick: bool) -> None:
    """Publish every step's seconds, ratios of paired steps (their median), and memory ratios."""
    ratios, samples = {}, {}
    for vocab_size, by_way in measured.items():
        name = VOCAB_NAMES.get(vocab_size, str(vocab_size))
        pairs = zip(by_way["trainer"]["seconds"], by_way["ladle"]["seconds"], strict=True)
        ratios[f"vs_trainer_{name}"] = median(plain / own for plain, own in pairs)
        ratios[f"memory_vs_trainer_{name}"] = by_way["trainer"]["memory_mib"] / by_way["ladle"]["memory_mib"]
        for way in WAYS:
            samples[f"{way}_{name}_seconds"] = by_way[way]["seconds"]
            samples[f"{way}_{name}_memory_mib"] = [by_way[way]["memory_mib"]]
    results.publish("bench_pretrain", samples, ratios, quick)


def main() -> None:
    """Parse, measure each vocabulary, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab-sizes", default="4096,151936")
    options = results.parse(parser, runs=2, vocab_sizes="4096")
    measured = {}
    print(f"{'vocabulary':>10} {'way':<8} {'median s/step':>13} {'least':>7} {'most':>7} {'peak MiB':>9} {'loss':>8}")
    for vocab_size in map(int, options.vocab_sizes.split(",")):
        measured[vocab_size] = measure(vocab_size, options.runs, options.threads)
        for way, found in measured[vocab_size].items():
            times = found["seconds"]
            print(
                f"{vocab_size:>10,} {way:<8} {median(times):>13.2f} {min(times):>7.2f} {max(times):>7.2f} "
                f"{found['memory_mib']:>9,.0f} {found['losses'][-1]:>8.4f}",
                flush=True,
            )
    publish(measured, options.quick)


if __name__ == "__main__":
    main()
