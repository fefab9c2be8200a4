"""Substitution: which words can stand in for the words of a minimal example without the unit falling silent.

Words are those of `rules`; `spelled` puts one in another's place on ids, `proposers` says where they come from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from textwrap import shorten
from typing import Any

from ..store.records import Evidence, Refused
from .frames import kept_text, read_means
from .held import Held, effect, hold, otherwise_in_text
from .masked import MaskedLM
from .measures import UNSURE
from .proposers import NAMES, Proposers
from .reader import Reader
from .spelled import Spelled, Word
from .subject import Subject
from .units import UnitId

USUAL = ("masked", "form")
AGAIN = ("masked", "next", "neighbours")   # proposers asked once more for a substitute's own substitutes
STRONGEST = 3                              # substitutes that get substitutes of their own
MOST = 1000                                # proposals a word: a table of more is nothing to read
REPLACED = 6                               # words that are replaced: a text that needs thirty would cost as many times


def substitute(
    subject: Subject,
    masked: MaskedLM,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    kept: Sequence[int] | None = None,
    n: int = 10,
    proposers: Sequence[str] | None = None,
    words: Sequence[str] | None = None,
    rings: int = 1,
    seed: int = 0,
) -> Evidence:
    """Swaps each word of a text's minimal example for other words and reads whether the unit still fires.

    The text is pruned by the first search of `minimal_example` in mode resample, and the kept tokens are widened to
    the words they lie in ("9th" to "19th"), because only words have substitutes. Each of these words is replaced by up
    to n words of each proposer: by default of a masked LM that sees the whole text and, where it is a number, by form
    ("19th" → "15th", "fifth", …). Of more than six words these are the last one and the five without which the unit
    reads least. A word that is kept twice is also replaced in both places at once, which a unit that only asks for a
    repeat does not mind. The reading is taken in the minimal example's own frame: the other kept words in place, the
    rest resampled with the same draws, mean over the draws. ratio = activation / reading of the minimal example with
    its words whole, so that a word put in its own place has ratio 1; effect: kills (< 0.25), unsure (< 0.5),
    keeps (< 1.25), raises.

    The tracked position moves with the swap. Where the tracked token is itself swapped, the reading is taken at the
    substitute's last token if it was its word's last, else at the token of the same rank from the word's start (at
    most the last), and the text ends there.

    Rows {position, original, substitute, places, activation, ratio, effect, in_text, ids, proposer, ring}. ids: the cut
    text with the substitute in place, sink first, ending at the token that was read; in_text: the reading of these ids
    themselves / that of the text as it was, which differs from ratio where other words do as well; position: index in
    these ids of the substitute's first token, of the last one if it stands in several places (a blank token before the
    word is replaced with it and not counted to it). A word that several propose is the first one's. ring: 2 for
    substitutes of one of the three strongest substitutes. checks: kept, kept_text and reading (minimal) of the minimal
    example; positions (held) and reading (whole) of its words, the divisor of ratio; proposers: {name: {n, keeps}}, of
    which random is the control; left_out: proposals that the subject's tokens cannot spell in place or that do not fit
    into its context; peak: the reading of the text as it was, the divisor of in_text. Raises Refused as
    `minimal_example` does, for n outside 1 to 1,000, an unknown proposer, none and no words, a blank word, rings other
    than 1 and 2, for kept positions that are none, and where the held words read nothing.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        kept: positions to hold in place of the pruning's result, the text's strongest token among them.
        n: proposals a word from each proposer.
        proposers: of masked, form, next, neighbours, collocates, random (default: masked and form).
        words: words to try in the place of each kept word, besides the proposers'.
        rings: 2 also tries substitutes of the strongest substitutes.
        seed: seeds the draws, the pruning and the proposer random.
    """
    names = _names(proposers, words)
    if not 1 <= n <= MOST:
        raise Refused(f"n = {n} is no number of proposals; give at least 1 and at most {MOST:,}.")
    if rings not in (1, 2):
        raise Refused(f"rings = {rings} is neither 1 nor 2.")
    given = subject.take(text, ids)
    proposing = Proposers(subject, masked, list(words or ()), seed)
    reader = Reader(subject, [unit.site])
    with subject.metered() as cost:
        held = hold(reader, unit, given, kept, seed)
        spelled, row = held.spelled, held.row
        found = _Found(reader, unit, held)
        first = ((word, proposing.each(names, spelled, word, n)) for word in _weightiest(reader, unit, held))
        found.read(_swaps(held, first))
        if rings == 2:
            again = [name for name in names if name in AGAIN]
            second = ((swap.word, _again(spelled, swap, proposing, again, n)) for swap in found.strongest())
            found.read(_swaps(held, second))
    rows = found.rows
    checks = {
        "fired": int(cost["forward_rows"]),
        "kept": sorted(held.core),
        "kept_text": kept_text(subject.pieces(row), held.core),
        "minimal": held.minimal,
        "held": sorted(held.held),
        "whole": held.whole,
        "peak": held.peak,
        "masked_mode": proposing.mode,
        "proposers": {name: _tally(rows, name) for name in names},
        "left_out": len(found.left_out),
    }
    return Evidence(
        tool="substitute",
        unit=unit.bare,
        sign=unit.sign,
        arguments={
            "text": text, "ids": None if ids is None else given, "kept": None if kept is None else sorted(held.core),
            "n": n, "proposers": proposers, "words": words, "rings": rings, "seed": seed,
        },
        summary=_summary(unit, kept_text(subject.pieces(row), held.held), rows),
        rows=rows,
        checks=checks,
        warnings=_warnings(rows, found.left_out, rings),
        cost=cost,
    )  # fmt: skip


def _weightiest(reader: Reader, unit: UnitId, held: Held) -> list[Word]:
    """The held words, or of more than REPLACED the last one and those without which the unit reads least, in order."""
    if len(held.words) <= REPLACED:
        return list(held.words)
    *others, last = held.words
    without = [held.frame.rows(held.held.difference(range(w.first, w.end))) for w in others]
    values = read_means(reader, unit, without)
    order = sorted(range(len(others)), key=values.__getitem__)[: REPLACED - 1]
    return [*(others[i] for i in sorted(order)), last]


def _names(proposers: Sequence[str] | None, words: Sequence[str] | None) -> list[str]:
    names = list(dict.fromkeys(USUAL if proposers is None else proposers))
    unknown = [name for name in names if name not in NAMES[:-1]]
    if unknown:
        raise Refused(f"{unknown[0]!r} is no proposer; there are {', '.join(NAMES[:-1])}.")
    if not names and not words:
        raise Refused(f"no proposer is asked and no words are given; name some of {', '.join(NAMES[:-1])}.")
    if not all(word.strip() for word in words or ()):
        raise Refused("one of the words is blank; leave it out.")
    return [*(["given"] if words else []), *names]


class _Found:
    """Swaps that were read, as rows, each substitute of a place once and none for itself; `strongest` ends ring 1."""

    def __init__(self, reader: Reader, unit: UnitId, held: Held) -> None:
        self.reader, self.unit, self.row, self.base = reader, unit, held.row, held.base
        self.whole, self.peak = held.whole, held.peak
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[Swap] = []
        self.ring = 1
        self._swaps: list[Swap] = []
        self._seen: set[tuple[int, int, str]] = set()

    def read(self, swaps: Iterable["Swap"]) -> None:
        new = []
        for swap in swaps:
            place, other = (swap.word.first, len(swap.earlier)), swap.substitute
            form = str if swap.proposer == "given" else str.casefold     # whoever names a word means its case as well
            if form(other) != form(swap.word.text) and (*place, form(other)) not in self._seen:
                self._seen |= {(*place, other), (*place, other.casefold())}
                new.append(swap)
        fit: list[Swap] = []
        for swap in new:
            (fit if swap.fits(self.row, self.reader.subject.context) else self.left_out).append(swap)
        texts = [[swap.put_in(row) for row in self.base] for swap in fit] + [[swap.put_in(self.row)] for swap in fit]
        values = read_means(self.reader, self.unit, texts)
        self._swaps += fit
        self.rows += [self._as_row(*found) for found in zip(fit, values[: len(fit)], values[len(fit) :], strict=True)]

    def strongest(self) -> list["Swap"]:
        """The first ring's substitutes that keep the unit firing and read highest; what is read from now is ring 2."""
        self.ring = 2
        order = sorted(range(len(self.rows)), key=lambda i: -self.rows[i]["ratio"])
        keep = [i for i in order if self.rows[i]["ratio"] >= UNSURE and self.rows[i]["proposer"] != "random"]
        return [self._swaps[i] for i in keep[:STRONGEST]]

    def _as_row(self, swap: "Swap", value: float, in_text: float) -> dict[str, Any]:
        ratio = value / self.whole
        return {
            "position": swap.position,
            "original": swap.word.text,
            "substitute": swap.substitute,
            "places": 1 + len(swap.earlier),
            "activation": value,
            "ratio": ratio,
            "effect": effect(ratio),
            "in_text": in_text / self.peak,
            "ids": swap.put_in(self.row),
            "proposer": swap.proposer,
            "ring": self.ring,
        }


