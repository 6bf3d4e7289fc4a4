"""Ladle's mix stage against the usual way: datasets.map a row at a time, TRL's pack_dataset('wrapped'), shuffle, save.

    python benchmarks/bench_mix.py [--corpus DIR] [--tokenizer DIR] [--megabytes 600] [--part 0.07] [--runs 5]

Without a tokenizer (DIR is missing) one of 32,000 tokens is trained on part of the texts, and the result says so.

Same texts, same tokenizer, same cores; each run is a process of its own, timed whole, start-up included, and reads
every document once. The contenders take turns. Each is given as much text as it gets through in a fair time (`--part`
and `--hf-part` say what share of the corpus the usual way and Ladle's HF engine get; by default that is over 10 million
tokens for either, so that start-up weighs little), and rates are tokens read by seconds. Start-up is also shown apart,
as a run on next to no text, and the ratios without it as `…_after_start_up`. The corpus is DIR's parquet files (column
`text`) and the texts of installed packages. Peak memory is the proportional set (PSS) of all processes of a run
together, so that pages shared by forked workers count once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

import results
from ladle.models.tokenizer import convert_tokenizer, load_fast_tokenizer, train_tokenizer
from mix_corpus import Corpus, gather_texts, write_part

CONTENDERS = ("seeds_way", "ladle_hf", "ladle_fast")
SCALES = (1, 4, 16)
SAMPLE_SECONDS = 0.1
TRAINED_SIZE, TRAINING_TEXTS = 32_000, 500
SHARED = Path(os.environ.get("LADLE_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Run:
    """One run of a contender."""

    tokens: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    disk_bytes: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.wall_seconds


class Bench:
    """Runs contenders on parts of a corpus."""

    def __init__(self, tokenizer: Path, scratch: Path, cores: int) -> None:
        self.tokenizer, self.scratch, self.cores = tokenizer, scratch, cores

    def run(self, contender: str, corpus: Corpus) -> Run:
        """Run a contender once, in a new process, with nothing of an earlier run left over."""
        out = self.scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        script = Path(__file__).with_name("mix_contenders.py")
        arguments = [contender, corpus.folder, self.tokenizer, out, self.cores]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if contender == "ladle_hf" and self.cores == 1:
            environment["RAYON_NUM_THREADS"] = "1"
        started = time.monotonic()
        process = psutil.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip
        peak = _watch(process)
        output, errors = process.communicate()
        wall = time.monotonic() - started
        if process.returncode:
            raise SystemExit(f"{contender} failed:\n{errors[-3000:]}")
        result = json.loads(output.splitlines()[-1])
        return Run(int(result["tokens"]), wall, _children_cpu(), peak, _disk_bytes(out))


def _watch(process: psutil.Popen) -> int:
    """Return the largest proportional set size of the process and its children while it runs."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_pss(one) for one in _family(process)))
        time.sleep(SAMPLE_SECONDS)
    return peak


def _family(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0


_cpu_before = 0.0


def _children_cpu() -> float:
    """Return the CPU seconds of the children that ended since the last call."""
    global _cpu_before
    times = os.times()
    total = times.children_user + times.children_system
    spent, _cpu_before = total - _cpu_before, total
    return spent


def _disk_bytes(folder: Path) -> int:
    seen = {(stat.st_dev, stat.st_ino): stat.st_size for path in folder.rglob("*") if (stat := path.lstat())}
    return sum(seen.values())


def compare(bench: Bench, parts: dict[str, Corpus], runs: int) -> dict[str, list[Run]]:
    """Run all contenders in turn, `runs` times."""
    found: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    for number in range(runs):
        for name in CONTENDERS:
            found[name].append(bench.run(name, parts[name]))
            _show(f"{name} {number + 1}/{runs}", found[name][-1])
    return found


def _show(name: str, run: Run) -> None:
    print(
        f"{name:<26}{run.tokens:>13,} tokens{run.wall_seconds:>9.2f} s{run.cpu_seconds:>9.2f} CPU s",
        f"{run.rate:>12,.0f} tokens/s{run.peak_bytes / 2**20:>7,.0f} MiB",
        f"{run.disk_bytes / run.tokens:>6.2f} B/token",
        flush=True,
    )


def _median_run(runs: list[Run]) -> Run:
    return Run(
        tokens=runs[0].tokens,
        wall_seconds=median(run.wall_seconds for run in runs),
        cpu_seconds=median(run.cpu_seconds for run in runs),
        peak_bytes=int(median(run.peak_bytes for run in runs)),
        disk_bytes=int(median(run.disk_bytes for run in runs)),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", type=Path, default=SHARED / "corpus", help="folder of parquet files with a column text"
    )
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "openseek-tokenizer")
    parser.add_argument(
        "--megabytes", type=float, default=600, help="size of the whole corpus (the 16x of the scaling rows), at most"
    )
    parser.add_argument("--part", type=float, default=0.07, help="share of it that the usual way gets")
    parser.add_argument("--hf-part", type=float, default=0.07, help="share of it that Ladle's HF engine gets")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scaling-runs", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    return results.parse(parser, megabytes=40, part=0.2, hf_part=0.2, runs=1, scaling_runs=1)


