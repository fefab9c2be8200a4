"""Which single tokens fire a unit, from the atlas that is stored with the sweep."""

from collections.abc import Sequence
from typing import Any

from ..store.records import Evidence, Refused
from .atlas import KEPT, Atlas, Entry
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

NAMED = 5         # tokens in a summary
ROUNDING = 1e-5   # a token that opens a window of text reads the same there, but for this


def token_atlas(subject: Subject, sweep: Sweep, unit: UnitId, *, n: int = 10) -> Evidence:
    """Lists the tokens of the whole vocabulary that the unit reads highest and lowest with only the sink before them.

    y = sign × activation at t in the row [sink, t], for every token t but special ones. A token by itself is not a
    token in text: what a unit needs before it is missing here, so every row is labelled `beside_sink`.

    Rows {side, rank, token, id, activation, ratio, beside_sink}: top (largest y), then bottom (smallest), `n` of
    each; ratio = y / P, None where P ≤ 0. checks: mean, std, skewness, kurtosis of y over the checks["tokens"] tokens
    (the last two None where y never varies); fires and fires_share, the number and share of tokens with y ≥ 0.5 P
    (None where P ≤ 0); atlas_max, the largest y here; corpus_max, the largest y in explain and tune text, None where
    none is above 0; exceeds_corpus, whether atlas_max is above that by more than rounding (above 0 where it is None).
    The sweep holds all this: no pass is run, so `fired` is None. Raises Refused for an n out of range and for an
    atlas that is missing, damaged or another sweep's.

    Args:
        n: tokens listed for each side, 1 to 32.
    """
    if not 1 <= n <= KEPT:
        raise Refused(f"n = {n} is out of range; the atlas keeps {KEPT} tokens a side, so give 1 to {KEPT}.")
    peak = sweep.statistics(unit).peak
    with subject.metered() as cost:
        atlas = sweep.atlas(unit)
        ends = {"top": atlas.top[:n], "bottom": atlas.bottom[:n]}
        rows = [row for side, entries in ends.items() for row in _rows(subject, side, entries, peak)]
    checks = _checks(sweep, unit, atlas, peak)
    return Evidence(
        tool="token_atlas", unit=unit.bare, sign=unit.sign, arguments={"n": n}, summary=_summary(unit, rows, checks),
        rows=rows, checks=checks, cost=cost,
        warnings=[] if peak > 0 else [f"{unit} is nowhere above 0 on the explain side: ratios are undefined."],
    )  # fmt: skip


def _rows(subject: Subject, side: str, entries: Sequence[Entry], peak: float) -> list[dict[str, Any]]:
    return [
        {
            "side": side,
            "rank": rank,
            "token": subject.piece(i),
            "id": i,
            "activation": y,
            "ratio": y / peak if peak > 0 else None,
            "beside_sink": True,
        }
        for rank, (i, y) in enumerate(entries, 1)
    ]


def _checks(sweep: Sweep, unit: UnitId, atlas: Atlas, peak: float) -> dict[str, Any]:
    # The score side is left out: a planner may see what stands here.
    best = [e.activation for side in ("explain", "tune") for e in sweep.exemplars(unit, side, "top")[:1]]
    corpus, largest = max(best, default=None), atlas.top[0][1]
    return {
        "fired": None,
        "tokens": atlas.n,
        "peak": peak,
        "mean": atlas.mean,
        "std": atlas.std,
        "skewness": atlas.skewness,
        "kurtosis": atlas.kurtosis,
        "fires": atlas.fires,
        "fires_share": None if atlas.fires is None else atlas.fires / atlas.n,
        "atlas_max": largest,
        "corpus_max": corpus,
        "exceeds_corpus": largest > (0.0 if corpus is None else corpus * (1 + ROUNDING)),
    }


def _summary(unit: UnitId, rows: Sequence[dict[str, Any]], checks: dict[str, Any]) -> str:
    largest, tokens, count = checks["atlas_max"], checks["tokens"], checks["fires"]
    lowest = next(row["activation"] for row in rows if row["side"] == "bottom")
    if largest == lowest:
        return f"Beside the sink, {unit} reads {largest:.3g} on each of {tokens} tokens."
    if largest <= 0:
        return f"Beside the sink, {unit} is above 0 on none of {tokens} tokens."
    named = ", ".join(repr(row["token"]) for row in rows[:NAMED] if row["side"] == "top")
    fires = "it has no peak to compare with" if count is None else f"{count} of {tokens} tokens reach 0.5 P"
    over = "more than" if checks["exceeds_corpus"] else "no more than"
    return f"Beside the sink, {unit} reads most on {named} (up to {largest:.3g}, {over} in text); {fires}."
