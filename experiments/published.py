"""The published way to minimal examples and substitutes, as the baseline of `bench_input`: Neuron to Graph.

The steps and parameters are those of Foote et al. (2023, arXiv:2305.19911) and its released code (apartresearch/
Neuron2Graph): the shortest suffix of 5, 10, …, 30 tokens before the pivot, or of all there are, with 5 tokens behind
it, that keeps more than half of the peak, else the longest; the importance of each token for each, 1 − reading without
it / reading; for each token of importance above .8 for the pivot five words of a masked language model, accepted where
the reading stays above half of the peak; and the importances once more for each text that was accepted. A graph's path
ends at each token of these texts that reads more than half of the pivot's, and goes back over those of importance above
.75 for it, or where the text as it was had one; tokens are compared without a capital or a blank at the start.

It is run fairly: on ids, with the sink in front of every row, a common token in place of the masked one (the original
puts an unused token id there), the better of the proposer's two ways, words put in place without tokenising again,
and the reading at the pivot. One thing differs to its disadvantage: the paper's five tokens stand before the pivot, and
the released script counts the pivot among them, so that it would keep one token less.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..tools.frames import filler_pool, make_frame
from ..tools.masked import MaskedLM
from ..tools.rules import Flags, Text
from ..tools.spelled import Spelled, Word
from ..tools.stats import Floats
from ..tools.subject import Subject
from ..tools.substitute import swap_word
from ..tools.units import UnitId

STEP, LONGEST, BEHIND = 5, 30, 5        # tokens
Pattern = tuple[str, tuple[tuple[int, str], ...]]      # a firing token, and tokens by their distance before it
KEEPS, IMPORTANT, ON_PATH = 0.5, 0.8, 0.75
PROPOSALS, BATCH = 5, 4


@dataclass(frozen=True)
class Loop:
    """What the loop gave for one exemplar.

    tokens: those up to the pivot that are kept, the sink left out; passed: whether they keep half of the peak;
    important: positions in `ids` (kept text, sink first) with their importance; accepted, rejected: (first token of the
    word that was replaced, word that was put there); patterns: those of the text and of each accepted one; cost: padded
    tokens.
    """

    ids: tuple[int, ...]
    pivot: int
    tokens: int
    passed: bool
    important: dict[int, float]
    accepted: tuple[tuple[int, str], ...]
    rejected: tuple[tuple[int, str], ...]
    patterns: tuple[Pattern, ...]
    cost: int


def published_loop(subject: Subject, masked: MaskedLM, unit: UnitId, ids: Sequence[int], pivot: int) -> Loop:
    """Runs the loop on `ids` (sink first), which fire at `pivot`."""
    with subject.metered() as spent:
        peak = float(subject.readings([ids[: pivot + 1]], unit)[0])
        kept, passed = _suffix(subject, unit, ids, pivot, peak)
        at = pivot - (len(ids[: pivot + 1 + BEHIND]) - len(kept))
        weights, y = _importance(subject, unit, kept)
        important = {i: float(w) for i, w in enumerate(weights[:, at]) if w > IMPORTANT}
        accepted, rejected = _augment(subject, masked, unit, kept, at, important, peak)
        paths, patterns = _paths(subject, kept, at, weights, y, [])
        for _, _, row, place in accepted:
            patterns += _paths(subject, row, place, *_importance(subject, unit, row), paths)[1]
    return Loop(
        tuple(kept), at, at, passed, important, tuple(a[:2] for a in accepted), tuple(rejected), tuple(patterns),
        int(spent["forward_tokens"]),
    )


def graph_fires(loops: Iterable[Loop], text: Text, piece: Callable[[int], str]) -> Flags:
    """Where the loop's graph says that the unit fires, at every token of a prepared text [N].

    A path of the graph goes from an activating token back over the important tokens of one of its texts, each at its
    own distance; what stands between is ignored. A token fires if it is at the end of a path. piece: a token's string.
    """
    fires = np.zeros(len(text.ids), dtype=np.bool_)
    kinds, kind = np.unique(text.ids, return_inverse=True)
    names = [normal(piece(int(i))) for i in kinds]
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    code = np.array([number[name] for name in names], dtype=np.int64)[kind]
    for token, before in dict.fromkeys(pattern for loop in loops for pattern in loop.patterns):
        at = np.flatnonzero(code == number.get(token, -1))
        at = at[text.position[at] > max((d for d, _ in before), default=0)]
        for distance, other in before:
            at = at[code[at - distance] == number.get(other, -1)]
        fires[at] = True
    return fires


def normal(piece: str) -> str:
    """A token's string as the graph compares it: one capital at the start and blanks around a word do not count."""
    plain = piece.lower() if piece.istitle() and len(piece) > 1 else piece
    return plain.strip() if len(plain) > 1 and any(c.isalpha() for c in plain) else plain


