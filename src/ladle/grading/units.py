"""Units of measure: one name for each, whatever its spelling, and the power it is raised to.

An answer in another unit of the same kind is converted, exactly: 0.12 m is 12 cm. Money is not exchanged, and
temperatures are left alone, since their scales have different zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ladle.grading.nodes import Token, Unreadable

Unit = dict[str, int]

# Each unit with its other spellings, and how many of others it is, exactly by definition.
_TABLE = r"""
centimeter cm cms centimetre 厘米 = 0.01 meter; meter m metre 米; millimeter mm millimetre = 0.001 meter;
kilometer km kms kilometre 千米 公里 = 1000 meter; nanometer nm nanometre = 1e-9 meter; inch in inches = 0.0254 meter;
foot ft feet = 0.3048 meter; yard yd yds = 0.9144 meter; mile mi = 1609.344 meter; second s sec secs 秒;
minute min mins 分钟 = 60 second; hour h hr hrs 小时 = 3600 second; day 天 = 86400 second; week = 604800 second; month;
year yr yrs = 12 month; gram g gm gms 克 = 0.001 kilogram; kilogram kg kgs 千克 公斤; milligram mg = 1e-6 kilogram;
pound lb lbs; ounce oz = 0.0625 pound; ton tonne; liter l L litre = 0.001 meter^3; milliliter ml mL = 0.001 liter;
gallon gal; cent \cents = 0.01 dollar; dollar \dollar \USD usd buck bucks; euro \euro \EUR eur;
sterling \pounds \GBP gbp quid; yen \yen \JPY jpy; yuan \CNY \RMB cny rmb 元; rupee \rupee \INR \RS inr;
pence penny pennies = 0.01 sterling; degree deg; radian rad; celsius; fahrenheit; kelvin K;
joule J = 1 kilogram meter^2 second^-2; newton N = 1 kilogram meter second^-2; watt W = 1 kilogram meter^2 second^-3;
volt V; ampere A amp; ohm; hertz Hz = 1 second^-1; pascal Pa = 1 kilogram meter^-1 second^-2; erg = 1e-7 joule;
mole mol; unit; % percent; angstrom = 1e-10 meter; parsec pc; electronvolt eV; coulomb; kilojoule kJ = 1000 joule;
kilowatt kW = 1000 watt; kilopascal kPa = 1000 pascal; kilohertz kHz = 1000 hertz; megahertz MHz = 1000000 hertz;
gigahertz GHz = 1000000000 hertz; kilonewton = 1000 newton; millisecond = 0.001 second; milliampere mA = 0.001 ampere
"""
_COMPOUNDS = """mph=mile hour^-1;kmph=kilometer hour^-1;kph=kilometer hour^-1;平方厘米=centimeter^2;平方米=meter^2;
立方厘米=centimeter^3;立方米=meter^3"""


def _parse(text: str) -> Unit:
    return {name: int(power or 1) for name, _, power in (part.partition("^") for part in text.split())}


_COMPOUND_UNITS = {name.strip(): _parse(parts) for name, _, parts in (e.partition("=") for e in _COMPOUNDS.split(";"))}
_NAMES: dict[str, str] = {}
_IN_OTHERS: dict[str, tuple[Fraction, Unit]] = {}
for entry in _TABLE.split(";"):
    spellings, _, others = entry.partition(" = ")
    unit_name = spellings.split()[0]
    _NAMES |= dict.fromkeys([unit_name + "s", *spellings.split()], unit_name)
    if others:
        _IN_OTHERS[unit_name] = Fraction(others.split()[0]), _parse(others.partition(" ")[2])
_MEASURES = {*_NAMES.values()}
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_AFTER = {"squared": 2, "cubed": 3}
_COUNTS = "dozen hundred thousand million billion trillion half third quarter tenth hundredth"
_OPERATIONS = """minus plus times over negative not no factorial root base mod pi point squared cubed mil bn mn to than
if unless except where either neither halves"""
# Words that make another number of the one beside them, and so are not its unit.
CHANGE_THE_NUMBER = frozenset(_OPERATIONS.split()) | {word + s for word in _COUNTS.split() for s in ("", "s")}
CURRENCIES = {spelling: name for spelling, name in _NAMES.items() if spelling[0] == "\\"}
_PIECE = re.compile(
    r"\s*(?:(?P<name>[^\W\d_]-[^\W\d_]{3,}|[^\W\d_]+\.?|%)|\^\s*\{?\s*(?P<power>-?\s*\d)\s*\}?|(?P<per>/)|(?P<joint>[*{}()\-~,]))"
)
_QUOTIENT = re.compile(r"\\frac \{([^{}]*)\} \{([^{}]*)\}")
_SIGN = re.compile(
    r"\^ (?:\{ )?\\circ(?: \})?(?: ([CF])\b)?|\\(?:cdot|times|mu|dollar|cents|euro|pounds|yen|rupee)\b|^(?:' '|[\"'])$"
)
_SIGNS = {"'": " foot", "' '": " inch", '"': " inch", "\\cdot": " ", "\\times": " ", "\\mu": " "} | {
    sign: f" {name}" for sign, name in CURRENCIES.items()
}
_DEGREES = {"C": " celsius", "F": " fahrenheit", None: " degree"}


def is_unit_run(letters: str) -> bool:
    """Whether letters without markup name a unit; a lone letter is a variable, so that `5 m` is five times m."""
    return len(letters) > 1 and (letters in _NAMES or letters in _COMPOUND_UNITS or letters in _POWER_BEFORE)


def read_unit(tokens: Sequence[Token], accept_nouns: bool) -> Unit:
    """Return the unit that the tokens spell: `km / h`, `cm ^ 2`, `square inches`, `^ \\circ C`, `eggs`.

    Args:
        tokens: what follows a value.
        accept_nouns: whether a word that names no unit of measure (`eggs`) is one.

    Raises:
        Unreadable: something among them is not a unit, or is a word that changes the number (`dozen`).
    """
    text = " ".join(token.text for token in tokens)
    text = _SIGN.sub(lambda found: _SIGNS.get(found[0]) or _DEGREES[found[1]], text)
    text = _QUOTIENT.sub(r"\1 / \2", text).rstrip()
    unit: Unit = {}
    sign, factor, last = 1, 1, ""
    position = 0
    while position < len(text):
        found = _PIECE.match(text, position)
        if found is None:
            raise Unreadable(f"{text[position : position + 12].strip()!r} is not a unit")
        position = found.end()
        word = (found["name"] or "").rstrip(".")
        if word == "of" and unit:
            break  # `liters of punch` are liters
        if found["per"] or word == "per":
            sign = -1
        elif found["power"] and last:
            unit[last] *= int(found["power"].replace(" ", ""))
        elif word in _POWER_AFTER and last:
            unit[last] *= _POWER_AFTER[word]
        elif word in _POWER_BEFORE:
            factor = _POWER_BEFORE[word]
        elif word == "times" and position == len(text):
            unit["time"] = 1
        elif word:
            for last, power in _name_unit(word, accept_nouns).items():
                unit[last] = unit.get(last, 0) + sign * factor * power
            factor = 1
    if "celsius" in unit or "fahrenheit" in unit:
        unit.pop("degree", None)  # degrees Celsius are Celsius
    return unit


def _name_unit(word: str, accept_nouns: bool) -> Unit:
    lowered = word.lower()
    if lowered in _COMPOUND_UNITS:
        return _COMPOUND_UNITS[lowered]
    name = _NAMES.get(word) or (_NAMES.get(lowered) if len(word) > 1 else None)
    if name is None and (not accept_nouns or len(word) == 1 and word.isascii() or lowered in CHANGE_THE_NUMBER):
        raise Unreadable(f"{word!r} is not a unit")
    return {name or lowered.removesuffix("s"): 1}


def is_same_unit(gold: Unit, answer: Unit) -> bool:
    """Whether the answer's unit is the gold's; a noun may be described (`brown eggs` for `eggs`) or not."""
    if answer == {"pound": 1} and gold == {"sterling": 1}:
        return True
    if gold == answer or gold.keys() & _MEASURES:
        return gold == answer
    is_short = answer.items() <= gold.items() and [*answer][-1:] == [*gold][-1:]
    return is_short or gold.items() <= answer.items()


def conversion(wanted: Unit, given: Unit) -> Fraction | None:
    """Return how many of the wanted unit the given one is; None where they measure different things."""
    (wanted_factor, wanted_base), (given_factor, given_base) = _reduce(wanted), _reduce(given)
    return given_factor / wanted_factor if wanted_base == given_base else None


def _reduce(unit: Mapping[str, int]) -> tuple[Fraction, Unit]:
    """Return the unit as a multiple of base units."""
    factor, base = Fraction(1), Unit()
    for name, power in unit.items():
        times, others = _IN_OTHERS.get(name, (Fraction(1), None))
        inner, reduced = (Fraction(1), {name: 1}) if others is None else _reduce(others)
        factor *= (times * inner) ** power
        for part, exponent in reduced.items():
            base[part] = base.get(part, 0) + exponent * power
    return factor, {name: power for name, power in base.items() if power}
