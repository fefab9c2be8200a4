"""Where the words that a unit needs may stand: at which positions, and how far before the token on which it fires."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..store.records import Evidence
from .frames import filler_pool, kept_text, read_means, stretches
from .held import Held, effect, hold
from .measures import UNSURE, WINDOW
from .reader import Reader
from .spelled import Word
from .subject import Subject
from .units import UnitId

GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, WINDOW - 1)     # positions and distances tried first
DISTANCES = 32        # farthest distance tried
DRAWS = 4             # fillers averaged over
WORDS = 4             # kept words moved, those nearest to the tracked token first


Placed = dict[int, int]     # position: token


@dataclass(frozen=True)
class _Move:
    """One thing that is moved. put: the tokens that stand where, and the tracked position, with it at a place; None
    where it cannot stand there. now: the place it has; None for what is added."""

    what: str
    moved: str
    now: int | None
    farthest: int
    put: Callable[[int], tuple[Placed, int] | None]


def shift(
    subject: Subject,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    kept: Sequence[int] | None = None,
    words: Sequence[str] | None = None,
    seed: int = 0,
) -> Evidence:
    """Moves what a text's minimal example keeps and reads where it may stand for the unit to fire.

    The text is pruned by the first search of `minimal_example` in mode resample, and its kept tokens are widened to
    words; all other tokens are drawn from corpus text, mean over 4 draws. Moved are, one at a time: the whole pattern,
    so that the tracked token stands at another position in the window (what: position); each of the four kept words
    nearest before the tracked word, to another distance (what: distance; the tokens from its last one to the tracked
    one); and each of `words`, which is put in beside what is kept (added: true). Places are tried on a geometric grid
    up to 63, or to a distance of 32, and then between neighbours of which one fires, so that the edges are exact.
    Distances are read with the tracked token at the last position that fires. A place that another kept word holds is
    passed over.

    ratio = reading / reading of the minimal example's words in their own places; effect: kills (< 0.25), unsure
    (< 0.5), keeps (< 1.25), raises.

    Rows {what, moved, added, place, from, activation, ratio, effect, in_text, ids}; place: the position or distance
    tried; from: the one it has in the text (None for what is added); ids: the first draw; in_text: the ratio in that
    draw alone. checks: ranges [{what, moved, added, low, high, low_open, high_open}]: the places around its own at
    which the unit keeps half (ratio ≥ 0.5), or around the first that silences it those of what is added; open: nothing
    beyond was tried. kept, kept_text, whole and peak as in `substitute`. Raises Refused as `minimal_example` does, and
    for kept positions that are none.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        kept: positions to hold in place of the pruning's result, the text's strongest token among them.
        words: further words to put beside what is kept, as those that may silence the unit.
        seed: seeds the draws and the pruning.
    """
    given = subject.take(text, ids)
    reader = Reader(subject, [unit.site])
    with subject.metered() as cost:
        held = hold(reader, unit, given, kept, seed)
        tried = _Tried(reader, unit, held, seed)
        tried.follow(_whole(held))
        at = tried.last_firing()
        for move in [*_kept(held, at), *(_added(held, at, word) for word in words or ())]:
            tried.follow(move)
    pieces = subject.pieces(held.row)
    checks: dict[str, Any] = {
        "fired": int(cost["forward_rows"]), "ranges": tried.ranges, "kept": sorted(held.core),
        "kept_text": kept_text(pieces, held.core), "whole": held.whole,
        "peak": held.peak,
    }  # fmt: skip
    return Evidence(
        tool="shift",
        unit=unit.bare,
        sign=unit.sign,
        arguments={
            "text": text, "ids": None if ids is None else given, "kept": None if kept is None else sorted(held.core),
            "words": None if words is None else list(words), "seed": seed,
        },
        summary=_summary(unit, checks["kept_text"], tried.ranges),
        rows=tried.rows,
        checks=checks,
        cost=cost,
    )  # fmt: skip


# What is moved


def _whole(held: Held) -> _Move:
    """All that is held, as it stands, at other positions."""
    last = len(held.row) - 1

    def put(position: int) -> tuple[Placed, int] | None:
        placed = {i - last + position: held.row[i] for i in held.held}
        return (placed, position) if min(placed) >= 1 else None

    return _Move("position", kept_text(held.spelled.pieces, held.held), last, WINDOW - 1, put)


def _kept(held: Held, at: int) -> list[_Move]:
    """Each kept word before the tracked one, to other distances from it; the tracked token stands at `at`."""
    last = len(held.row) - 1
    before = [word for word in held.words if word.end <= last]

    def move(word: Word) -> _Move:
        mine = range(word.first, word.end)
        others = {i - last + at: held.row[i] for i in held.held if i not in mine}
        tokens = held.row[word.first : word.end]
        return _Move("distance", word.text, last - word.end + 1, DISTANCES, partial(_beside, others, tokens, at))

    return [move(word) for word in before[-WORDS:]]


def _added(held: Held, at: int, word: str) -> _Move:
    """A further word beside all that is held."""
    last = len(held.row) - 1
    others = {i - last + at: held.row[i] for i in held.held}
    tokens = held.spelled.subject.encode(f" {word}")[1:]
    return _Move("distance", word, None, DISTANCES, partial(_beside, others, tokens, at))


def _beside(others: Placed, tokens: Sequence[int], at: int, distance: int) -> tuple[Placed, int] | None:
    """`tokens` with the last of them at a distance before `at`, where no other stands."""
    end = at - distance
    placed = {end - len(tokens) + 1 + k: token for k, token in enumerate(tokens)}
    return ({**others, **placed}, at) if min(placed) >= 1 and not placed.keys() & others.keys() else None


class _Tried:
    """Places that were read, as rows, and the range that each thing has."""

    def __init__(self, reader: Reader, unit: UnitId, held: Held, seed: int) -> None:
        self.reader, self.unit, self.held = reader, unit, held
        pool = filler_pool(reader.subject)
        size = max(WINDOW, len(held.row))
        draw = np.random.default_rng([seed, *held.row])
        self.fillers = stretches(pool, DRAWS, size, draw)
        self.fillers[:, 0] = held.row[0]
        self.rows: list[dict[str, Any]] = []
        self.ranges: list[dict[str, Any]] = []

    def follow(self, move: _Move) -> None:
        """Reads a thing on the grid, then between neighbours of which one fires; notes its range."""
        known: dict[int, float] = {}
        wanted = sorted({*(g for g in GRID if g <= move.farthest), *([move.now] if move.now else [])})
        while wanted:
            known |= self._read(move, wanted)
            places = sorted(known)
            edges = [(a, b) for a, b in pairwise(places) if (known[a] >= UNSURE) != (known[b] >= UNSURE)]
            middles = (self._between(move, a, b) for a, b in edges)
            wanted = [m for m in middles if m is not None]
        self._note(move, known)

    def last_firing(self) -> int:
        """The last position at which the pattern fires; its own if there is none."""
        firing = [row["place"] for row in self.rows if row["ratio"] >= UNSURE]
        return max(firing, default=len(self.held.row) - 1)

    def _between(self, move: _Move, a: int, b: int) -> int | None:
        """The place nearest to the middle of two at which the thing can stand."""
        inside = sorted(range(a + 1, b), key=lambda place: (abs(2 * place - a - b), place))
        return next((place for place in inside if move.put(place) is not None), None)

    def _read(self, move: _Move, places: Sequence[int]) -> dict[int, float]:
        made = {place: put for place in places if (put := move.put(place)) is not None}
        groups = {place: self._texts(*put) for place, put in made.items()}
        texts = [*groups.values(), *([rows[0]] for rows in groups.values())]
        both = [value / self.held.whole for value in read_means(self.reader, self.unit, texts)]
        ratios = dict(zip(groups, zip(both[: len(groups)], both[len(groups) :], strict=True), strict=True))
        self.rows += [
            {
                "what": move.what, "moved": move.moved, "added": move.now is None, "place": place, "from": move.now,
                "activation": ratio * self.held.whole, "ratio": ratio, "effect": effect(ratio), "in_text": in_text,
                "ids": groups[place][0],
            }
            for place, (ratio, in_text) in ratios.items()
        ]  # fmt: skip
        return {place: ratio for place, (ratio, _) in ratios.items()}

    def _texts(self, placed: Placed, last: int) -> list[list[int]]:
        rows = self.fillers[:, : last + 1].copy()
        rows[:, list(placed)] = list(placed.values())
        return rows.tolist()  # type: ignore[no-any-return]

    def _note(self, move: _Move, known: dict[int, float]) -> None:
        """The tried places around one, without a gap, that do as it does: the own one fires, an added one silences."""
        places = sorted(known)
        fires = move.now is not None
        like = [(known[p] >= UNSURE) == fires for p in places]
        middle = places.index(move.now) if move.now in known else next((k for k, same in enumerate(like) if same), None)
        if middle is None or not like[middle]:
            return
        low = max((k + 1 for k in range(middle) if not like[k]), default=0)
        high = min((k - 1 for k in range(middle, len(like)) if not like[k]), default=len(like) - 1)
        self.ranges.append({
            "what": move.what, "moved": move.moved, "added": not fires, "low": places[low], "high": places[high],
            "low_open": low == 0, "high_open": high == len(like) - 1,
        })  # fmt: skip


def _summary(unit: UnitId, kept: str, ranges: Sequence[dict[str, Any]]) -> str:
    parts = [f"{unit} on {kept[-60:]!r}"]
    for found in ranges:
        span = f"{found['low']} to {found['high']}{' and on' if found['high_open'] else ''}"
        if found["low_open"] and found["high_open"] and found["low"] == found["high"]:
            continue     # no other place could be tried
        if found["what"] == "position":
            parts.append(f"keeps half of its reading at positions {span}")
        else:
            does = "is silenced by" if found["added"] else "needs"
            parts.append(f"{does} {found['moved']!r} {span} tokens before")
    return "; ".join(parts) + "."


__all__ = ["shift"]
