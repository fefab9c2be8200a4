"""Near copies among documents: found by sampled word shingles, verified on all of them.

Two documents are near copies when they share NEAR_SHARE of the smaller one's shingles, a run of NEAR_RUN words, or,
where they are short and of like length, NEAR_ORDER of the shorter one's words in the same order: of a short text from
which 30 % of the words were deleted fewer shingles than that may be left.
Shingles that stand in many documents (licences, headings, option texts) are boilerplate: they are not counted, a run
made of nothing else is no evidence, and words of nothing else are not compared.
Shingles are compared by 64-bit hashes: among ten million of them a single collision has probability 3e-6.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from . import measures

Hashes = NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_STRETCH = measures.NEAR_RUN - measures.SHINGLE + 1      # shingles in a run that makes two documents near copies
_MANY = np.uint64(0x9E3779B97F4A7C15)   # odd, so that powers of it never vanish modulo 2**64


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def words(text: str) -> Hashes:
    """Hashes of the words of a text, [n_words] uint64: NFKC, case folded, every digit turned into 0."""
    folded = re.sub(r"\d", "0", unicodedata.normalize("NFKC", text).casefold())
    return np.fromiter(map(_word_hash, _WORD.findall(folded)), dtype=np.uint64)


def shingles(hashed: Hashes, width: int) -> Hashes:
    """One hash for each run of `width` words, [n_words − width + 1], in order; one for the whole of a shorter text."""
    width = min(width, len(hashed))
    if width == 0:
        return np.zeros(0, dtype=np.uint64)
    with np.errstate(over="ignore"):
        total = np.zeros(len(hashed) - width + 1, dtype=np.uint64)
        for k in range(width):
            total = total * _MANY + hashed[k : k + len(total)]
        total ^= total >> np.uint64(31)         # a product's low bits are poor: mix before the smallest are compared
        total *= np.uint64(0xBF58476D1CE4E5B9)
        total ^= total >> np.uint64(29)
    return total


def near_copies(texts: Sequence[str]) -> list[tuple[int, int]]:
    """All pairs i < j of near copies.

    Candidates are pairs where a sampled shingle of one stands anywhere in the other. The sample of a document holds its
    SKETCH smallest shingles (a pair that shares .2 of the smaller document escapes them with probability .8^256) and
    the smallest of every stretch of shingles as long as a shared run, so that no such run can escape (winnowing:
    Schleimer, Wilkerson and Aiken 2003). A shingle in more than max(COMMON_SHINGLE, COMMON_SHARE of the documents) is
    dropped, which bounds the work: linear in words for a given number of holders.
    """
    hashed = [words(text) for text in texts]
    runs = [shingles(each, measures.SHINGLE) for each in hashed]
    common = _common(runs)
    rare = [np.setdiff1d(run, common) for run in runs]
    own = [_outside(each, run, common) for each, run in zip(hashed, runs, strict=True)]
    found = []
    for i, j in _candidates([_sample(run, own, common) for run, own in zip(runs, rare, strict=True)], rare):
        shared = len(np.intersect1d(rare[i], rare[j], assume_unique=True))
        enough = shared >= measures.NEAR_SHARE * min(len(rare[i]), len(rare[j]))
        rest = ~np.isin(runs[i], common)
        if enough or _common_run(hashed[i], hashed[j], rest) or _same_order(own[i], own[j]):
            found.append((i, j))
    return found


def _common(runs: Sequence[Hashes]) -> Hashes:
    """Shingles that stand in too many documents to tell copies from boilerplate."""
    if not runs:
        return np.zeros(0, dtype=np.uint64)
    values, counts = np.unique(np.concatenate([np.unique(run) for run in runs]), return_counts=True)
    most = max(measures.COMMON_SHINGLE, measures.COMMON_SHARE * len(runs))
    return values[counts > most]


def _sample(run: Hashes, rare: Hashes, common: Hashes) -> Hashes:
    """The shingles of one document under which it is looked up: its smallest, and the smallest of every stretch."""
    if len(run) < _STRETCH:
        return rare[: measures.SKETCH]
    worth = np.where(np.isin(run, common), np.iinfo(np.uint64).max, run)
    lowest = np.unique(sliding_window_view(worth, _STRETCH).min(axis=1))
    return np.union1d(rare[: measures.SKETCH], lowest)


def _candidates(samples: Sequence[Hashes], rare: Sequence[Hashes]) -> Iterator[tuple[int, int]]:
    """Pairs i < j in which a sampled shingle of one stands in the other, each once."""
    if not rare:
        return
    owner = np.repeat(np.arange(len(rare)), [len(own) for own in rare])
    held = np.concatenate(list(rare))
    order = np.argsort(held, kind="stable")
    held, owner = held[order], owner[order]
    pairs: set[tuple[int, int]] = set()
    for i, sample in enumerate(samples):
        first, last = np.searchsorted(held, sample, "left"), np.searchsorted(held, sample, "right")
        for a, b in zip(first[last - first > 1], last[last - first > 1], strict=True):
            pairs.update((min(i, int(j)), max(i, int(j))) for j in owner[a:b] if j != i)
    yield from sorted(pairs)


def _common_run(one: Hashes, other: Hashes, rare: NDArray[np.bool_]) -> bool:
    """Whether two texts, as word hashes, share a run of NEAR_RUN words with one of the `rare` shingles in it."""
    if min(len(one), len(other)) < measures.NEAR_RUN:
        return False
    shared = np.isin(shingles(one, measures.NEAR_RUN), shingles(other, measures.NEAR_RUN))
    return bool((shared & sliding_window_view(rare, _STRETCH).any(axis=1)).any())


def _outside(hashed: Hashes, run: Hashes, common: Hashes) -> Hashes:
    """The words of a text that stand in some shingle that is no boilerplate."""
    kept = np.zeros(len(hashed), dtype=bool)
    width = len(hashed) - len(run) + 1
    for first in np.flatnonzero(~np.isin(run, common)):
        kept[first : first + width] = True
    return hashed[kept]


def _same_order(one: Hashes, other: Hashes) -> bool:
    """Whether NEAR_ORDER of the shorter text's words stand in the longer one in the same order."""
    short, long = sorted((one, other), key=len)
    if len(short) > measures.ORDER_WORDS or len(long) > measures.ORDER_SIZES * len(short):
        return False
    return common_subsequence(short, long) >= measures.NEAR_ORDER * len(short)


def common_subsequence(one: Hashes, other: Hashes) -> int:
    """The length of the longest sequence that is in both, gaps allowed.

    A bit for each place of `one`, one step for each word of `other` (Hyyrö, AWOCA 2004).
    """
    places: dict[int, int] = {}
    for place, word in enumerate(one.tolist()):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    free = every                      # places where no longer sequence ends yet
    for word in other.tolist():
        here = free & places.get(word, 0)
        free = ((free + here) | (free - here)) & every
    return len(one) - free.bit_count()


def components(n: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The connected component of each of n documents, numbered in the order of their first document (union-find)."""
    root = list(range(n))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in pairs:
        one, other = sorted((find(i), find(j)))
        root[other] = one
    number: dict[int, int] = {}
    return [number.setdefault(find(i), len(number)) for i in range(n)]
