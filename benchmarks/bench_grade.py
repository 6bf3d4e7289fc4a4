"""Grade the same unique pairs with math-verify and with Ladle, its cache off and on.

    python benchmarks/bench_grade.py [--pairs 4000] [--runs 5]

The answers are as models write them; `grade_pairs.MIX` states how many there are of each type. math-verify is used as
its documentation says: `verify(parse(gold), parse(answer))`, the gold between dollar signs and the answer in a box.
Ladle runs with one worker process. Costs are CPU seconds of a process and its children, Ladle's with the start of the
worker, so that two contenders on a busy machine stay comparable and nobody gains by a second core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from math_verify import parse, verify

import results
from grade_pairs import MIX, LabelledPair, make_pairs
from ladle.grading.grade import Grader, GraderConfig, Pair, Verdict

Contender = Callable[[Sequence[LabelledPair]], list[bool]]


def grade_with_math_verify(pairs: Sequence[LabelledPair]) -> list[bool]:
    """Return what math-verify says of each pair."""
    return [verify(parse(f"${pair.gold}$"), parse(f"\\boxed{{{pair.answer}}}")) for pair in pairs]


def grade_with_ladle(pairs: Sequence[LabelledPair], cache: Path | None = None) -> list[bool]:
    """Return what Ladle says of each pair."""
    with Grader(GraderConfig(workers=1, cache=None if cache is None else str(cache))) as grader:
        grades = grader.grade_many(Pair(pair.gold, pair.answer) for pair in pairs)
        return [grade.verdict is Verdict.CORRECT for grade in grades]


def cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children so far."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def measure(contender: Contender, pairs: Sequence[LabelledPair]) -> tuple[float, int]:
    """Return the CPU seconds of one run, and how many verdicts were right."""
    started = cpu_seconds()
    verdicts = contender(pairs)
    seconds = cpu_seconds() - started
    return seconds, sum(verdict == pair.is_equal for verdict, pair in zip(verdicts, pairs, strict=True))


def main() -> None:
    """Run the contenders in turn and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5)
    options = results.parse(parser, pairs=400, runs=3)
    pairs = make_pairs(options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "verdicts.sqlite"
        grade_with_ladle(pairs, cache)
        contenders: dict[str, Contender] = {
            "math_verify": grade_with_math_verify,
            "ladle": grade_with_ladle,
            "ladle_cached": lambda some: grade_with_ladle(some, cache),
        }
        runs = {name: [] for name in contenders}
        right = dict.fromkeys(contenders, 0)
        for _ in range(options.runs):
            for name, contender in contenders.items():
                seconds, right[name] = measure(contender, pairs)
                runs[name].append(seconds)
    report(runs, right, options)


def report(runs: dict[str, list[float]], right: dict[str, int], options: argparse.Namespace) -> None:
    """Print the table, and publish."""
    count, seconds = options.pairs, {name: median(taken) for name, taken in runs.items()}
    mix = ", ".join(f"{share} % {kind}" for kind, share in MIX.items())
    sys.stdout.write(f"{count} unique pairs, half of them equal: {mix}\nmedians of {options.runs} runs, CPU time\n\n")
    sys.stdout.write(f"{'':14}{'answers/s/core':>16}{'us/answer':>12}{'right':>9}\n")
    for name, total in seconds.items():
        rate, share = count / total, 100 * right[name] / count
        sys.stdout.write(f"{name:14}{rate:16,.0f}{1e6 / rate:12.1f}{share:8.1f}%\n")
    ratios = {
        "vs_math_verify": seconds["math_verify"] / seconds["ladle"],
        "cached_vs_math_verify": seconds["math_verify"] / seconds["ladle_cached"],
    }
    samples = {f"{name}_seconds": taken for name, taken in runs.items()}
    samples["ladle_answers_per_core_second"] = [count / taken for taken in runs["ladle"]]
    results.publish("bench_grade", samples, ratios, options.quick)


if __name__ == "__main__":
    main()
