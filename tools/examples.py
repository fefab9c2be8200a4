"""Texts on which a unit fires, from the sweep: what a planner looks at first."""

from ..store.records import Evidence, Refused
from . import measures
from .subject import Subject
from .sweep import Exemplar, Sweep
from .units import UnitId

BEFORE = 24   # tokens shown before the place that was read


def top_examples(
    subject: Subject, sweep: Sweep, unit: UnitId, *, band: str = "top", side: str = "explain", n: int = 10
) -> Evidence:
    """Corpus places of one activation band, strongest first, each with the text that led to it.

    Rows: `{document, offset, band, activation, ratio, token, text, ids}`; ratio = activation / P, `text` ends at the
    token that was read, `ids` is the window up to it with the sink in front. Raises Refused for the score side
    and for n < 1.

    Args:
        band: top (best documents), high, mid, boundary, low or random.
        side: explain or tune; the score side is never shown.
        n: how many rows at most.
    """
    if band not in measures.BANDS:
        raise Refused(f"band {band!r} is unknown; choose one of {', '.join(measures.BANDS)}.")
    if side not in ("explain", "tune"):
        raise Refused(f"side {side!r} cannot be shown; choose explain or tune.")
    if n < 1:
        raise Refused(f"n = {n} asks for no places; give at least 1.")
    statistics = sweep.statistics(unit)
    with subject.metered() as cost:
        rows = [_row(subject, sweep, e, statistics.peak) for e in sweep.exemplars(unit, side, band)[:n]]
    checks = {
        "peak": statistics.peak,
        "threshold": statistics.threshold,
        "sink": statistics.sink,
        "rate": statistics.rate(side),
        "clusters_tune": statistics.clusters["tune"],
        "tokens": statistics.tokens[side],
    }
    summary = (
        f"{len(rows)} {band} places of the {side} side; P {statistics.peak:.3g}, fires at {statistics.rate(side):.3%} "
        f"of its tokens; peak tokens: {', '.join(dict.fromkeys(repr(r['token']) for r in rows[:8]))}."
    )
    return Evidence(
        tool="top_examples", unit=unit.bare, sign=unit.sign, arguments={"band": band, "side": side, "n": n},
        summary=summary, rows=rows, checks=checks, cost=cost,
        warnings=[] if rows else [f"the sweep kept no {band} places of {unit} on the {side} side."],
    )  # fmt: skip


def _row(subject: Subject, sweep: Sweep, exemplar: Exemplar, peak: float) -> dict[str, object]:
    window, position = sweep.window(exemplar.place)
    return {
        "document": sweep.documents[exemplar.document].name,
        "offset": exemplar.offset,
        "band": exemplar.band,
        "activation": exemplar.activation,
        "ratio": exemplar.activation / peak if peak > 0 else None,
        "token": subject.piece(window[position]),
        "text": subject.text(window[max(1, position + 1 - BEFORE) : position + 1]),
        "ids": window[: position + 1],
    }
