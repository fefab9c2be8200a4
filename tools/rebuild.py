"""Rebuilding units from their explanations: what the model gets back when predictions stand where activations stood."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused, Score
from . import stats
from .collect import position_key
from .labels import ScoreSide, score_provenance
from .losses import inside, losses
from .measures import MIN_CLUSTERS
from .rules import Rule, SideText, side_text
from .stats import Floats
from .subject import Edit, Subject
from .sweep import Sweep
from .units import UnitId

WINDOWS = 48           # of each side, half of them with firings
RESOLVED = 1e-6        # nats a token: below it, KL is what float32 rounds off
METRICS = ("ce_recovered", "kl_recovered")
COLUMNS = ("ce_true", "ce_mean", "ce_rebuilt", "kl_mean", "kl_rebuilt", "tokens")
TOO_FEW = f"the windows are of fewer than {MIN_CLUSTERS} clusters of documents, which gives no interval"
NO_EFFECT = "no effect, not scorable: holding the units at their means costs the model nothing that is told from 0"

Claim = Callable[[str], bool]
Windows = Sequence[tuple[int, int]]                      # bounds of windows in the flat text of a side
Predict = Callable[[SideText, Windows], Floats]          # a prediction for each token of these windows, flat [M]
Explained = Mapping[UnitId, Rule | Predict]
Bounded = tuple[float | None, float | None, float | None]      # a value and its interval


@dataclass(frozen=True)
class Scale:
    """Raw activation = floor + slope × the prediction."""

    floor: float
    slope: float


def fit_scales(subject: Subject, sweep: Sweep, rules: Explained, seed: int = 0) -> dict[UnitId, Scale]:
    """By least squares over the tokens of windows of the tune side, half of which hold firings of one of the units."""
    if not rules:
        raise Refused("there is no rule to rebuild a unit from; name units whose explanation has one.")
    text = side_text(subject, sweep, "tune")
    firing = [e.place for unit in rules for band in ("top", "high", "mid") for e in sweep.exemplars(unit, "tune", band)]
    chosen = _windows(text, text.text.position > 0, firing, seed)
    rows = [text.text.ids[a:b].tolist() for a, b in chosen]
    real = subject.activations(rows, list(rules))
    scales = {}
    for k, (unit, rule) in enumerate(rules.items()):
        said = _predicted(rule, text, chosen)
        x = np.concatenate([said[a + 1 : b] for a, b in chosen])
        y = np.concatenate([real[i, 1 : b - a, k].double().numpy() for i, (a, b) in enumerate(chosen)])
        spread = float(((x - x.mean()) ** 2).sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
        scales[unit] = Scale(float(y.mean() - slope * x.mean()), slope)
    return scales


def rebuild(
    subject: Subject, sweep: Sweep, rules: Explained, scales: Mapping[UnitId, Scale], *, hypothesis: str, claim: Claim,
    evidence: Sequence[Evidence] = (), seed: int = 0,
) -> list[Score]:  # fmt: skip
    """Puts what rules predict in place of their units' activations in the running model, on the score side.

    In place of a rule there may be a function that predicts for the tokens of some windows, as `judged.simulated` makes
    of a sentence.

    ce_recovered = (CE_mean − CE_rebuilt) / (CE_mean − CE_true), CE [nats a token] of the next token over up to 48
    windows, half of which hold firings of one of the units: with all units of `rules` at their means over the explain
    side, at floor + slope (of `scales`) × the rule's prediction, and as they are; at every position but the sink, all
    at a time. 1: as good as the real activations, 0: no better than their means; nothing is clipped. kl_recovered = 1 −
    KL_rebuilt / KL_mean, KL from the predictions of the model as it is: less noisy, and blind to what the text says.
    Intervals: bootstrap over clusters. Both are undefined where CE_mean − CE_true is not told from 0 by its interval,
    and kl_recovered where KL_mean is not told from 1e-6 nats, which float32 does not resolve.
    For a set of units it is one score each, recorded under the first. Source of the idea: Bills et al. (2023), with
    mean for zero ablation.

    claim(hypothesis) guards the score side. Raises Refused at a second read, and where there is nothing to rebuild.
    """
    if len({(u.site, u.index) for u in rules}) < len(rules):
        raise Refused("both sides of one unit cannot be rebuilt at a time; name one of them.")
    if not claim(hypothesis):
        raise Refused(f"the score side was already read to rebuild {hypothesis}; submit a new explanation.")
    unit = next(iter(rules))
    with subject.metered() as cost:
        side = ScoreSide.of(subject, sweep, evidence)
        firing = [e.place for u in rules for e in sweep.firings(u)]
        chosen = _windows(side.text, side.keep, firing, seed)
        said = {
            u: scales[u].floor + scales[u].slope * _predicted(rule, side.text, chosen) for u, rule in rules.items()
        }
        losses, clusters = measure(subject, sweep, side, chosen, said)
    details: dict[str, Any] = {
        "units": [str(u) for u in rules], "windows": len(chosen), "corpus": sweep.corpus, "cost": cost,
        **dict(zip(COLUMNS[:-1], (losses[:, :-1].sum(axis=0) / losses[:, -1].sum()).tolist(), strict=True)),
    }  # fmt: skip
    provenance, shares = score_provenance(sweep, seed), recovered(losses, seed)
    reason = TOO_FEW if clusters < MIN_CLUSTERS else NO_EFFECT
    return [
        Score(
            unit=unit.bare, sign=unit.sign, hypothesis=hypothesis, metric=metric, side="score", value=value, low=low,
            high=high, n=clusters, details=details, reason=reason if value is None else None, provenance=provenance,
        )
        for metric, (value, low, high) in zip(METRICS, shares, strict=True)
    ]  # fmt: skip


def _predicted(explanation: Rule | Predict, text: SideText, chosen: Windows) -> Floats:
    return explanation.predict_flat(text.text) if isinstance(explanation, Rule) else explanation(text, chosen)


def recovered(losses: Floats, seed: int) -> list[Bounded]:
    """Each of METRICS with its interval, from sums by cluster [C, len(COLUMNS)]."""
    sums = np.concatenate([losses.sum(axis=0)[None], stats.resampled(losses, seed)])
    true, mean, rebuilt, kl_mean, kl_rebuilt, tokens = sums.T
    found: list[Bounded] = []
    for lost, back, least in ((mean - true, mean - rebuilt, 0.0), (kl_mean, kl_mean - kl_rebuilt, RESOLVED)):
        low, _ = stats.interval((lost / tokens)[1:], len(losses))
        if low is None or low <= least:
            break
        shares = stats.ratio(back, lost)
        found.append((float(shares[0]), *stats.interval(shares[1:], len(losses))))
    return found + [(None, None, None)] * (len(METRICS) - len(found))


def _windows(text: SideText, keep: np.ndarray, firing: Sequence[tuple[int, int]], seed: int) -> list[tuple[int, int]]:
    """Bounds of windows in the flat text, by hash: half as many as WINDOWS with a firing, the rest from all others."""
    starts = text.text.starts
    whole = np.array([keep[a + 1 : b].all() and b - a > 2 for a, b in zip(starts[:-1], starts[1:], strict=True)])
    rows = np.array([text.index(place) for place in firing], dtype=np.int64)
    fires = np.zeros(len(whole), dtype=bool)
    fires[np.searchsorted(starts, rows, side="right") - 1] = True
    order = np.argsort(position_key(np.arange(len(whole)) + seed), kind="stable")
    with_firing = [i for i in order if whole[i] and fires[i]][: WINDOWS // 2]
    rest = [i for i in order if whole[i] and not fires[i]][: WINDOWS - len(with_firing)]
    return [(int(starts[i]), int(starts[i + 1])) for i in (*with_firing, *rest)]


def measure(
    subject: Subject, sweep: Sweep, side: ScoreSide, chosen: Sequence[tuple[int, int]], said: Mapping[UnitId, Floats]
) -> tuple[Floats, int]:
    """Sums by cluster [C, len(COLUMNS)], with activations as they are, at their means and as `said` [M], and C."""
    rows = [side.text.text.ids[a:b].tolist() for a, b in chosen]
    _, cluster = np.unique([side.cluster[a + 1] for a, _ in chosen], return_inverse=True)
    sums = np.zeros((len(rows), len(COLUMNS)))
    for batch in subject.batches(rows):
        mine = [rows[i] for i in batch]
        where = inside(mine)
        width = where.shape[1]
        spread = {u: _padded([values[slice(*chosen[i])] for i in batch], width) for u, values in said.items()}
        mean = {u: torch.full((len(mine), width), float(sweep.mean(u.site)[u.index])) for u in said}
        sums[batch] = _losses(subject, mine, [_edits(mean, where), _edits(spread, where)])
    count = int(cluster.max()) + 1
    return np.stack([stats.by_cluster(cluster, count, column) for column in sums.T], axis=1), count


def _padded(parts: Sequence[Floats], width: int) -> Tensor:
    out = torch.zeros(len(parts), width)
    for line, part in enumerate(parts):
        out[line, : len(part)] = torch.from_numpy(part)
    return out


def _edits(values: Mapping[UnitId, Tensor], where: Tensor) -> list[Edit]:
    """One edit a site, of all its units."""
    by_site: dict[str, list[UnitId]] = {}
    for unit in values:
        by_site.setdefault(unit.site, []).append(unit)
    return [
        Edit(site, torch.stack([values[u] for u in units], dim=-1), tuple(u.index for u in units), where)
        for site, units in by_site.items()
    ]


def _losses(subject: Subject, rows: Sequence[list[int]], ways: Sequence[Sequence[Edit]]) -> Floats:
    """Sums over the tokens behind the first one after the sink of each row [N, len(COLUMNS)], as it is and each way."""
    true = subject.run(rows, read=subject.before(edit.site for edit in ways[0]), normed=True)
    passes = [true, *(subject.run(rows, edits=edits, normed=True, start=true.readings) for edits in ways)]
    normed = [done.normed for done in passes if done.normed is not None]
    ce, kl, followed = losses(subject, normed, rows, inside(rows).to(subject.device))
    every = torch.cat([ce, kl, torch.ones(1, ce.shape[1])]).numpy()
    line = torch.nonzero(followed)[:, 0].numpy()
    return np.stack([np.bincount(line, column, minlength=len(rows)) for column in every], axis=1)


__all__ = ["METRICS", "NO_EFFECT", "Scale", "fit_scales", "measure", "rebuild", "recovered"]
