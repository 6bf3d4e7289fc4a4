"""One spelling for what is typeset the same: Unicode signs, delimiters, fractions, thousands marks, number words.

Nothing here changes a value: what a text means is decided by the reader. Texts are at most `max_characters` long
(`GraderConfig`), which bounds the time of every pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from unicodedata import normalize

FUNCTION_NAMES = frozenset(
    prefix + name
    for prefix, names in {
        "": "sin cos tan cot sec csc sinh cosh tanh ln log exp gcd lcm max min abs floor ceil",
        "arc": "sin cos tan cot sec csc sinh cosh tanh",
        "ar": "sinh cosh tanh",
        "a": "sin cos tan sinh cosh tanh",
    }.items()
    for name in names.split()
)
TEXT_COMMANDS = """text|textrm|textbf|textit|textnormal|texttt|textsf|emph|mathrm|mathbf|mathit|mathsf|mathtt|mbox|
operatorname|boldsymbol|bm|pmb""".replace("\n", "")


def _pairs(table: str) -> dict[str, str]:
    """Read a table of words and their spellings; `␣` is a space, `␀` nothing."""
    words = [word.replace("␣", " ").replace("␀", "") for word in table.split()]
    return dict(zip(words[::2], words[1::2], strict=True))


# Unicode. NFKC is not used: it turns a superscript two into a plain `2`, and 5 squared into 52.

_GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau
upsilon phi chi psi omega"""
_GREEK_LETTERS = {chr(code): name for code, name in enumerate(_GREEK.split(), 0x3B1)}
_CAPITALS = {letter.upper(): name.title() for letter, name in _GREEK_LETTERS.items() if letter in "γδθλξπσφψω"}
_GREEK_LETTERS |= _CAPITALS | {"ϵ": "epsilon", "ϑ": "theta", "µ": "mu", "ϕ": "phi", "∆": "Delta"}
_SIGNS = _pairs(r"""
− -  ﹣ -  – -  — -  ‐ -  ‑ -  ⁄ /  ∕ /  ÷ /  × \times␣  · \cdot␣  ⋅ \cdot␣  ∙ \cdot␣  • \cdot␣  ∗ *  ∞ \infty␣  ≤ \le␣
≥ \ge␣  ⩽ \le␣  ⩾ \ge␣  ≠ \ne␣  ≈ \approx␣  ± \pm␣  ∓ \mp␣  ∪ \cup␣  ∩ \cap␣  ∈ \in␣  ∅ \emptyset␣  ∖ \setminus␣
ℝ \mathbb{R}  ℏ \hbar␣  ° ^{\circ}  º ^{\circ}  ˚ ^{\circ}  ℃ ^{\circ}C  ℉ ^{\circ}F  ′ '  ‘ '  ´ '  ″ ''  ∠ \angle␣
€ \euro␣  £ \pounds␣  ¢ \cents␣  ¥ \yen␣  ₹ \rupee␣  △ \triangle␣  ≡ \equiv␣  ∶ :  ’ '  。 .  、 ,  “ "  ” "  ⌊ \lfloor␣
⌋ \rfloor␣  ⌈ \lceil␣  ⌉ \rceil␣  ⟨ \langle␣  ⟩ \rangle␣  ∣ |
""")
_SPACES = "\t\n\r\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_ONE_FOR_ONE = str.maketrans(
    _SIGNS
    | {letter: f"\\{name} " for letter, name in _GREEK_LETTERS.items()}
    | {sign: r"\frac{{{}}}{{{}}}".format(*normalize("NFKC", sign).split("⁄")) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
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
_VALUES = {word: number for number, word in enumerate(_SMALL.split())}
_VALUES |= {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}
_UNITS = {word: value for word, value in _VALUES.items() if 0 < value < 10}
_BELOW_HUNDRED = {f"{ten} {unit}": _VALUES[ten] + _UNITS[unit] for ten in _TENS.split() for unit in _UNITS} | _VALUES
_BELOW_THOUSAND = _BELOW_HUNDRED | {
    f"{unit} hundred {rest}".strip(): 100 * value + more
    for unit, value in _UNITS.items()
    for rest, more in {"": 0, **_BELOW_HUNDRED}.items()
    if rest != "zero"
}
_POWERS = {"trillion": 12, "billion": 9, "million": 6, "thousand": 3, "hundred": 2}
_GROUPS = [name for name, power in _POWERS.items() if power > 2]
_NUMBER_WORDS = re.compile("".join(rf"(?:([a-z ]+?) {name}(?: |$))?" for name in _GROUPS) + "([a-z ]+)?")
_ORDINALS = {word.removesuffix("y") + ("ieth" if word[-1] == "y" else "th"): value for word, value in _VALUES.items()}
_ORDINALS |= {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
_PARTS = {"half": 2, "halve": 2, "quarter": 4, "hundredth": 100}
_PARTS |= {word: value for word, value in _ORDINALS.items() if 3 <= value <= 10}
_ORDINALS |= {f"{ten} {word}": _VALUES[ten] + n for ten in _TENS.split() for word, n in _ORDINALS.items() if 0 < n < 10}
_FIXED = {"half": "1/2", "quarter": "1/4", "half a dozen": "6"}
_WORDS = re.compile(r"(?:\d+ and )?[A-Za-z]+(?:(?:-|\s+)[A-Za-z]+)*")
_A_FOR_ONE = re.compile(rf"^(?:the )?an? (?={'|'.join([*_POWERS, *_PARTS, 'dozen'])})|(?<= and )an? (?=\w+$)")
_NUMERALS = {*_VALUES, *_POWERS, "dozen"}
_MAX_NOUNS = 3
_JOINTS = frozenset({"to", "of", "or", "and", "in", "per", "over", "out"})  # more than a number and a noun


def spell_number_words(text: str) -> str:
    """Return an answer that is a number in words, and perhaps a noun, with the number in digits; any other as it is.

    `twenty-five` is 25, `two thirds` 2/3, `four and a half` 4 1/2, `two apples` 2 apples, `sixth` 6.
    """
    if _WORDS.fullmatch(text) is None:
        return text
    plain = _A_FOR_ONE.sub("one ", " ".join(text.lower().replace("-", " ").split())).removeprefix("the ")
    if plain in _FIXED or plain in _ORDINALS:
        return _FIXED.get(plain) or str(_ORDINALS[plain])
    *words, last = plain.split()
    if (denominator := _PARTS.get(last.removesuffix("s"))) is not None:
        at = words.index("and") if "and" in words[1:] else 0
        counted = ["one"] if words[at:] == ["and"] else words[at:]
        whole, numerator = read_number_words(words[:at]), read_number_words(counted)
        if at and whole is not None and numerator is not None and 0 < numerator < denominator:
            return f"{whole} {numerator}/{denominator}"
        if (numerator := read_number_words(words)) is not None:
            return f"{numerator}/{denominator}"
    words.append(last)
    followed = zip(words, [*words[1:], ""], strict=True)
    are_numerals = [word in _NUMERALS or word == "and" and following in _VALUES for word, following in followed]
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
    plain = " ".join(word for word in words if word != "and")
    found = _NUMBER_WORDS.fullmatch(plain.removesuffix(" dozen"))
    if found is None or not plain or plain == "zero":
        return 0 if plain == "zero" else None
    groups = [0 if group is None else _BELOW_THOUSAND.get(group, 0) for group in found.groups()]
    if any(group and not value for group, value in zip(found.groups(), groups, strict=True)):
        return None
    total = sum(value * 1000**power for power, value in enumerate(reversed(groups)))
    return total * 12 if plain.endswith(" dozen") else total


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


# The whole answer.

_COMMAND_SPELLINGS = _pairs(r"""
leq \le␣  leqslant \le␣  geq \ge␣  geqslant \ge␣  neq \ne␣  lt <  gt >  ast *  div /  colon :  prime '  simeq \approx␣
varnothing \emptyset␣  lbrace \{  rbrace \}  lbrack [  rbrack ]  lvert |  rvert |  vert |  mid |  degree ^{\circ}
degrees ^{\circ}  lor \text{or}  vee \text{or}  land \text{and}  wedge \text{and}  backslash \setminus␣
varepsilon \epsilon␣  varphi \phi␣  vartheta \theta␣  dfrac \frac␣  tfrac \frac␣  cfrac \frac␣  dbinom \binom␣
tbinom \binom␣  lg \log_{10}␣  mod \bmod␣  pmod \bmod␣  dots \ldots␣  cdots \ldots␣  ! ␀  % %  $ \dollar␣  # #
""")
_BLANKS = "quad qquad enspace thinspace , ; : >"
_DROPPED = """left right displaystyle textstyle scriptstyle limits nolimits big Big bigg Bigg bigl bigr Bigl Bigr
underline uline boxed fbox framebox rm bf it tiny small normalsize large Large LARGE huge Huge mathord mathop mathstrut
ensuremath"""
_COMMAND_SPELLINGS |= dict.fromkeys(_BLANKS.split(), " ") | dict.fromkeys(_DROPPED.split(), "")
_SPELLINGS = {"\\" + name: spelling for name, spelling in _COMMAND_SPELLINGS.items()} | {"\\ ": " ", "~": " "}
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|[!,;: >%$#\\])|~")
_DOUBLED_BACKSLASH = re.compile(r"\\\\(?=[a-zA-Z{}])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align|equation|gathered|gather|split)\*?\}")
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
_NEGATIVE = re.compile(r"^(?:negative|minus)\s+(?=[\d\\.]|[a-z]+$)", re.I)
_SIGN_GROUPS = {
    "percent": "%",
    "%": "%",
    "percentage": "%",
    "pct": "%",
    "infinity": r"\infty ",
    r"\dollar": r"\dollar ",
}
_TEXT_GROUP = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_POWER_IN_TEXT = re.compile(rf"(\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\^)\s*\{{\s*(-?)\s*(\d+)\s*\}}")
_CONTINUED = re.compile(r"(\d*\.)(\d+)\s*(?:\.{3,}|…|\\(?:l|c)?dots(?![a-z]))")
_REPEATED = re.compile(r"(?P<before>\d*?)(?:(?P<one>\d)(?P=one){2,}|(?P<some>\d{2,}?)(?P=some)+)|(?P<all>\d)(?P=all)")
_LEADING_NUMBER = re.compile(r"[-+]?\d[\d.,/]*(?![\w:])")
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_WRAPPERS = (
    *((r"\(", r"\)"), (r"\[", r"\]"), ("<", ">"), ("$$", "$$")),
    *((mark, mark) for mark in ("**", "*", "__", "_", "`", '"', "'", "$")),
)
_OPENED = re.compile(r"\\[(\[bf]|[<$*_`\"']")
_TRAILING = re.compile(r"(?:(?<!\\)[.,;:\s])+$")
_ENTITY = re.compile(r"&#?[a-z]\w*;")
_SAID_TWICE = re.compile(r"\b([A-Za-z-]+)\s*\((\d+)\)")  # `ten (10)`
MATH = re.compile(r"\$(?=\S)((?:\\.|[^$\\])*?\S)\$(?!\d)")  # pandoc's rule, by which `$60 / $4` is money


# Rewritings: a sign of the texts that each is for, which spares most of them, its pattern, and what takes its place.


def rules(table: str, **parts: str) -> list[tuple[str, re.Pattern[str], str]]:
    """Read a table of rewritings, in which a part in capitals is the pattern of that name."""
    for name, pattern in parts.items():
        table = table.replace(name, pattern)
    rows = (line.replace("␣", " ").split(" → ") for line in table.replace("␀", "").strip("\n").splitlines())
    return [(sign, re.compile(pattern), spelling) for sign, pattern, spelling in rows]


_FILLERS = rules(r"""
real → (?i)^(?:the set of )?all (?:the )?real(?:s| numbers?| values(?: of [a-z])?| [a-z])$ → \\mathbb{R}
␣ → (?i)^(?:APPROXIMATELY|equal to)\s+(?=[\d\\.$+-]|[a-z]+$) → ␀
␣ → (?i)^(?:the|an?)\s+(?=\d) → ␀
equal → (?i)(?<=\b[a-z])\s+(?:equals|is equal to)\s+ → ␣=␣
""", APPROXIMATELY=r"approximately|approx\.?|about|around|roughly|nearly|almost|circa|exactly")  # fmt: skip
_MARKUP = rules(r"""
<sup> → <sup>(.*?)</sup> → ^{\1}
<sub> → <sub>(.*?)</sub> → _{\1}
""")
_BEFORE_WORDS = rules(r"""
( → (?<=\d)\.(\d*)\((\d+)\)(?![\d^!]) → .\1\\overline{\2}
\dot → (?<=\d)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\s*\\dot\s*\{?(\d)\}?)? → .\1\\overline{\2\3\4}
\root → \\root\s*(?:\{([^{}]*)\}|(\w))\s*\\of\s*(?:\{([^{}]*)\}|(\w)) → \\sqrt[\1\2]{\3\4}
\over → \{([^{}]*)\\over(?![a-z])([^{}]*)\} → \\frac{\1}{\2}
\choose → \{([^{}]*)\\choose(?![a-z])([^{}]*)\} → \\binom{\1}{\2}
10 → (?<=\d)\s*(?:[xX*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*[{(]?\s*([-+]?\s*\d+)(?:\s*[})])? → ␣\\cdot 10^{\1}
""")
# Between digits, a thousands mark. What does not delimit mathematics is money before a number, and nothing elsewhere.
_SIGNS_BETWEEN = rules(r"""
␀ → (?<=\d)(?:\s*(?:\{,\}\s*|,\\!\s*|\\[,;:! ]\s*|~)|['_])(?=\d{3}(?!\d)) → ␀
$ → \$\$ → ␣
$ → (?<!\\)\$\s*([,;])\s*\$ → \1␣
$ → MATH → ␣\1␣
$ → (?<!\\)(?:\b(?:US|AU|CA|HK))?\$(?=\s*\.?\d) → \\dollar␣
$ → (?<!\\)\$ → ␣
""", MATH=MATH.pattern)  # fmt: skip
_LAYOUT = rules(r"""
\ → \\(?:left|right)\s*\. → ␀
\\[ → \\\\\[-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\] → \\\\
\ → \\(?:(?:text)?color|[hv]?phantom|[hv]space\*?|label|tag\*?)\s*\{[^{}]*\} → ␀
""")
_PRIMES_AND_LETTERS = rules(r"""
' → \^\s*(?:\{\s*(')\s*('?)\s*('?)\s*\}|(')) → \1\2\3\4
{ → \\(?:mathrm|operatorname)\s*\{\s*([ei])\s*\} → ␣\1␣
""")
_TEXT = rf"\\(?:{TEXT_COMMANDS})\s*"
_ORDINAL = re.compile(
    rf"(?:(?<=1)st|(?<=2)nd|(?<=3)rd|(?<=\d)th)\b|(?<=\d)\s*(?:\^\s*\{{?\s*)?{_TEXT}\{{\s*(?:st|nd|rd|th)\s*\}}(?:\s*\}})?"
    r"|(?<=\d)\s*\^\s*\{\s*(?:st|nd|rd|th)\s*\}"
)
# Numbers of choices, which TeX has no command for. `C_1^2` stays the square of a constant: a choice is from `n`, `m`,
# `N`, or from three or more.
_INDEX = r"(?:\{\s*([\w+\-]+)\s*\}|(\w))"
_CHOICE = r"(?:\\(?:mathrm|text|rm)\s*\{\s*)?([CP])(?:\s*\})?\s*"
_TOTAL = r"(?:\{\s*([3-9]|[1-9]\d+|\d*[nmN](?:[+-]\d+)?)\s*\}|([3-9nmN]))"
_CHOICES = rules(r"""
␀ → (?<![\w.}])(\d+) ?([CP]) ?(\d+)(?!\w) → \2(\1,\3)
_ → (?<![A-Za-z\d}])(?:\{\s*\})?\s*[_^]\s*INDEX\s*CHOICE_\s*INDEX → \3(\1\2,\4\5)
_ → (?<![A-Za-z\\])CHOICE_\s*TOTAL\s*\^\s*INDEX → \1(\2\3,\4\5)
^ → (?<![A-Za-z\\])CHOICE\^\s*INDEX\s*_\s*TOTAL → \1(\4\5,\2\3)
""", CHOICE=_CHOICE, TOTAL=_TOTAL, INDEX=_INDEX)  # fmt: skip
_MULTIPLES = [
    (name, re.compile(rf"(?<=[\d}}])\s*(\\(?:text|textrm|mathrm|mbox)\s*\{{\s*)?{name}s?\b"), rf" \\cdot {value} \1")
    for name, value in [*((name, f"10^{{{power}}}") for name, power in _POWERS.items()), ("dozen", "12")]
]
_LAST = _MULTIPLES + rules(r"""
** → \*\* → ^
= → <=|=< → \\le␣
>= → >= → \\ge␣
!= → != → \\ne␣
== → == → =
\bmod → \(\s*\\bmod\s*([^()]*)\) → \\bmod \1
␣to␣ → (?<=\d)\s+to\s+(?=\d) → :
␣in␣ → (?<=\d)\s+in\s+(?=\d) → /
␣out␣of␣ → (?<=\d)\s+out of\s+(?=\d) → /
) → ^\s*\((\d+)\)(?=\s*_|\s+(?:in )?base ) → \1
_ → (?<=\d)\s*_\s*\{\s*\((\w+)\)\s*\}\s*$ → _{\1}
base → (?<=\d)\s*\(?\s*(?:in\s+)?base\s+(\w+)\s*\)?\s*$ → _{\1}
""")
_GROUPED = re.compile(r"(?<![\d.,/}])\d{1,3}(?: \d{3})+(?![\d/,.])|(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.])")


def rewrite(text: str, rewrites: Sequence[tuple[str, re.Pattern[str], str]]) -> str:
    """Apply the patterns in order, each only where its sign is in the text, which spares most of them."""
    for sign, pattern, spelling in rewrites:
        if sign in text:
            text = pattern.sub(spelling, text)
    return text


def normalise(text: str) -> str:
    """Return the answer in the one spelling that the reader knows."""
    text = _spell_words(rewrite(spell_as_latex(unwrap(text)), _BEFORE_WORDS))
    text = rewrite(text, _SIGNS_BETWEEN)
    if "\\" in text or "~" in text:
        text = _spell_commands(text)
    text = _ORDINAL.sub("", text)
    if "C" in text or "P" in text:
        text = rewrite(text, _CHOICES)
    text = rewrite(_OUTSIDE_TEXT.sub(_spell_word, text), _LAST)
    text = _GROUPED.sub(lambda found: found[0].replace(" ", "").replace(".", ""), text)
    return " ".join(text.split()).replace(" ,", ",").lstrip("=: ").rstrip(".,;: ")


def unwrap(text: str) -> str:
    """Peel quotes, emphasis, math delimiters or a box that enclose the whole text, four times at most."""
    text = _ENTITY.sub(lambda found: unescape(found[0]), text.replace("\frac", r"\frac"))  # taken for an escape
    text = _CONTINUED.sub(_spell_continued, rewrite(_SAID_TWICE.sub(_say_once, text), _MARKUP))
    for _ in range(4):
        text = _TRAILING.sub("", text.strip())
        if not _OPENED.match(text):
            break
        box = BOX.match(text)
        is_boxed = box is not None and closing_braces(text).get(box.end() - 1) == len(text) - 1
        inside = text[box.end() : -1] if box is not None and is_boxed else None
        for opening, closing in _WRAPPERS:
            content = text[len(opening) : -len(closing)]
            if text == opening + content + closing and content and closing not in content and content[-1] != "\\":
                inside = rf"\langle {content} \rangle" if opening == "<" else content
                break
        if inside is None:
            break
        text = inside
    return text


def _say_once(found: re.Match[str]) -> str:
    return found[2] if spell_number_words(found[1]) == found[2] else found[0]


def plain_text(text: str) -> str:
    """Return a normalised text without its groups and spacing."""
    if "{" not in text:
        return text
    return " ".join(_TEXT_GROUP.sub(r" \1 ", text).replace("{", " ").replace("}", " ").split())


def closing_braces(text: str) -> dict[int, int]:
    """Return where each opening brace is closed; escaped ones count, as LaTeX pairs them too."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            closing[opened.pop()] = brace.start()
    return closing


def _spell_continued(found: re.Match[str]) -> str:
    """Write a decimal that continues as one that repeats, if its digits do: `0.1666...`; else leave out the dots."""
    repeats = _REPEATED.fullmatch(found[2]) if len(found[2]) < 50 else None  # which bounds its time
    if repeats is None:
        return found[1] + found[2]
    return rf"{found[1]}{repeats['before'] or ''}\overline{{{repeats['one'] or repeats['some'] or repeats['all']}}}"


def _spell_words(text: str) -> str:
    """Write an answer that is a number in words, marked as text or not, in digits."""
    group = _TEXT_GROUP.fullmatch(text)
    words = group[1].strip() if group is not None else text
    if not words.isascii():
        return spell_chinese_numbers(text)
    plain = rewrite(words, _FILLERS)
    positive = _NEGATIVE.sub("", plain)
    spelled = ("-" if positive != plain else "") + spell_number_words(positive)
    return text if spelled == words else spelled


def _spell_commands(text: str) -> str:
    if (inside := _ENVIRONMENT.sub(" ", text)) != text:
        text = inside.replace("&", " ")
    text = rewrite(text, _LAYOUT)
    if "\\begin" not in text:
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
    text = _COMMAND.sub(lambda found: _SPELLINGS.get(found[0], found[0]), text)
    text = rewrite(text, _PRIMES_AND_LETTERS)
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
    if (sign := _SIGN_GROUPS.get(inside.lower())) is not None:
        return sign
    number = _LEADING_NUMBER.match(inside)
    if number is None:
        return found[0]
    rest = inside[number.end() :].strip()
    return f"{number[0]} {command}{{{rest}}}" if rest else number[0]
