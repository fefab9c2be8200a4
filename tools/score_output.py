"""How well a claim about a unit's output predicts what the model loses without the unit, on text never shown.

A claim names tokens that the unit pushes up, and tokens that it pushes down. It is right as far as taking the unit out
of the running model moves just these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused, Score
from . import measures, stats
from .atlas import tokens_of_text
from .collect import position_key
from .features import Point
from .labels import ScoreSide, score_provenance
from .lens import by_path
from .losses import inside
from .stats import Floats, Ints
from .subject import Edit, Pass, Subject
from .sweep import Sweep
from .units import UnitId

CONTROLS = 20          # tokens about as frequent, beside each that is stated
LIKE = 5               # as many more that they are drawn from
NEIGHBOURS = 5
MOST = 20              # tokens a claim names on each side at most
NO_LENS = "its features write into an MLP, so that no direct path to the logits can stand beside"
METRICS = ("output_auc", "steering_auc")

Claim = Callable[[str], bool]


@dataclass(frozen=True)
class Pushes:
    """What a unit is said to do to the next token's logits where it fires: ids of tokens it raises, and lowers."""

    raises: tuple[int, ...] = ()
    lowers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.raises and not self.lowers:
            raise Refused("a claim about the output names no token; name what the unit raises or lowers.")
        if max(len(self.raises), len(self.lowers)) > MOST:
            raise Refused(f"a claim about the output names at most {MOST} tokens on each side.")
        if set(self.raises) & set(self.lowers):
            raise Refused("a claim about the output says of one token that it is raised and lowered; choose.")

    @property
    def ids(self) -> list[int]:
        return [*self.raises, *self.lowers]

    @property
    def signs(self) -> Floats:
        return np.array([1.0] * len(self.raises) + [-1.0] * len(self.lowers))


def score_output(
    subject: Subject, sweep: Sweep, unit: UnitId, pushes: Pushes, *, hypothesis: str, claim: Claim,
    evidence: Sequence[Evidence] = (), seed: int = 0,
) -> list[Score]:  # fmt: skip
    """Scores a claim about a unit's output at firings of the score side: `output_auc`, then `steering_auc`.

    Δ_t = centred logit of token t behind a firing, clean less ablated: the unit is set to its mean over the explain
    side at every position but the sink. Up to 100 firings, of windows that share no 13 tokens with the evidence; Δ is
    averaged over them. For each stated token, 20 controls are drawn from the tokens about as frequent on the explain
    side that the claim does not name. output_auc = share of pairs (stated token, one of its controls) in which the
    stated one moves further in the direction it is said to, ties counting half: .5 for a claim that knows nothing.
    Interval: bootstrap over clusters of near-copy documents.

    floors: `random_direction`, the same claim where instead a random direction, as long at each position as what the
    ablation takes out of the stream, is taken out; `neighbours`, the highest where one of the five units with the
    nearest write direction is ablated there. references: `lens`, the AUC of as many tokens as the claim names, taken
    from the top and bottom of the unit's direct path; details: `lens_lead`, the claim's lead over it, with its
    interval. steering_auc: the same claim where the unit is set to its peak P at the firing instead; `mechanical`,
    since adding a write raises its own lens tokens by construction. It decides nothing.

    Undefined, with the reason, for fewer than 10 firings or 8 clusters, or where the ablation moves nothing.
    claim(hypothesis) guards the score side. Raises Refused at a second read, and for a head.
    """
    if not claim(hypothesis):
        raise Refused(
            f"the score side was already read for explanation {hypothesis} and is read once; submit a new explanation."
        )
    keys = score_provenance(sweep, seed)
    record = partial(Score, unit=unit.bare, sign=unit.sign, hypothesis=hypothesis, side="score", provenance=keys)
    with subject.metered() as cost:
        places = _places(subject, sweep, unit, evidence)
        if places.shortage:
            return [record(metric=m, value=None, n=len(places.rows), reason=places.shortage) for m in METRICS]
        if not subject.writes_to_stream(unit.site):
            return [record(metric=m, value=None, n=len(places.rows), reason=NO_LENS) for m in METRICS]
        pairs = _Pairs.of(subject, sweep, pushes, seed)
        reference = _Pairs.of(subject, sweep, _by_lens(subject, unit, pushes), seed)
        moved = _Moved(subject, sweep, unit, places, [pairs, reference])
        found = moved.scores(seed)
    return _records(record, pushes, pairs, reference, places, found, seed, cost)


# What is compared


@dataclass(frozen=True)
class _Places:
    """Windows [n] cut at a firing of the score side, and the cluster of each, from 0."""

    rows: list[list[int]]
    cluster: Ints
    clusters: int
    shortage: str | None


