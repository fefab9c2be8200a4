"""Numbers by their written form: what else could stand where a number stands, written alike and otherwise."""

import re
from itertools import chain, zip_longest

_SPELLED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_RANKS = (
    "first", "second", "third", "fourth", "fifth", "sixth",
    "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
)  # fmt: skip
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
_FORMS = {
    "ordinal": (("15th", "3rd", "21st", "17th", "42nd"), ("fifth", "ninth", "third", "7", "seven")),
    "year": (("1850", "1923", "2001", "1776", "1605"), ("seven", "7th", "42", "fifth")),
    "digits": ((), ("seven", "fifth", "7th", "twelve")),
    "rank": (("fifth", "ninth", "third", "seventh", "twelfth"), ("15th", "3rd", "7", "five")),
    "count": (("seven", "five", "three", "nine", "twelve"), ("7", "15", "fifth", "3rd")),
    "roman": (("I", "III", "IV", "VII", "X"), ("2", "two", "1", "second")),
}


def by_form(word: str) -> list[str]:
    """Other numbers written as `word` is, in turn with numbers written otherwise; [] for what is no number.

    Kinds: ordinals in digits (19th), years (1000 to 2099), anything else with digits (each digit moved on, so that
    "3.50" gives "4.61"), ranks (fifth) and counts (five) up to twelve, Roman numerals from II to XII.
    """
    kind = _kind(word)
    if kind is None:
        return []
    same, other = _FORMS[kind]
    same = same or tuple(_move_digits(word, by) for by in (1, 3, 4, 6, 8))
    kinds = ([like(p, word) for p in group if p.casefold() != word.casefold()] for group in (same, other))
    return [p for p in chain.from_iterable(zip_longest(*kinds)) if p]


def _kind(word: str) -> str | None:
    lower = word.casefold()
    if re.fullmatch(r"[0-9]+(st|nd|rd|th)", lower):
        return "ordinal"
    if re.fullmatch(r"1[0-9]{3}|20[0-9]{2}", word):
        return "year"
    if re.search("[0-9]", word):
        return "digits"
    if lower in _RANKS:
        return "rank"
    if lower in _SPELLED:
        return "count"
    return "roman" if word in _ROMAN[1:] and word not in ("V", "X") else None


def _move_digits(word: str, by: int) -> str:
    """Each digit moved on by `by`; none becomes 0, so that no number gains a leading zero."""
    return re.sub("[0-9]", lambda m: str((int(m[0]) + by - 1) % 9 + 1), word)


def like(proposal: str, word: str) -> str:
    """`proposal` in the case of `word`; a Roman numeral has capitals of its own and lends them to no word."""
    roman = proposal.upper() in _ROMAN and (len(proposal) > 1 or word in _ROMAN)
    if word in _ROMAN[1:]:
        return proposal.upper() if roman else proposal
    if roman or (word.isupper() and sum(c.isalpha() for c in word) > 1):
        return proposal.upper()
    return proposal[:1].upper() + proposal[1:] if word[:1].isupper() else proposal
