"""Conditions of a clause: what must, or must not, stand before a token, and how to say it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from .lexicon import after, called, matching, spelled, unmarked, within
from .measures import WINDOW
from .rules import Clause, Matcher, Near

Spell = Callable[[int], str]
Names = tuple[int | str, ...]


@dataclass(frozen=True)
class Condition:
    """What must stand before a token, or if not `needed` must not.

    names: of a list, its words as `lexicon.matching` takes them, or tokens; said: how to say the context. tested:
    whether experiments showed this of each name.
    """

    near: Near
    what: str
    needed: bool = True
    names: Names = ()
    tested: bool = False

    @classmethod
    def of(
        cls, names: Sequence[int | str], span: tuple[int, int], unit: str, needed: bool, spell: Spell
    ) -> Self:
        """One of these words or tokens, at a distance in `span`."""
        ids = tuple(name for name in names if isinstance(name, int))
        words = [name for name in names if isinstance(name, str)]
        matcher = Matcher(ids) if ids else matching(words)
        what = called(spelled(spell, ids) if ids else unmarked(words))
        return cls(Near(matcher, *span, unit), _placed(what, span), needed, tuple(names))

    @classmethod
    def on(cls, matcher: Matcher, what: str, span: tuple[int, int], needed: bool = True) -> Self:
        """A word of a class, at a distance in `span`."""
        return cls(Near(matcher, *span, "words"), _placed(what, span), needed)

    @property
    def listed(self) -> int:
        """Names in its list beyond the first that no experiment stands behind."""
        return 0 if self.tested else max(len(self.names) - 1, 0)

    @property
    def span(self) -> tuple[int, int]:
        return self.near.low, self.near.high

    @property
    def said(self) -> str:
        return self.what if self.needed else f"not {self.what}"

    def added(self, clause: Clause) -> Clause:
        """The clause with this condition more."""
        if self.needed:
            return replace(clause, need=(*clause.need, self.near))
        return replace(clause, avoid=(*clause.avoid, self.near))

    def changed(self, spell: Spell, names: Names | None = None, span: tuple[int, int] | None = None) -> "Condition":
        """The condition of a list with other names, or at other distances."""
        other = Condition.of(names or self.names, span or self.span, self.near.unit, self.needed, spell)
        return replace(other, tested=self.tested)


def positions(low: int, high: int) -> str:
    """Says that a token stands at positions from low to high of a text."""
    if low == high:
        return "at the first token of a text" if low == 1 else f"at position {low} of a text"
    if low == 1:
        return f"among the first {high} tokens of a text"
    return f"from position {low} of a text on" if high == WINDOW - 1 else f"at positions {low} to {high} of a text"


def _placed(what: str, span: tuple[int, int]) -> str:
    return after(what, span[0]) if span[0] == span[1] else within(what, span[1])


__all__ = ["Condition", "Names", "Spell", "positions"]
