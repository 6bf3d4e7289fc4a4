"""Unicode spelled as LaTeX, so that the reader meets one spelling of each sign.

NFKC is not used: it turns a superscript two into a plain `2`, and 5 squared into 52.
"""

from __future__ import annotations

import re

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "εϵ", "zeta": "ζ", "eta": "η", "theta": "θϑ",
    "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μµ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "upsilon": "υ", "phi": "φϕ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ∆",
    "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": "/", "×": "\\times ", "·": "\\cdot ",
    "⋅": "\\cdot ", "∙": "\\cdot ", "•": "\\cdot ", "∗": "*", "∞": "\\infty ",
    "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ",
    "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "∖": "\\setminus ", "ℝ": "\\mathbb{R}",
    "ℏ": "\\hbar ", "°": "^{\\circ}", "º": "^{\\circ}", "′": "'", "’": "'", "‘": "'", "´": "'", "″": "''",
    "∠": "\\angle ", "€": "\\euro ", "£": "\\pounds ", "¢": "\\cents ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ", "“": '"',
    "”": '"', "∣": "|", "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}", "⅘": "\\frac{4}{5}",
    "⅙": "\\frac{1}{6}", "⅚": "\\frac{5}{6}", "⅛": "\\frac{1}{8}", "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}",
    "⅞": "\\frac{7}{8}", "。": ".", "、": ",", "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "",
}  # fmt: skip

_SPACES = "\t\n\r\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿⁱ", "0123456789-+ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}

_ONE_FOR_ONE = (
    str.maketrans(
        {letter: f"\\{name} " for name, letters in _GREEK.items() for letter in letters}
        | _SIGNS
        | dict.fromkeys(_SPACES, " ")
    )
    | _FULL_WIDTH
)


_ROOT = re.compile(r"([√∛])\s*(\d+(?:\.\d+)?)?")


def spell_as_latex(text: str) -> str:
    """Return the text with its Unicode mathematics in LaTeX; letters of other scripts stay as they are."""
    text = text.translate(_ONE_FOR_ONE)
    if text.isascii():
        return text
    text = _ROOT.sub(_spell_root, text)
    return _spell_runs(_spell_runs(text, _SUPERSCRIPTS, "^"), _SUBSCRIPTS, "_")


def _spell_root(found: re.Match[str]) -> str:
    command = "\\sqrt" if found[1] == "√" else "\\sqrt[3]"
    return f"{command}{{{found[2]}}}" if found[2] else command + " "  # the sign covers a whole number, LaTeX's a digit


def _spell_runs(text: str, digits: dict[str, str], mark: str) -> str:
    pieces: list[str] = []
    inside = False
    for letter in text:
        if (letter in digits) != inside:
            pieces.append("}" if inside else mark + "{")
            inside = not inside
        pieces.append(digits.get(letter, letter))
    return "".join(pieces) + ("}" if inside else "")
