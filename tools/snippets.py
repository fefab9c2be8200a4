"""Short texts of known labels, from which a language model is to tell what a unit does.

A snippet is up to 32 tokens of one window, drawn around a place: one where the unit fires, one that is hard (y between
.25 and .5 P, or a token that fires elsewhere and is silent here), or any. Where in the snippet the place stands is
drawn as well, with some context before it, in the same way for every kind. What the place was taken for never becomes
the label: the whole window is read, and the snippet fires if y ≥ τ somewhere in it.

Places come in the order of a hash; of a window one snippet is drawn at most, and no cluster gives a second one before
every other cluster with such a place has given its first.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from .collect import position_key
from .labels import Flags, ScoreSide, Truth
from .measures import CONTEXT, FIRES, HARD, MARKS, READ_AHEAD, SHORTEST, SNIPPET, STRATA, WINDOW
from .rules import SideText
from .stats import Floats, Ints
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

QUIET = STRATA[2]      # y/P below which a token is silent beyond doubt
HARDS = ("boundary", "same token")


class Spells(Protocol):
    """What texts are made of."""

    def pieces(self, ids: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True)
class Snippet:
    """Tokens [n] of one window without the sink, y/P [n] as read in the whole window, and `at`, the place in it.

    kind: "firing", "boundary", "same token" or "random", as what it was drawn; `fires` is what was read.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    cluster: int
    at: int
    kind: str

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def fires(self) -> bool:
        return max(self.values) >= FIRES


@dataclass(frozen=True)
class Marked:
    """A snippet with marks at some of its tokens; `true`: these fire, else all of them are silent (y < .25 P)."""

    snippet: Snippet
    marks: tuple[int, ...]
    true: bool


@dataclass(frozen=True)
class Ground:
    """Text, and what is known and can be read of one unit (or one rule, for planted ones) on it.

    keep [M], cluster [M]: as in `ScoreSide`; places: rows by kind, "firing", "boundary" and "same token"; strata: how
    many kept places each of the five strata of y/P holds; read(windows): y/P of each window's tokens, the sink left
    out; react(texts): the largest y/P on each of the texts, which may be anybody's.
    """

    text: SideText
    keep: Flags
    cluster: Ints
    places: Mapping[str, Ints]
    strata: tuple[int, ...]
    spells: Spells
    read: Callable[[Sequence[int]], list[Floats]]
    react: Callable[[Sequence[str]], Floats]

    @classmethod
    def of_unit(cls, subject: Subject, sweep: Sweep, unit: UnitId, side: ScoreSide, truth: Truth) -> "Ground":
        """The kept score side of a unit: what shares text with its evidence is not among the places."""
        flat, peak = side.text, truth.peak

        def read(windows: Sequence[int]) -> list[Floats]:
            spans = [(flat.text.starts[w] + 1, flat.text.starts[w + 1]) for w in windows]
            rows = [row for a, b in spans for row in range(a, b)]
            places = [(int(flat.document[row]), int(flat.offset[row])) for row in rows]
            ends = np.cumsum([b - a for a, b in spans])[:-1]
            return np.split(np.asarray(sweep.read(subject, unit, places)) / peak, ends) if rows else []

        def react(texts: Sequence[str]) -> Floats:
            found = unit.sign * subject.activations([subject.encode(t)[:WINDOW] for t in texts], [unit])[:, 1:, 0]
            largest: Floats = np.nanmax(found.double().numpy(), axis=1) / peak
            return largest

        boundary, _ = side.rows(sweep.exemplars(unit, "score", "boundary"))
        alike = side.keep & np.isin(flat.text.ids, flat.text.ids[truth.rows])
        alike[truth.rows] = False
        places = {"firing": truth.rows, "boundary": boundary, "same token": np.flatnonzero(alike)}
        return cls(flat, side.keep, side.cluster, places, truth.strata, subject, read, react)

    @cached_property
    def window(self) -> Ints:
        """The number of each place's window [M]."""
        return np.searchsorted(self.text.text.starts, np.arange(len(self.keep)), side="right") - 1

    def rows(self, kind: str) -> Ints:
        return np.flatnonzero(self.keep) if kind == "random" else self.places[kind]


