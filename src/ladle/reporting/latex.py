"""Formulas in a text, as MathML: browsers draw it without scripts, and screen readers read it."""

from __future__ import annotations

import html
import re
from typing import NamedTuple
from xml.etree.ElementTree import tostring

from latex2mathml import exceptions
from latex2mathml.converter import Converter

_FORMULA = re.compile(
    r"(\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$(?!\s)[^$\n]+?(?<!\s)\$(?!\d)|\\boxed\{[^{}\n]*\})", re.DOTALL
)
"""As in Pandoc a dollar opens before a character, and closes after one and not before a digit: sums of money are no
formulas."""
_DELIMITER = re.compile(r"^(\$\$?|\\\[|\\\()|(\$\$?|\\\]|\\\))$")
_FAULTS = tuple(one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, Exception))
_NOT_LATEX = (*_FAULTS, ValueError, StopIteration, LookupError, RecursionError)
"""What the parser raises of broken LaTeX, which models write too: its own exceptions have no class in common."""


class Part(NamedTuple):
    """A stretch of text, or a formula; MathML where the formula is LaTeX that can be read."""

    text: str
    is_formula: bool
    mathml: str


def split_formulas(text: str) -> list[Part]:
    """Return a text as stretches of text and formulas."""
    parts = enumerate(_FORMULA.split(text))
    return [Part(part, bool(place % 2), _to_mathml(part) if place % 2 else "") for place, part in parts]


def _to_mathml(formula: str) -> str:
    try:
        math = Converter().convert_to_element(_DELIMITER.sub("", formula))
    except _NOT_LATEX:
        return ""
    for element in math.iter():  # which hold characters as entities, escaped once more by tostring
        element.text = html.unescape(element.text or "")
    math.set("alttext", formula)
    return tostring(math, encoding="unicode")
