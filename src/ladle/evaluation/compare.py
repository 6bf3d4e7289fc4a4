"""Compare two evaluated models item by item: what one has over the other, and whether that is more than noise.

Both answered the same items, so the test is paired: McNemar's exact test where every item has one sample, random
signs on the items' differences where there are several. Differences are second minus first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ladle.errors import UserError
from ladle.evaluation import statistics
from ladle.evaluation.results import ResultFile, find_results, read_result
from ladle.evaluation.statistics import Row, item_score, ks_of_curve, pass_at
from ladle.log import get_logger

logger = get_logger(__name__)
ALL = "all items"


@dataclass(frozen=True)
class Flip:
    """An item on which the two models differ."""

    benchmark: str
    idx: int
    first: float
    second: float
    gold: str
    first_answers: list[str]
    second_answers: list[str]


@dataclass(frozen=True)
class PairedResult:
    """Two models on the same items.

    Attributes:
        benchmark: its name, or `all items`.
        n: items that both answered.
        first: accuracy of the first model.
        second: accuracy of the second.
        difference: second minus first.
        low: lower end of the difference's 95 % bootstrap interval.
        high: upper end.
        p_value: of the paired test, two-sided.
        test: `McNemar, exact` or `random signs`.
        only_first: items on which the first model is better.
        only_second: items on which the second is.
        minimum_detectable_effect: true difference found at the 5 % level with 80 % power on these items.
        items_to_detect: items like these needed to find the observed difference so; None where there is none.
        unpaired: items that only one of the two answered, left out.
        k: the accuracy here is pass@k; 1 is the share of right samples.
        holm_p_value: the p-value adjusted for the comparisons made beside this one; None where none is known of.
    """

    benchmark: str
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    test: str
    only_first: int
    only_second: int
    minimum_detectable_effect: float | None
    items_to_detect: int | None
    unpaired: int
    k: int = 1
    holm_p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Each benchmark that both were evaluated on, all their items together, the items that flipped, the benchmarks
    left out because only one of the two was evaluated on them, and pass@k for each k > 1 that all items have samples
    for."""

    benchmarks: list[PairedResult]
    overall: PairedResult
    flipped: list[Flip]
    left_out: list[str]
    pass_at_k: list[PairedResult]

    @property
    def difference(self) -> float:
        """Accuracy over all items, second minus first."""
        return self.overall.difference

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the difference."""
        return self.overall.low, self.overall.high

    @property
    def p_value(self) -> float:
        """Of the paired test over all items, two-sided."""
        return self.overall.p_value


def compare_runs(first: Path, second: Path, seed: int = 0) -> Comparison:
    """Compare two result files, or two folders of them benchmark by benchmark.

    Args:
        first: a result file, or the folder of an evaluated model.
        second: the other one.
        seed: of the bootstrap and the random signs.

    Raises:
        UserError: no benchmark in common, several runs of one, or different items under one idx.
    """
    ours, theirs = _by_benchmark(first), _by_benchmark(second)
    if first.is_file() and second.is_file():  # whatever the folders are called that they are in
        theirs = dict(zip(ours, theirs.values(), strict=True))
    pairs = [(name, *_pair_rows(ours[name], theirs[name])) for name in ours if name in theirs]
    if not pairs:
        problem = f"{first} ({', '.join(ours)}) and {second} ({', '.join(theirs)}) have no benchmark in common"
        raise UserError(problem, "evaluate both on the same benchmarks")
    if left_out := sorted(ours.keys() ^ theirs.keys()):
        logger.warning("left out, evaluated of one of the two alone: %s", ", ".join(left_out))
    results = [_compare(name, rows, unpaired, seed) for name, rows, unpaired in pairs]
    for result in results:
        if result.unpaired:
            logger.warning(
                "%s: %d items that only one of the two answered are left out", result.benchmark, result.unpaired
            )
    every_row = [row for _, rows, _ in pairs for row in rows]
    flipped = [
        Flip(name, one["idx"], item_score(one), item_score(other), str(one["gt"]), one["pred"], other["pred"])
        for name, rows, _ in pairs
        for one, other in rows
        if item_score(one) != item_score(other)
    ]
    groups = [*pairs, (ALL, every_row, sum(result.unpaired for result in results))]
    curves = [_compare(*group, seed, k) for group in groups for k in ks_of_curve(_fewest_samples(group[1]))[1:]]
    return Comparison(results, _compare(*groups[-1], seed), flipped, left_out, curves)


def _by_benchmark(path: Path) -> dict[str, ResultFile]:
    found: dict[str, ResultFile] = {}
    for result in find_results(path):
        if (other := found.setdefault(result.benchmark, result)) is not result:
            problem = f"{path} has several runs of {result.benchmark}: {other.run_id}, {result.run_id}"
            raise UserError(problem, "name one result file of each model")
    return found


def _pair_rows(first: ResultFile, second: ResultFile) -> tuple[list[tuple[Row, Row]], int]:
    """Return the rows of the items that both answered, and how many only one of them did."""
    ours = {row["idx"]: row for row in read_result(first)}
    theirs = {row["idx"]: row for row in read_result(second)}
    pairs = [(row, theirs[idx]) for idx, row in ours.items() if idx in theirs]
    if not pairs:
        raise UserError(f"{first.path} and {second.path} have no item in common", "evaluate both on the same items")
    for one, other in pairs:
        if one.get("question") != other.get("question"):
            problem = f"item {one['idx']} is another question in {first.path} than in {second.path}"
            raise UserError(problem, "evaluate both on the same edition of the benchmark")
    return pairs, len(ours) + len(theirs) - 2 * len(pairs)


def _fewest_samples(rows: Sequence[tuple[Row, Row]]) -> int:
    return min(len(row["score"]) for pair in rows for row in pair)


def _compare(name: str, rows: Sequence[tuple[Row, Row]], unpaired: int, seed: int, k: int = 1) -> PairedResult:
    score = item_score if k == 1 else lambda row: pass_at([row], k)
    scores = [(score(one), score(other)) for one, other in rows]
    differences = [other - one for one, other in scores]
    only_first, only_second = (sum(sign * difference > 0 for difference in differences) for sign in (-1, 1))
    is_single = all(len(row["score"]) == 1 for pair in rows for row in pair)
    exact = statistics.mcnemar_p_value(only_first, only_second) if is_single else None
    low, high = statistics.bootstrap_interval([differences], seed)
    return PairedResult(
        benchmark=name,
        n=len(rows),
        first=fmean(one for one, _ in scores),
        second=fmean(other for _, other in scores),
        difference=fmean(differences),
        low=low,
        high=high,
        p_value=statistics.sign_flip_p_value(differences, seed) if exact is None else exact,
        test="random signs" if exact is None else "McNemar, exact",
        only_first=only_first,
        only_second=only_second,
        minimum_detectable_effect=statistics.minimum_detectable_effect(differences),
        items_to_detect=statistics.items_to_detect(differences, fmean(differences)),
        unpaired=unpaired,
        k=k,
    )
