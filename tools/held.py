"""What a text is held by: its minimal example, in the frame in which other texts are then tried beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..store.records import Refused
from .frames import Frame, Kept, filler_pool, make_frame, read_means, track
from .measures import KEEP, KILLS, RAISES, UNSURE
from .prune import prune, run_prunings
from .reader import Reader
from .spelled import Spelled, Word
from .units import UnitId


@dataclass(frozen=True)
class Held:
    """A text cut at its tracked token, the last, and what of it stays while one thing at a time is changed.

    core: the positions of the minimal example; words: the words these lie in; held: their positions, or those of the
    core alone; frame: what stands in for all others, in 8 draws. peak: the reading of the whole text; minimal: the mean
    reading of the core; whole: of what is held, the divisor of every ratio.
    """

    spelled: Spelled
    frame: Frame
    core: Kept
    words: tuple[Word, ...]
    held: Kept
    peak: float
    minimal: float
    whole: float

    @property
    def row(self) -> list[int]:
        return list(self.frame.ids)

    @property
    def base(self) -> list[list[int]]:
        """The rows whose mean reading is `whole`."""
        return self.frame.rows(self.held)


def hold(
    reader: Reader, unit: UnitId, given: Sequence[int], kept: Sequence[int] | None, seed: int, widen: bool = True
) -> Held:
    """Prunes a text in mode resample, or takes the `kept` positions for the result; `widen` holds whole words.

    One deterministic search prunes, a small part of what `minimal_example` costs; its result may be passed as `kept`.
    Raises Refused where the unit is silent, for kept positions that are none, and where what is held reads nothing.
    """
    row, peak = track(reader, unit, given)
    frame = make_frame(row, "resample", filler_pool(reader.subject), seed)
    core = frozenset(_asked(kept, len(row)) or _pruned(reader, unit, frame, peak, seed))
    spelled = Spelled(reader.subject, given)
    words = tuple(spelled.words_of(core))
    wider = core.union(*(range(w.first, min(w.end, len(row))) for w in words))
    held = wider if widen else core
    minimal, whole = read_means(reader, unit, [frame.rows(core), frame.rows(held)])
    if whole <= 0:
        raise Refused(f"{unit} reads {whole:.3g} on the kept words alone, so no ratio exists; keep more positions.")
    return Held(spelled, frame, core, words, held, peak, minimal, whole)


def effect(ratio: float) -> str:
    """What a change does to the reading, by its ratio: kills < 0.25 ≤ unsure < 0.5 ≤ keeps < 1.25 ≤ raises."""
    if ratio < KILLS:
        return "kills"
    if ratio < UNSURE:
        return "unsure"
    return "keeps" if ratio < RAISES else "raises"


def otherwise_in_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A warning where a row's effect, on what is held alone, is the contrary of what its own text reads (in_text)."""
    contrary = sum(r["effect"] in ("kills", "unsure") and r["in_text"] >= KEEP for r in rows)
    contrary += sum(r["effect"] in ("keeps", "raises") and r["in_text"] < KILLS for r in rows)
    if not contrary:
        return []
    return [f"{contrary} of {len(rows)} rows read otherwise in the text itself (in_text): its other words act too"]


def _pruned(reader: Reader, unit: UnitId, frame: Frame, peak: float, seed: int) -> Kept:
    (found,) = run_prunings(reader, [(unit, frame, prune(frame, peak, KEEP, seed, 0, len(frame.ids)))])
    return found.kept


def _asked(kept: Sequence[int] | None, length: int) -> list[int] | None:
    if kept is None:
        return None
    held = sorted({int(i) for i in kept})
    if not held or held[0] < 1 or held[-1] != length - 1:
        last = length - 1
        raise Refused(f"kept positions {held} must lie in 1 to {last} and hold {last}, the strongest token.")
    return held


__all__ = ["Held", "effect", "hold", "otherwise_in_text"]
