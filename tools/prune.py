"""Minimal examples: the fewest tokens of a text that keep a unit firing, with a certificate.

A set of tokens is kept and all others are taken out, in one of the ways of `frames`. Subsets are never enumerated:
suffixes that double in length find a first set, halving removes tokens in a given order, and every search ends with
one batch in which each single further removal fails. All searches run in step and share their batches.

The idea of cutting at the pivot and pruning what stands before it is Foote et al.'s (Neuron to Graph, 2023); the
search follows delta debugging (Zeller and Hildebrandt, 2002).
"""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store.records import Evidence, Refused
from .frames import MODES, Frame, Kept, filler_pool, kept_text, make_frame, read_groups, seeded, track
from .measures import KEEP, MOST_KEPT, ORDER_SETS, RAISES, SHARE_SETS, WHOLE_TEXT
from .reader import Reader
from .subject import Subject
from .units import UnitId

DISJOINT = 3        # minimal sets reported that share no token but the tracked one

Search = Generator[list[Kept], list[bool], Kept]              # yields sets, is sent which of them pass
Pruning = Generator[list[Kept], list[float], "Minimal"]       # yields sets, is sent their readings


def minimal_example(
    subject: Subject,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    threshold: float = KEEP,
    mode: str = "resample",
    most: int = MOST_KEPT,
    seed: int = 0,
    fillers: Sequence[int] | None = None,
) -> Evidence:
    """Finds the fewest tokens of a text that keep the unit's strongest reading, and proves that none more can go.

    The tracked position is the argmax of y = sign × activation over the text's positions, the sink left out; what
    follows it is cut off, since it cannot matter. A set passes if its reading at the tracked position is at least
    threshold × peak. Out of one deterministic and 16 random-order 1-minimal sets the smallest is reported (ties:
    the larger retention). Random orders start from the whole text if it has at most 16 tokens, else from the
    shortest passing suffix of 1, 2, 4, 8, … tokens, whose length is checks["window"]. They are fewer where the
    deterministic search read more than 6 sets, and none where it read more than 96: checks["orders"] counts them.
    A search stops at more than `most` tokens that it could not do without, as a text that needs fifty costs a hundred
    times one that needs two: kept is then what was left, and no minimal set (one_minimal is False).

    Rows, the asked mode first, then the two others found by one deterministic search each:
    {text, tokens, ids, kept, kept_text, peak, retained, retention, mode, one_minimal, n_sets, shares}.
    text, tokens, ids: the cut text, its pieces and its ids, the last two with the sink at 0. kept: indices into ids,
    ascending, the tracked position last, the sink never listed. kept_text: their text, gaps as "…". peak: reading of
    the whole text; retained: of the kept set (resample: mean over 8 draws); retention = retained / peak, which is
    above 1 where a removed token held the unit down. one_minimal: every single further removal read below
    threshold × peak in a last batch. n_sets: distinct minimal sets found. shares: for each of ids, the share of the
    random-order sets that hold it, None where none could (the sink, and what stands before the window), and None as a
    whole without any, as in the two other rows.

    checks["inhibitors"] lists positions whose single removal from the whole text raises the reading to 1.25 × peak
    (in texts of more than 16 tokens found by halving). checks["disjoint"] has up to two more 1-minimal sets {kept,
    kept_text, retention} that share no token but the tracked one: of a unit with an OR, its other ways to fire.
    Raises Refused where the unit is silent (peak ≤ 0), and for a threshold outside (0, 1], an unknown mode, most < 1,
    an empty or over-long text, or fillers without one plain token.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        threshold: share of the whole text's reading that must be kept, above 0 and at most 1.
        mode: how tokens are removed: resample, delete or mask.
        most: tokens, the tracked one included, of the longest minimal example that is looked for.
        seed: seeds the draws and the random orders.
        fillers: token ids to draw replacements from; default: the tokens of the built-in corpus.
    """
    given = subject.take(text, ids)
    options: dict[str, Any] = {"threshold": threshold, "mode": mode, "most": most, "seed": seed, "fillers": fillers}
    (found,) = minimal_examples(subject, [(unit, given)], **options)
    return found if ids is not None else replace(found, arguments={**found.arguments, "text": text, "ids": None})


