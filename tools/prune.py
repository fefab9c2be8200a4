"""Minimal examples: the fewest tokens of a text that keep a unit firing, with a certificate.

A set of tokens is kept and all others are removed in one of three ways; the unit is read at the tracked position,
which is the text's last token after the causal cut. `resample` (the default) puts seeded draws of corpus tokens in
their places and averages over them; `mask` puts one and the same common token there; `delete` takes them out, which
also moves the others towards the sink and so finds sets that are artefacts of position. Subsets are never enumerated:
suffixes that double in length find a first set, halving removes tokens in a given order, and every search ends with
one batch in which each single further removal fails. All searches of a mode run in step and share their batches.

The idea of cutting at the pivot and pruning what stands before it is Foote et al.'s (Neuron to Graph, 2023); the
search follows delta debugging (Zeller and Hildebrandt, 2002).
"""

import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from ..store.records import Evidence, Refused
from . import corpus
from .activate import read_tokens
from .measures import DRAWS, KEEP, RAISES, SALT, SHARE_SETS
from .subject import Subject
from .units import UnitId

MODES = ("resample", "delete", "mask")
WHOLE = 16  # tokens up to which random orders start from the whole text; in longer ones from the suffix that was found

Kept = frozenset[int]
Search = Generator[list[Kept], list[bool], Kept]
_pools: WeakKeyDictionary[Subject, NDArray[np.int64]] = WeakKeyDictionary()


def minimal_example(
    subject: Subject,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    threshold: float = KEEP,
    mode: str = "resample",
    seed: int = 0,
    fillers: Sequence[int] | None = None,
) -> Evidence:
    """Finds the fewest tokens of a text that keep the unit's strongest reading, and proves that none more can go.

    The tracked position is the argmax of y = sign × activation over the text's positions, the sink left out; what
    follows it is cut off, since it cannot matter. A set passes if its reading at the tracked position is at least
    threshold × peak. Out of one deterministic and 16 random-order 1-minimal sets the smallest is reported (ties:
    the larger retention). Random orders start from the whole text if it has at most 16 tokens, else from the
    shortest passing suffix of 1, 2, 4, 8, … tokens, whose length is checks["window"].

    Rows, the asked mode first, then the two others found by one deterministic search each:
    {text, tokens, ids, kept, kept_text, peak, retained, retention, mode, one_minimal, n_sets, shares}.
    text, tokens, ids: the cut text, its pieces and its ids, the last two with the sink at 0. kept: indices into ids,
    ascending, the tracked position last, the sink never listed. kept_text: their text, gaps as "…". peak: reading of
    the whole text; retained: of the kept set (resample: mean over 8 draws); retention = retained / peak, which is
    above 1 where a removed token held the unit down. one_minimal: every single further removal read below
    threshold × peak in a last batch. n_sets: distinct minimal sets found. shares: for each of ids, the share of the
    16 random-order sets that hold it, None at the sink (and None as a whole in the two other rows).

    checks["inhibitors"] lists the positions whose single removal from the whole text raises the reading to 1.25 × peak
    (None for texts of more than 16 tokens). Raises Refused where the unit is silent (peak ≤ 0), and for a threshold
    outside (0, 1], an unknown mode, an empty or over-long text, or fillers without one plain token.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        threshold: share of the whole text's reading that must be kept, above 0 and at most 1.
        mode: how tokens are removed: resample, delete or mask.
        seed: seeds the draws and the random orders.
        fillers: token ids to draw replacements from; default: the tokens of the built-in corpus.
    """
    if mode not in MODES:
        raise Refused(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}.")
    if not 0 < threshold <= 1:
        raise Refused(f"threshold {threshold} is outside (0, 1]; give the share of the reading to keep, as in 0.5.")
    given = subject.take(text, ids)
    pool = filler_pool(subject, fillers)
    with subject.metered() as cost:
        row, peak = track(subject, unit, given)
        found = [
            prune(subject, unit, make_frame(row, m, pool, seed), peak, threshold, seed, SHARE_SETS if m == mode else 0)
            for m in (mode, *(other for other in MODES if other != mode))
        ]
        inhibitors = _inhibitors(found[0]) if len(row) - 1 <= WHOLE else None
    best = found[0]
    pieces = subject.pieces(row)
    checks = {
        "fired": int(cost["forward_rows"]),
        "tracked": len(row) - 1,
        "sets_read": len(best.read.known),
        "window": len(best.window),
        "largest_further": best.further,
        "inhibitors": inhibitors,
        "fillers": hashlib.sha256(pool.tobytes()).hexdigest()[:16],
    }
    return Evidence(
        tool="minimal_example",
        unit=unit.bare,
        sign=unit.sign,
        arguments={
            "text": text, "ids": None if ids is None else given, "threshold": threshold, "mode": mode, "seed": seed,
            "fillers": None if fillers is None else [int(i) for i in fillers],
        },
        summary=_summary(unit, pieces, best),
        rows=[_row(subject, pieces, m) for m in found],
        checks=checks,
        warnings=_warnings(pieces, best, inhibitors),
        cost=cost,
    )  # fmt: skip