def _places(subject: Subject, sweep: Sweep, unit: UnitId, evidence: Sequence[Evidence]) -> _Places:
    side = ScoreSide.of(subject, sweep, evidence)
    kept = [e for e in sweep.firings(unit) if side.keep[side.text.index(e.place)]]
    order = position_key(np.array([side.text.index(e.place) for e in kept], dtype=np.int64))
    chosen = [kept[i] for i in np.argsort(order, kind="stable")[: measures.OUTPUT_SAMPLE]]
    names = np.array([sweep.documents[e.document].cluster for e in chosen], dtype=np.int64)
    known, cluster = np.unique(names, return_inverse=True)
    rows = []
    for exemplar in chosen:
        ids, position = sweep.window(exemplar.place)
        rows.append(ids[: position + 1])
    enough = len(rows) >= measures.MIN_FIRINGS and len(known) >= measures.MIN_CLUSTERS
    shortage = None if enough else (
        f"too few positives: {len(rows)} firings in {len(known)} clusters of the score side, and "
        f"{measures.MIN_FIRINGS} in {measures.MIN_CLUSTERS} are needed"
    )  # fmt: skip
    return _Places(rows, cluster.ravel(), len(known), shortage)


@dataclass(frozen=True)
class _Pairs:
    """Tokens [S] with the direction that each is said to move in, and the controls [S, 20] of each."""

    tokens: Ints
    signs: Floats
    controls: Ints

    @classmethod
    def of(cls, subject: Subject, sweep: Sweep, pushes: Pushes, seed: int) -> "_Pairs":
        tokens = np.array(pushes.ids, dtype=np.int64)
        return cls(tokens, pushes.signs, _controls(subject, sweep, tokens, seed))

    def auc(self, moved: Floats) -> Floats:
        """The share of pairs [...] in which the stated token moves further its way; `moved` [..., V] of every token."""
        own = (moved[..., self.tokens] * self.signs)[..., None]
        others = moved[..., self.controls] * self.signs[:, None]
        return np.asarray(((own > others) + 0.5 * (own == others)).mean(axis=(-2, -1)))