def minimal_examples(
    subject: Subject,
    cases: Sequence[tuple[UnitId, Sequence[int]]],
    *,
    threshold: float = KEEP,
    mode: str = "resample",
    most: int = MOST_KEPT,
    seed: int = 0,
    fillers: Sequence[int] | None = None,
) -> list[Evidence]:
    """`minimal_example` of many units and texts (ids, the sink first), whose searches run in step and share batches.

    Equal to the results one by one within rounding. cost: of all, each case's share by the sets that it read.
    Raises Refused as there, and then for the first case that cannot be pruned.
    """
    if mode not in MODES:
        raise Refused(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}.")
    if not 0 < threshold <= 1:
        raise Refused(f"threshold {threshold} is outside (0, 1]; give the share of the reading to keep, as in 0.5.")
    if most < 1:
        raise Refused(f"no minimal example has {most} tokens; give at least 1.")
    given = [subject.take(None, ids) for _, ids in cases]
    pool = filler_pool(subject, fillers)
    reader = Reader(subject, sorted({unit.site for unit, _ in cases}))
    modes = (mode, *(other for other in MODES if other != mode))
    searches: list[tuple[UnitId, Frame, Pruning]] = []
    with subject.metered() as cost:
        for (unit, _), ids in zip(cases, given, strict=True):
            row, peak = track(reader, unit, ids)
            for frame in (make_frame(row, m, pool, seed) for m in modes):
                orders = SHARE_SETS if frame.mode == mode else 0
                searches.append((unit, frame, prune(frame, peak, threshold, seed, orders, most)))
        results = run_prunings(reader, searches)
    found = [results[k : k + len(modes)] for k in range(0, len(results), len(modes))]
    read = [sum(len(m.known) for m in one) for one in found]
    options = {
        "threshold": threshold, "mode": mode, "most": most, "seed": seed,
        "fillers": None if fillers is None else [int(i) for i in fillers],
    }  # fmt: skip
    return [
        _evidence(subject, unit, {"text": None, "ids": ids, **options}, one, pool, _share(cost, mine / sum(read)))
        for (unit, _), ids, one, mine in zip(cases, given, found, read, strict=True)
    ]


def _share(cost: dict[str, float], share: float) -> dict[str, float]:
    return {name: round(value * share, 3 if name == "seconds" else None) for name, value in cost.items()}


def _evidence(
    subject: Subject, unit: UnitId, arguments: dict[str, Any], found: list["Minimal"], pool: NDArray[np.int64],
    cost: dict[str, float],
) -> Evidence:  # fmt: skip
    best = found[0]
    pieces = subject.pieces(best.frame.ids)
    checks = {
        "fired": int(cost["forward_rows"]),
        "peak": best.peak,
        "tracked": len(pieces) - 1,
        "sets_read": len(best.known),
        "window": len(best.window),
        "orders": len(best.random),
        "largest_further": best.further,
        "inhibitors": list(best.inhibitors),
        "disjoint": [
            {"kept": sorted(s), "kept_text": kept_text(pieces, s), "retention": best.known[s] / best.peak}
            for s in best.disjoint
        ],
        "fillers": hashlib.sha256(pool.tobytes()).hexdigest()[:16],
    }
    return Evidence(
        tool="minimal_example",
        unit=unit.bare,
        sign=unit.sign,
        arguments=arguments,
        summary=_summary(unit, pieces, best),
        rows=[_row(subject, pieces, m) for m in found],
        checks=checks,
        warnings=_warnings(pieces, best),
        cost=cost,
    )


def run_prunings(reader: Reader, cases: Sequence[tuple[UnitId, Frame, Pruning]]) -> list["Minimal"]:
    """Runs prunings side by side, of whatever units and texts: what they want next is read in one go."""

    def answer(wanted: list[tuple[int, list[Kept]]]) -> list[float]:
        return read_groups(reader, [(cases[k][0], cases[k][1].rows(s)) for k, sets in wanted for s in sets])

    steps = _in_step([pruning for _, _, pruning in cases])
    values: list[float] | None = None
    while True:
        try:
            wanted = steps.send(values)
        except StopIteration as end:
            return list(end.value)
        values = answer(wanted)


def _in_step(searches: Sequence[Generator[list[Kept], Any, Any]]) -> Generator[list[tuple[int, list[Kept]]], Any, Any]:
    """Runs searches side by side: yields (number, sets wanted) of each that goes on, is sent all answers in a row.

    Returns what each returned.
    """
    done: dict[int, Any] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        wanted: list[tuple[int, list[Kept]]] = []
        for k, answer in answers.items():
            try:
                wanted.append((k, searches[k].send(answer)))
            except StopIteration as end:
                done[k] = end.value
        replies = iter((yield wanted)) if wanted else iter(())
        answers = {k: [next(replies) for _ in sets] for k, sets in wanted}
    return [done[k] for k in range(len(searches))]


# Searching


