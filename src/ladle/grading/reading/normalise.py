"""One spelling for what is typeset alike: delimiters, spacing, fractions, explicit thousands marks, plain words.

Nothing here changes a value: what a text means is decided by the reader. Texts are at most `max_characters` long
(`ladle.grading.config`), which bounds the time of every pattern.
"""

from __future__ import annotations

import re

from ladle.grading.reading.characters import spell_as_latex
from ladle.grading.reading.choices import spell_choices
from ladle.grading.reading.number_words import spell_multiples, spell_number_words

FUNCTION_NAMES = frozenset(
    prefix + name
    for prefix, names in {
        "": "sin cos tan cot sec csc sinh cosh tanh ln log exp gcd lcm max min",
        "arc": "sin cos tan cot sinh cosh tanh",
        "ar": "sinh cosh tanh",
        "a": "sin cos tan sinh cosh tanh",
    }.items()
    for name in names.split()
)
TEXT_COMMANDS = "text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boldsymbol|bm|pmb"

_COMMAND_SPELLINGS = {
    "leq": r"\le ", "leqslant": r"\le ", "geq": r"\ge ", "geqslant": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">",
    "ast": "*", "div": "/", "colon": ":", "prime": "'", "simeq": r"\approx ", "varnothing": r"\emptyset ",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "degree": r"^{\circ}", "degrees": r"^{\circ}", "lor": r"\text{or}", "vee": r"\text{or}", "land": r"\text{and}",
    "wedge": r"\text{and}", "backslash": r"\setminus ", "varepsilon": r"\epsilon ", "varphi": r"\phi ",
    "vartheta": r"\theta ", "dfrac": r"\frac ", "tfrac": r"\frac ", "cfrac": r"\frac ", "dbinom": r"\binom ",
    "tbinom": r"\binom ", "dots": r"\ldots ", "cdots": r"\ldots ", "left": "", "right": "", "displaystyle": "",
    "underline": "", "uline": "",
    "textstyle": "", "scriptstyle": "", "limits": "", "nolimits": "", "big": "", "Big": "", "bigg": "", "Bigg": "",
    "bigl": "", "bigr": "", "Bigl": "", "Bigr": "", "boxed": "", "fbox": "", "framebox": "", "quad": " ", "qquad": " ",
    "enspace": " ", "thinspace": " ", "rm": "", "bf": "", "it": "", "operatorname*": r"\operatorname",
}  # fmt: skip
_SIGN_SPELLINGS = {
    "!": "",
    ",": " ",
    ";": " ",
    ":": " ",
    " ": " ",
    ">": " ",
    "%": "%",
    "$": r"\dollar ",
    "#": "#",
    "\\": r"\\",
}
_COMMAND = re.compile(r"\\(?:(?P<name>[a-zA-Z]+)|(?P<sign>[!,;: >%$#\\]))|~")

_THOUSANDS_MARK = re.compile(r"(?<=\d)\s*(?:\{,\}\s*|,\\!\s*|\\[,;:! ]\s*|~)(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/}])\d{1,3}(?: \d{3})+(?![\d/,.])")
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[a-zA-Z{}])")
_ABSENT_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_ROW_SPACING = re.compile(r"\\\\\[-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\]")
_RAISED_PRIMES = re.compile(r"\^\s*(?:\{\s*('[' ]*)\}|')")

