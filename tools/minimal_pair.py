"""Minimal pairs: a text on which a unit fires, and the same text with one word swapped for one that silences it.

Made here from the unit's minimal example and a killing substitute of equal token length, or given by hand.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..store.records import Refused
from .frames import filler_pool, track
from .masked import MaskedLM
from .measures import KEEP, KILLS
from .reader import Reader
from .subject import Subject
from .substitute import substitute
from .sweep import Sweep
from .units import UnitId

TOKEN_SWAPS = 32       # tokens tried in the place of each kept token where no word of equal length silences

Ids = Sequence[int]


@dataclass(frozen=True)
class MinimalPair:
    """Two rows of ids of one length that differ at `kept` positions only, and are read at their last.

    original, substitute: what differs; proposer: of the word, or token where single tokens were tried, or given.
    """

    clean: list[int]
    corrupt: list[int]
    kept: list[int]
    original: str
    substitute: str
    proposer: str

    def facts(self) -> dict[str, Any]:
        """The swap, as checks carry it."""
        return {"original": self.original, "substitute": self.substitute, "proposer": self.proposer}


def minimal_pair(
    subject: Subject, masked: MaskedLM, sweep: Sweep, unit: UnitId, text: str | None, ids: Ids | None,
    corrupt: str | None, seed: int,
) -> MinimalPair:  # fmt: skip
    """The pair of an experiment on `text` or `ids` (default: an exemplar): with `corrupt`, or by `find_pair`.

    Raises Refused where the unit or the sweep is of another model, whose tokens are other tokens.
    """
    _one_model(subject, sweep, unit)
    if corrupt is not None:
        return given_pair(subject, subject.take(text, ids), subject.take(corrupt, None))
    if unit.kind == "attn":
        raise Refused(f"{unit} is a head, which has no reading to find a pair by; give a text and a corrupt one.")
    chosen = text is None and ids is None
    given = _exemplar(subject, sweep, unit) if chosen else subject.take(text, ids)
    clean, _ = track(Reader(subject, [unit.site]), unit, given)
    return find_pair(subject, masked, unit, given, clean, seed)


def _one_model(subject: Subject, sweep: Sweep | None, unit: UnitId) -> None:
    found = {"the unit": unit.model, "the sweep": sweep.model if sweep is not None else subject.name}
    for what, model in found.items():
        if model != subject.name:
            raise Refused(f"{what} is of {model} and the model that is loaded is {subject.name}; take all of one.")


def given_pair(subject: Subject, clean: Ids, corrupt: Ids) -> MinimalPair:
    """A pair made by hand, all of it kept. Raises Refused as `differing` does."""
    places = differing(subject, clean, corrupt, range(len(clean)))
    span = slice(places[0], places[-1] + 1)
    before, after = ("".join(subject.pieces(row[span])) for row in (clean, corrupt))
    return MinimalPair(list(clean), list(corrupt), list(range(1, len(clean))), before, after, "given")


def _exemplar(subject: Subject, sweep: Sweep, unit: UnitId) -> list[int]:
    """The strongest explain exemplar up to its reading: the fewest of its last 8, 16, 32, 63 tokens behind the sink
    that keep half of it, since the search for the pair takes long on long texts."""
    best = sweep.exemplars(unit, "explain", "top")
    if not best:
        raise Refused(f"{unit} is never positive on the explain side; give a text on which it is.")
    ids, position = sweep.window(best[0].place)
    rows = [[ids[0], *ids[max(1, position + 1 - n) : position + 1]] for n in (8, 16, 32, 63)]
    readings = subject.readings(rows, unit).tolist()
    return next(row for row, y in zip(rows, readings, strict=True) if y >= KEEP * readings[-1])


def find_pair(
    subject: Subject, masked: MaskedLM, unit: UnitId, given: Ids, clean: Ids, seed: int
) -> MinimalPair:
    """The pair whose clean side is `clean`, the tracked cut of `given`.

    Raises Refused with the number of substitutes tried if none kills the unit at equal length.
    """
    found = substitute(subject, masked, unit, ids=given, seed=seed)
    words = [r for r in found.rows if r["effect"] == "kills" and len(r["ids"]) == len(clean)]
    best = _quietest(subject, unit, clean, words, KEEP)
    if best is None:
        tokens = list(_token_swaps(subject, clean, found.checks["kept"], np.random.default_rng(seed)))
        best = _quietest(subject, unit, clean, tokens, KILLS)
    if best is None:
        raise Refused(
            f"none of {len(found.rows)} words and {len(tokens)} tokens put into {found.checks['kept_text']!r} silences "
            f"{unit} at equal token length; give another text, or a corrupt one of your own."
        )
    swap = (best[name] for name in ("original", "substitute", "proposer"))
    return MinimalPair(list(clean), best["ids"], found.checks["held"], *swap)


def _quietest(
    subject: Subject, unit: UnitId, clean: Ids, swaps: Sequence[dict[str, Any]], share: float
) -> dict[str, Any] | None:
    """The swap that leaves the lowest reading, below `share` of the clean one; swaps that leave the tracked token in
    place come first, because a new last token moves the next-token logits by itself."""
    if not swaps:
        return None
    peak, *readings = subject.readings([clean, *(s["ids"] for s in swaps)], unit).tolist()
    silent = [i for i, y in enumerate(readings) if y < share * peak]
    best = min(silent, key=lambda i: (swaps[i]["ids"][-1] != clean[-1], readings[i]), default=None)
    return None if best is None else swaps[best]


def _token_swaps(
    subject: Subject, clean: Ids, kept: Sequence[int], generator: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """One kept token at a time replaced by tokens drawn from the built-in corpus."""
    pool = np.unique(filler_pool(subject))
    for position in kept:
        for token in generator.permutation(pool)[:TOKEN_SWAPS].tolist():
            if token != clean[position]:
                yield {
                    "ids": [*clean[:position], token, *clean[position + 1 :]],
                    "original": subject.piece(clean[position]),
                    "substitute": subject.piece(token),
                    "proposer": "token",
                }


def differing(subject: Subject, clean: Ids, corrupt: Ids, kept: Collection[int]) -> list[int]:
    """Positions at which two rows differ. Raises Refused, printing both tokenisations of the differing span, unless
    the rows are equally long and differ at kept positions, and only there."""
    longest = min(len(clean), len(corrupt))
    first = next((i for i in range(longest) if clean[i] != corrupt[i]), longest)
    tail = next((i for i in range(longest - first) if clean[-1 - i] != corrupt[-1 - i]), longest - first)
    spans = " and ".join(str(subject.pieces(row[first : len(row) - tail])) for row in (clean, corrupt))
    if len(clean) != len(corrupt):
        raise Refused(
            f"clean and corrupt have {len(clean)} and {len(corrupt)} tokens, differing in {spans}; "
            "swap words of equally many tokens."
        )
    places = [i for i in range(longest) if clean[i] != corrupt[i]]
    if not places:
        raise Refused("clean and corrupt are the same tokens; swap a word.")
    if not set(places) <= set(kept):
        raise Refused(f"clean and corrupt differ beside the kept words, in {spans}; change kept words only.")
    return places


__all__ = ["MinimalPair", "differing", "find_pair", "given_pair", "minimal_pair"]