def _controls(subject: Subject, sweep: Sweep, tokens: Ints, seed: int) -> Ints:
    """For each token, CONTROLS drawn by hash from the tokens that stand about as often on the explain side."""
    documents = [sweep.documents[number] for number in sweep.side("explain")]
    ids = np.concatenate([sweep.tokens[d.start : d.start + d.length] for d in documents])
    counts = np.bincount(ids, minlength=subject.vocabulary)
    others = np.setdiff1d(np.array(tokens_of_text(subject), dtype=np.int64), tokens)
    keys = position_key(others + seed)
    order = others[np.lexsort((keys, counts[others]))]
    drawn = []
    for token in tokens:
        first, last = np.searchsorted(counts[order], [counts[token], counts[token] + 1])
        begin = max(0, min((first + last) // 2 - CONTROLS * LIKE // 2, len(order) - CONTROLS * LIKE))
        near = order[begin : begin + CONTROLS * LIKE]
        drawn.append(near[np.argsort(position_key(near + int(token) + seed), kind="stable")[:CONTROLS]])
    return np.stack(drawn)


def _by_lens(subject: Subject, unit: UnitId, pushes: Pushes) -> Pushes:
    """As many tokens as the claim names, from the two ends of the unit's direct path to the logits."""
    order = by_path(subject, unit)
    return Pushes(tuple(order[: len(pushes.raises)]), tuple(order[::-1][: len(pushes.lowers)]))


# What moves


class _Moved:
    """Mean change of the centred logits of some tokens, by cluster, in each way of changing the unit."""

    def __init__(
        self, subject: Subject, sweep: Sweep, unit: UnitId, places: _Places, pairs: Sequence[_Pairs]
    ) -> None:
        self.subject, self.sweep, self.unit, self.places = subject, sweep, unit, places
        self.ids = np.unique(np.concatenate([part for p in pairs for part in (p.tokens, p.controls.ravel())]))

    def scores(self, seed: int) -> dict[str, Floats]:
        """Per-cluster sums [C, V] of Δ by way, 0 for tokens that nobody asks for; `edited` of `positions`."""
        subject, unit = self.subject, self.unit
        direction = torch.randn(int(subject.config.hidden_size), generator=torch.Generator().manual_seed(seed))
        peak = torch.full((1, 1, 1), unit.sign * self.sweep.statistics(unit).peak)
        ways = {"ablated": self._ablation(unit.index), "steered": Edit(unit.site, peak, (unit.index,))}
        ways |= {f"neighbour {index}": self._ablation(index) for index in nearest(subject, unit, NEIGHBOURS)}
        totals = {name: np.zeros((self.places.clusters, subject.vocabulary)) for name in (*ways, "random")}
        for batch in subject.batches(self.places.rows):
            self._batch(batch, ways, direction / direction.norm(), totals)
        return totals

    def _ablation(self, index: int) -> Edit:
        return Edit(self.unit.site, self.sweep.mean(self.unit.site)[index].reshape(1, 1, 1), (index,))

    def _batch(self, batch: list[int], ways: dict[str, Edit], direction: Tensor, totals: dict[str, Floats]) -> None:
        subject, unit = self.subject, self.unit
        rows = [self.places.rows[i] for i in batch]
        behind = Point(subject.writes_at(unit.site).layer, "resid")
        lengths = torch.tensor([len(row) for row in rows], device=subject.device)
        line = torch.arange(len(rows), device=subject.device)
        inner = inside(rows).to(subject.device)
        last = torch.zeros_like(inner)
        last[line, lengths - 1] = True

        def centred(done: Pass) -> Tensor:
            assert done.normed is not None
            logits = subject.unembed(done.normed[line, lengths - 1])
            return logits[:, self.ids] - logits.mean(dim=-1, keepdim=True)

        read = dict.fromkeys([behind, *subject.before([unit.site])])
        true = subject.run(rows, read=list(read), normed=True)
        clean = centred(true)
        for name, edit in ways.items():
            put = replace(edit, where=last if name == "steered" else inner)
            done = subject.run(rows, read=[behind], edits=[put], normed=True, start=true.readings)
            moved = clean - centred(done)
            self._add(totals[name], batch, -moved if name == "steered" else moved)
            if name == "ablated":
                taken = (true.readings[behind] - done.readings[behind]).norm(dim=-1, keepdim=True)
        out = Edit(behind, lambda current: current - taken * direction.to(current), where=inner)
        done = subject.run(rows, edits=[out], normed=True, start=true.readings)
        self._add(totals["random"], batch, clean - centred(done))

    def _add(self, total: Floats, batch: list[int], moved: Tensor) -> None:
        for cluster, row in zip(self.places.cluster[batch], moved.double().cpu().numpy(), strict=True):
            total[cluster, self.ids] += row


def nearest(subject: Subject, unit: UnitId, count: int) -> list[int]:
    """Units of the site of the largest |`Subject.likeness`|."""
    cosine = subject.likeness(unit).abs()
    return [i for i in cosine.argsort(descending=True, stable=True).tolist() if i != unit.index][:count]


# The records


def _records(
    record: Callable[..., Score], pushes: Pushes, pairs: _Pairs, reference: _Pairs, places: _Places,
    totals: dict[str, Floats], seed: int, cost: dict[str, float],
) -> list[Score]:  # fmt: skip
    n = np.bincount(places.cluster, minlength=places.clusters).astype(np.float64)
    whole = {name: total.sum(axis=0) / n.sum() for name, total in totals.items()}
    if not np.any(whole["ablated"]):
        return [record(metric=m, value=None, n=len(places.rows), reason="the ablation moves no logit") for m in METRICS]
    own, lens = (p.auc(whole["ablated"]) for p in (pairs, reference))
    floors = {"random_direction": float(pairs.auc(whole["random"]))}
    beside = [float(pairs.auc(total)) for name, total in whole.items() if name.startswith("neighbour")]
    floors |= {"neighbours": max(beside)} if beside else {}
    draws = _draws(pairs, reference, totals, n, seed)
    ends = {name: stats.interval(drawn, places.clusters) for name, drawn in draws.items()}
    interval = {name: {"low": low, "high": high} for name, (low, high) in ends.items()}
    details = {
        "raises": list(pushes.raises), "lowers": list(pushes.lowers), "clusters": places.clusters,
        "lens_lead": {"value": float(own - lens), **interval["lead"]}, "cost": cost,
    }  # fmt: skip
    steered = float(pairs.auc(whole["steered"]))
    return [
        record(
            metric="output_auc", value=float(own), n=len(places.rows), floors=floors, references={"lens": float(lens)},
            details=details, **interval["own"],
        ),
        record(
            metric="steering_auc", value=steered, n=len(places.rows), details={"mechanical": True},
            **interval["steered"],
        ),
    ]  # fmt: skip


def _draws(
    pairs: _Pairs, reference: _Pairs, totals: dict[str, Floats], n: Floats, seed: int
) -> dict[str, Floats]:
    """Bootstrap draws of the AUC under ablation, of its lead over the lens's, and of the AUC under steering."""
    ids = np.unique(np.concatenate([part for p in (pairs, reference) for part in (p.tokens, p.controls.ravel())]))
    ways = [totals[name][:, ids] for name in ("ablated", "steered")]
    drawn = stats.resampled(np.concatenate([n[:, None], *ways], axis=1), seed)
    place = {int(token): k for k, token in enumerate(ids)}

    def among(p: _Pairs) -> _Pairs:
        at = np.vectorize(place.__getitem__, otypes=[np.int64])
        return _Pairs(at(p.tokens), p.signs, at(p.controls))

    some, other = among(pairs), among(reference)
    ablated, steered = np.split(drawn[:, 1:], 2, axis=1)
    own = some.auc(ablated)
    return {"own": own, "lead": own - other.auc(ablated), "steered": some.auc(steered)}


__all__ = ["METRICS", "Pushes", "nearest", "score_output"]
