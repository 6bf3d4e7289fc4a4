"""Names that may differ without a difference: arbitrary constants, derivatives, and the argument of a function."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from ladle.grading.reading.tree import Call, Constant, Relation, Symbol, Tree

Node = TypeVar("Node")
_INTEGER_LETTERS = frozenset("nkmlj")  # where they multiply pi they stand for every integer, said or unsaid


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """Return the tree with its symbols renamed; names that the mapping lacks stay."""
    if not names:
        return node
    if isinstance(node, Symbol):
        return replace(node, name=names.get(node.name, node.name))
    if isinstance(node, list):
        return [rename(item, names) for item in node]  # pyright: ignore[reportReturnType]
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{field.name: rename(getattr(node, field.name), names) for field in fields(node)})
    return node


def all_symbols(node: Any) -> set[str]:
    """Return the names of the symbols anywhere in a tree."""
    if isinstance(node, Symbol):
        return {node.name}
    if isinstance(node, list):
        return set[str]().union(*(all_symbols(item) for item in node))
    if is_dataclass(node) and not isinstance(node, type):
        return set[str]().union(*(all_symbols(getattr(node, field.name)) for field in fields(node)))
    return set()


def align_names(gold: Tree, answer: Tree) -> tuple[Tree, Tree]:
    """Return both trees with constants of integration (`C`, `c`) and derivatives (`dx/dt`, `x'`) named alike."""
    golds, answers = all_symbols(gold), all_symbols(answer)
    if golds == answers:
        return gold, answer
    constants = {
        name: other
        for name in answers - golds
        if name[0] in "cC" and (other := name[0].swapcase() + name[1:]) in golds - answers
    }
    gold_short, answer_short = _short_derivatives(golds, answers), _short_derivatives(answers, golds)
    return rename(gold, gold_short), rename(answer, constants | answer_short)


def align_bound_letter(gold: Tree, answer: Tree, bound: Set[str]) -> Tree:
    """Return the answer with the one letter that the gold lacks named as the one that the answer lacks.

    Only where one of the two is bound, or both are letters of integers beside pi: `n \\pi` for `k \\pi`.

    Args:
        gold: what the gold says.
        answer: what the answer says.
        bound: the letters that either declares.
    """
    golds, answers = all_symbols(gold), all_symbols(answer)
    ours, theirs = golds - answers, answers - golds
    if len(ours) != 1 or len(theirs) != 1:
        return answer
    (one,), (other,) = ours, theirs
    periodic = {one, other} <= _INTEGER_LETTERS and _holds_pi(gold) and _holds_pi(answer)
    return rename(answer, {other: one}) if periodic or {one, other} & bound else answer


def _holds_pi(node: Any) -> bool:
    if isinstance(node, list):
        return any(_holds_pi(item) for item in node)
    if is_dataclass(node) and not isinstance(node, type):
        return node == Constant("pi") or any(_holds_pi(getattr(node, field.name)) for field in fields(node))
    return False


def _short_derivatives(names: set[str], others: set[str]) -> dict[str, str]:
    """Map `dx/dt` to `x'` where the other tree writes `x'`, which leaves the variable unsaid."""
    short: dict[str, str] = {}
    for name in names:
        function, comma, _ = name.partition(",")
        if comma and name.startswith("D") and function + "]" in others:
            short[name] = function + "]"
    return short


def align_argument(gold: Relation, answer: Relation) -> Relation:
    """Return the answer with the argument of its function named as in the gold: `f(x) = x^2` for `f(n) = n^2`."""
    one, other = gold.sides[0], answer.sides[0]
    if not (isinstance(one, Call) and isinstance(other, Call) and one.function == other.function):
        return answer
    mapping = {
        theirs.name: ours.name
        for ours, theirs in zip(one.arguments, other.arguments, strict=False)
        if isinstance(ours, Symbol) and isinstance(theirs, Symbol) and ours != theirs
    }
    return answer if set(mapping.values()) & all_symbols(answer) else rename(answer, mapping)
