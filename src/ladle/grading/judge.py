"""Judge one pair in this process: words, numbers and structures by the reader; what it refuses is left for math-verify.

Nothing here bounds time or memory; a worker process does that (`ladle.grading.worker`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from ladle.grading import extract, nodes
from ladle.grading.equivalence import align_bound_letter, are_equivalent, are_same_families
from ladle.grading.normalise import normalise, unwrap
from ladle.grading.structure import Reading, read, ungroup
from ladle.grading.units import Unit, read_unit
from ladle.grading.values import Rules
from ladle.grading.verdict import AnswerType, Judgement, Pair, Verdict, answer_type

_ORDERED_TYPES = frozenset({AnswerType.TUPLE, AnswerType.SET, AnswerType.INTERVAL, AnswerType.MATRIX})
_LOOSE = re.compile(r"(?<![A-Za-z\d]) +| +(?![A-Za-z\d])")  # spaces that part nothing: `3 1/2` keeps its own
_COUNTED = re.compile(r"-?\d[\d.,]*(?: (?!(?:[a-d]+|[k-n]+|[p-r]+|[x-z]+)\b)(?=[a-z]*[aeiouy])[a-z]{3,})+")  # `4 cups`
_WORDS = re.compile(r"[A-Za-z'. -]*[A-Za-z]{4}[A-Za-z'. -]*|yes|no", re.IGNORECASE)


class _Gold(NamedTuple):
    text: str
    tree: nodes.Tree | None
    reading: Reading
    refusal: nodes.Unreadable | nodes.TooLarge | None
    declared: extract.Declared


class Algebra(NamedTuple):
    """Two normalised texts that the reader cannot decide, and why; `ladle.grading.symbolic` can try."""

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
    is_text = kind is AnswerType.TEXT
    decided = _judge_words(pair, is_text) if kind is None or is_text else None
    if decided is not None:
        return decided
    gold = _read_gold(pair.gold, kind, pair.multiple, bool(pair.unit))
    answer = unwrap(pair.answer)
    answer = normalise(answer if is_text else extract.drop_statement(extract.drop_option_label(answer)))
    if not answer:
        return Judgement(Verdict.UNPARSED, "the answer is empty")
    declared = extract.split_declarations(answer)
    one, other = (_LOOSE.sub("", text) if " " in text else text for text in (declared.text, gold.text))
    if one == other and pair.answer != pair.gold:  # of one text, the question is whether it can be read
        return _judge_declarations(gold.declared, declared, "the same text but for spacing and markup")
    if gold.tree == nodes.Unordered([]) and extract.plain_words(declared.text) == extract.NO_SOLUTION:
        return Judgement(Verdict.CORRECT, "no solution, in words")
    if isinstance(gold.tree, nodes.Text):
        if gold.tree.words in map(extract.plain_words, extract.bare_answers(declared.text)):
            return _judge_declarations(gold.declared, declared, "equal words")
        return Judgement(Verdict.WRONG, "different words")
    tolerance = None if pair.tolerance is None else Fraction(repr(pair.tolerance))
    try:
        answer_tree = _read_answer(declared.text, gold)
        judged = _judge_trees(gold, answer_tree, declared, Rules(rounding_digits, tolerance, _wanted_unit(pair.unit)))
    except nodes.Foreign as error:
        if gold.declared.condition != declared.condition:
            return Judgement(Verdict.UNPARSED, f"{error}, and the conditions cannot be compared")
        return Algebra(ungroup(gold.text) if gold.reading.is_grouped else gold.text, declared.text, str(error))
    except (nodes.Unreadable, nodes.TooLarge) as error:
        return Judgement(Verdict.UNPARSED, str(error))
    if pair.answer == pair.gold and judged.verdict is Verdict.WRONG:
        return Judgement(Verdict.UNPARSED, "it says nothing that equals itself")
    return judged


def _judge_words(pair: Pair, is_text: bool) -> Judgement | None:
    """Decide what words decide: options of a multiple choice, and answers that are names."""
    option = extract.option_letter(pair.gold, is_answer=False)
    chosen = extract.option_letter(pair.answer, is_answer=True) if option is not None else None
    if chosen is not None:
        if chosen == option:
            return Judgement(Verdict.CORRECT, f"equal option {chosen}")
        return Judgement(Verdict.WRONG, f"different option {chosen}")
    if is_text or _WORDS.fullmatch(pair.gold):
        words = extract.plain_words(pair.answer)
        if words and extract.plain_words(pair.gold) in map(extract.plain_words, extract.bare_answers(pair.answer)):
            return Judgement(Verdict.CORRECT, "the same words")
        if is_text and not any(letter.isdigit() for letter in pair.gold):
            if words:
                return Judgement(Verdict.WRONG, "different words")
            return Judgement(Verdict.UNPARSED, "the answer is empty")
    return None


@lru_cache(maxsize=512)
def _read_gold(text: str, kind: AnswerType | None, multiple: bool, has_unit: bool) -> _Gold:
    """Read the gold, and say how to take an answer to it."""
    declared = extract.split_declarations(normalise(extract.drop_aside(text) if kind is not AnswerType.TEXT else text))
    text = declared.text
    may_group = not multiple and kind not in _ORDERED_TYPES and not re.search(r"[(\[]|\\\{", text)
    is_grouped = may_group and "," not in ungroup(text)
    unread = Reading(is_grouped, accepts_nouns=False, accepts_unit_letters=False)
    refusal: nodes.Unreadable | nodes.TooLarge | None = None
    readings = (unread, unread._replace(accepts_nouns=True))  # `5 apples` is read as the second, `2 ab` is two a b
    for reading in readings[1:] if _COUNTED.fullmatch(text) else readings:
        try:
            tree = read(text, reading)
        except nodes.Foreign as error:
            refusal = error
            break
        except (nodes.Unreadable, nodes.TooLarge) as error:
            refusal = refusal or error
        else:
            has_unit |= isinstance(tree, nodes.Quantity) and bool(tree.unit)
            return _Gold(text, tree, Reading(is_grouped, not nodes.symbols_of(tree), has_unit), None, declared)
    return _Gold(text, None, unread, refusal, declared)


def _read_answer(text: str, gold: _Gold) -> nodes.Tree:
    """Read an answer; of a calculation that cannot be read, such as `1+2+\\cdots+9 = 45`, what it arrives at."""
    try:
        return read(text, gold.reading)
    except nodes.Foreign:
        way, equals, end = text.rpartition("=")
        is_calculation = equals and way.count("{") == way.count("}") and not re.search(r"[<>]|\\[lgn]e\b", way)
        if not is_calculation or gold.tree is None or isinstance(gold.tree, nodes.Relation):
            raise
        return read(end, gold.reading)


@lru_cache(maxsize=64)
def _wanted_unit(unit: str | None) -> Unit:
    """Return the unit that the question names; one that cannot be read makes no answer wrong."""
    try:
        return read_unit(nodes.tokenize(normalise(unit)), accept_nouns=True) if unit else {}
    except nodes.Unreadable:
        return {}


def _judge_trees(gold: _Gold, answer: nodes.Tree, declared: extract.Declared, rules: Rules) -> Judgement:
    if gold.tree is None:
        raise gold.refusal if isinstance(gold.refusal, nodes.Foreign) else nodes.Unreadable(f"the gold: {gold.refusal}")
    if isinstance(answer, nodes.Text):
        return Judgement(Verdict.WRONG, "words where the gold has a value")
    bound = frozenset[str]() if gold.declared.condition else gold.declared.letters | declared.letters
    answer = align_bound_letter(gold.tree, answer, bound)
    verdict = are_equivalent(gold.tree, answer, rules)
    if verdict is False and isinstance(answer, nodes.Quantity) and answer.unit and nodes.symbols_of(gold.tree):
        measured = read(gold.text, gold.reading._replace(accepts_unit_letters=True))  # `9.8 m/s^2` beside a marked unit
        verdict = isinstance(measured, nodes.Quantity) and are_equivalent(measured, answer, rules)
    elif verdict is False and gold.declared.kinds | declared.kinds == {"integer"}:
        shared = nodes.symbols_of(gold.tree) & nodes.symbols_of(answer)
        verdict = any(are_same_families(gold.tree, answer, letter) for letter in shared)
    if verdict is None:
        raise nodes.Foreign("no value to compare")
    if not verdict:
        return Judgement(Verdict.WRONG, "different values")
    return _judge_declarations(gold.declared, declared, "equal values")


def _judge_declarations(gold: extract.Declared, answer: extract.Declared, reason: str) -> Judgement:
    """Decide on equal answers by what is said of their letters; the kind of a letter may be left unsaid."""
    if gold.kinds and answer.kinds and gold.kinds != answer.kinds:
        return Judgement(Verdict.WRONG, f"{' '.join(sorted(answer.kinds))} is not {' '.join(sorted(gold.kinds))}")
    if gold.condition != answer.condition:
        return Judgement(Verdict.UNPARSED, f"{reason}, under conditions that cannot be compared")
    return Judgement(Verdict.CORRECT, reason)
