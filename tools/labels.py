"""What is known of one unit's labels on one side, and the samples that scores are computed from.

A place is a flat index into the side's prepared text; y is in units of P throughout. The sweep counts every stratum
of y/P and lists up to 300 firings of the score side; the rest of what scores need is a sample with known weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..store.records import Evidence, Refused
from . import measures, stats
from .collect import position_key
from .rules import SideText, side_text
from .stats import Floats, Ints
from .subject import Subject
from .sweep import Exemplar, Place, Sweep
from .units import UnitId

BELOW = ("boundary", "low", "random")     # the bands that sample the three strata in which a unit does not fire

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class ScoreSide:
    """The score side without the windows that the unit's evidence shares text with.

    keep [M]: places that count; cluster [M]: each one's cluster, from 0 (−1 where it does not count); dropped: the
    places taken out, of so many windows.
    """

    text: SideText
    keep: Flags
    cluster: Ints
    clusters: int
    dropped: tuple[Place, ...]
    dropped_windows: int

    @classmethod
    def of(cls, subject: Subject, sweep: Sweep, evidence: Sequence[Evidence]) -> "ScoreSide":
        """Drops each window with a run of 13 tokens that stands in the `ids` of a row of the evidence."""
        text = side_text(subject, sweep, "score")
        keep = text.text.position > 0
        runs = {run for e in evidence for row in e.rows for run in _runs(row.get("ids") or [], subject.sink)}
        dropped: list[Place] = []
        windows = 0
        for start, end in zip(text.text.starts[:-1], text.text.starts[1:], strict=True) if runs else ():
            if not runs.isdisjoint(_runs(text.text.ids[start:end].tolist(), subject.sink)):
                windows += 1
                keep[start:end] = False
                inside = slice(start + 1, end)
                dropped += zip(text.document[inside].tolist(), text.offset[inside].tolist(), strict=True)
        number = np.array([document.cluster for document in sweep.documents])[text.document]
        _, cluster = np.unique(np.where(keep, number, -1), return_inverse=True)
        cluster = cluster.ravel() - 1     # sinks are never kept, so −1 is always there and comes first
        return cls(text, keep, cluster, int(cluster.max()) + 1, tuple(dropped), windows)

    def rows(self, exemplars: Sequence[Exemplar]) -> tuple[Ints, Floats]:
        """The kept ones among exemplars: their places and y (not yet divided by P)."""
        found = np.array([self.text.index(e.place) for e in exemplars], dtype=np.int64)
        kept = self.keep[found]
        return found[kept], np.array([e.activation for e in exemplars], dtype=np.float64)[kept]

    def sums(self, rows: Ints, values: Floats | None = None) -> Floats:
        """Totals [C] over places, by cluster."""
        return stats.by_cluster(self.cluster[rows], self.clusters, values)


def score_provenance(sweep: Sweep, seed: int) -> dict[str, Any]:
    """What every score says of the text that it was read on: its sides' digests, and their overlap with explain."""
    return {
        "sweep": sweep.digest, "sides": sweep.side_digests, "overlap": sweep.facts["overlap"],
        "measures": measures.VERSION, "seed": seed,
    }  # fmt: skip


def _runs(ids: Sequence[int], sink: int) -> set[tuple[int, ...]]:
    """All runs of 13 tokens in `ids`, the sink in front left out."""
    real = list(ids[1:] if ids and ids[0] == sink else ids)
    return {tuple(real[i : i + measures.LEAK_RUN]) for i in range(len(real) - measures.LEAK_RUN + 1)}


