"""Quantities said in several units, the largest first: `1 hour 30 minutes`, `5 feet, 8 inches`."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ladle.grading.reading.literals import read_literal
from ladle.grading.reading.tokens import Token
from ladle.grading.reading.tree import Number, Product, Quantity, Sum, Unreadable
from ladle.grading.reading.units import Unit, conversion, read_unit


def read_compound(tokens: Sequence[Token]) -> Quantity | None:
    """Return the quantity in the first of its units; None where these are not ever smaller ones of a kind."""
    starts = [index for index, token in enumerate(tokens) if token.kind == "number"]
    if len(starts) < 2 or starts[0] != 0:
        return None
    parts = [tokens[start:end] for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    units = [_read_bare_unit(part[1:]) for part in parts]
    factors = [conversion(units[0], unit) for unit in units if unit and units[0]]
    sizes = [factor for factor in factors if factor is not None]
    if len(sizes) != len(parts) or any(big <= small for big, small in zip(sizes, sizes[1:], strict=False)):
        return None
    return Quantity(Sum([_times(part[0], size) for part, size in zip(parts, sizes, strict=True)]), units[0])


def _times(number: Token, factor: Fraction) -> Product:
    return Product([read_literal(number.text), Number(factor)])


def _read_bare_unit(tokens: Sequence[Token]) -> Unit:
    """Read a unit and the `and` or comma after it; empty where the tokens are anything else."""
    names = [token for token in tokens if token.text.strip().lower() not in ("and", ",")]
    if any(token.kind not in ("word", "run") for token in names):
        return {}
    try:
        return read_unit(names, accept_nouns=False)
    except Unreadable:
        return {}