def _paths(
    subject: Subject, ids: Sequence[int], pivot: int, weights: Floats, y: Floats, known: Sequence[set[int]]
) -> tuple[list[set[int]], list[Pattern]]:
    """The positions on the path that ends at each position, none where it reads no more than half of the pivot's, and
    the paths as patterns. known: those of the text as it was, by position, which stay on the path."""
    names = [normal(subject.piece(i)) for i in ids]
    found: list[set[int]] = []
    patterns = []
    for end in range(len(ids)):
        fires = end > 0 and y[end] > KEEPS * y[pivot]
        before = known[min(end, len(known) - 1)] if known else set()
        found.append({i for i in range(1, end) if weights[i, end] > ON_PATH or i in before} if fires else set())
        if fires:
            patterns.append((names[end], tuple((end - i, names[i]) for i in sorted(found[end]))))
    return found, patterns


def _suffix(
    subject: Subject, unit: UnitId, ids: Sequence[int], pivot: int, peak: float
) -> tuple[list[int], bool]:
    """The shortest suffix, in steps of five tokens, that keeps half of the peak, and whether any does."""
    sizes = [n for n in range(STEP, LONGEST + 1, STEP) if n < pivot - 1]
    sizes += [pivot - 1] if pivot - 1 <= LONGEST else []
    texts = [[ids[0], *ids[max(1, pivot - n) : pivot + 1 + BEHIND]] for n in sizes]
    behind = len(ids[pivot + 1 : pivot + 1 + BEHIND])
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        for text, y in zip(batch, _at(subject, unit, batch, [len(t) - 1 - behind for t in batch]), strict=True):
            if y > KEEPS * peak:
                return text, True
    return texts[-1], False


def _importance(subject: Subject, unit: UnitId, ids: Sequence[int]) -> tuple[Floats, Floats]:
    """The importance of token i for what the unit reads at token j [T, T], −∞ where that is not positive; readings."""
    frame = make_frame(ids, "mask", filler_pool(subject), 0)
    whole = frozenset(range(1, len(ids)))
    rows = [list(ids), *(frame.rows(whole - {i})[0] for i in sorted(whole))]
    values = unit.sign * subject.activations(rows, [unit])[:, :, 0].double().cpu().numpy()
    weights = np.full((len(ids), len(ids)), -np.inf)
    weights[1:, values[0] > 0] = 1 - values[1:, values[0] > 0] / values[0, values[0] > 0]
    return weights, values[0]


def _augment(
    subject: Subject, masked: MaskedLM, unit: UnitId, ids: Sequence[int], at: int, important: Iterable[int],
    peak: float,
) -> tuple[list[tuple[int, str, list[int], int]], list[tuple[int, str]]]:  # fmt: skip
    """Words that keep half of the peak, by the first token of the one they replace, each with its text and the place
    that was read in it; and words that do not."""
    spelled, mode = Spelled(subject, ids), masked.choose_mode(subject)["mode"]
    accepted: list[tuple[int, str, list[int], int]] = []
    rejected: list[tuple[int, str]] = []
    for word in spelled.words_of(important):
        for other in masked.propose(spelled.text, word.span, PROPOSALS, mode):
            made = _put(spelled, word, other, at)
            if made is None:
                continue
            row, place = made
            (y,) = _at(subject, unit, [row], [place])
            if y > KEEPS * peak:
                accepted.append((word.first, other, row, place))
            else:
                rejected.append((word.first, other))
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


__all__ = ["Loop", "graph_fires", "normal", "published_loop"]
