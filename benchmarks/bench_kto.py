"""KTO: TRL's KTOTrainer at its defaults and at its best setting against Ladle, time and peak memory.

    python benchmarks/bench_kto.py [--runs 5] [--times 1] [--shapes moe,dense] [--vocabularies 4k,152k]

The same random model, rows, fixed pairs, rows per optimizer step (16) and float32 for all; rows as long as GSM8K's
problems and solutions (with the large vocabulary half of that, and 4 rows a step). A run is a whole training of
four epochs, the reference pass and the optimizer included; its first epoch, with the reference pass, is the one-epoch
figure. TRL's best setting: precomputed reference, no gradient checkpointing, the whole step as one microbatch.
`trl_best_small` is the same in microbatches of two rows: the least padding that TRL can have, and a z0 of two rows.
`new_pairs` pairs anew each epoch, which TRL cannot.

Memory is the peak of a process of its own above what it held once the libraries were imported, over two epochs: the
second step has the optimizer's state beside its activations.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

import kto_contenders
import results

EPOCHS = 4
PEERS = ("trl_default", "trl_best", "trl_best_small")


def main() -> None:
    """Run everything and print the table and the JSON line."""
    options = _options()
    kto_contenders.quieten()
    ratios: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    print(f"{torch.get_num_threads()} threads, medians of {options.runs} runs\n")
    for shape in options.shapes.split(","):
        for vocabulary in options.vocabularies.split(","):
            name = f"{shape}_{vocabulary}"
            seconds = _time(shape, vocabulary, options)
            _summarise(name, seconds, ratios, samples)
            if not options.no_memory:
                _add_memory(name, _memory(shape, vocabulary, options), ratios, samples)
    results.publish("bench_kto", samples, ratios, options.quick)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--times", type=int, default=1, help="how many times as many rows as by default")
    parser.add_argument("--shapes", default="moe,dense")
    parser.add_argument("--vocabularies", default="4k,152k")
    parser.add_argument("--contenders", default="trl_default,trl_best,trl_best_small,ladle,ladle_new_pairs")
    parser.add_argument("--budget", type=int, default=8_192, help="Ladle's max_tokens_per_microbatch")
    parser.add_argument("--no-memory", action="store_true")
    return results.parse(
        parser, runs=1, shapes="dense", vocabularies="4k", contenders="trl_default,trl_best,ladle", no_memory=True
    )


def _time(shape: str, vocabulary: str, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Return for each contender the seconds at which each epoch of each run ended; runs alternate in random order."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in options.contenders.split(",")}
    work = kto_contenders.WORKLOADS[vocabulary]
    for name in seconds:  # warm up
        kto_contenders.run(name, shape, vocabulary, work.rows_per_step, 1, 0, options.budget)
    for number in range(options.runs):
        names = list(seconds)
        random.Random(number).shuffle(names)
        for name in names:
            ends = kto_contenders.run(
                name, shape, vocabulary, work.rows * options.times, EPOCHS, number, options.budget
            )
            print(f"run {number}: {name:16} {' '.join(f'{end:7.2f}' for end in ends)} s", flush=True)
            seconds[name].append(ends)
    return seconds


def _summarise(
    name: str, seconds: dict[str, list[list[float]]], ratios: dict[str, float], samples: dict[str, list[float]]
) -> None:
    print(f"{name:12} {'contender':16} {'1 epoch, s':>10} {'4 epochs, s':>11}   Ladle's ratio at 1 / 4 epochs (range)")
    for contender, runs in seconds.items():
        for epochs in (1, EPOCHS):
            samples[f"{name}_{epochs}ep_{contender}_seconds"] = [run[epochs - 1] for run in runs]
        shown = ""
        for ours, suffix in (("ladle", ""), ("ladle_new_pairs", "_new_pairs")):
            if contender not in PEERS or ours not in seconds:
                continue
            for epochs in (1, EPOCHS):
                paired = [theirs[epochs - 1] / own[epochs - 1] for theirs, own in zip(runs, seconds[ours], strict=True)]
                ratios[f"{name}_{epochs}ep{suffix}_vs_{contender}"] = median(paired)
                shown += f"  {median(paired):.2f} ({min(paired):.2f}-{max(paired):.2f})"
            shown += "  with new pairs:" if not suffix and "ladle_new_pairs" in seconds else ""
        one, four = (median(run[epochs - 1] for run in runs) for epochs in (1, EPOCHS))
        print(f"{'':12} {contender:16} {one:10.2f} {four:11.2f} {shown}")


def _memory(shape: str, vocabulary: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    figures = {}
    for contender in ("trl_default", "trl_best", "ladle"):
        rows = kto_contenders.WORKLOADS[vocabulary].rows * options.times
        job = {
            "contender": contender, "shape": shape, "vocabulary": vocabulary, "num_rows": rows, "epochs": 2,
            "seed": 0, "budget": options.budget,
        }  # fmt: skip
        command = [sys.executable, str(Path(kto_contenders.__file__)), json.dumps(job)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures[contender] = json.loads(output.splitlines()[-1])
    return figures


def _add_memory(
    name: str, figures: dict[str, dict[str, float]], ratios: dict[str, float], samples: dict[str, list[float]]
) -> None:
    own = {who: figure["peak_mib"] - figure["libraries_mib"] for who, figure in figures.items()}
    for who, figure in figures.items():
        samples[f"{name}_{who}_memory_mib"] = [own[who]]
        print(f"{'':12} {who:16} peak {own[who]:6.0f} MiB above the libraries' {figure['libraries_mib']:.0f} MiB")
    ratios[f"{name}_memory_vs_trl_default"] = own["trl_default"] / own["ladle"]
    ratios[f"{name}_memory_vs_trl_best"] = own["trl_best"] / own["ladle"]
    print(f"{'':12} Ladle's peak is {own['ladle'] / own['trl_default']:.2f} of TRL default's\n")


if __name__ == "__main__":
    main()
