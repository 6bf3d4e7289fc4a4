"""What becomes of one chunk: floating-point numbers are averaged, other bytes must be equal and are passed on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from ladle.errors import UserError
from ladle.soup.arithmetic import fill_ieee_mean, fill_mean, find_nonfinite
from ladle.soup.plan import BYTES, Run
from ladle.soup.preflight import Soup
from ladle.soup.weights import Coefficients


class Combiner:
    """Combines chunks of one output file, from any thread, and counts what was let through.

    Attributes:
        nonfinite: how many results are NaN or infinite.
        unequal: tensors that are not averaged and differ between members.
    """

    def __init__(self, soup: Soup, coefficients: Coefficients) -> None:
        self.members, self.config = soup.members, soup.config
        self.coefficients = coefficients
        self.nonfinite = 0
        self.unequal: set[str] = set()
        self._lock = threading.Lock()
        self._last_terms: tuple[Run | None, tuple[list[str], Coefficients]] = None, ([], coefficients)

    def combine(self, run: Run, first: int, rows: Sequence[memoryview], out: memoryview) -> memoryview:
        """Return the result of a chunk, which may stand in `out` or be one of the rows.

        Args:
            run: what the chunk is a part of.
            first: the chunk's first element.
            rows: each source's bytes.
            out: room for the result.

        Raises:
            UserError: NaN, infinity or unequal bytes that the config does not waive.
        """
        if run.out_dtype == BYTES:
            self._check_equal(run, first, rows)
            return rows[0]
        dtypes, coefficients = self._terms_of(run)
        if not fill_mean(rows, dtypes, coefficients, run.out_dtype, out):
            self._check_finite(run, first, rows)
            count = fill_ieee_mean(rows, dtypes, coefficients, run.out_dtype, out)
            with self._lock:
                self.nonfinite += count
        return out

    def _terms_of(self, run: Run) -> tuple[list[str], Coefficients]:
        """Return the dtype and the share of each source; most files are one run in thousands of chunks."""
        last_run, terms = self._last_terms
        if last_run is not run:
            numerators = tuple(self.coefficients.numerators[source.member] for source in run.sources)
            terms = [source.dtype for source in run.sources], Coefficients(numerators, self.coefficients.denominator)
            self._last_terms = run, terms
        return terms

    def _check_finite(self, run: Run, first: int, rows: Sequence[memoryview]) -> None:
        if self.config.allow_nonfinite:
            return
        index, position, value = find_nonfinite(rows, [source.dtype for source in run.sources])
        member = self.members[run.sources[index].member].name
        (tensor,) = run.tensors_at(np.array([first + position]))
        fix = "leave that member out, or set allow_nonfinite=true to let it through"
        raise UserError(f"{member} holds {value} in {tensor}", fix)

    def _check_equal(self, run: Run, first: int, rows: Sequence[memoryview]) -> None:
        for source, row in zip(run.sources[1:], rows[1:], strict=True):
            if row == rows[0]:
                continue
            different = np.flatnonzero(np.frombuffer(row, np.uint8) != np.frombuffer(rows[0], np.uint8))
            tensors = run.tensors_at(first + different)
            if not self.config.allow_unequal:
                names = f"{self.members[run.sources[0].member].name} and {self.members[source.member].name}"
                fix = "average members that agree on it, or set allow_unequal=true to keep the first member's"
                raise UserError(f"{tensors[0]} differs between {names}, and its dtype is not averaged", fix)
            with self._lock:
                self.unequal.update(tensors)