# How tokens are removed


@dataclass(frozen=True)
class Frame:
    """One cut text and what stands in for its removed tokens.

    draws[k, i] replaces token i in draw k, whatever the set, so that a reading is a function of the set alone;
    None: removed tokens are left out.
    """

    ids: tuple[int, ...]
    mode: str
    draws: NDArray[np.int64] | None

    @property
    def whole(self) -> Kept:
        return frozenset(range(1, len(self.ids)))

    def rows(self, kept: Collection[int]) -> list[list[int]]:
        """The rows whose mean reading at the last position is the reading of `kept`; the sink is in all of them."""
        if self.draws is None:
            return [[self.ids[0], *(self.ids[i] for i in sorted(kept))]]
        stays = [0, *kept]
        rows = self.draws.copy()
        rows[:, stays] = np.asarray(self.ids)[stays]
        return rows.tolist()  # type: ignore[no-any-return]


def make_frame(ids: Sequence[int], mode: str, pool: NDArray[np.int64], seed: int) -> Frame:
    """The frame of `ids` (cut, sink first): 8 draws a position, seeded by `seed` and the ids; for mask, one token.

    That token is the commonest of the pool (in English text a comma, a full stop or an article): it is plain text,
    unlike a pad or mask token, which a causal model has hardly seen inside a text.
    """
    if mode == "delete":
        return Frame(tuple(ids), mode, None)
    if mode == "mask":
        values, counts = np.unique(pool, return_counts=True)
        return Frame(tuple(ids), mode, np.full((1, len(ids)), values[counts.argmax()]))
    draws = _random("draws", seed, tuple(ids)).integers(len(pool), size=(DRAWS, len(ids)))
    return Frame(tuple(ids), mode, pool[draws])


def filler_pool(subject: Subject, fillers: Iterable[int] | None = None) -> NDArray[np.int64]:
    """The ids that replacements are drawn from, each as often as it occurs; sink and special tokens are left out.

    Default: the tokens of the built-in corpus's text, line by line. Raises Refused if nothing is left.
    """
    if fillers is None:
        if subject not in _pools:
            lines = filter(None, corpus.filler_text().splitlines())
            _pools[subject] = _plain(subject, (i for line in lines for i in subject.encode(line)[1:]))
        return _pools[subject]
    return _plain(subject, fillers)


def _plain(subject: Subject, ids: Iterable[int]) -> NDArray[np.int64]:
    pool = [int(i) for i in ids]
    bad = next((i for i in pool if not 0 <= i < subject.vocabulary), None)
    if bad is not None:
        raise Refused(f"filler {bad} is outside the vocabulary of {subject.name} (0 to {subject.vocabulary - 1}).")
    pool = [i for i in pool if i not in subject.special]
    if not pool:
        raise Refused("there is no filler beside sink and special tokens; give at least one plain token id.")
    return np.asarray(pool, dtype=np.int64)