def salt(seed: int, purpose: str) -> int:
    """A number that makes the draws of one purpose differ from another's, and come again."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:5])


# One kind


class Draw:
    """Draws snippets of one purpose without replacement: no window gives two."""

    def __init__(self, ground: Ground, seed: int, purpose: str) -> None:
        self.ground, self.salt = ground, salt(seed, purpose)
        self.used: set[int] = set()

    def __call__(self, kind: str, count: int) -> list[Snippet]:
        """Up to `count` snippets around places of a kind whose reading agrees with it, after READ_AHEAD windows
        fewer: firing ones fire; of the others none does, and one of "boundary" is not below .25 P."""
        found: list[Snippet] = []
        for rows in _portions(self._order(kind), max(count, 1)):
            if len(found) == count:
                break
            values = self.ground.read([int(self.ground.window[row]) for row in rows])
            made = [self._cut(int(row), level, kind) for row, level in zip(rows, values, strict=True)]
            right = [(row, one) for row, one in zip(rows, made, strict=True) if _agrees(one)][: count - len(found)]
            self.used.update(int(self.ground.window[row]) for row, _ in right)
            found += [one for _, one in right]
        return found

    def _order(self, kind: str) -> Ints:
        """Rows in the order in which they are tried, one a window."""
        ground, rows = self.ground, self.ground.rows(kind)
        rows = rows[np.argsort(position_key(rows + self.salt), kind="stable")]
        _, first = np.unique(ground.window[rows], return_index=True)
        rows = rows[np.sort(first)]
        window, starts = ground.window[rows], ground.text.text.starts
        fresh = (starts[window + 1] - starts[window] > SHORTEST) & ~np.isin(window, list(self.used))
        rows = rows[fresh]
        return rows[np.argsort(_rank(ground.cluster[rows]), kind="stable")][:READ_AHEAD]

    def _cut(self, row: int, values: Floats, kind: str) -> Snippet:
        """The snippet around a place: of the begins that leave it some context, any is as likely as any other."""
        size, place = min(SNIPPET, len(values)), self.place(row)
        low, high = max(0, place - size + 1), min(place - min(CONTEXT, place), len(values) - size)
        share = float(position_key(np.array([row + 2 * self.salt]))[0])
        return self.cut(row, values, kind, low + int(share * (high - low + 1)), size)

    def place(self, row: int) -> int:
        """How many tokens of its window stand before a place."""
        return row - int(self.ground.text.text.starts[self.ground.window[row]]) - 1

    def cut(self, row: int, values: Floats, kind: str, begin: int, size: int) -> Snippet:
        """`size` tokens of a place's window, whose y/P are `values`, from `begin` on."""
        ground, place = self.ground, self.place(row)
        ids = ground.text.text.ids[row - place + begin : row - place + begin + size].tolist()
        level = tuple(float(v) for v in values[begin : begin + size])
        return Snippet(tuple(ground.spells.pieces(ids)), level, int(ground.cluster[row]), place - begin, kind)

    def windows(self, kind: str, count: int) -> list[tuple[int, Floats]]:
        """Up to `count` places of a kind, in order, and y/P in the whole window of each."""
        rows = [int(row) for row in self._order(kind)[:count]]
        return list(zip(rows, self.ground.read([int(self.ground.window[row]) for row in rows]), strict=True))


def _agrees(snippet: Snippet) -> bool:
    """Whether a snippet is what it was drawn as."""
    if snippet.kind == "firing" or snippet.fires:
        return snippet.fires and snippet.kind == "firing"
    here = snippet.values[snippet.at]
    return {"boundary": here >= QUIET, "same token": here < QUIET}.get(snippet.kind, True)


def _rank(cluster: Ints) -> Ints:
    """How many before each [n] are of its own cluster."""
    seen: Counter[int] = Counter()
    ranks = np.zeros(len(cluster), dtype=np.int64)
    for i, one in enumerate(cluster.tolist()):
        ranks[i] = seen[one]
        seen[one] += 1
    return ranks


def _portions(rows: Ints, size: int) -> Iterator[Ints]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


# Sets


