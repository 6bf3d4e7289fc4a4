"""Judge one pair in this process: words, numbers and structures by the reader; what it refuses is left for math-verify.

Nothing here bounds time or memory; a worker process does that (`ladle.grading.worker`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from ladle.grading.comparing.equivalence import are_equivalent
from ladle.grading.comparing.renaming import all_symbols
from ladle.grading.comparing.scalars import Rules
from ladle.grading.exact import judge_exactly
from ladle.grading.reading.normalise import normalise
from ladle.grading.reading.quantities import Reading
from ladle.grading.reading.structure import read, ungroup
from ladle.grading.reading.tokens import tokenize
from ladle.grading.reading.tree import Foreign, Quantity, Text, TooLarge, Tree, Unreadable
from ladle.grading.reading.units import Unit, read_unit
from ladle.grading.reading.words import drop_option_label, option_letter, plain_words
from ladle.grading.verdict import AnswerType, Judgement, Pair, Verdict, answer_type

_ORDERED_TYPES = frozenset({AnswerType.TUPLE, AnswerType.SET, AnswerType.INTERVAL, AnswerType.MATRIX})
_WORDS = re.compile(r"[A-Za-z' -]*[A-Za-z]{4}[A-Za-z' -]*|yes|no", re.IGNORECASE)


class _Gold(NamedTuple):
    text: str
    tree: Tree | None
    reading: Reading
    refusal: Unreadable | TooLarge | None


class Algebra(NamedTuple):
    """Two normalised texts that the reader cannot decide, and why; `ladle.grading.comparing.symbolic` can try."""

    gold: str
    answer: str
    refusal: str


def judge(pair: Pair, rounding_digits: int) -> Judgement | Algebra:
    """Return the verdict on a bare answer, or what is left to do for one.

    Args:
        pair: the gold and the answer, as they were written.
        rounding_digits: as in `GraderConfig`.

    Raises:
        UserError: the pair's type is not known.
    """
    kind = answer_type(pair.type)
    decided = judge_exactly(pair, kind) or _judge_words(pair, kind)
    if decided is not None:
        return decided
    gold = _read_gold(pair.gold, kind, pair.multiple, bool(pair.unit))
    answer = normalise(drop_option_label(pair.answer) if kind is not AnswerType.TEXT else pair.answer)
    if not answer:
        return Judgement(Verdict.UNPARSED, "the answer is empty")
    if answer == gold.text:
        return Judgement(Verdict.CORRECT, "the same text but for spacing and markup")
    if isinstance(gold.tree, Text):
        return _decide(plain_words(answer) == gold.tree.words, "words")
    rules = Rules(rounding_digits, _exact_tolerance(pair.tolerance), _read_asked_unit(pair.unit))
    try:
        return _judge_trees(gold, read(answer, gold.reading), answer, rules)
    except Foreign as error:
        return _leave(gold, answer, str(error))
    except (Unreadable, TooLarge) as error:
        return Judgement(Verdict.UNPARSED, str(error))


def _judge_words(pair: Pair, kind: AnswerType | None) -> Judgement | None:
    """Decide what words decide: options of a multiple choice, and answers that are names."""
    if kind not in (None, AnswerType.TEXT):
        return None
    option = option_letter(pair.gold, is_answer=False)
    if option is not None:
        chosen = option_letter(pair.answer, is_answer=True)
        if chosen is not None:
            return _decide(chosen == option, f"option {chosen}")
    if kind is AnswerType.TEXT or _WORDS.fullmatch(pair.gold):
        words = plain_words(pair.answer)
        if words and words == plain_words(pair.gold):
            return Judgement(Verdict.CORRECT, "the same words")
        if kind is AnswerType.TEXT and not any(letter.isdigit() for letter in pair.gold):
            return _decide(False, "words") if words else Judgement(Verdict.UNPARSED, "the answer is empty")
    return None


@lru_cache(maxsize=512)
def _read_gold(text: str, kind: AnswerType | None, multiple: bool, has_unit: bool) -> _Gold:
    """Read the gold, and say how to take an answer to it."""
    text = normalise(text)
    may_group = not multiple and kind not in _ORDERED_TYPES and not re.search(r"[(\[]|\\\{", text)
    grouped = may_group and "," not in ungroup(text)
    refusal: Unreadable | TooLarge | None = None
    for accepts_nouns in (False, True):  # `5 apples` is read the second time, but `2 ab` is two times a times b
        try:
            tree = read(text, Reading(grouped, accepts_nouns, accepts_unit_letters=False))
        except Foreign as error:
            return _Gold(text, None, Reading(grouped, False, False), error)
        except (Unreadable, TooLarge) as error:
            refusal = refusal or error
        else:
            has_unit |= isinstance(tree, Quantity) and bool(tree.unit)
            return _Gold(text, tree, Reading(grouped, not all_symbols(tree), has_unit), None)
    return _Gold(text, None, Reading(grouped, False, False), refusal)


def _judge_trees(gold: _Gold, answer: Tree, text: str, rules: Rules) -> Judgement | Algebra:
    if isinstance(gold.refusal, Foreign):
        return _leave(gold, text, str(gold.refusal))
    if gold.tree is None:
        return Judgement(Verdict.UNPARSED, f"the gold: {gold.refusal}")
    if isinstance(answer, Text):
        return Judgement(Verdict.WRONG, "words where the gold has a value")
    verdict = are_equivalent(gold.tree, answer, rules)
    return _leave(gold, text, "no value to compare") if verdict is None else _decide(verdict, "values")


def _leave(gold: _Gold, answer: str, refusal: str) -> Algebra:
    return Algebra(ungroup(gold.text) if gold.reading.is_grouped else gold.text, answer, refusal)


def _decide(equal: bool, subject: str) -> Judgement:
    return Judgement(Verdict.CORRECT if equal else Verdict.WRONG, f"{'equal' if equal else 'different'} {subject}")


def _exact_tolerance(tolerance: float | None) -> Fraction | None:
    return None if tolerance is None else Fraction(repr(tolerance))


@lru_cache(maxsize=64)
def _read_asked_unit(unit: str | None) -> Unit:
    """Return the unit the question asks for; one that cannot be read is held against no answer."""
    if not unit:
        return {}
    try:
        return read_unit(tokenize(normalise(unit)), accept_nouns=True)
    except Unreadable:
        return {}
