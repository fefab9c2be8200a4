"""The published way to minimal examples and substitutes, as the baseline of `bench_input`: Neuron to Graph.

The steps and parameters are those of Foote et al. (2023, arXiv:2305.19911) and its notebook: the shortest suffix of 5,
10, …, 30 tokens before the pivot, with 5 tokens behind it, that keeps more than half of the peak, else the longest; the
importance of each token, 1 − reading without it / reading; for each token of importance above .8 five words of a masked
language model, accepted where the reading stays above half of the peak; and the importances once more for each text
that was accepted.

It is run fairly: on ids, with the sink in front of every row, a common token in place of the masked one (the original
puts an unused token id there), the better of the proposer's two ways, words put in place without tokenising again,
and the reading at the pivot.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..tools.frames import filler_pool, make_frame
from ..tools.masked import MaskedLM
from ..tools.rules import Flags, Text
from ..tools.spelled import Spelled, Word
from ..tools.subject import Subject
from ..tools.substitute import swap_word
from ..tools.units import UnitId

STEP, LONGEST, BEHIND = 5, 30, 5        # tokens
Pattern = tuple[int, tuple[tuple[int, int], ...]]      # a pivot token, and tokens by their distance before it
KEEPS, IMPORTANT = 0.5, 0.8
PROPOSALS, BATCH = 5, 4


@dataclass(frozen=True)
class Loop:
    """What the loop gave for one exemplar.

    tokens: those up to the pivot that are kept, the sink left out; passed: whether they keep half of the peak;
    important: positions in `ids` (kept text, sink first) with their importance; accepted, rejected: (word that was
    replaced, word that was put there); patterns: the text's and each accepted one's, its pivot with the important
    tokens before it; cost: padded tokens.
    """

    ids: tuple[int, ...]
    pivot: int
    tokens: int
    passed: bool
    important: dict[int, float]
    accepted: tuple[tuple[str, str], ...]
    rejected: tuple[tuple[str, str], ...]
    patterns: tuple[Pattern, ...]
    cost: int


def published_loop(subject: Subject, masked: MaskedLM, unit: UnitId, ids: Sequence[int], pivot: int) -> Loop:
    """Runs the loop on `ids` (sink first), which fire at `pivot`."""
    with subject.metered() as spent:
        peak = float(subject.readings([ids[: pivot + 1]], unit)[0])
        kept, passed = _suffix(subject, unit, ids, pivot, peak)
        at = pivot - (len(ids[: pivot + 1 + BEHIND]) - len(kept))
        weights = _importance(subject, unit, kept, at)
        important = {i: w for i, w in weights.items() if w > IMPORTANT}
        accepted, rejected = _augment(subject, masked, unit, kept, at, important, peak)
    words = tuple(pair for pair, _ in accepted)
    patterns = (_pattern(kept, at, important), *(pattern for _, pattern in accepted))
    return Loop(
        tuple(kept), at, at, passed, important, words, tuple(rejected), patterns, int(spent["forward_tokens"])
    )


def graph_fires(loops: Iterable[Loop], text: Text) -> Flags:
    """Where the loop's graph says that the unit fires, at every token of a prepared text [N].

    A path of the graph goes from an activating token back over the important tokens of one of its texts, each at its
    own distance; what stands between is ignored. A token fires if it is at the end of a path.
    """
    fires = np.zeros(len(text.ids), dtype=np.bool_)
    for pivot, before in dict.fromkeys(pattern for loop in loops for pattern in loop.patterns):
        at = np.flatnonzero((text.ids == pivot) & (text.position > max((d for d, _ in before), default=0)))
        for distance, token in before:
            at = at[text.ids[at - distance] == token]
        fires[at] = True
    return fires


def _pattern(ids: Sequence[int], at: int, important: Mapping[int, float]) -> Pattern:
    return ids[at], tuple((at - i, ids[i]) for i in sorted(important) if i < at)


def _suffix(
    subject: Subject, unit: UnitId, ids: Sequence[int], pivot: int, peak: float
) -> tuple[list[int], bool]:
    """The shortest suffix, in steps of five tokens, that keeps half of the peak, and whether any does."""
    sizes = [n for n in range(STEP, LONGEST + 1, STEP) if n < pivot] or [pivot - 1]
    texts = [[ids[0], *ids[max(1, pivot - n) : pivot + 1 + BEHIND]] for n in sizes]
    behind = len(ids[pivot + 1 : pivot + 1 + BEHIND])
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        for text, y in zip(batch, _at(subject, unit, batch, [len(t) - 1 - behind for t in batch]), strict=True):
            if y > KEEPS * peak:
                return text, True
    return texts[-1], False


def _importance(subject: Subject, unit: UnitId, ids: Sequence[int], at: int) -> dict[int, float]:
    frame = make_frame(ids, "mask", filler_pool(subject), 0)
    whole = frozenset(range(1, len(ids)))
    rows = [list(ids), *(frame.rows(whole - {i})[0] for i in sorted(whole))]
    base, *values = _at(subject, unit, rows, [at] * len(rows))
    return {i: 1 - y / base for i, y in zip(sorted(whole), values, strict=True)} if base > 0 else {}


def _augment(
    subject: Subject, masked: MaskedLM, unit: UnitId, ids: Sequence[int], at: int, important: dict[int, float],
    peak: float,
) -> tuple[list[tuple[tuple[str, str], Pattern]], list[tuple[str, str]]]:  # fmt: skip
    spelled, mode = Spelled(subject, ids), masked.choose_mode(subject)["mode"]
    accepted: list[tuple[tuple[str, str], Pattern]] = []
    rejected: list[tuple[str, str]] = []
    for word in spelled.words_of(important):
        for other in masked.propose(spelled.text, word.span, PROPOSALS, mode):
            made = _put(spelled, word, other, at)
            if made is None:
                continue
            row, place = made
            (y,) = _at(subject, unit, [row], [place])
            if y > KEEPS * peak:
                weights = _importance(subject, unit, row, place)
                found = {i: w for i, w in weights.items() if w > IMPORTANT}
                accepted.append(((word.text, other), _pattern(row, place, found)))
            else:
                rejected.append((word.text, other))
    return accepted, rejected


def _put(spelled: Spelled, word: Word, other: str, at: int) -> tuple[list[int], int] | None:
    """The text with another word, and where the pivot is then: at that word's last token if it is the pivot's own."""
    swap = swap_word(spelled, word, other, "masked", 0)
    if not swap.new:
        return None
    moved = len(swap.new) - (word.end - word.first)
    inside = word.first <= at < word.end
    return swap.put_in(spelled.ids), word.first + len(swap.new) - 1 if inside else at + (moved if at >= word.end else 0)


def _at(subject: Subject, unit: UnitId, rows: Sequence[Sequence[int]], places: Sequence[int]) -> list[float]:
    """Readings at one place of each row; whole rows are run, as the loop does."""
    values = subject.activations([list(row) for row in rows], [unit])[:, :, 0]
    return [unit.sign * float(values[i, place]) for i, place in enumerate(places)]


__all__ = ["Loop", "graph_fires", "published_loop"]