@dataclass(frozen=True)
class Minimal:
    """What one frame gave: the smallest set found, all readings, and the sets of the random orders.

    further: the largest retention among its single further removals (None where only the tracked token is kept).
    found: all minimal sets, none where the search stopped; kept is then what was left, which passes.
    disjoint: further 1-minimal sets that share no token but the tracked one with it or each other. inhibitors:
    positions whose removal from the whole text raises its reading to RAISES × peak.
    """

    frame: Frame
    known: dict[Kept, float]
    kept: Kept
    peak: float
    further: float | None
    one_minimal: bool
    window: Kept
    found: tuple[Kept, ...]
    random: tuple[Kept, ...]
    disjoint: tuple[Kept, ...]
    inhibitors: tuple[int, ...]

    @property
    def stopped(self) -> bool:
        """Whether the search ended before it found a minimal set."""
        return not self.found

    @property
    def retained(self) -> float:
        return self.known[self.kept]


def prune(frame: Frame, peak: float, threshold: float, seed: int, orders: int, most: int) -> Pruning:
    """The smallest of 1 + `orders` 1-minimal sets in one frame, certified by single further removals.

    Where the first search stops at more than `most` needed tokens, what it had left is all there is.

    Yields the sets that it wants read, each once, and is sent their readings. Disjoint sets and inhibitors are looked
    for where random orders are. Of these as many are run as read ORDER_SETS sets if each reads what the first search
    did: one more seldom finds a smaller set, and a text that needs many tokens would cost a hundred times the usual.
    """
    sets = _Sets(frame, peak, threshold)
    last = len(frame.ids) - 1
    (suffix,) = yield from sets.follow([_grow(frame.whole)])
    window = frame.whole if last <= WHOLE_TEXT else suffix
    found = yield from sets.follow([_shrink(suffix, sorted(suffix - {last}), most)])
    if len(found[0]) > most:
        return Minimal(frame, sets.known, found[0], peak, None, False, window, (), (), (), ())
    rng = seeded("orders", seed, frame.ids)
    free = sorted(window - {last})
    run = min(orders, ORDER_SETS // len(sets.known))
    more = yield from sets.follow([_shrink(window, rng.permutation(free).tolist(), most) for _ in range(run)])
    found += (s for s in more if len(s) <= most)
    best = min(found, key=lambda s: (len(s), -sets.known[s], sorted(s)))
    singles = yield from sets.read(best - {i} for i in best - {last})
    further = max((value / peak for value in singles), default=None)
    disjoint = (yield from sets.disjoint(best, most)) if orders else ()
    inhibitors = (yield from sets.inhibitors(best)) if orders else ()
    certified = further is None or further < threshold
    return Minimal(
        frame, sets.known, best, peak, further, certified, window, tuple(found), tuple(found[1:]), disjoint, inhibitors
    )


class _Sets:
    """Sets of one frame; each is read once, and the whole text's reading is its peak."""

    def __init__(self, frame: Frame, peak: float, threshold: float) -> None:
        self.frame, self.peak, self.threshold = frame, peak, threshold
        self.known: dict[Kept, float] = {frame.whole: peak}

    def read(self, sets: Iterable[Kept]) -> Generator[list[Kept], list[float], list[float]]:
        asked = list(sets)
        new = [s for s in dict.fromkeys(asked) if s not in self.known]
        if new:
            self.known.update(zip(new, (yield new), strict=True))
        return [self.known[s] for s in asked]

    def follow(self, searches: Sequence[Search]) -> Generator[list[Kept], list[float], list[Kept]]:
        """What searches find that want to know which sets pass: those that keep threshold × peak."""
        steps = _in_step(searches)
        passing: list[bool] | None = None
        while True:
            try:
                wanted = steps.send(passing)
            except StopIteration as end:
                return list(end.value)
            values = yield from self.read(s for _, sets in wanted for s in sets)
            passing = [value >= self.threshold * self.peak for value in values]

    def disjoint(self, best: Kept, most: int) -> Generator[list[Kept], list[float], tuple[Kept, ...]]:
        """Up to two more 1-minimal sets: of what is left of the text without the sets found so far."""
        last = {len(self.frame.ids) - 1}
        found: list[Kept] = []
        left = self.frame.whole - best | last
        while best != last and len(found) < DISJOINT - 1:
            (value,) = yield from self.read([left])
            if value < self.threshold * self.peak:
                break
            (suffix,) = yield from self.follow([_grow(left)])
            (other,) = yield from self.follow([_shrink(suffix, sorted(suffix - last), most)])
            if len(other) > most:
                break
            found.append(other)
            left = left - other | last
        return tuple(found)

    def inhibitors(self, best: Kept) -> Generator[list[Kept], list[float], tuple[int, ...]]:
        """Positions whose single removal raises the whole text's reading to RAISES × peak, each tried.

        In texts of more than WHOLE_TEXT tokens they are found by halving what `best` leaves out: one that only raises
        the reading beside others that lower it as much may be missed there.
        """
        whole, last = self.frame.whole, len(self.frame.ids) - 1
        found: list[int] = []
        blocks = [Kept({i}) for i in range(1, last)] if last <= WHOLE_TEXT else [whole - best]
        while blocks:
            values = yield from self.read(whole - block for block in blocks)
            raising = [sorted(b) for b, value in zip(blocks, values, strict=True) if value >= RAISES * self.peak]
            found += [b[0] for b in raising if len(b) == 1]
            blocks = [Kept(h) for b in raising if len(b) > 1 for h in (b[: len(b) // 2], b[len(b) // 2 :])]
        return tuple(sorted(found))


# Searches: they yield the sets that they want tried, are sent which of them pass, and return the set they found


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


def _shrink(start: Kept, order: Sequence[int], most: int) -> Search:
    """A 1-minimal subset of `start`, which passes: tokens go in `order`, as many at once as halving finds.

    In a unit that only gains by added tokens this is the set that removal one by one in that order leaves, for about
    k log2(n/k) readings in place of n. In any other unit tokens that stayed may go once others are gone: then those
    that can go by themselves are tried like that again. A set of more than `most` tokens is what was left when so many
    were needed, and not 1-minimal.
    """
    kept = yield from _without(start, order, most)
    while len(kept) <= most:
        left = [i for i in order if i in kept]
        flags = yield [kept - {i} for i in left]
        if not any(flags):
            return kept
        kept = yield from _without(kept, [i for i, passes in zip(left, flags, strict=True) if passes], most)
    return kept


def _without(start: Kept, order: Sequence[int], most: int) -> Search:
    """`start` without what of `order` can go, one after the other, till `most` of them are needed."""
    kept, left, needed = start, list(order), 0
    while left and needed < most:
        goes, stays = 0, len(left) + 1  # the first `goes` of left can go together; the first `stays` cannot
        size = len(left)
        while stays - goes > 1:
            if (yield [kept.difference(left[:size])])[0]:
                goes = size
            else:
                stays = size
            size = (goes + stays) // 2
        kept, left, needed = kept.difference(left[:goes]), left[goes + 1 :], needed + 1
    return kept


# Showing


def _row(subject: Subject, pieces: list[str], found: Minimal) -> dict[str, Any]:
    ids, kept = found.frame.ids, sorted(found.kept)
    n, window = len(found.random), found.window
    shares = [sum(i in s for s in found.random) / n if i in window else None for i in range(len(ids))] if n else None
    return {
        "text": subject.text(ids),
        "tokens": pieces,
        "ids": list(ids),
        "kept": kept,
        "kept_text": kept_text(pieces, kept),
        "peak": found.peak,
        "retained": found.retained,
        "retention": found.retained / found.peak,
        "mode": found.frame.mode,
        "one_minimal": found.one_minimal,
        "n_sets": len(set(found.found)),
        "shares": shares,
    }


def _summary(unit: UnitId, pieces: list[str], found: Minimal) -> str:
    kept = shorten(kept_text(pieces, found.kept), 80, placeholder="…")
    sets = len(set(found.found))
    if found.stopped:
        return (
            f"{unit} has no short minimal example in this text ({found.frame.mode}): the search stopped with "
            f"{len(found.kept)} of {len(pieces) - 1} tokens left, too many of which it needs; a higher `most` goes on."
        )
    return (
        f"{unit} keeps {found.retained / found.peak:.0%} of its reading {found.peak:.3g} on {kept!r} "
        f"({len(found.kept)} of {len(pieces) - 1} tokens, {found.frame.mode}), "
        f"{'and no single token more can go' if found.one_minimal else 'NOT certified'}; "
        f"{sets} minimal set{'s' * (sets > 1)} found."
    )


def _warnings(pieces: list[str], found: Minimal) -> list[str]:
    said = []
    if found.frame.mode == "delete":
        said.append("deleting moves tokens towards the sink: such sets may be artefacts of position")
    if len(pieces) > 2 and found.kept == found.frame.whole and not found.stopped:
        said.append("no token of this text can go")
    if found.disjoint:
        others = ", ".join(repr(kept_text(pieces, s)) for s in found.disjoint)
        said.append(f"other words do as well without those: {others}")
    if found.inhibitors:
        said.append("held down by " + ", ".join(repr(pieces[i]) for i in found.inhibitors))
    elif found.retained >= RAISES * found.peak:
        said.append("the kept tokens read higher than the whole text: what was removed holds the unit down")
    return said