@dataclass(frozen=True)
class Truth:
    """The unit on the kept score side: rows [n] and values [n] of the listed firings, `complete` if these are all,
    the number of firings, N_h of the five strata, and the clusters that hold a listed firing."""

    peak: float
    rows: Ints
    values: Floats
    complete: bool
    firings: int
    strata: tuple[int, ...]
    positive_clusters: int

    @classmethod
    def of(cls, subject: Subject, sweep: Sweep, unit: UnitId, side: ScoreSide) -> "Truth":
        """Takes the dropped windows out of the sweep's counts, by reading them."""
        known = sweep.statistics(unit)
        if known.peak <= 0:
            return cls(known.peak, np.zeros(0, dtype=np.int64), np.zeros(0), True, 0, (0, 0, 0, 0, 0), 0)
        rows, values = side.rows(sweep.firings(unit))
        values = values / known.peak
        counts = np.array(known.strata["score"])
        if side.dropped:
            gone = sweep.read(subject, unit, side.dropped) / known.peak
            counts = np.maximum(counts - per_stratum(gone), 0)
        complete = known.firings["score"] <= measures.SAMPLE
        if complete:    # the list decides: a second reading may round to the other side of τ
            counts[:2] = per_stratum(values)[:2]
        clusters = len(np.unique(side.cluster[rows]))
        firings = int(counts[:2].sum())
        return cls(known.peak, rows, values, complete, firings, tuple(map(int, counts)), clusters)

    @property
    def scale(self) -> float:
        """Firings that a listed one stands for."""
        return self.firings / max(len(self.rows), 1)

    @property
    def shortage(self) -> str | None:
        """Why no score can be given, or None."""
        if self.firings >= measures.MIN_FIRINGS and self.positive_clusters >= measures.MIN_CLUSTERS:
            return None
        return (
            f"too few positives: {self.firings} firings in {self.positive_clusters} clusters of the score side, and "
            f"{measures.MIN_FIRINGS} in {measures.MIN_CLUSTERS} are needed"
        )


@dataclass(frozen=True)
class Judged:
    """The places a rule predicts [M], and up to 300 of them: rows, their y/P, and which fire."""

    predicted: Flags
    rows: Ints
    values: Floats
    fires: Flags

    @classmethod
    def of(
        cls, subject: Subject, sweep: Sweep, unit: UnitId, side: ScoreSide, truth: Truth, prediction: Floats
    ) -> "Judged":
        predicted = (prediction > 0) & side.keep
        rows = hash_sample(sweep, side.text, predicted)
        known = dict(zip(truth.rows.tolist(), truth.values.tolist(), strict=True))
        values = read_places(subject, sweep, unit, side.text, rows, known, truth.peak)
        fires = np.isin(rows, truth.rows) if truth.complete else values >= measures.FIRES
        return cls(predicted, rows, values, fires)


def stratum(values: Floats) -> Ints:
    """The stratum of each y/P: 0 for ≥ .8, then .5–.8, .25–.5, .1–.25, and 4 for < .1."""
    return len(measures.STRATA) - np.searchsorted(measures.STRATA[::-1], values, side="right")


def per_stratum(values: Floats) -> Ints:
    """How many values lie in each of the five strata [5]."""
    return np.bincount(stratum(values), minlength=len(measures.STRATA) + 1)


def hash_sample(sweep: Sweep, text: SideText, chosen: Flags) -> Ints:
    """Up to 300 of the chosen places, those of smallest position hash: a uniform sample, the same each time."""
    rows = np.flatnonzero(chosen)
    starts = np.array([document.start for document in sweep.documents])
    keys = position_key(starts[text.document[rows]] + text.offset[rows])
    return rows[np.argsort(keys, kind="stable")[: measures.SAMPLE]]


def read_places(
    subject: Subject, sweep: Sweep, unit: UnitId, text: SideText, rows: Ints, known: Mapping[int, float], peak: float
) -> Floats:
    """y/P at rows [n]; a forward pass only where it is not known yet."""
    missing = [row for row in rows.tolist() if row not in known]
    places = [(int(text.document[row]), int(text.offset[row])) for row in missing]
    read = dict(zip(missing, sweep.read(subject, unit, places) / peak, strict=True)) if missing else {}
    return np.array([known[row] if row in known else read[row] for row in rows.tolist()], dtype=np.float64)