def _tally(rows: list[dict[str, Any]], name: str) -> dict[str, int]:
    mine = [row["effect"] for row in rows if row["proposer"] == name]
    return {"n": len(mine), "keeps": sum(e in ("keeps", "raises") for e in mine)}


def _warnings(rows: list[dict[str, Any]], left_out: Sequence["Swap"], rings: int) -> list[str]:
    said = [] if rows else ["nothing was put in: no proposer has another word for what is kept"]
    given = list(dict.fromkeys(swap.substitute for swap in left_out if swap.proposer == "given"))
    if given:
        said.append(f"not tried, since the subject's tokens cannot spell them in place: {', '.join(given[:5])}")
    if rings == 2 and rows and rows[-1]["ring"] == 1:
        said.append(f"no second ring: {', '.join(AGAIN)} propose nothing for substitutes that keep the unit firing")
    return said + otherwise_in_text(rows)


def _summary(unit: UnitId, kept: str, rows: list[dict[str, Any]]) -> str:
    parts = [f"{unit} on {shorten(kept, 80, placeholder='…')!r}, {len(rows)} substitutes."]
    for name in ("raises", "keeps", "unsure", "kills"):
        mine = [f"{r['original']}→{r['substitute']}" for r in rows if r["effect"] == name]
        if mine:
            parts.append(f"{name.capitalize()} ({len(mine)}): {', '.join(mine[:5])}{', …' if len(mine) > 5 else ''}.")
    return " ".join(parts)


