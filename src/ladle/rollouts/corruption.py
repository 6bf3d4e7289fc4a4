"""Wrong answers made from right ones: a fallback where a policy makes no errors of its own to learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from blake3 import blake3

from ladle.rollouts.attempts import Attempt


def corrupt_answers(attempts: Sequence[Attempt], seed: int) -> list[Attempt]:
    """Return, for each problem with right attempts and no wrong one, its first right one with another answer in it.

    The answer's last occurrence in the completion gives way to the answer of another problem, picked by a keyed hash;
    a completion that does not spell the known answer as it stands is left out.
    """
    by_problem: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_problem[attempt.problem.number].append(attempt)
    answers = sorted({attempt.problem.answer for attempt in attempts})
    found = []
    for group in by_problem.values():
        right = [attempt for attempt in group if attempt.verdict == "correct"]
        if right and not any(attempt.verdict == "wrong" for attempt in group):
            corrupted = _with_other_answer(right[0], answers, seed)
            if corrupted is not None:
                found.append(corrupted)
    return found


def _with_other_answer(attempt: Attempt, answers: Sequence[str], seed: int) -> Attempt | None:
    answer = attempt.problem.answer
    before, found, after = attempt.completion.rpartition(answer)
    others = [other for other in answers if other != answer]
    if not found or not others:
        return None
    key = blake3(f"{seed} {attempt.problem.number}".encode()).digest(8)
    other = others[int.from_bytes(key, "little") % len(others)]
    return replace(attempt, completion=before + other + after, verdict="wrong")
