"""Any text gives a verdict: no exception in the reader, a limit kept, and no gold that differs from itself.

Ten seconds with fixed seeds; `LADLE_FUZZ_SECONDS=60` looks longer, with more of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from ladle.grading.extract import bare_answer, extract_answer
from ladle.grading.grade import Grader
from ladle.grading.judge import Algebra, judge
from ladle.grading.verdict import Pair, Verdict
from ladle.grading.worker import CpuLimitReached, cpu_limit

SECONDS = float(os.environ.get("LADLE_FUZZ_SECONDS", "10"))
_PIECES = r"""
0 1 2 3.5 .5 10 1,234 1{,}000 -7 − ½ ² ₂ ⁻¹ √ π ∞ ° × ÷ ± ≤ ≈ ∪ ∈ ∅ ∠ △ ’ “ （ ， 。 ％ ＄ + - * / ^ _ = < > ! | : ; , .
' " ( ) [ ] { } \{ \} $ $$ \$ % \% # & \\ ~ x y n k i e C P f(x) \frac{1}{2} \frac12 \frac \dfrac{ \sqrt{2} \sqrt[3]
\sqrt \pi \infty \pm \cdot \times \le \ne \in \cup \equiv \pmod{5} \bmod mod \binom{5}{2} \choose \over \text{ cm}
\text{ \text{and} \mathrm{e} \mathbb{R} \angle \triangle ABC \overline{AB} \overline{3} \dot{3} \vec{v} \hat{i}
\mathbf{j} \left( \right) \left\lfloor \rfloor \lceil \langle \rangle \boxed{ \boxed \begin{pmatrix} \end{pmatrix}
\begin{cases} \int \sum_{k=1}^{n} \lim_{x\to0} \sin \log_2 \ln ^\circ ^{th} _8 \color{red} \, \; \! \quad \cdots ...
and or to of in the about not is cats times dozen percent half two thirds sixth hundred million pm am o'clock April
9th 2023 16:35 2:30 km/h m/s^2 USD € £ (apples) (since none no solution 十二 三分之一 百分之五 个 元 the\ answer\ is
#### answer: <think> </think> all\ real\ numbers k\in\mathbb{Z}
"""
PIECES = _PIECES.split()
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    st.text(max_size=40),
)


def fuzz(check: Callable[..., None], *strategies: st.SearchStrategy[str], share: float) -> None:
    """Check new examples, from fixed seeds, until the share of the time is over."""
    end = time.monotonic() + share * SECONDS
    for number in count():
        run = given(*strategies)(check)
        quiet = settings(deadline=None, database=None, max_examples=100, suppress_health_check=list(HealthCheck))
        seed(number)(quiet(run))()
        if time.monotonic() > end:
            return


def test_the_reader_raises_nothing() -> None:
    def check(gold: str, answer: str) -> None:
        try:
            with cpu_limit(2.0):
                for pair in (Pair(gold, answer), Pair(gold, gold)):
                    judged = judge(pair, 5)
                    assert isinstance(judged, Algebra) or judged.verdict in Verdict
                assert isinstance(judged, Algebra) or judged.verdict is not Verdict.WRONG, "a gold differs from itself"
        except (CpuLimitReached, RecursionError):
            pass  # the worker's to report

    fuzz(check, texts, texts, share=0.6)


def test_extraction_raises_nothing_and_finds_what_is_there() -> None:
    def check(completion: str) -> None:
        for rule in ("ladle", "upstream"):
            for truncated in (False, True):
                found = extract_answer(completion, truncated=truncated, rule=rule)
                assert (found.method == "none") is (found.answer == "")
        assert isinstance(bare_answer(completion), str)

    fuzz(check, texts, share=0.2)


def test_every_verdict_is_within_the_limits(grader: Grader) -> None:
    def check(gold: str, answer: str) -> None:
        for grade in (grader.grade(Pair(gold, answer)), *grader.grade_completions([Pair(gold, answer)])):
            assert grade.verdict in Verdict
            assert grade.reason
            assert grade.seconds <= 3

    fuzz(check, texts, texts, share=0.2)
