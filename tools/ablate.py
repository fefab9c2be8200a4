"""Ablation: what the subject's next-token predictions lose when units stop following the text.

A unit, and others with it, is held at what `taken_out` gives, at every position but the sink; everything downstream is
recomputed, so this is their total effect (the lens shows the direct part alone).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from . import stats
from .collect import SIGNS
from .losses import CHUNK, inside, not_sink
from .measures import EQUIVALENCE_QUANTILE, EQUIVALENCE_UNITS
from .stats import Floats, Ints
from .subject import BATCH_TOKENS, Edit, Pass, Subject
from .sweep import STEP, Place, Sweep
from .taken_out import KINDS, TakenOut
from .units import UnitId

WHERE = ("firing", "after", "elsewhere")
AFTER = 5              # positions behind a firing that count as just after it
TOKENS = 10            # tokens listed for each direction
EQUIVALENCE_PLACES = 8
CONTEXT = 8            # tokens, sink included, of the short rows on which the matched units are ablated


def ablate(
    subject: Subject,
    sweep: Sweep,
    unit: UnitId,
    *,
    kind: str = "mean",
    also: Sequence[str] | None = None,
    draws: int = 4,
    windows: int = 24,
    equivalence: bool = True,
    seed: int = 0,
) -> Evidence:
    """Takes the unit out of the running model and measures what its next-token predictions lose, and where.

    ΔCE = CE(ablated) − CE(clean) [nats a token] of the prediction of the NEXT token, on explain-side windows of the
    sink and 63 tokens: half of them hold exemplars of the unit (bands top, high, mid in turn, other documents first),
    half are drawn from the rest. At all positions but the sink the unit, and with it those of `also`, is set to its
    mean over the explain side, to zero, to its mean over explain positions with the same token (mean_by_role), or to
    what it is in another of these windows (resample: a derangement, the same for all units; ΔCE is the mean over
    `draws` of them). A head has no firing: all its positions are elsewhere.

    Rows {where, delta_ce, low, high, sd, n, documents, clean_ce, kl}, where = firing (y ≥ τ), after (the 5 positions
    behind a firing, themselves quiet), elsewhere. low, high: 95 % percentile bootstrap over clusters of near-copy
    documents, None below 8 of them; sd: of the mean over the draws, None with one; n: positions; kl: mean KL(clean ‖
    ablated) [nats]; all None where n = 0.
    checks: pushed and held_down = [token, change, id] where the unit's presence raises and lowers logits most: mean
    over the firing positions (of a head, all) of the centred logits, clean − ablated. value: what the unit was set to,
    sign not applied (None where that is not one number). fired: edits made at positions, of `positions`.

    delta_equivalence δ = 95th percentile of |mean ΔCE| over 50 units of the layer whose write norm ‖w‖ is nearest
    (stream dimensions all write 1: 50 drawn ones), ablated alike on `equivalence_n` firing positions, in rows cut to
    the sink and the last 7 tokens; same_rows is this unit's own mean there. effect: "none" iff the whole interval at
    firing positions (of a head, all) lies within ±δ, else "shown" if it leaves 0 out, else "not shown". δ is of single
    units, so that sets have none.
    Raises Refused for an unknown kind, fewer than 2 windows, and a unit that never fires on the explain side.

    Args:
        kind: what units are set to: mean, zero, mean_by_role or resample.
        also: further units to take out at the same time, as SITE/INDEX: neurons, dimensions, features or heads.
        draws: derangements, for resample.
        windows: number of windows of 64 tokens, half with firings.
        equivalence: whether to measure δ, which takes as long as the rest; without it nothing is called "none".
        seed: seeds the drawn windows, resampled values and intervals.
    """
    _check(subject, sweep, unit, kind, draws, windows)
    generator = np.random.default_rng(seed)
    others = _others(subject, sweep, unit, also or ())
    held = TakenOut(subject, sweep, kind, seed)
    with subject.metered() as cost:
        texts = study_texts(sweep, unit, windows, generator)
        found = _measure(subject, sweep, held, unit, others, texts, draws if kind == "resample" else 1)
        rows = [_row(found, where, seed) for where in range(len(WHERE))]
        checks = _checks(subject, held, unit, found, len(texts))
        if equivalence and not others:
            places = _spread(texts, found.firings, generator)
            checks |= _equivalence(subject, held, unit, places, generator)
    checks["effect"] = effect(rows[_counts(unit)], checks.get("delta_equivalence"))
    return Evidence(
        tool="ablate",
        unit=unit.bare,
        sign=unit.sign,
        arguments={"kind": kind, "also": None if also is None else list(also), "draws": draws, "windows": windows,
                   "equivalence": equivalence, "seed": seed},
        summary=_summary(unit, kind, len(others), rows, checks),
        rows=rows,
        checks=checks,
        warnings=_warnings(unit, rows, checks),
        cost=cost,
    )


def _check(subject: Subject, sweep: Sweep, unit: UnitId, kind: str, draws: int, windows: int) -> None:
    if kind not in KINDS:
        raise Refused(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    if windows < 2:
        raise Refused(f"windows = {windows} is too few; give at least 2, half with firings and half without.")
    if draws < 1:
        raise Refused(f"draws = {draws} is too few; give at least 1.")
    subject.check(unit)
    if unit.kind != "attn":
        sweep.require_positive(unit)


def _others(subject: Subject, sweep: Sweep, unit: UnitId, also: Sequence[str]) -> list[UnitId]:
    """The units of `also`; raises Refused for one that is the model's not, dead, the unit itself, or named twice.

    Of a site that was not swept nothing is known of who is dead.
    """
    others = [UnitId.parse(f"{unit.model}/{name}") for name in also]
    for other in others:
        subject.check(other)
        swept = other.site in sweep.sites
        if swept and all(sweep.statistics(replace(other, sign=s)).peak <= 0 for s in SIGNS):
            raise Refused(f"{other} is never active on the explain side; leave it out.")
    places = [(u.site, u.index) for u in (unit, *others)]
    if len(set(places)) < len(places):
        raise Refused(f"one unit is named twice among {unit} and {', '.join(also)}; name each once.")
    return others


def _counts(unit: UnitId) -> int:
    """Index in WHERE of the positions that an effect is looked for at: a head fires nowhere."""
    return WHERE.index("elsewhere" if unit.kind == "attn" else "firing")


# Texts


@dataclass(frozen=True)
class Text:
    """One window with the token behind it: the model runs on ids[:-1], whose predictions are of ids[1:]."""

    ids: list[int]
    cluster: int


def study_texts(sweep: Sweep, unit: UnitId, windows: int, generator: np.random.Generator) -> list[Text]:
    """Half as many windows as asked hold exemplars of the unit, as many more are drawn from the explain side."""
    firing = [] if unit.kind == "attn" else _firing_windows(sweep, unit, windows // 2)
    every = [(d, first) for d in sweep.side("explain") for first in range(0, sweep.documents[d].length, STEP)]
    taken = set(firing)
    rest = [every[i] for i in generator.permutation(len(every)) if every[i] not in taken]
    texts = (_text(sweep, place) for place in (*firing, *rest[: windows - len(firing)]))
    return [text for text in texts if len(text.ids) > 2]


def _firing_windows(sweep: Sweep, unit: UnitId, count: int) -> list[Place]:
    """First places of windows with exemplars: the bands in turn, and documents not yet seen before others."""
    bands = [sweep.exemplars(unit, "explain", band) for band in ("top", "high", "mid")]
    turns = [band[i] for i in range(max(map(len, bands))) for band in bands if i < len(band)]
    threshold = sweep.statistics(unit).threshold
    places = dict.fromkeys((e.document, e.offset - e.offset % STEP) for e in turns if e.activation >= threshold)
    seen: set[int] = set()
    new = [p for p in places if p[0] not in seen and not seen.add(p[0])]  # type: ignore[func-returns-value]
    return [*new, *(p for p in places if p not in set(new))][:count]


def _text(sweep: Sweep, place: Place) -> Text:
    ids, _ = sweep.window(place)
    document = sweep.documents[place[0]]
    behind = place[1] - place[1] % STEP + STEP
    if behind < document.length:
        ids = [*ids, int(sweep.tokens[document.start + behind])]
    return Text(ids, document.cluster)


# Measuring


@dataclass(frozen=True)
class Found:
    """One entry a position that has a next token, the sink left out: ΔCE and KL (means over the draws), CE(clean),
    `where` (an index of WHERE) and cluster; `draws` [D, positions]: ΔCE of each. `shift` [V]: mean change of the
    centred logits, clean − ablated, at the positions that count (`_counts`), which `firings` gives as (text, position);
    None where there are none. `fired` of `positions` edits were made."""

    draws: Floats
    clean: Floats
    kl: Floats
    where: Ints
    cluster: Ints
    shift: Tensor | None
    firings: list[Place]
    fired: int
    positions: int


def _measure(
    subject: Subject, sweep: Sweep, held: TakenOut, unit: UnitId, others: Sequence[UnitId], texts: Sequence[Text],
    draws: int,
) -> Found:  # fmt: skip
    threshold = None if unit.kind == "attn" else sweep.statistics(unit).threshold
    counts = _counts(unit)
    parts, firings, fired, positions = [], [], 0, 0
    shift = torch.zeros(subject.vocabulary, device=subject.device)
    rows = [text.ids[:-1] for text in texts]
    put = [_values(subject, held, [unit, *others], rows, draw) for draw in range(draws)]
    fork = subject.before(u.site for u in (unit, *others))
    for batch in subject.batches(rows):
        mine = [rows[i] for i in batch]
        clean = subject.run(mine, read=[unit.site, *fork], normed=True)
        inner = not_sink(clean.mask)
        y = None if threshold is None else unit.sign * clean.readings[unit.site][..., unit.index]
        lies = _where(y, inner, threshold or 0)[inner]
        places = [(batch[b], p) for b, p in torch.nonzero(inner).tolist()]
        targets = torch.tensor([texts[i].ids[p + 1] for i, p in places], device=lies.device)
        losses = []
        for edits in put:
            some = [replace(e, value=e.value[batch, : inner.shape[1]], where=inner) for e in edits]  # type: ignore[index]
            ablated = subject.run(mine, edits=some, normed=True, start=clean.readings)
            fired += sum(ablated.fired)
            positions += len(places) * len(edits)
            assert clean.normed is not None and ablated.normed is not None
            each, change = compare(subject, clean.normed[inner], ablated.normed[inner], targets, lies == counts)
            losses.append(each.double().cpu().numpy())
            shift = shift + change / draws
        cluster = [texts[i].cluster for i, _ in places]
        delta, ce, kl = np.stack(losses, axis=1)
        parts.append(np.stack([*delta, ce[0], kl.mean(axis=0), lies.cpu().numpy(), cluster]))
        firings += [place for place, index in zip(places, lies.tolist(), strict=True) if index == counts]
    *delta, ce, kl, where, clusters = np.concatenate(parts, axis=1)
    mean = shift / len(firings) if firings else None
    return Found(np.array(delta), ce, kl, where.astype(int), clusters.astype(int), mean, firings, fired, positions)


def _values(
    subject: Subject, held: TakenOut, units: Sequence[UnitId], rows: Sequence[list[int]], draw: int
) -> list[Edit]:
    """An edit of all rows for each site of the units."""
    by_site: dict[str, list[int]] = {}
    for unit in units:
        by_site.setdefault(unit.site, []).append(unit.index)
    return [
        Edit(site, held.values(site, subject.columns(site, index), rows, draw), tuple(index))
        for site, index in by_site.items()
    ]


def _where(y: Tensor | None, inner: Tensor, threshold: float) -> Tensor:
    """Index into WHERE of every position [B, T]; the sink neither fires nor starts an aftermath. None: no firing."""
    fires = torch.zeros_like(inner) if y is None else inner & (y >= threshold)
    after = torch.zeros_like(fires)
    for step in range(1, AFTER + 1):
        after[:, step:] |= fires[:, :-step]
    return torch.where(fires, 0, torch.where(after, 1, 2))


def compare(
    subject: Subject, clean: Tensor, ablated: Tensor, targets: Tensor, fires: Tensor
) -> tuple[Tensor, Tensor]:
    """ΔCE, CE(clean) and KL [3, N] from normed streams [N, d], and Σ of the centred logit change [V] where it fires."""
    losses, change = [], torch.zeros((), device=clean.device)
    for part in (slice(start, start + CHUNK) for start in range(0, len(clean), CHUNK)):
        before, now = subject.unembed(clean[part]), subject.unembed(ablated[part])
        moved = (before - now)[fires[part]]
        change = change + (moved - moved.mean(dim=-1, keepdim=True)).sum(dim=0)
        p, q = before.log_softmax(-1), now.log_softmax(-1)
        ce, ablated_ce = (-x.gather(1, targets[part][:, None])[:, 0] for x in (p, q))
        losses.append(torch.stack([ablated_ce - ce, ce, (p.exp() * (p - q)).sum(dim=-1)]))
    return torch.cat(losses, dim=1), change


# The bound of "no effect"


def _equivalence(
    subject: Subject, held: TakenOut, unit: UnitId, places: Sequence[tuple[Text, int]], generator: np.random.Generator
) -> dict[str, Any]:
    """δ, this unit's mean ΔCE on the same rows, and how many units and positions stand behind them."""
    others = matched(subject, unit, EQUIVALENCE_UNITS, generator)
    rows, targets = cut_behind(places)
    effects: list[float] = []
    if len(places) > 1 and others:
        unchanged = subject.run(rows, read=subject.before([unit.site]), normed=True)
        clean = _losses(subject, unchanged, rows, targets)
        size = max(1, BATCH_TOKENS // (len(rows) * max(map(len, rows))))
        for group in ([unit, *others][i : i + size] for i in range(0, 1 + len(others), size)):
            taken = [subject.columns(u.site, [u.index]) for u in group]
            columns = torch.tensor([own for own in taken for _ in rows])
            values = held.values(unit.site, [c for own in taken for c in own], rows)
            values = torch.cat(values.tensor_split(len(group), dim=-1))
            every = rows * len(group)
            edit = Edit.by_row(unit.site, columns, values, inside(every))
            start = {point: stream.repeat(len(group), 1, 1) for point, stream in unchanged.readings.items()}
            ablated = _losses(subject, subject.run(every, edits=[edit], normed=True, start=start), every, targets)
            effects += (ablated.view(len(group), -1) - clean).mean(dim=1).tolist()
    return {
        "delta_equivalence": float(np.quantile(np.abs(effects[1:]), EQUIVALENCE_QUANTILE)) if effects else None,
        "same_rows": effects[0] if effects else None,
        "equivalence_units": len(others),
        "equivalence_n": len(rows),
    }


def cut_behind(places: Sequence[tuple[Text, int]]) -> tuple[list[list[int]], list[int]]:
    """Each place's text up to there, the sink and at most CONTEXT − 1 tokens, and the token that follows."""
    rows = [[text.ids[0], *text.ids[max(1, p + 2 - CONTEXT) : p + 1]] for text, p in places]
    return rows, [text.ids[p + 1] for text, p in places]


def _spread(texts: Sequence[Text], firings: Sequence[Place], generator: np.random.Generator) -> list[tuple[Text, int]]:
    """Up to EQUIVALENCE_PLACES firings in random order, those of clusters not yet seen before others."""
    order = [(texts[i], p) for i, p in (firings[k] for k in generator.permutation(len(firings)))]
    first = {text.cluster: number for number, (text, _) in reversed(list(enumerate(order)))}
    rank = sorted(range(len(order)), key=lambda number: first[order[number][0].cluster] != number)
    return [order[number] for number in rank[:EQUIVALENCE_PLACES]]


def matched(subject: Subject, unit: UnitId, count: int, generator: np.random.Generator) -> list[UnitId]:
    """Up to `count` other units of the site whose write norm ‖w‖ is nearest; drawn ones where all write alike."""
    drawn = generator.permutation(subject.count(unit.site)).tolist()
    if unit.kind not in ("resid", "attn"):
        norms = subject.write_rows(unit.site).float().norm(dim=1)
        far = (norms - norms[unit.index]).abs().tolist()
        drawn.sort(key=far.__getitem__)
    return [UnitId(unit.model, unit.site, i) for i in drawn if i != unit.index][:count]


def _losses(subject: Subject, done: Pass, rows: Sequence[list[int]], targets: Sequence[int]) -> Tensor:
    """CE [N] of what follows the last token of each row; `targets` are those of the first rows, and again."""
    assert done.normed is not None
    last = torch.tensor([len(row) - 1 for row in rows], device=done.normed.device)
    logits = subject.unembed(done.normed[torch.arange(len(rows), device=last.device), last])
    wanted = torch.tensor(targets, device=last.device).repeat(len(rows) // len(targets))
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu()


# Showing


def _row(found: Found, where: int, seed: int) -> dict[str, Any]:
    inside = found.where == where
    n = int(inside.sum())
    if not n:
        empty = dict.fromkeys(("delta_ce", "low", "high", "sd"))
        return {"where": WHERE[where], **empty, "n": 0, "documents": 0, "clean_ce": None, "kl": None}
    names, cluster = np.unique(found.cluster[inside], return_inverse=True)
    delta, by_draw = found.draws.mean(axis=0)[inside], found.draws[:, inside].mean(axis=1)
    totals = np.stack([stats.by_cluster(cluster, len(names), x) for x in (delta, np.ones(n))], axis=1)
    sums, counts = stats.resampled(totals, seed).T
    low, high = stats.interval(stats.ratio(sums, counts), len(names))
    return {
        "where": WHERE[where],
        "delta_ce": float(delta.mean()),
        "low": low,
        "high": high,
        "sd": float(by_draw.std(ddof=1)) if len(by_draw) > 1 else None,
        "n": n,
        "documents": len(names),
        "clean_ce": float(found.clean[inside].mean()),
        "kl": float(found.kl[inside].mean()),
    }


def _checks(subject: Subject, held: TakenOut, unit: UnitId, found: Found, windows: int) -> dict[str, Any]:
    pushed, held_down = ([] if found.shift is None else _tokens(subject, sign * found.shift) for sign in (1, -1))
    return {
        "fired": found.fired,
        "positions": found.positions,
        "windows": windows,
        "value": _constant(held, unit),
        "pushed": pushed,
        "held_down": [[token, -change, i] for token, change, i in held_down],
    }


def _constant(held: TakenOut, unit: UnitId) -> float | None:
    if unit.kind == "attn" or held.kind not in ("mean", "zero"):
        return None
    return float(held.mean(unit.site)[unit.index]) if held.kind == "mean" else 0.0


def _tokens(subject: Subject, change: Tensor) -> list[list[Any]]:
    values, ids = change.topk(min(TOKENS, len(change)))
    return [[subject.piece(i), value, i] for i, value in zip(ids.tolist(), values.tolist(), strict=True)]


def effect(row: dict[str, Any], bound: float | None) -> str:
    """What the firing row shows: "none" iff its whole interval lies within ±bound, else "shown" if 0 lies outside."""
    low, high = row["low"], row["high"]
    if low is None:
        return "not shown"
    if bound is not None and -bound <= low and high <= bound:
        return "none"
    return "shown" if low > 0 or high < 0 else "not shown"


def _summary(unit: UnitId, kind: str, also: int, rows: list[dict[str, Any]], checks: dict[str, Any]) -> str:
    counts = rows[_counts(unit)]
    if not counts["n"]:
        return f"{unit} fires nowhere in these windows; its effect is not shown."
    between = "" if counts["low"] is None else f" [{counts['low']:.3g}, {counts['high']:.3g}]"
    bound = checks.get("delta_equivalence")
    verdict = {"none": "no effect", "shown": "an effect", "not shown": "an effect is not shown"}[checks["effect"]]
    where = "everywhere" if unit.kind == "attn" else "where it fires"
    beside = "".join(f", {r['where']} {r['delta_ce']:+.3g}" for r in rows if r is not counts and r["n"])
    pushed = ", ".join(repr(token) for token, _, _ in checks["pushed"][:3])
    who = f"{unit} and {also} more" if also else str(unit)
    return (
        f"{who} {kind}-ablated: ΔCE {counts['delta_ce']:+.3g} nats{between} {where} (n = {counts['n']}){beside}: "
        f"{verdict}{'' if bound is None else f' (δ = {bound:.2g})'}. It pushes {pushed}."
    )


def _warnings(unit: UnitId, rows: list[dict[str, Any]], checks: dict[str, Any]) -> list[str]:
    said, looked = [], rows[_counts(unit)]
    if looked["low"] is None:
        what = "positions" if unit.kind == "attn" else "firings"
        said.append(f"{what} in {looked['documents']} documents only: no interval, so an effect cannot be shown")
    if checks.get("delta_equivalence") is not None:
        said.append(f"δ rests on {checks['equivalence_n']} positions a unit: sampling noise widens it as well")
    if checks["fired"] != checks["positions"]:
        said.append(f"the edit reached {checks['fired']} of {checks['positions']} positions: the numbers are void")
    return said
