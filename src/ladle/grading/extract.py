"""Find the answer in what a model wrote: at the end of a completion, in a sentence, beside an option or a clause.

A completion is searched in this order: `<answer>` tags, Minerva's final phrase, the last box, `####`, a phrase such as
`the answer is`, the last number. That is upstream's order (QwenLM/Qwen2.5-Math `evaluation/parser.py`) but for the tags
and `####`. Unlike there, text inside an unclosed `<think>` is not an answer, boxes must be balanced and not empty, an
answer after a phrase ends with its sentence, numbers are taken whole, and where several answers are wanted, boxes side
by side are one list.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from ladle.grading.normalise import BOX, MATH, TEXT_COMMANDS, closing_braces, read_number_words, rewrite, rules
from ladle.grading.units import CHANGE_THE_NUMBER, is_unit_run

# Completions.

_FINAL_ANSWER = "final answer is $"
_HOPE = "$. I hope"
_BARE_BOX = re.compile(r"\\boxed\s+(-?[\w.]+)")
_MARKED = re.compile(r"####\s*([^\n]+)")
_PHRASE = re.compile(r"(?i:answers?)\W{0,4}?(?:is|are)\b|(?i:answer)\W{0,4}?(?P<label>[:=])|答案(?:应该|就)?[是为：:]")
_EXPLANATION = re.compile(
    r",?\s(?:because|since|which|due to|i\.e\.|that is|(?:as|so) (?:that|there|it|s?he|we|the))\b.*"
)
_PROSE = re.compile(
    r"(?<![\\\w])(?:[Tt]he\s+(?:[a-z]+\s+){0,2}answer\s+is\b|(?:[A-Za-z]+\s+){2}[A-Za-z]+\s*:?\s*\$?\\boxed\b)"
)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|。")
_BETWEEN_BOXES = re.compile(r"[\s,;$]*(?:\\text\{\s*)?(?:and|or)?(?:\s*\})?[\s,;$]*(?:[A-Za-z]\w?\s*=\s*)?")

# The last number is the last run of mathematics with digits, since a part of it would be another number.

_ASIDE = re.compile(r"(?<=[\w%}])\s+\((?=[^()]*(?:[A-Za-z]{2}|\d\s*[-+*/x×=]))[^()]*\)")  # `24 (6 x 4)`
_PIECE_OF_RUN = (
    r"(?:\d{1,3}(?:(?:,|\{,\}|,\\!|\\[,;:! ])\d{3})+(?!\d)|\d+|\.\d|\\(?!text|mathrm|mbox|boxed)[a-zA-Z]+|\\%"
    r"|(?<![^\W\d_])[A-Za-zπ](?![^\W\d_])|[-+*/^_=×·÷:√∛%$€£!{}()<>≤≥≈⅓¼½¾⅔²³⁰-⁹−–∞°])"
)
_RUN = re.compile(
    rf"(?P<word>(?:\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\}}|[^\W\d_]{{2,}})(?:\^\{{?-?\d\}}?|[²³])?)"  # with a power
    rf"|(?P<run>{_PIECE_OF_RUN}(?:[ \u00a0\u202f]*{_PIECE_OF_RUN})*)"
)
_DIGIT = re.compile("[\\d½⅓¼¾⅔]")
_RELATION = re.compile(r"[=<>≤≥≈]|\\(?:approx|[lg]eq?|to|implies|equiv)(?![a-z])")
_SCALE = re.compile(
    r"\s*(?:million|billion|trillion|thousand|hundred|dozen|percent|per cent|cents?|[ap]\.?m\b\.?)\b|(?:st|nd|rd|th)\b"
)
_UNIT = re.compile(r"\s*([A-Za-z]{2,})(?:\^\d|[²³])?")
_BEFORE_NUMBER = re.compile(r"^(?:[*_:|!\s]+|[-–]\s+|[aAI]\s+)+")
_AFTER_NUMBER = re.compile(r"(?<=\d)(?:\s+[aAI]|\s*[mgshlLVWNJKCF](?:\^?\{?\d\}?|[²³])?)$")


Extraction = Literal["ladle", "upstream"]


class Extracted(NamedTuple):
    """An answer and the rule that found it.

    The rules: tagged, boxed, marked, phrase, final_answer_phrase, last_number, upstream and none.
    """

    answer: str
    method: str


def extract_answer(
    completion: str, multiple: bool = False, truncated: bool = False, rule: Extraction = "ladle"
) -> Extracted:
    """Return the answer that a completion ends in; the empty string and `none` if it gives none.

    Args:
        completion: what the model wrote, its thoughts included.
        multiple: whether several answers are wanted.
        truncated: whether it was cut off: then only a whole box, or a statement that ends in the text, is an answer.
        rule: `upstream` follows the published harness to the letter.
    """
    if rule == "upstream":
        answer = _extract_as_upstream(completion)
        return Extracted(answer, "upstream" if answer else "none")
    completion = completion.replace("\boxed", "\\boxed")  # whose backslash was taken for an escape
    thoughts, closed, text = completion.rpartition("</think>")
    if not closed and "<think>" in text:
        return Extracted("", "none")
    before, closed, _ = text.rpartition("</answer>")
    if closed:
        said = bare_answer(before.rpartition("<answer>")[2].strip(), multiple)
        return Extracted(said, "tagged" if said else "none")
    _, introduced, final = text.rpartition(_FINAL_ANSWER)
    if introduced and _HOPE in final:
        return Extracted(final.partition(_HOPE)[0].strip(), "final_answer_phrase")
    boxed = last_boxes(text, multiple)
    if boxed:
        return Extracted(boxed, "boxed")
    marked = _MARKED.findall(text)
    if marked and not (truncated and text.rstrip().endswith(marked[-1])):
        return Extracted(marked[-1].strip(), "marked")
    for found in reversed([*_PHRASE.finditer(text)][-3:]):
        said = text[found.end() :].strip(" :*\n")
        ends = _SENTENCE_END.search(said)
        is_last = not found["label"] or ends is None or not re.search(r"\d", said[ends.end() :])
        if is_last and (ends or not truncated) and (answer := _first_sentence(said)):
            return Extracted(answer, "phrase")
    answer = "" if truncated else _open_box(text) or _last_number(text)
    return Extracted(answer, "last_number" if answer else "none")


def _open_box(text: str) -> str:
    """Return what a box that never closes holds to the end of its line, if that is whole."""
    _, _, inside = text.rpartition("\\boxed{")
    inside = re.split(r"[$\n]", inside)[0].strip().rstrip(".") if "\\boxed{" in text else ""
    return inside if inside.count("{") == inside.count("}") else ""


def _last_number(text: str) -> str:
    """Return the last number with the fraction, time or formula that it is in; empty if that is not all there."""
    text = _ASIDE.sub("", text)
    last = None
    for found in _RUN.finditer(text):
        is_in_name = re.match(r"[A-Za-z][-\d^_]", text[max(found.start() - 1, 0) : found.start() + 1])
        if found["run"] and _DIGIT.search(found["run"]) and not is_in_name:
            last = found
    if last is None:
        return ""
    sides = [side for side in _RELATION.split(last["run"]) if _DIGIT.search(side)]
    number = _AFTER_NUMBER.sub("", _BEFORE_NUMBER.sub("", sides[-1]).rstrip("*_:|!$ ")).rstrip("*_:|!$ ")
    if number.startswith("(") and ")" not in number:
        number = number[1:]
    if any(number.count(opening) != number.count(closing) for opening, closing in ("()", "{}")):
        return ""
    scale, unit = _SCALE.match(text, last.end()), _UNIT.match(text, last.end())
    if scale is None and unit is not None and is_unit_run(unit[1]) and unit[1] != "in":
        scale = unit
    return number + (scale[0] if scale else "")


def _extract_as_upstream(completion: str) -> str:
    """Find an answer as `extract_answer` of Qwen2.5-Math (`evaluation/parser.py`) does before its `strip_string`.

    It reads inside thoughts, takes an unbalanced box to the end of the text, and any digits for the last number.
    """
    if "final answer is $" in completion and "$. I hope" in completion:
        answer = completion.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    elif "boxed" in completion:
        answer = completion.split("boxed")[-1]
        if answer.startswith("{"):
            answer = answer[1 : closing_braces(answer).get(0, len(answer))]
        else:
            answer = answer.split("$")[0].strip()
    elif "he answer is" in completion:
        answer = completion.split("he answer is")[-1].strip()
    elif "final answer is" in completion:
        answer = completion.split("final answer is")[-1].strip()
    elif "答案是" in completion:
        answer = completion.split("答案是")[1].strip().split("\n\n")[0].strip()
    else:
        answer = next(reversed(re.findall(r"-?\d*\.?\d+", completion.replace(",", ""))), "")
    return re.sub(r"\n\s*", "", answer).removeprefix(":").removesuffix(".").removesuffix("/")


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


def last_boxes(text: str, multiple: bool = False) -> str:
    """Return what the last balanced box that is not empty holds, or the run of boxes that ends with it."""
    closing = closing_braces(text)
    boxes: list[tuple[int, int, str]] = []  # start, end and content of the outermost
    position = 0
    for found in BOX.finditer(text):
        end = closing.get(found.end() - 1)
        if end is not None and found.start() >= position:
            position = end + 1
            if content := text[found.end() : end].strip():
                boxes.append((found.start(), position, content))
    answers: list[str] = []
    following = len(text)
    for start, end, answer in reversed(boxes):
        if answers and not (multiple and _BETWEEN_BOXES.fullmatch(text, end, following)):
            break
        answers.append(answer)
        following = start
    return ", ".join(reversed(answers)) or ["", *_BARE_BOX.findall(text)][-1]


def _first_sentence(text: str) -> str:
    text = text.lstrip(" :*\n").replace("$$", "$")
    sentence = _EXPLANATION.sub("", _SENTENCE_END.split(text, maxsplit=1)[0], count=1).strip(" *:.,\n")
    math = MATH.match(text)
    is_all = math is not None and not re.search(r"[\d$]", sentence[math.end() :])
    return math[1].strip() if math is not None and is_all else sentence


# Plain words, and the letters of options.

NO_SOLUTION = "no solution"
_MARKUP = re.compile(rf"\\(?:{TEXT_COMMANDS})\b|\\[a-zA-Z]+|[\\{{}}$*_~]")
_PLAIN = rules(r"""
␀ → \\infty(?![a-z])|∞ → ␣infinity␣
␀ → \\(?:emptyset|varnothing)(?![a-z]) → no solution
␀ → MARKUP|[^\w\s%+-]|(?<=[a-z])-(?=[a-z]) → ␣
␀ → ^\s*(?:an?|the)\s+(?=\S) → ␀
s → (?<!\S)(\S{3,}[^\ssui])s(?!\S) → \1
""", MARKUP=_MARKUP.pattern)  # fmt: skip
_SYNONYMS = rules(r"""
␀ → ^(?:none|empty set|does not exist|dne|(?:there (?:is|are) )?no (?:real )?solution(?: exist)?)$ → no solution
inf → ^infinite(?:ly many)?(?: number of)?(?: solution)?$ → infinity
""")
_OPTION = re.compile(r"\(?\s*([A-J])\s*\)?")
_INTRODUCED = re.compile(r"(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+(?:choice|is))?\s*:?\s*(?=\S)", re.I)
_LABELLED = re.compile(r"(?:\(\s*([A-Ja-j])\s*\)|([A-J])\s*[).:])(?:\s.*)?", re.DOTALL)
_MARKED_LABEL = re.compile(rf"^\s*(?:\\(?:{TEXT_COMMANDS})\s*\{{\s*)?(?:\(\s*)?[A-J]\s*\)(?:\s*\}}\s*|\s+)(?=\S)")


def plain_words(text: str) -> str:
    """Return the words of a text: lower case, in the singular, without markup, punctuation and a first article."""
    return rewrite(" ".join(rewrite(text.lower(), _PLAIN).split()), _SYNONYMS)


def option_letter(text: str, is_answer: bool) -> str | None:
    """Return the letter of the option that the text chooses: `C`, `(C)`, and in an answer also `(C) 12` and `C. 12`."""
    plain = " ".join(_MARKUP.sub(" ", text).split())
    if not is_answer:
        found = _OPTION.fullmatch(plain)
        return found[1] if found else None
    if introduced := _INTRODUCED.match(plain):
        plain = plain[introduced.end() :]
    found = _OPTION.fullmatch(plain.upper()) or _LABELLED.fullmatch(plain)
    return next(letter for letter in found.groups() if letter).upper() if found else None


def drop_option_label(text: str) -> str:
    """Return the text without the option letter before it: `\\text{(B)} 12` is 12."""
    return _MARKED_LABEL.sub("", text)


# Sentences.

_STATEMENT = re.compile(
    r"(?i)^\s*(?:so|thus|hence|therefore|then)?,?\s*(?:[A-Za-z]{2,}\s+){0,6}"
    r"(?:is|are|was|equals|is equal to)\s*:?\s+(?!not\b|no\b)(?=\S)"
)
_LABEL = re.compile(r"^\s*(?:the\s+)?(?:final\s+)?(?:answer|total|result)\s*:\s*(?=\S)", re.IGNORECASE)
_IN_BRACKETS = re.compile(
    rf"(?s)(?P<said>.*?[^\s(,;=+*/^-])(?:\s|\\q?quad|\\[,;: ]|\\(?:{TEXT_COMMANDS})\s*\{{\s*)+"
    rf"\((?:\\(?:{TEXT_COMMANDS})\s*\{{\s*)?(?P<aside>[^()]*(?:\([^()]*\)[^()]*)*)\)?[\s}}.$]*"
)
_NOUN = re.compile(r"\s*[A-Za-z][A-Za-z'-]*(?:[\s.]+[A-Za-z][A-Za-z'-]*)*\s*")
_QUANTITY = re.compile(
    r"(?:[A-Za-z]\s*=\s*)?[-−]?\s*(?:\\?\$)?\d[\d.,/:]*(?:\s+[A-Za-z ]+)?|\$?-?\\frac\{\d+\}\{\d+\}\$?"
)
_EXPLAINS = re.compile(
    r"(?:since|because|as|by|from|using|not|see|that|which|rounded|to the|approximately|about|i\.e|exactly|only)\b"
)
_WORD = r"[A-Za-z][A-Za-z'’-]*"
_SENTENCE = re.compile(
    rf"\s*(?:\\text\s*\{{\s*)?(?P<before>{_WORD}(?:,?\s+{_WORD}){{1,11}})\s+(?:\}}\s*)?"
    rf"(?P<number>(?:\\?\$)?\d[\d,]*(?:\.\d+)?)(?P<after>(?:\s+{_WORD}){{0,8}})\s*[.!]?\s*\}}?\s*"
)
_COMPARE = "least most between from up under above below more less fewer first last"
_COMBINE = "never or and double twice triple by power choose log sin cos tan"
# Words beside which a number in a sentence is not what the sentence says.
_NOT_ALONE = CHANGE_THE_NUMBER.difference({"to"}).union(_COMPARE.split(), _COMBINE.split())
_PLACED = re.compile(r"^\s*(?:on|in|at)\s+(?:(?:a|an|the)\s+)?(?=[A-Za-z])", re.IGNORECASE)
_SUBJECT_AND_VERB = r",?\s+(?:it|he|she|they|there|this|that)\s+(?:is|are|does|do|can|will|has|have|was|were)"
_AFFIRMED = re.compile(rf"(?i)^\s*(?:(yes){_SUBJECT_AND_VERB}|(no){_SUBJECT_AND_VERB}(?:\s+not|n't))\s*[.!]?\s*$")


def drop_aside(text: str) -> str:
    """Return the text without the explanation in brackets that ends it; a noun there, `9 (apples)`, is the unit."""
    found = _IN_BRACKETS.fullmatch(text) if "(" in text else None
    if found is None:
        return text
    aside, is_counted = found["aside"].strip(" }"), _QUANTITY.fullmatch(found["said"].strip())
    if _EXPLAINS.match(aside) or is_counted and re.search(r"\d", aside) and re.search(r"[A-Za-z]{3}", aside):
        return found["said"]
    if is_counted and aside.startswith(("quarter", "third ", "fourth ", "fifth ")):  # coins and classes, not parts
        return found["said"]
    if is_counted and _NOUN.fullmatch(aside) and not aside.startswith(("mod", "or ")):
        return f"{found['said']} \\text{{{aside}}}"
    return text


def drop_statement(text: str) -> str:
    """Return what a sentence says something is: `The area is 116.` gives `116.`, `Ann has to pay 5 dollars.` 5 dollars.

    A sentence that holds one number, in digits, counts for it if no word of it changes the number or is another one.
    """
    text = drop_aside(_EXPLANATION.sub("", _LABEL.sub("", text, count=1), count=1))
    stated = _STATEMENT.sub("", text, count=1)
    found = _SENTENCE.fullmatch(stated)
    if found is None:
        return stated
    after = found["after"].lower().split()
    words = {*found["before"].lower().replace(",", " ").split(), *after}
    if words & _NOT_ALONE or any(read_number_words([word]) is not None for word in words):
        return stated
    return f"{found['number']} {' '.join(after[:1])}"


def bare_answers(text: str) -> list[str]:
    """Return the text, and what it says without a sentence around it: `The day is X`, `on a Friday`, `Yes, it is`."""
    affirmed = _AFFIRMED.match(text)
    bare = (affirmed[1] or affirmed[2]) if affirmed else _PLACED.sub("", text, count=1)
    return [text, drop_statement(text), bare]


# Declarations: what an answer says of its letters.

_FACES = {"Z": "integer", "N": "positive integer", "R": "real", "Q": "rational", "C": "complex"}
_SET = r"\\math(?:bb|bf|rm)\s*\{\s*([ZNRQC])\s*\}\s*(?:[\^_]\s*\{?\s*([+*])\s*\}?)?"
_LETTERS = r"\(?[A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?)*"
_CLAUSE = re.compile(
    rf"(?s)[\s,;:(]*(?:\\(?:{TEXT_COMMANDS})\s*\{{\s*)?(?<![A-Za-z\\])"
    rf"(?P<rest>(?:where|for|with|such that|when|if)\b.*|{_LETTERS}\s*\\in\s*{_SET}[\s).]*)$"
)
_KINDS_TEXT = "integer real rational complex natural positive negative nonnegative nonzero even odd prime"
_NO_WORDS_TEXT = """where for with such that when if is are be an any all every each some arbitrary fixed constant
number value parameter and or the of in let given by satisfying being denotes"""
_KINDS, _NO_WORDS = {*_KINDS_TEXT.split()}, {*_NO_WORDS_TEXT.split()}
_PIECE = re.compile(r"\\[A-Za-z]+|[A-Za-z]_\w|[A-Za-z]+(?:'s)?|[^\sA-Za-z{}]+")


class Declared(NamedTuple):
    """An answer without its declarations, and what they say.

    A letter that an answer declares is bound, so another one in its place says the same. A condition that is more than
    the kind of a letter (`with f(a)=0`) is kept as its words, which can be compared with other words only.

    Attributes:
        text: the answer.
        letters: the letters that they bind.
        kinds: what kind of numbers the letters are, such as `positive` and `integer`; empty if unsaid.
        condition: the words and signs of what else is said; empty if nothing is.
    """

    text: str
    letters: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    condition: frozenset[str] = frozenset()


def split_declarations(text: str) -> Declared:
    """Split a normalised answer into the answer and what it declares of its letters.

    It does so in a clause, `for some constant k`, or by a set, `k \\in \\mathbb{Z}`.
    """
    found = _CLAUSE.search(text)
    if found is None or found.start() == 0:
        return Declared(text)
    rest = re.sub(_SET, _name_set, re.sub(rf"\\(?:{TEXT_COMMANDS})\b", " ", found["rest"])).replace("non-", "non")
    pieces = [piece for piece in _PIECE.findall(rest) if piece not in (*",;.()$:", "\\in")]
    letters = {piece for piece in pieces if (len(piece) == 1 and piece.isalpha() or "_" in piece) and piece != "a"}
    letters |= {"a"} if re.search(r"\ba\b\s*(?:,|\bis\b|\band\b|\\in\b|$)", rest) else set()
    before = text[: found.start()].rstrip(" ,;(")
    plain = re.sub(rf"\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\}}|\\[A-Za-z]+", " ", before)
    if not any(letter[0] in plain for letter in letters):
        return Declared(text)
    words = {
        piece.lower().removesuffix("s") if len(piece) > 1 and piece[0] != "\\" and piece.lower() != "is" else piece
        for piece in pieces
    }
    condition = words - _KINDS - _NO_WORDS
    if not condition - letters - {"a"}:
        condition = set[str]()  # a condition does not bind its letters, so they are kept with it
    return Declared(before, frozenset(letters), frozenset(words & _KINDS), frozenset(condition))


def _name_set(found: re.Match[str]) -> str:
    return f" {_FACES[found[1]]} " + "positive " * (found[2] == "+")
