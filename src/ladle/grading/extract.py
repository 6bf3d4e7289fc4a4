"""Find the answer in a completion, by the rules of the upstream harness in their order, and say which rule found it.

After QwenLM/Qwen2.5-Math `evaluation/parser.py` `extract_answer`, with four differences: text inside an unclosed
`<think>` is not an answer, boxes must be balanced and not empty, an answer after a phrase ends with its sentence, and
where several answers are wanted, boxes side by side are one list.
"""

from __future__ import annotations

import re
from typing import NamedTuple

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
        multiple: whether several answers are wanted.
    """
    thoughts, closed, text = completion.rpartition("</think>")
    if not closed and "<think>" in text:
        return Extracted("", "none")
    _, introduced, final = text.rpartition(_FINAL_ANSWER)
    if introduced and _HOPE in final:
        return Extracted(final.partition(_HOPE)[0].strip(), "final_answer_phrase")
    boxed = _last_boxes(text, multiple)
    if boxed:
        return Extracted(boxed, "boxed")
    for phrase in _PHRASES:
        _, introduced, said = text.rpartition(phrase)
        answer = _first_sentence(said) if introduced else ""
        if answer:
            return Extracted(answer, "phrase")
    numbers = _NUMBER.findall(text)
    return Extracted(numbers[-1].rstrip(","), "last_number") if numbers else Extracted("", "none")


def bare_answer(answer: str, multiple: bool = False) -> str:
    """Return an answer to grade: the text as it is, or what it ends in if it is prose that says so.

    Args:
        answer: a bare answer, or a sentence such as `So the answer is \\boxed{5}.`
        multiple: whether several answers are wanted.
    """
    if not _PROSE.search(answer):
        return answer
    extracted = extract_answer(answer, multiple)
    return answer if extracted.method in ("last_number", "none") else extracted.answer


def _last_boxes(text: str, multiple: bool) -> str:
    """Return what the last balanced box that is not empty holds, or the run of boxes that ends with it."""
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
    closing: dict[int, int] = {}  # of each opening brace; escaped ones count, as LaTeX pairs them too
    opened: list[int] = []
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            closing[opened.pop()] = brace.start()
    boxes: list[tuple[int, int, str]] = []
    position = 0
    for found in _BOXES.finditer(text):
        if found.start() < position or found.end() - 1 not in closing:
            continue
        position = closing[found.end() - 1] + 1
        content = text[found.end() : position - 1].strip()
        if content:
            boxes.append((found.start(), position, content))
    return boxes


def _first_sentence(text: str) -> str:
    text = text.lstrip(" :*\n")
    math = _MATH.match(text)
    if math is not None:
        return math[1].strip()
    return _SENTENCE_END.split(text, maxsplit=1)[0].strip(" *:.,$\n")