def _random(*parts: object) -> np.random.Generator:
    digest = hashlib.sha256(repr((SALT, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


# Reading sets


def track(subject: Subject, unit: UnitId, ids: Sequence[int]) -> tuple[list[int], float]:
    """Cuts `ids` after the tracked position; returns the cut ids and the reading there. Raises Refused if it is ≤ 0."""
    values = read_tokens(subject, unit, ids)
    at = max(range(1, len(ids)), key=values.__getitem__)
    if values[at] <= 0:
        raise Refused(
            f"{unit} is silent on this text: its highest reading is {values[at]:.3g}, at {subject.piece(ids[at])!r}; "
            "give a text on which it is positive."
        )
    return list(ids[: at + 1]), values[at]


class Readings:
    """Readings of sets in one frame; each set is read once, and the whole text's is its peak."""

    def __init__(self, subject: Subject, unit: UnitId, frame: Frame, peak: float) -> None:
        self.subject, self.unit, self.frame = subject, unit, frame
        self.known: dict[Kept, float] = {frame.whole: peak}

    def __call__(self, sets: Iterable[Kept]) -> list[float]:
        asked = list(sets)
        new = [s for s in dict.fromkeys(asked) if s not in self.known]
        if new:
            self.known.update(zip(new, read_means(self.subject, self.unit, map(self.frame.rows, new)), strict=True))
        return [self.known[s] for s in asked]


def read_means(subject: Subject, unit: UnitId, groups: Iterable[list[list[int]]]) -> list[float]:
    """Mean reading at the last position over the rows of each group; all groups share their batches."""
    listed = list(groups)
    values = subject.readings([row for rows in listed for row in rows], unit)
    return [float(part.mean()) for part in torch.split(values, [len(rows) for rows in listed])]


# Searching: a search yields the sets it wants read, is sent which of them pass, and returns the set it found


@dataclass(frozen=True)
class Minimal:
    """What one mode gave: the smallest set found, its readings, and the sets of the random orders."""

    read: Readings
    kept: Kept
    peak: float
    further: float | None
    one_minimal: bool
    window: Kept
    found: tuple[Kept, ...]
    random: tuple[Kept, ...]

    @property
    def retained(self) -> float:
        return self.read.known[self.kept]


def prune(
    subject: Subject, unit: UnitId, frame: Frame, peak: float, threshold: float, seed: int, orders: int
) -> Minimal:
    """The smallest of 1 + `orders` 1-minimal sets in one frame, certified by single further removals.

    `further` is the largest retention among those (None where only the tracked token is kept).
    """
    read = Readings(subject, unit, frame, peak)
    last = len(frame.ids) - 1

    def passes(sets: list[Kept]) -> list[bool]:
        return [value >= threshold * peak for value in read(sets)]

    (suffix,) = _in_step([_grow(frame.whole)], passes)
    window = frame.whole if last <= WHOLE else suffix
    rng = _random("orders", seed, frame.ids)
    free = sorted(window - {last})
    shuffled = [_shrink(window, rng.permutation(free).tolist()) for _ in range(orders)]
    found = _in_step([_shrink(suffix, sorted(suffix - {last})), *shuffled], passes)
    best = min(found, key=lambda s: (len(s), -read.known[s], sorted(s)))
    singles = [best - {i} for i in best - {last}]
    further = max((value / peak for value in read(singles)), default=None)
    return Minimal(read, best, peak, further, not any(passes(singles)), window, tuple(found), tuple(found[1:]))


def _in_step(searches: Sequence[Search], passes: Callable[[list[Kept]], list[bool]]) -> list[Kept]:
    """Runs searches side by side: what they want next is read in one go."""
    done: dict[int, Kept] = {}
    answers: dict[int, list[bool] | None] = dict.fromkeys(range(len(searches)))
    while answers:
        wanted: dict[int, list[Kept]] = {}
        for k, answer in answers.items():
            try:
                wanted[k] = next(searches[k]) if answer is None else searches[k].send(answer)
            except StopIteration as end:
                done[k] = end.value
        flags = iter(passes([s for sets in wanted.values() for s in sets]))
        answers = {k: [next(flags) for _ in sets] for k, sets in wanted.items()}
    return [done[k] for k in range(len(searches))]


def _grow(whole: Kept) -> Search:
    """The first passing suffix of 1, 2, 4, 8, … tokens; the whole text passes without being asked."""
    order = sorted(whole)
    size = 1
    while size < len(order):
        suffix = frozenset(order[-size:])
        if (yield [suffix])[0]:
            return suffix
        size *= 2
    return whole


def _shrink(start: Kept, order: Sequence[int]) -> Search:
    """A 1-minimal subset of `start`, which passes: tokens go in `order`, as many at once as halving finds.

    In a unit that only gains by added tokens this is the set that removal one by one in that order leaves, for about
    k log2(n/k) readings in place of n. Any other unit may need the rounds of single removals at the end.
    """
    kept, left = start, list(order)
    while left:
        goes, stays = 0, len(left) + 1  # the first `goes` of left can go together; the first `stays` cannot
        size = len(left)
        while stays - goes > 1:
            if (yield [kept.difference(left[:size])])[0]:
                goes = size
            else:
                stays = size
            size = (goes + stays) // 2
        kept, left = kept.difference(left[:goes]), left[goes + 1 :]
    while True:
        singles = [kept - {i} for i in order if i in kept]
        flags = yield singles
        if not any(flags):
            return kept
        kept = singles[flags.index(True)]


def _inhibitors(found: Minimal) -> list[int]:
    """Positions whose single removal from the whole text raises its reading to RAISES × peak."""
    whole = found.read.frame.whole
    free = sorted(whole)[:-1]
    values = found.read([whole - {i} for i in free])
    return [i for i, value in zip(free, values, strict=True) if value >= RAISES * found.peak]


# Showing


def kept_text(pieces: Sequence[str], kept: Iterable[int]) -> str:
    """The kept pieces in order, without outer white space; a gap shows as "…", with a space where the text has one."""
    result, before = "", None
    for i in sorted(kept):
        if before is not None and i > before + 1:
            result += " …" if pieces[before + 1].startswith(" ") else "…"
        result += pieces[i]
        before = i
    return result.strip()


def _row(subject: Subject, pieces: list[str], found: Minimal) -> dict[str, Any]:
    ids, kept = found.read.frame.ids, sorted(found.kept)
    n = len(found.random)
    shares = [None, *(sum(i in s for s in found.random) / n for i in range(1, len(ids)))] if n else None
    return {
        "text": subject.text(ids),
        "tokens": pieces,
        "ids": list(ids),
        "kept": kept,
        "kept_text": kept_text(pieces, kept),
        "peak": found.peak,
        "retained": found.retained,
        "retention": found.retained / found.peak,
        "mode": found.read.frame.mode,
        "one_minimal": found.one_minimal,
        "n_sets": len(set(found.found)),
        "shares": shares,
    }


def _summary(unit: UnitId, pieces: list[str], found: Minimal) -> str:
    kept = shorten(kept_text(pieces, found.kept), 80, placeholder="…")
    sets = len(set(found.found))
    return (
        f"{unit} keeps {found.retained / found.peak:.0%} of its peak {found.peak:.3g} on {kept!r} "
        f"({len(found.kept)} of {len(pieces) - 1} tokens, {found.read.frame.mode}), "
        f"{'and no single token more can go' if found.one_minimal else 'NOT certified'}; "
        f"{sets} minimal set{'s' * (sets > 1)} found."
    )


def _warnings(pieces: list[str], found: Minimal, inhibitors: list[int] | None) -> list[str]:
    said = []
    if found.read.frame.mode == "delete":
        said.append("deleting moves tokens towards the sink: such sets may be artefacts of position")
    if len(pieces) > 2 and found.kept == found.read.frame.whole:
        said.append("no token of this text can go")
    if inhibitors:
        said.append("held down by " + ", ".join(repr(pieces[i]) for i in inhibitors))
    elif found.retained >= RAISES * found.peak:
        said.append("the kept tokens read higher than the whole text: what was removed holds the unit down")
    return said
