"""Near misses: score-side texts on which a unit fires, with one word changed so that it does not.

They ask what random text cannot: whether a rule knows what the unit needs, or only what usually stands around it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .collect import position_key
from .masked import MaskedLM
from .measures import NEAR_SWAPS, NEAR_TEXTS, NEAR_WORDS, STRATA
from .proposers import Proposers
from .reader import Reader
from .spelled import Spelled
from .subject import Subject
from .substitute import swap_word
from .sweep import Place, Sweep
from .units import UnitId


@dataclass(frozen=True)
class NearMiss:
    """A text one substitution away from a score-side firing text: ids with the sink first, read at the last one.

    document: the firing text's; activation: y there, a near miss only below 0.25 P.
    """

    document: int
    ids: tuple[int, ...]
    activation: float


def near_misses(subject: Subject, sweep: Sweep, masked: MaskedLM, unit: UnitId) -> list[NearMiss]:
    """Reads up to 20 firing texts of the score side, of as many clusters, with each of their last words changed.

    Each of the six words that end with the firing one is replaced, one at a time, by three words that the masked LM
    proposes there; those under which y falls below 0.25 P are near misses. Not knowing the unit's rule or its minimal
    examples, they favour no explanation of it.
    """
    peak = sweep.statistics(unit).peak
    proposing = Proposers(subject, masked, (), 0)
    found: dict[tuple[int, ...], NearMiss] = {}
    for place in _texts(sweep, unit):
        rows = [tuple(row) for row in _changed(subject, sweep, proposing, place)]
        values = Reader(subject, [unit.site])(rows, unit).tolist()
        quiet = ((row, y) for row, y in zip(rows, values, strict=True) if y < STRATA[2] * peak)
        found |= {row: NearMiss(place[0], row, y) for row, y in quiet}
    return list(found.values())


def _texts(sweep: Sweep, unit: UnitId) -> list[Place]:
    """The firing places of smallest position hash, one a cluster."""
    firings = sweep.firings(unit)
    keys = position_key(np.array([sweep.documents[e.document].start + e.offset for e in firings]))
    chosen: dict[int, Place] = {}
    for i in np.argsort(keys):
        chosen.setdefault(sweep.documents[firings[i].document].cluster, firings[i].place)
    return list(chosen.values())[:NEAR_TEXTS]


def _changed(subject: Subject, sweep: Sweep, proposing: Proposers, place: Place) -> Iterator[list[int]]:
    """The text up to the place with one of its last words changed, ending where the unit is read."""
    ids, position = sweep.window(place)
    spelled, row = Spelled(subject, ids), ids[: position + 1]
    words = [w for w in spelled.words() if w.first <= position and "�" not in w.text][-NEAR_WORDS:]
    for word in words:
        for other in proposing.propose("masked", spelled, word, NEAR_SWAPS):
            swap = swap_word(spelled, word, other, "masked", len(row))
            if swap.fits(row, subject.context):
                yield swap.put_in(row)


__all__ = ["NearMiss", "near_misses"]
