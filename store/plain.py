"""How values are told to people: numbers, intervals, and text in which nothing is hidden."""

from collections.abc import Iterable, Mapping
from typing import Any


def clean(value: Any) -> str:
    """One line of printable text: control, bidi and zero-width characters are shown as escapes."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: float | None, digits: int = 2) -> str:
    """A number for people; None is “undefined”."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def bounded(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval."""
    return "undefined" if value is None else f"{value:.2f} [{number(low)}, {number(high)}]"


def claimed(claims: Iterable[Mapping[str, Any]] | None) -> str:
    """What a source states of its explanation, in its own terms."""
    said = (f"{one['scorer']} {one['metric']} {number(one['value'])}" for one in claims or ())
    return "; ".join(said) or "nothing"


def cut(text: str | None, most: int = 300) -> str:
    """The beginning of a long text."""
    text = text or ""
    return text if len(text) <= most else f"{text[:most]}…"


def count(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}"


def when(moment: str | None) -> str:
    """A time of a record, to the minute."""
    return "not yet" if moment is None else f"{moment[:16].replace('T', ' ')} UTC"


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    whole = round(seconds or 0)
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


__all__ = ["bounded", "claimed", "clean", "count", "cut", "duration", "number", "when"]
