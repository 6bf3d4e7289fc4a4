"""One spelling for what is typeset the same: Unicode signs, delimiters, fractions, thousands marks, number words.

Nothing here changes a value: what a text means is decided by the reader. Texts are at most `max_characters` long
(`GraderConfig`), which bounds the time of every pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from itertools import accumulate
from typing import Any

FUNCTION_NAMES = frozenset(
    prefix + name
    for prefix, names in {
        "": "sin cos tan cot sec csc sinh cosh tanh ln log exp gcd lcm max min abs floor ceil",
        "arc": "sin cos tan cot sinh cosh tanh",
        "ar": "sinh cosh tanh",
        "a": "sin cos tan sinh cosh tanh",
    }.items()
    for name in names.split()
)
TEXT_COMMANDS = """text|textrm|textbf|textit|textnormal|texttt|textsf|emph|mathrm|mathbf|mathit|mathsf|mathtt|mbox|
operatorname|boldsymbol|bm|pmb""".replace("\n", "")

# Unicode. NFKC is not used: it turns a superscript two into a plain `2`, and 5 squared into 52.

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "εϵ", "zeta": "ζ", "eta": "η", "theta": "θϑ",
    "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μµ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "upsilon": "υ", "phi": "φϕ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ∆",
    "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
_SIGNS = {
    "−": "-", "﹣": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", 
    "÷": "/", "×": "\\times ", "·": "\\cdot ",
    "⋅": "\\cdot ", "∙": "\\cdot ", "•": "\\cdot ", "∗": "*", "∞": "\\infty ",
    "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ",
    "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "∖": "\\setminus ", "ℝ": "\\mathbb{R}",
    "ℏ": "\\hbar ", "°": "^{\\circ}", "º": "^{\\circ}", "˚": "^{\\circ}",
    "℃": "^{\\circ}C", "℉": "^{\\circ}F", "′": "'", "‘": "'", "´": "'", "″": "''",
    "∠": "\\angle ", "€": "\\euro ", "£": "\\pounds ", "¢": "\\cents ",
    "¥": "\\yen ", "₹": "\\rupee ", "△": "\\triangle ", "≡": "\\equiv ", "∶": ":", "’": "'",
    "。": ".", "、": ",", "“": '"', "”": '"',
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ", "∣": "|",
}  # fmt: skip
_FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", zip("112131234151357", "233445555668888", strict=True), strict=True))
_SPACES = "\t\n\r\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_ONE_FOR_ONE = str.maketrans(
    _SIGNS
    | {letter: f"\\{name} " for name, letters in _GREEK.items() for letter in letters}
    | {sign: rf"\frac{{{above}}}{{{below}}}" for sign, (above, below) in _FRACTIONS.items()}
    | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII
    | dict.fromkeys(_SPACES, " ")
    | dict.fromkeys(_INVISIBLE, "")
)
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿⁱ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ON_THE_LINE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿⁱ₀₁₂₃₄₅₆₇₈₉", "0123456789-+ni0123456789")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]"}
_ROOT = re.compile(r"([√∛])\s*(\d+(?:\.\d+)?)?")


def spell_as_latex(text: str) -> str:
    """Return the text with its Unicode mathematics in LaTeX; letters of other scripts stay as they are."""
    text = text.translate(_ONE_FOR_ONE)
    if text.isascii():
        return text
    # The sign covers a whole number, LaTeX's command a digit.
    text = _ROOT.sub(lambda found: _ROOTS[found[1]] + (f"{{{found[2]}}}" if found[2] else " "), text)
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_ON_THE_LINE)}}}", text)
    return _LOWERED.sub(lambda found: f"_{{{found[0].translate(_ON_THE_LINE)}}}", text)


# Number words, only at the front of an answer: anywhere else they are names (`the two of them`).

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: number for number, word in enumerate(_SMALL.split())} | {
    word: 10 * number for number, word in enumerate(_TENS.split(), start=2)
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100,
}  # fmt: skip
_ORDINALS = {word.removesuffix("y") + ("ieth" if word[-1] == "y" else "th"): value for word, value in _VALUES.items()}
_ORDINALS |= {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
_FIXED = {"half": "1/2", "a half": "1/2", "quarter": "1/4", "a dozen": "12", "half a dozen": "6"}
_WORDS = re.compile(r"(?:\d+ and )?[A-Za-z]+(?:(?:-|\s+)[A-Za-z]+)*")
_MAX_NOUNS = 3
_JOINTS = frozenset({"to", "of", "or", "and", "in", "per", "over", "out"})  # more than a number and a noun
_MULTIPLE = re.compile(
    rf"(?<=[\d}}])\s*(?P<group>\\(?:text|textrm|mathrm|mbox)\s*\{{\s*)?(?P<name>{'|'.join(_POWERS)}|dozen)s?\b"
)


def spell_number_words(text: str) -> str:
    """Return an answer that is a number in words, and perhaps a noun, with the number in digits; any other as it is.

    `twenty-five` is 25, `two thirds` 2/3, `four and a half` 4 1/2, `two apples` 2 apples, `sixth` 6.
    """
    if _WORDS.fullmatch(text) is None:
        return text
    words = text.lower().replace("-", " ").removeprefix("the ").split()
    if (fixed := _FIXED.get(" ".join(words))) is not None:
        return fixed
    if words[0] in ("a", "an") and words[1:2] and words[1] in _POWERS | _PARTS:
        words[0] = "one"
    tens, last = words[:-1], words[-1]
    if last in _ORDINALS and (not tens or len(tens) == 1 and tens[0] in _TENS and _ORDINALS[last] < 10):
        return str(sum(_VALUES[word] for word in tens) + _ORDINALS[last])
    denominator = _PARTS.get(last.removesuffix("s"))
    if denominator is not None and "and" in words[1:-1]:
        at = words.index("and")
        whole = read_number_words(words[:at])
        counted = ["one" if word in ("a", "an") else word for word in words[at + 1 : -1]] or ["one"]
        numerator = read_number_words(counted)
        if whole is not None and numerator is not None and 0 < numerator < denominator:
            return f"{whole} {numerator}/{denominator}"
    if denominator is not None and (numerator := read_number_words(words[:-1])) is not None:
        return f"{numerator}/{denominator}"
    are_numerals = [
        word in _VALUES or word in _POWERS or word == "dozen" or (word == "and" and following in _VALUES)
        for word, following in zip(words, [*words[1:], ""], strict=True)
    ]
    count = [*are_numerals, False].index(False)
    nouns = words[count:]
    if len(nouns) > _MAX_NOUNS or _JOINTS & set(nouns) or nouns and "-" in text.split()[-1]:
        return text
    value = read_number_words(words[:count])
    return text if value is None else " ".join([str(value), *nouns])


def read_number_words(words: Sequence[str]) -> int | None:
    """Return the integer that the words name; None where they name none, or more than one."""
    if len(words) == 1 and words[0].isdigit():
        return int(words[0])
    total, group, last_power = 0, 0, 99
    filled = 3  # decimal places below which the current group of three is still empty
    for word in words:
        if word == "and":
            continue
        if word in _VALUES:
            value = _VALUES[word]
            size = 1 if value < 10 else 2
            if size > filled or (value == 0 and len(words) > 1):
                return None
            group, filled = group + value, 1 if value >= 20 else 0
        elif word == "hundred":
            if not 0 < group < 10 or filled == 3:
                return None
            group, filled = group * 100, 2
        elif word in _POWERS:
            if group == 0 or _POWERS[word] >= last_power:
                return None
            last_power = _POWERS[word]
            total, group, filled = total + group * 10**last_power, 0, 3
        elif word == "dozen" and total + group:
            total, group, filled = 12 * (total + group), 0, 0
        else:
            return None
    return total + group if words else None


def spell_multiples(text: str) -> str:
    """Return the text with `2.5 million` as a product: `2.5 \\cdot 10^{6}`; a noun in the same group stays in it."""

    def spell(found: re.Match[str]) -> str:
        multiple = f"10^{{{_POWERS[found['name']]}}}" if found["name"] in _POWERS else "12"
        return rf" \cdot {multiple} " + (found["group"] or "")

    return _MULTIPLE.sub(spell, text)


CHINESE_NUMERAL = re.compile("[零〇一二两三四五六七八九十百千万亿]")
_CHINESE_NUMBER = re.compile(
    rf"第?(负?)((?:{CHINESE_NUMERAL.pattern}|[\d.点])+)(?:分之((?:{CHINESE_NUMERAL.pattern}|\d)+))?([\u4e00-\u9fff]*)"
)
_CHINESE_NOUN = re.compile(r"(?<=[\d%}])\s*([\u4e00-\u9fff]+)$")


def spell_chinese_numbers(text: str) -> str:
    """Return a number in Chinese, and perhaps its noun, with the number in digits; any other answer as it is."""
    found = _CHINESE_NUMBER.fullmatch(text)
    if found is not None and CHINESE_NUMERAL.search(text):
        import cn2an  # a tenth of a second

        parts = [{"百": "一百", "": "一"}.get(part or "", part) for part in found.group(2, 3)]
        try:
            first, above = (cn2an.cn2an(part, "smart") for part in parts)
        except ValueError:
            return text
        number = f"{above}/{first}" if found[3] else str(first)
        text = ("-" if found[1] else "") + number.removesuffix(".0") + found[4]
    return _CHINESE_NOUN.sub(r" \\text{\1}", text)


# Numbers of choices, which TeX has no command for. `C_1^2` stays the square of a constant: a choice is from `n`, `m`,
# `N`, or from three or more.

_INDEX = r"(?:\{\s*([\w+\-]+)\s*\}|(\w))"
_CHOICE = r"(?:\\(?:mathrm|text|rm)\s*\{\s*)?([CP])(?:\s*\})?"
_SIDE_BY_SIDE = re.compile(r"(?<![\w.}])(\d+) ?([CP]) ?(\d+)(?!\w)")
_PREFIXED = re.compile(rf"(?<![A-Za-z\d}}])(?:\{{\s*\}})?\s*[_^]\s*{_INDEX}\s*{_CHOICE}\s*_\s*{_INDEX}")
_BELOW_FIRST = re.compile(rf"(?<![A-Za-z\\]){_CHOICE}\s*_\s*{_INDEX}\s*\^\s*{_INDEX}")
_ABOVE_FIRST = re.compile(rf"(?<![A-Za-z\\]){_CHOICE}\s*\^\s*{_INDEX}\s*_\s*{_INDEX}")
_CHOSEN_FROM = re.compile(r"\d*[nmN](?:[+-]\d+)?")


def spell_choices(text: str) -> str:
    """Return the text with `{}_6C_3`, `C_n^2` and `C^2_n` as `C(6,3)` and `C(n,2)`, and permutations with `P`."""
    if "C" not in text and "P" not in text:
        return text
    text = _SIDE_BY_SIDE.sub(r"\2(\1,\3)", text)
    text = _PREFIXED.sub(lambda found: f"{found[3]}({found[1] or found[2]},{found[4] or found[5]})", text)
    text = _BELOW_FIRST.sub(lambda found: _spell_choice(found, found[2] or found[3], found[4] or found[5]), text)
    return _ABOVE_FIRST.sub(lambda found: _spell_choice(found, found[4] or found[5], found[2] or found[3]), text)


def _spell_choice(found: re.Match[str], total: str, chosen: str) -> str:
    from_number = total.isdigit() and int(total) >= 3 and (not chosen.isdigit() or int(chosen) <= int(total))
    if not from_number and not _CHOSEN_FROM.fullmatch(total):
        return found[0]
    return f"{found[1]}({total},{chosen})"


# The whole answer.

_COMMAND_SPELLINGS = {
    "leq": r"\le ", "leqslant": r"\le ", "geq": r"\ge ", "geqslant": r"\ge ", "neq": r"\ne ", "lt": "<", "gt": ">",
    "ast": "*", "div": "/", "colon": ":", "prime": "'", "simeq": r"\approx ", "varnothing": r"\emptyset ",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "degree": r"^{\circ}", "degrees": r"^{\circ}", "lor": r"\text{or}", "vee": r"\text{or}", "land": r"\text{and}",
    "wedge": r"\text{and}", "backslash": r"\setminus ", "varepsilon": r"\epsilon ", "varphi": r"\phi ",
    "vartheta": r"\theta ", "dfrac": r"\frac ", "tfrac": r"\frac ", "cfrac": r"\frac ", "dbinom": r"\binom ",
    "tbinom": r"\binom ", "lg": r"\log_{10} ", "mod": r"\bmod ", "pmod": r"\bmod ", "dots": r"\ldots ",
    "cdots": r"\ldots ", "!": "", "%": "%", "$": r"\dollar ", "#": "#",
}  # fmt: skip
_BLANKS = "quad qquad enspace thinspace , ; : >"
_DROPPED = """left right displaystyle textstyle scriptstyle limits nolimits big Big bigg Bigg bigl bigr Bigl Bigr
underline uline boxed fbox framebox rm bf it tiny small normalsize large Large LARGE huge Huge mathord mathop mathstrut
ensuremath"""
_SPELLINGS = {
    "\\" + name: spelling
    for spellings in (_COMMAND_SPELLINGS, dict.fromkeys(_BLANKS.split(), " "), dict.fromkeys(_DROPPED.split(), ""))
    for name, spelling in spellings.items()
} | {"\\ ": " ", "~": " "}
_LAYOUT = re.compile(r"\\(?:(?:text)?color|[hv]?phantom|[hv]space\*?|label|tag\*?)\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|[!,;: >%$#\\])|~")

_THOUSANDS_MARK = re.compile(r"(?<=\d)(?:\s*(?:\{,\}\s*|,\\!\s*|\\[,;:! ]\s*|~)|['_])(?=\d{3}(?!\d))")
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[a-zA-Z{}])")
_ABSENT_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align|equation|gathered|gather|split)\*?\}")
_ROW_SPACING = re.compile(r"\\\\\[-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\]")
_RAISED_PRIMES = re.compile(r"\^\s*(?:\{\s*('[' ]*)\}|')")
_OUTSIDE_TEXT = re.compile(
    rf"(?P<text>\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\}}|\\[a-zA-Z]+)"
    r"|(?<![a-zA-Z])(?:(?P<module>(?:np|numpy|[Mm]ath|sympy)\.(?=[a-z]))"
    r"|(?P<conjunction>and|or)(?![a-zA-Z])"
    r"|(?P<infinity>infinity|inf|oo)(?![a-zA-Z])|(?P<pi>pi)(?![a-zA-Z])"
    r"|(?P<percent>per ?cent|pct)(?![a-zA-Z])"
    r"|(?P<money>USD|EUR|GBP|CNY|RMB|INR|JPY|[Rr]s\.?)\s*(?=\.?\d)"
    r"|(?P<lg>lg)(?![a-zA-Z])|(?P<frac>d?frac)(?=\{)|(?P<modulo>mod(?:ulo)?)(?![a-zA-Z])|(?P<figure>angle|triangle)(?=\s+[A-Z]{1,3}(?![A-Za-z]))"
    r"|sqrt\s*(?:(?P<radicand>\d+(?:\.\d+)?)|(?P<root>(?=[(\[{])))"
    rf"|(?P<function>{'|'.join(sorted(FUNCTION_NAMES, key=len, reverse=True))})(?=\s*[\\(\[{{^_|\d]|\s+[a-z](?![a-z])))"
)
_WORD_SPELLINGS = {
    "module": "", "conjunction": r"\\text{\g<conjunction>}", "infinity": r"\\infty ", "pi": r"\\pi ", "percent": "%",
    "lg": r"\\log_{10} ", "frac": r"\\frac ", "modulo": r"\\bmod ", "figure": r"\\\g<figure> ",
    "radicand": r"\\sqrt{\g<radicand>}", "root": r"\\sqrt", "function": r"\\\g<function> ",
}  # fmt: skip
_BETWEEN_MATH = re.compile(r"(?<!\\)\$\s*([,;])\s*\$")
_MONEY = re.compile(r"(?<!\\)(?:\b(?:US|AU|CA|HK))?\$(?=\s*\.?\d)")
_SUFFIX = r"(?:(?<=1)st|(?<=2)nd|(?<=3)rd|(?<=\d)th)"
_ORDINAL = re.compile(
    rf"{_SUFFIX}\b|(?<=\d)\s*(?:\^\s*\{{?\s*)?\\(?:{TEXT_COMMANDS})\s*\{{\s*(?:st|nd|rd|th)\s*\}}(?:\s*\}})?"
    r"|(?<=\d)\s*\^\s*\{\s*(?:st|nd|rd|th)\s*\}"
)
_ALL_REALS = re.compile(
    r"(?:the\s+set\s+of\s+)?all\s+(?:the\s+)?real(?:s|\s+numbers?|\s+values(?:\s+of\s+[a-z])?|\s+[a-z])", re.I
)
_APPROXIMATELY = re.compile(
    r"^(?:approximately|approx\.?|about|around|roughly|nearly|almost|circa|exactly|equal to)\s+(?=[\d\\.$+-]|[a-z]+$)",
    re.I,
)
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\d)", re.I)
_NEGATIVE = re.compile(r"^(?:negative|minus)\s+(?=[\d\\.]|[a-z]+$)", re.I)
_EQUALS = re.compile(r"(?<=\b[a-z])\s+(?:equals|is equal to)\s+", re.I)
_TEXT_GROUP = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_UPRIGHT_LETTER = re.compile(r"\\(?:mathrm|operatorname)\s*\{\s*([ei])\s*\}")
_POWER_IN_TEXT = re.compile(rf"(\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\^)\s*\{{\s*(-?)\s*(\d+)\s*\}}")
_CONTINUED = re.compile(r"(\d*\.)(\d+)\s*(?:\.{3,}|…|\\(?:l|c)?dots(?![a-z]))")
_LEADING_NUMBER = re.compile(r"[-+]?\d[\d.,/]*(?![\w:])")
_OPERATORS = {"**": "^", "<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "==": "="}
_OPERATOR = re.compile(r"\*\*|<=|=<|>=|!=|==")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_WRAPPERS = (
    *((r"\(", r"\)"), (r"\[", r"\]"), ("<", ">"), ("$$", "$$")),
    *((mark, mark) for mark in ("**", "*", "__", "_", "`", '"', "'", "$")),
)
_OPENED = re.compile(r"\\[(\[bf]|[<$*_`\"']")
_TRAILING = re.compile(r"(?:(?<!\\)[.,;:\s])+$")
MATH = re.compile(r"\$(?=\S)((?:\\.|[^$\\])*?\S)\$(?!\d)")  # pandoc's rule, by which `$60 / $4` is money


_MARKUP = [
    ("&", re.compile(r"&#?[a-z]\w*;"), lambda found: unescape(found[0])),
    ("\f", re.compile("\f(?=rac)"), r"\\f"),  # `\frac` whose backslash was taken for an escape
    (
        "(",  # `ten (10)`
        re.compile(r"\b([A-Za-z-]+)\s*\((\d+)\)"),
        lambda found: found[2] if spell_number_words(found[1]) == found[2] else found[0],
    ),
    ("<su", re.compile(r"<su([pb])>(.*?)</su[pb]>"), lambda found: f"{'^' if found[1] == 'p' else '_'}{{{found[2]}}}"),
]
_FIRST = [
    ("(", re.compile(r"(?<=\d)\.(\d*)\((\d+)\)(?![\d^!])"), r".\1\\overline{\2}"),
    (
        "\\dot",
        re.compile(r"(?<=\d)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\s*\\dot\s*\{?(\d)\}?)?"),
        lambda found: rf".{found[1]}\overline{{{''.join(filter(None, found.groups()[1:]))}}}",
    ),
    (
        "\\root",
        re.compile(r"\\root\s*(\{[^{}]*\}|\w)\s*\\of\s*(\{[^{}]*\}|\w)"),
        lambda found: rf"\sqrt[{found[1].strip('{}')}]{{{found[2].strip('{}')}}}",
    ),
    ("\\over", re.compile(r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    ("\\choose", re.compile(r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    (
        "10",
        re.compile(r"(?<=\d)\s*(?:[xX*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*[{(]?\s*([-+]?\s*\d+)(?:\s*[})])?"),
        r" \\cdot 10^{\1}",
    ),
]
_LAST = [
    (" ", re.compile(r"(?<![\d.,/}])\d{1,3}(?: \d{3})+(?![\d/,.])"), lambda found: found[0].replace(" ", "")),
    (".", re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.])"), lambda found: found[0].replace(".", "")),
    ("\\bmod", re.compile(r"\(\s*\\bmod\s*([^()]*)\)"), r"\\bmod \1"),
    (" to ", re.compile(r"(?<=\d)\s+to\s+(?=\d)"), ":"),
    (" in ", re.compile(r"(?<=\d)\s+in\s+(?=\d)"), "/"),
    (" out of ", re.compile(r"(?<=\d)\s+out of\s+(?=\d)"), "/"),
    (")", re.compile(r"^\s*\((\d+)\)(?=\s*_|\s+(?:in )?base )"), r"\1"),
    ("_", re.compile(r"(?<=\d)\s*_\s*\{\s*\((\w+)\)\s*\}\s*$"), r"_{\1}"),
    ("base", re.compile(r"(?<=\d)\s*\(?\s*(?:in\s+)?base\s+(\w+)\s*\)?\s*$"), r"_{\1}"),
]


def _rewrite(text: str, rewrites: Sequence[tuple[str, re.Pattern[str], Any]]) -> str:
    """Apply the patterns in order, each only where its sign is in the text, which spares most of them."""
    for sign, pattern, spelling in rewrites:
        if sign in text:
            text = pattern.sub(spelling, text)
    return text


def normalise(text: str) -> str:
    """Return the answer in the one spelling that the reader knows."""
    text = _spell_words(_rewrite(spell_as_latex(unwrap(text)), _FIRST))
    text = _THOUSANDS_MARK.sub("", text)
    if "$" in text:  # what does not delimit mathematics is money before a number, and nothing elsewhere
        text = _MONEY.sub(r"\\dollar ", MATH.sub(r" \1 ", _BETWEEN_MATH.sub(r"\1 ", text.replace("$$", " "))))
        text = re.sub(r"(?<!\\)\$", " ", text)
    if "\\" in text or "~" in text:
        text = _spell_commands(text)
    text = _OUTSIDE_TEXT.sub(_spell_word, spell_choices(_ORDINAL.sub("", text)))
    text = _rewrite(spell_multiples(_OPERATOR.sub(lambda found: _OPERATORS[found[0]], text)), _LAST)
    return " ".join(text.split()).replace(" ,", ",").lstrip("=: ").rstrip(".,;: ")


def unwrap(text: str) -> str:
    """Peel quotes, emphasis, math delimiters or a box that enclose the whole text, four times at most."""
    text = _CONTINUED.sub(_spell_continued, _rewrite(text, _MARKUP))
    for _ in range(4):
        text = _TRAILING.sub("", text.strip())
        if not _OPENED.match(text):
            break
        inside = _inside_box(text)
        for opening, closing in _WRAPPERS:
            content = text[len(opening) : -len(closing)]
            if text == opening + content + closing and content and closing not in content and content[-1] != "\\":
                inside = rf"\langle {content} \rangle" if opening == "<" else content
                break
        if inside is None:
            break
        text = inside
    return text


def plain_text(text: str) -> str:
    """Return a normalised text without its groups and spacing."""
    if "{" not in text:
        return text
    return " ".join(_TEXT_GROUP.sub(r" \1 ", text).replace("{", " ").replace("}", " ").split())


def _inside_box(text: str) -> str | None:
    """Return what a box that is the whole text encloses, None where there is none."""
    found = _BOX.match(text)
    if found is None or not text.endswith("}"):
        return None
    inside = text[found.end() : -1]
    depths = list(accumulate((letter == "{") - (letter == "}") for letter in inside))
    is_balanced = not depths or (min(depths) >= 0 and depths[-1] == 0)
    return inside if is_balanced else None


def _spell_continued(found: re.Match[str]) -> str:
    """Write a decimal that continues as one that repeats, if its digits do: `0.1666...`; else leave out the dots."""
    whole, decimals = found[1], found[2]
    for period in range(1, len(decimals) // 2 + 1):
        repeating = decimals[-period:]
        start = len(decimals)
        while start >= period and decimals[start - period : start] == repeating:
            start -= period
        if len(decimals) - start >= max(2 * period, 3) or (start == 0 and len(decimals) >= 2 * period):
            return rf"{whole}{decimals[:start]}\overline{{{repeating}}}"
    return whole + decimals


def _spell_words(text: str) -> str:
    """Write an answer that is a number in words, marked as text or not, in digits."""
    group = _TEXT_GROUP.fullmatch(text)
    words = group[1].strip() if group is not None else text
    if not words.isascii():
        return spell_chinese_numbers(text)
    if _ALL_REALS.fullmatch(words):
        return r"\mathbb{R}"
    plain = _ARTICLE.sub("", _APPROXIMATELY.sub("", words))
    positive = _NEGATIVE.sub("", plain)
    spelled = ("-" if positive != plain else "") + spell_number_words(_EQUALS.sub(" = ", positive))
    return text if spelled == words else spelled


def _spell_commands(text: str) -> str:
    if (inside := _ENVIRONMENT.sub(" ", text)) != text:
        text = inside.replace("&", " ")
    text = _LAYOUT.sub("", _ROW_SPACING.sub(r"\\\\", _ABSENT_DELIMITER.sub("", text)))
    if "\\begin" not in text:
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
    text = _COMMAND.sub(lambda found: _SPELLINGS.get(found[0], found[0]), text)
    text = _RAISED_PRIMES.sub(lambda found: (found[1] or "'").replace(" ", ""), text)
    text = _UPRIGHT_LETTER.sub(r" \1 ", text)
    while (flat := _POWER_IN_TEXT.sub(r"\1\2\3", text)) != text:  # `\mathrm{m s^{-2}}`
        text = flat
    return text


def _spell_word(found: re.Match[str]) -> str:
    """Spell a word as its command, and take numbers out of a text group: `\\text{12 cm}` is 12 and a unit."""
    kind = found.lastgroup or ""
    if kind == "money":
        return f"\\{found[kind].rstrip('.').upper()} "
    if kind != "text":
        return found.expand(_WORD_SPELLINGS[kind])
    if not found[0].endswith("}"):
        return found[0]
    command, _, inside = found[0].partition("{")
    inside = inside[:-1].strip()
    if inside.lower() in ("percent", "%", "percentage", "pct"):
        return "%"
    if inside == "infinity":
        return r"\infty "
    if inside == r"\dollar":
        return inside + " "
    number = _LEADING_NUMBER.match(inside)
    if number is None:
        return found[0]
    rest = inside[number.end() :].strip()
    return f"{number[0]} {command}{{{rest}}}" if rest else number[0]