@dataclass(frozen=True)
class Swap:
    """`new` ids in the place of a word's tokens; cut off where the text is read. earlier: the same in other places."""

    word: Word
    substitute: str
    proposer: str
    new: tuple[int, ...]
    blanks: int
    earlier: tuple["Swap", ...] = ()

    @property
    def position(self) -> int:
        """Of the substitute's first token in the row that `put_in` gives."""
        longer = sum(len(s.new) - (s.word.end - s.word.first) for s in self.earlier)
        return self.word.first + longer + self.blanks

    def put_in(self, row: Sequence[int]) -> list[int]:
        put = [*row[: self.word.first], *self.new, *row[self.word.end :]]
        for swap in reversed(self.earlier):     # from the right: nothing that is still to be replaced moves
            put = swap.put_in(put)
        return put

    def fits(self, row: Sequence[int], context: int) -> bool:
        """Whether the subject's tokens spell it in every place, and the text is then not too long.

        Where the tracked token is an inner piece, a substitute whose first piece is a blank leaves nothing to read.
        """
        spelled = all(len(swap.new) > swap.blanks for swap in (self, *self.earlier))
        return spelled and len(self.put_in(row)) <= context


def _swaps(held: Held, proposed: Iterable[tuple[Word, Iterable[tuple[str, str]]]]) -> Iterable[Swap]:
    """Each word with what is proposed for it, (proposer, word), put in its place, and in its earlier places too."""
    spelled, length = held.spelled, len(held.row)
    for word, others in proposed:
        copies = [w for w in held.words if w.first < word.first and w.text.casefold() == word.text.casefold()]
        for name, other in others:
            swap, *earlier = (swap_word(spelled, w, other, name, length) for w in (word, *copies))
            yield swap
            if earlier:
                yield replace(swap, earlier=tuple(earlier))


def _again(
    spelled: Spelled, swap: Swap, proposing: Proposers, names: Sequence[str], n: int
) -> Iterable[tuple[str, str]]:
    """What is proposed for a substitute that stands in its word's place."""
    put = Spelled(spelled.subject, swap_word(spelled, swap.word, swap.substitute, "", 0).put_in(spelled.ids))
    there = (word for word in put.words() if word.first == swap.word.first)
    return chain.from_iterable(proposing.each(names, put, word, n) for word in there)


def swap_word(spelled: Spelled, word: Word, other: str, proposer: str, length: int) -> Swap:
    """`other` in the place of `word`, in a text that is read at the end of its first `length` tokens (0: not cut)."""
    new = spelled.respell(word, other)
    if 0 < length < word.end:  # the tracked token is an inner piece of this word
        new = new[: length - word.first]
    blanks = sum(1 for _ in takewhile(str.isspace, spelled.subject.pieces(new)))
    return Swap(word, other, proposer, tuple(new), blanks)