def balanced(ground: Ground, count: int, seed: int, purpose: str) -> list[Snippet]:
    """Up to `count` firing snippets and as many silent ones, in an order drawn by hash.

    Half of the silent ones are hard, of both kinds alike as far as there are enough; the rest is drawn from all places.
    """
    draw = Draw(ground, seed, purpose)
    firing = draw("firing", count)
    hard: list[Snippet] = []
    most = int(len(firing) * HARD)
    for kind, share in ((HARDS[0], most // 2), (HARDS[1], most), (HARDS[0], most)):
        hard += draw(kind, share - len(hard)) if share > len(hard) else []
    silent = hard + draw("random", len(firing) - len(hard))
    both = [*firing[: len(silent)], *silent]
    return [both[i] for i in np.random.default_rng(draw.salt).permutation(len(both))]


def marked(ground: Ground, count: int, seed: int, purpose: str) -> tuple[list[Marked], dict[str, int]]:
    """Up to `count` pairs of marked snippets, in an order drawn by hash, and how many of each kind there are.

    Of each pair one has its firing tokens marked (the three strongest at most), and the other, a snippet as long where
    there is one, has silent tokens marked at the very same offsets: neither the number of the marks nor where they
    stand tells which is which. Half of these others fire elsewhere ("moved"; they are of the first kind again where
    there are no further ones), the rest nowhere, of which half have a mark on a token that fires in other texts ("same
    token"), as far as there are such. A snippet that finds no partner is left out, and counted.
    """
    draw = Draw(ground, seed, purpose)
    firing = draw("firing", count + (count + 1) // 2)
    true, partners = firing[:count], _Partners(draw, firing, count)
    pairs: list[Marked] = []
    mix = dict.fromkeys(("moved", *_SILENT, "unmatched"), 0)
    for number, snippet in enumerate(true):
        marks = _strongest(snippet)
        kind, chosen = partners.find(snippet, marks, _TURNS[number % len(_TURNS)])
        mix[kind] += 1
        if chosen is not None:
            pairs += [Marked(snippet, marks, True), Marked(chosen, marks, False)]
    return [pairs[i] for i in np.random.default_rng(draw.salt).permutation(len(pairs))], mix


_SILENT = ("same token", "silent")
_TURNS = (("moved", *_SILENT), (*_SILENT, "moved"), ("moved", *_SILENT), ("silent", "moved", "same token"))


def _strongest(snippet: Snippet) -> tuple[int, ...]:
    firing = [i for i, value in enumerate(snippet.values) if value >= FIRES]
    return tuple(sorted(sorted(firing, key=lambda i: -snippet.values[i])[:MARKS]))


class _Partners:
    """Snippets that can be marked wrongly; each is given out once."""

    def __init__(self, draw: Draw, firing: Sequence[Snippet], count: int) -> None:
        most = 2 * min(count, len(firing))
        self._draw = draw
        self._alike = draw.windows("same token", most)
        draw.used.update(int(draw.ground.window[row]) for row, _ in self._alike)
        self._offered = {"moved": [*firing[count:], *firing[:count]], "silent": draw("random", most)}

    def find(self, snippet: Snippet, marks: tuple[int, ...], kinds: Sequence[str]) -> tuple[str, Snippet | None]:
        """A snippet that is silent at these offsets, of the first kind that has one, and the kind."""
        for kind in kinds:
            found = self._aligned(snippet, marks) if kind == "same token" else self._other(snippet, marks, kind)
            if found is not None:
                return kind, found
        return "unmatched", None

    def _other(self, snippet: Snippet, marks: tuple[int, ...], kind: str) -> Snippet | None:
        """The most alike in length."""
        offered = self._offered[kind]
        fits = [one for one in offered if one is not snippet and _silent_at(one, marks)]
        best = min(fits, key=lambda one: abs(len(one.tokens) - len(snippet.tokens)), default=None)
        self._offered[kind] = [one for one in offered if one is not best]
        return best

    def _aligned(self, snippet: Snippet, marks: tuple[int, ...]) -> Snippet | None:
        """One cut so that a token that fires elsewhere stands at a mark."""
        size = len(snippet.tokens)
        for number, (row, values) in enumerate(self._alike):
            for mark in marks:
                begin = self._draw.place(row) - mark
                if 0 <= begin <= len(values) - size:
                    one = self._draw.cut(row, values, "same token", begin, size)
                    if not one.fires and _silent_at(one, marks):
                        del self._alike[number]
                        return one
        return None


def _silent_at(snippet: Snippet, marks: tuple[int, ...]) -> bool:
    return marks[-1] < len(snippet.values) and all(snippet.values[i] < QUIET for i in marks)


__all__ = ["Draw", "Ground", "Marked", "Snippet", "balanced", "marked", "salt"]
