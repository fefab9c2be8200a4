"""Frames: texts of which some tokens are kept and all others taken out, and how such texts are read.

Tokens are taken out in one of three ways; the unit is read at the tracked position, which is the text's last token
after the causal cut. `resample` (the default) puts seeded stretches of other text in their places and averages over
eight draws; `mask` puts one and the same common token there; `delete` takes them out, which also moves the others
towards the sink.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from ..store.records import Refused
from . import corpus
from .measures import DRAWS, SALT, STRETCH
from .reader import Reader
from .subject import Subject
from .units import UnitId

MODES = ("resample", "delete", "mask")

Kept = frozenset[int]
_pools: WeakKeyDictionary[Subject, NDArray[np.int64]] = WeakKeyDictionary()


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

    The mask's token is the commonest of the pool (in English text a comma, a full stop or an article): it is plain
    text, unlike a pad or mask token, which a causal model has hardly seen inside a text.
    """
    if mode == "delete":
        return Frame(tuple(ids), mode, None)
    if mode == "mask":
        values, counts = np.unique(pool, return_counts=True)
        return Frame(tuple(ids), mode, np.full((1, len(ids)), values[counts.argmax()]))
    return Frame(tuple(ids), mode, stretches(pool, DRAWS, len(ids), seeded("draws", seed, tuple(ids))))


def stretches(
    pool: NDArray[np.int64], rows: int, length: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Fillers [rows, length]: stretches of 12 tokens of the pool, each from a random place on (its end goes on at its
    start). Running text disturbs deep units less than tokens drawn one by one.
    """
    column = np.arange(length)
    first = generator.integers(len(pool), size=(rows, length // STRETCH + 1))
    places: NDArray[np.int64] = (first[:, column // STRETCH] + column % STRETCH) % len(pool)
    return pool[places]


def filler_pool(subject: Subject, fillers: Iterable[int] | None = None) -> NDArray[np.int64]:
    """The ids that replacements are drawn from, in the text's order; sink and special tokens are left out.

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


def seeded(*parts: object) -> np.random.Generator:
    """A generator whose draws depend on these alone."""
    digest = hashlib.sha256(repr((SALT, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def track(reader: Reader, unit: UnitId, ids: Sequence[int]) -> tuple[list[int], float]:
    """Cuts `ids` after the tracked position; returns the cut ids and the reading there. Raises Refused if it is ≤ 0."""
    values = reader.along(ids, unit)
    at = max(range(1, len(ids)), key=values.__getitem__)
    if values[at] <= 0:
        raise Refused(
            f"{unit} is silent on this text: its highest reading is {values[at]:.3g}, at "
            f"{reader.subject.piece(ids[at])!r}; give a text on which it is positive."
        )
    return list(ids[: at + 1]), values[at]


def read_means(reader: Reader, unit: UnitId, groups: Iterable[list[list[int]]]) -> list[float]:
    """Mean reading at the last position over the rows of each group."""
    return read_groups(reader, [(unit, rows) for rows in groups])


def read_groups(reader: Reader, groups: Sequence[tuple[UnitId, list[list[int]]]]) -> list[float]:
    """Mean reading at the last position over the rows of each group, each group of a unit of its own."""
    values = reader([row for _, rows in groups for row in rows], [unit for unit, rows in groups for _ in rows])
    return [float(part.mean()) for part in torch.split(values, [len(rows) for _, rows in groups])]


def kept_text(pieces: Sequence[str], kept: Iterable[int]) -> str:
    """The kept pieces in order, without outer white space; a gap shows as "…", with a space where the text has one."""
    result, before = "", None
    for i in sorted(kept):
        if before is not None and i > before + 1:
            result += " …" if pieces[before + 1].startswith(" ") else "…"
        result += pieces[i]
        before = i
    return result.strip()
