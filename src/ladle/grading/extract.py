"""Find the answer in a completion, by the rules of the upstream harness in their order, and say which rule found it.

After QwenLM/Qwen2.5-Math `evaluation/parser.py` `extract_answer`, with four differences: text inside an unclosed
`<think>` is no answer, boxes must be balanced and not empty, an answer after a phrase ends with its sentence, and where
several answers are asked for, boxes that stand side by side are one list.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_THINK_END = "</think>"
_THINK_START = "<think>"
_FINAL_ANSWER = "final answer is $"
_HOPE = "$. I hope"
_BOXES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BARE_BOX = re.compile(r"\\boxed\s+(-?[\w.]+)")
_PHRASES = ("he answer is", "final answer is", "答案是")
_PROSE = re.compile(
    r"(?<![\\\w])(?:[Tt]he\s+(?:[a-z]+\s+){0,2}answer\s+is\b|(?:[A-Za-z]+\s+){2}[A-Za-z]+\s*:?\s*\$?\\boxed\b)"
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|。")
_MATH = re.compile(r"\$\$?([^$]+)\$\$?")
_BETWEEN_BOXES = re.compile(r"[\s,;$]*(?:\\text\{\s*)?(?:and|or)?(?:\s*\})?[\s,;$]*(?:[A-Za-z]\w?\s*=\s*)?")


class Extracted(NamedTuple):
    """An answer and the rule that found it: boxed, phrase, final_answer_phrase, last_number or none."""

    answer: str
    method: str


def extract_answer(completion: str, multiple: bool = False) -> Extracted:
    """Return the answer that a completion ends in; the empty string and `none` if it gives none.

    Args:
        completion: what the model wrote, its thoughts included.
        multiple: whether several answers are asked for.
    """
    text = _after_thoughts(completion)
    if _FINAL_ANSWER in text and _HOPE in text.rpartition(_FINAL_ANSWER)[2]:
        return Extracted(text.rpartition(_FINAL_ANSWER)[2].partition(_HOPE)[0].strip(), "final_answer_phrase")
    boxed = _last_boxes(text, multiple)
    if boxed:
        return Extracted(boxed, "boxed")
    for phrase in _PHRASES:
        if phrase in text:
            answer = _first_sentence(text.rpartition(phrase)[2])
            if answer:
                return Extracted(answer, "phrase")
    numbers = _NUMBER.findall(text)
    return Extracted(numbers[-1].rstrip(","), "last_number") if numbers else Extracted("", "none")


def bare_answer(answer: str, multiple: bool = False) -> str:
    """Return an answer to grade: the text as it is, or what it ends in if it is prose that says so.

    Args:
        answer: a bare answer, or a sentence such as `So the answer is \\boxed{5}.`
        multiple: whether several answers are asked for.
    """
    if not _PROSE.search(answer):
        return answer
    extracted = extract_answer(answer, multiple)
    return extracted.answer if extracted.method in ("boxed", "phrase", "final_answer_phrase") else answer


def _after_thoughts(text: str) -> str:
    _, closed, after = text.rpartition(_THINK_END)
    if closed:
        return after
    return "" if _THINK_START in text else text


def _last_boxes(text: str, multiple: bool) -> str:
    """Return what stands in the last balanced box that is not empty, or in the run of boxes that ends with it."""
    boxes = _balanced_boxes(text)
    if not boxes:
        found = _BARE_BOX.findall(text)
        return found[-1] if found else ""
    start, _, answer = boxes[-1]
    answers = [answer]
    for earlier_start, earlier_end, earlier in reversed(boxes[:-1]):
        if not multiple or _BETWEEN_BOXES.fullmatch(text, earlier_end, start) is None:
            break
        answers.append(earlier)
        start = earlier_start
    return ", ".join(reversed(answers))


def _balanced_boxes(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and content of the outermost boxes that close, in one pass over the braces."""
    closing = _match_braces(text)
    boxes: list[tuple[int, int, str]] = []
    position = 0
    for found in _BOXES.finditer(text):
        opening = found.end() - 1
        if found.start() < position or opening not in closing:
            continue
        position = closing[opening] + 1
        content = text[opening + 1 : position - 1].strip()
        if content:
            boxes.append((found.start(), position, content))
    return boxes


def _match_braces(text: str) -> dict[int, int]:
    """Map each opening brace to the one that closes it; escaped braces count, as LaTeX pairs them too."""
    closing: dict[int, int] = {}
    stack: list[int] = []
    for found in re.finditer(r"[{}]", text):
        if found[0] == "{":
            stack.append(found.start())
        elif stack:
            closing[stack.pop()] = found.start()
    return closing


def _first_sentence(text: str) -> str:
    text = text.lstrip(" :*\n")
    math = _MATH.match(text)
    if math is not None:
        return math[1].strip()
    return _SENTENCE_END.split(text, maxsplit=1)[0].strip(" *:.,$\n")