def main() -> None:
    """Run everything and print the table, then one line of JSON."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="bench_mix_") as name:
        scratch = Path(name)
        texts = gather_texts(options.corpus if options.corpus.is_dir() else None, int(options.megabytes * 1e6))
        if options.tokenizer.is_dir():
            convert_tokenizer(options.tokenizer, scratch / "tokenizer")
        else:
            print(
                f"{options.tokenizer} is missing: a tokenizer of {TRAINED_SIZE:,} tokens is trained instead", flush=True
            )
            some = (text for of_kind in texts.values() for text in of_kind[:TRAINING_TEXTS])
            train_tokenizer(some, TRAINED_SIZE).save_pretrained(scratch / "tokenizer")
        vocabulary = len(load_fast_tokenizer(scratch / "tokenizer"))
        whole = write_part(texts, 1.0, scratch / "whole")
        shares = {"seeds_way": options.part, "ladle_hf": options.hf_part}
        parts = {key: write_part(texts, share, scratch / key) for key, share in shares.items()} | {"ladle_fast": whole}
        nothing = write_part({kind: of_kind[:1] for kind, of_kind in texts.items()}, 1.0, scratch / "nothing")
        scaled = {scale: write_part(texts, scale / SCALES[-1], scratch / f"scale{scale}") for scale in SCALES}
        del texts
        print(
            f"corpus: {whole.total_bytes / 1e6:.0f} MB: "
            + ", ".join(f"{k} {v / 1e6:.0f}" for k, v in whole.size_bytes.items())
        )
        bench = Bench(scratch / "tokenizer", scratch, options.cores)
        start_up = dict(_start_up(bench, nothing, options.runs))
        found = compare(bench, parts, options.runs)
        scaling = dict(_scale(bench, scaled, options.scaling_runs))
    _report(found, start_up, scaling, options.quick, vocabulary)


def _start_up(bench: Bench, nothing: Corpus, runs: int) -> Iterator[tuple[str, list[float]]]:
    for name in CONTENDERS:
        yield name, [bench.run(name, nothing).wall_seconds for _ in range(runs)]


def _scale(bench: Bench, scaled: dict[int, Corpus], runs: int) -> Iterator[tuple[int, list[Run]]]:
    for scale, corpus in scaled.items():
        found = [bench.run("ladle_fast", corpus) for _ in range(runs)]
        _show(f"ladle_fast, {scale}x", _median_run(found))
        yield scale, found


def _report(
    found: dict[str, list[Run]],
    start_up: dict[str, list[float]],
    scaling: dict[int, list[Run]],
    is_quick: bool,
    vocabulary: int,
) -> None:
    medians, starts = {name: _median_run(runs) for name, runs in found.items()}, {}
    print(f"\nmedians of {len(found[CONTENDERS[0]])} runs, whole processes:")
    for name, run in medians.items():
        starts[name] = median(start_up[name])
        _show(f"{name} (start {starts[name]:.1f} s)", run)
    seeds, hf, fast = (medians[name] for name in CONTENDERS)
    running = {name: run.tokens / max(run.wall_seconds - starts[name], 1e-9) for name, run in medians.items()}
    ratios = {
        "vs_seeds_way": fast.rate / seeds.rate,
        "vs_seeds_way_hf_engine": hf.rate / seeds.rate,
        "memory_vs_seeds_way": seeds.peak_bytes / fast.peak_bytes,
        "vs_seeds_way_after_start_up": running["ladle_fast"] / running["seeds_way"],
        "vs_seeds_way_hf_engine_after_start_up": running["ladle_hf"] / running["seeds_way"],
    }
    samples: dict[str, list[float]] = {}
    for name, runs in found.items():
        samples |= {
            f"{name}_tokens_per_second": [run.rate for run in runs],
            f"{name}_tokens": [run.tokens for run in runs],
            f"{name}_start_up_seconds": start_up[name],
            f"{name}_tokens_per_second_after_start_up": [running[name]],
            f"{name}_peak_mib": [run.peak_bytes / 2**20 for run in runs],
            f"{name}_disk_bytes_per_token": [run.disk_bytes / run.tokens for run in runs],
        }
    for scale, runs in scaling.items():
        samples[f"ladle_fast_{scale}x_tokens_per_second"] = [run.rate for run in runs]
        samples[f"ladle_fast_{scale}x_peak_mib"] = [run.peak_bytes / 2**20 for run in runs]
    results.publish("bench_mix", samples, ratios, is_quick, vocabulary=vocabulary)


if __name__ == "__main__":
    main()