def place_row(
    subject: Subject, sweep: Sweep, text: SideText, row: int, ratio: float, peak: float
) -> dict[str, Any]:
    """A place as experiments show it, y/P = `ratio`: {document, offset, text up to the token, token, ids, activation y,
    ratio}."""
    place = int(text.document[row]), int(text.offset[row])
    window, position = sweep.window(place)
    ids = window[: position + 1]
    return {
        "document": sweep.documents[place[0]].name, "offset": place[1], "text": subject.text(ids),
        "token": subject.piece(ids[-1]), "ids": ids, "activation": ratio * peak, "ratio": ratio,
    }  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """Places of one side that stand for all of it: rows [n] of `text`, y/P [n], and weights N_h / n_h [n]."""

    text: SideText
    rows: Ints
    values: Floats
    weights: Floats


def kept_exemplars(subject: Subject, sweep: Sweep, unit: UnitId, side: str) -> Labelled:
    """The kept exemplars of explain or tune, a band for each stratum. Raises Refused for a unit without a peak."""
    known, text = sweep.statistics(unit), side_text(subject, sweep, side)
    if known.peak <= 0:
        raise Refused(f"{unit} is never positive on the explain side; look at its other sign, or choose another unit.")
    rows, values, weights = [], [], []
    for h, band in enumerate(("high", "mid", *BELOW)):
        found = sweep.exemplars(unit, side, band)
        level = np.array([e.activation for e in found], dtype=np.float64) / known.peak
        mine = stratum(level) == h
        rows.append(np.array([text.index(e.place) for e in found], dtype=np.int64)[mine])
        values.append(level[mine])
        # The explain side's counts come from a histogram, so that a small one may fall short of what was kept.
        weights.append(np.full(mine.sum(), max(1.0, known.strata[side][h] / max(mine.sum(), 1))))
    return Labelled(text, np.concatenate(rows), np.concatenate(values), np.concatenate(weights))


def stratified(
    sweep: Sweep, unit: UnitId, side: ScoreSide, truth: Truth, judged: Judged
) -> tuple[Ints, Floats, Floats, Flags]:
    """A sample that stands for every kept score place: rows [n], y/P, weights N_h / n_h, and which fire.

    The strata ≥ .8 and .5–.8 are sampled by the listed firings. Below, places that the rule predicts are sampled by
    the judged predictions (false alarms are rare: 64 random places would hold none of them, or one that weighs a
    thousand), the others by the sweep's bands; N_h there is what the predicted ones leave. The count of a stratum of
    which no place is sampled goes to the next lower one.
    """
    parts: list[tuple[Ints, Floats, float]] = []
    for h in (0, 1):
        mine = stratum(truth.values) == h
        parts.append((truth.rows[mine], truth.values[mine], truth.strata[h]))
    firing = sum(len(rows) for rows, _, _ in parts)
    low = ~judged.fires
    each = judged.predicted.sum() / max(len(judged.rows), 1)
    parts.append((judged.rows[low], judged.values[low], each * low.sum()))
    predicted, spare = each * per_stratum(judged.values[low]), 0.0
    for h, band in enumerate(BELOW, start=2):
        rows, values = side.rows(sweep.exemplars(unit, "score", band))
        values = values / truth.peak
        mine = (stratum(values) == h) & ~judged.predicted[rows]
        count = max(0.0, truth.strata[h] - predicted[h]) + spare
        spare = 0.0 if mine.any() else count
        parts.append((rows[mine], values[mine], count))
    rows = np.concatenate([rows for rows, _, _ in parts])
    weights = np.concatenate([np.full(len(rows), count / max(len(rows), 1)) for rows, _, count in parts])
    return rows, np.concatenate([values for _, values, _ in parts]), weights, np.arange(len(rows)) < firing