_OUTSIDE_TEXT = re.compile(
    rf"(?P<text>\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\}}|\\[a-zA-Z]+)"
    r"|(?<![a-zA-Z])(?:(?P<module>(?:np|numpy|math|sympy)\.(?=[a-z]))"
    r"|(?P<conjunction>and|or)(?![a-zA-Z])"
    r"|(?P<infinity>infinity|inf|oo)(?![a-zA-Z])|(?P<pi>pi)(?![a-zA-Z])"
    r"|(?P<percent>percent|pct)(?![a-zA-Z])"
    r"|sqrt\s*(?:(?P<radicand>\d+(?:\.\d+)?)|(?P<root>(?=[(\[{])))"
    rf"|(?P<function>{'|'.join(sorted(FUNCTION_NAMES, key=len, reverse=True))})(?=\s*[\\(\[{{^_|\d]|\s+[a-z](?![a-z])))"
)
_TEX_ROOT = re.compile(r"\\root\s*(\{[^{}]*\}|\w)\s*\\of\s*(\{[^{}]*\}|\w)")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*10\s*\^\s*(?:\{\s*)?(-?\s*\d+)(?:\s*\})?")
_ALL_REALS = re.compile(
    r"(?:the\s+set\s+of\s+)?all\s+(?:the\s+)?real(?:s|\s+numbers?|\s+values(?:\s+of\s+[a-z])?|\s+[a-z])", re.I
)
_NEGATIVE = re.compile(r"^(?:negative|minus)\s+(?=[\d\\.]|[a-z]+$)", re.I)
_EQUALS = re.compile(r"(?<=\b[a-z])\s+(?:equals|is equal to)\s+", re.I)
_TEXT_GROUP = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_UPRIGHT_LETTER = re.compile(r"\\(?:mathrm|operatorname)\s*\{\s*([ei])\s*\}")
_POWER_IN_TEXT = re.compile(rf"(\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\^)\s*\{{\s*(-?)\s*(\d+)\s*\}}")
_CONTINUED = re.compile(r"(\d*\.)(\d+)\s*(?:\.{3,}|…|\\(?:l|c)?dots(?![a-z]))")
_LEADING_NUMBER = re.compile(r"[-+]?\d[\d.,/]*(?![\w:])")
_PERCENT_WORDS = frozenset({"percent", "%", "percentage", "pct"})
_OPERATORS = {"**": "^", "<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "==": "="}
_OPERATOR = re.compile(r"\*\*|<=|=<|>=|!=|==")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_WRAPPERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'), ("$$", "$$"), ("$", "$"))


def normalise(text: str) -> str:
    """Return the answer in the one spelling that the reader knows."""
    text = _unwrap(_CONTINUED.sub(_spell_continued, spell_as_latex(text)))
    text = _TEX_ROOT.sub(lambda found: rf"\sqrt[{found[1].strip('{}')}]{{{found[2].strip('{}')}}}", text)
    text = _spell_words(_TIMES_TEN.sub(r" \\cdot 10^{\1}", text))
    text = _THOUSANDS_MARK.sub("", text)
    if "$" in text:
        text = _drop_math_marks(text)
    if "\\" in text or "~" in text:
        text = _flatten_groups(_spell_commands(text))
    text = spell_choices(text)
    text = _OUTSIDE_TEXT.sub(_spell_word, text)
    text = spell_multiples(_OPERATOR.sub(lambda found: _OPERATORS[found[0]], text))
    text = _SPACED_THOUSANDS.sub(lambda found: found[0].replace(" ", ""), text)
    return " ".join(text.split()).replace(" ,", ",").lstrip("=: ").rstrip(".,;: ")


def _spell_words(text: str) -> str:
    """Write an answer that is a number in words, marked as text or not, in digits."""
    group = _TEXT_GROUP.fullmatch(text)
    words = group[1].strip() if group is not None else text
    if _ALL_REALS.fullmatch(words):
        return r"\mathbb{R}"
    spelled = spell_number_words(_EQUALS.sub(" = ", _NEGATIVE.sub("-", words)))
    return text if spelled == words else spelled


def _spell_continued(found: re.Match[str]) -> str:
    """Write a decimal that goes on as one that repeats, if its digits do: `0.1666...`; else leave out the dots."""
    whole, decimals = found[1], found[2]
    for period in range(1, len(decimals) // 2 + 1):
        repeating = decimals[-period:]
        start = len(decimals)
        while start >= period and decimals[start - period : start] == repeating:
            start -= period
        if len(decimals) - start >= max(2 * period, 3) or (start == 0 and len(decimals) >= 2 * period):
            return rf"{whole}{decimals[:start]}\overline{{{repeating}}}"
    return whole + decimals


def _flatten_groups(text: str) -> str:
    """Write upright `i` and `e` as letters, and powers inside a text group without braces: `\\mathrm{m s^-2}`."""
    text = _UPRIGHT_LETTER.sub(r" \1 ", text)
    while (flat := _POWER_IN_TEXT.sub(r"\1\2\3", text)) != text:
        text = flat
    return text


def _unwrap(text: str) -> str:
    """Peel quotes, emphasis, math delimiters or a box that enclose the whole text, four times at most."""
    for _ in range(4):
        text = text.strip().rstrip(".,;: ")
        inside = _inside_box(text)
        for opening, closing in _WRAPPERS:
            content = text[len(opening) : -len(closing)]
            if text == opening + content + closing and content and closing not in content and content[-1] != "\\":
                inside = content
                break
        if inside is None:
            break
        text = inside
    return text


def _inside_box(text: str) -> str | None:
    """Return what a box that is the whole text encloses, None where there is none."""
    found = _BOX.match(text)
    if found is None or not text.endswith("}"):
        return None
    depth = 0
    for index in range(found.end() - 1, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[found.end() : index] if index == len(text) - 1 else None
    return None


def _drop_math_marks(text: str) -> str:
    """Remove dollar signs that delimit mathematics; an escaped one, and one that is never closed, are money."""
    marks = text.count("$") - text.count("\\$")
    if marks % 2 and re.match(r"-?\$\d", text):
        text = text.replace("$", r"\dollar ", 1)
    return re.sub(r"(?<!\\)\$", " ", text)


def _spell_commands(text: str) -> str:
    text = _ABSENT_DELIMITER.sub("", text)
    text = _ROW_SPACING.sub(r"\\\\", text)
    if "\\begin" not in text:
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
    text = _COMMAND.sub(_spell_command, text)
    return _RAISED_PRIMES.sub(lambda found: (found[1] or "'").replace(" ", ""), text)


def _spell_command(found: re.Match[str]) -> str:
    if found["name"]:
        return _COMMAND_SPELLINGS.get(found["name"], found[0])
    if found["sign"]:
        return _SIGN_SPELLINGS[found["sign"]]
    return " "  # a tie


def _spell_word(found: re.Match[str]) -> str:
    kind = found.lastgroup
    if kind == "text":
        return _spell_text(found[0]) if found[0].endswith("}") else found[0]
    return _WORD_SPELLINGS[kind or ""](found[0])


def _spell_text(group: str) -> str:
    """Take numbers, per cent and dollar signs out of a text group: `\\text{12 cm}` is 12 and a unit."""
    command, _, inside = group.partition("{")
    inside = inside[:-1].strip()
    if inside.lower() in _PERCENT_WORDS:
        return "%"
    if inside == r"\dollar":
        return inside + " "
    number = _LEADING_NUMBER.match(inside)
    if number is None:
        return group
    rest = inside[number.end() :].strip()
    return f"{number[0]} {command}{{{rest}}}" if rest else number[0]


_WORD_SPELLINGS = {
    "module": lambda word: "",
    "conjunction": lambda word: rf"\text{{{word}}}",
    "infinity": lambda word: r"\infty ",
    "pi": lambda word: r"\pi ",
    "percent": lambda word: "%",
    "radicand": lambda word: rf"\sqrt{{{word.removeprefix('sqrt').strip()}}}",
    "root": lambda word: r"\sqrt",
    "function": lambda word: rf"\{word} ",
}
