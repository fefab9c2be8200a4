"""Ablation: what the subject's next-token predictions lose when one unit stops following the text.

The unit is held at its mean, at zero, or at values it takes elsewhere, at every position but the sink; everything
downstream is recomputed, so this is the unit's total effect (the lens shows the direct part alone).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from . import stats
from .measures import EQUIVALENCE_QUANTILE, EQUIVALENCE_UNITS
from .subject import Edit, Subject
from .sweep import STEP, Place, Sweep
from .units import UnitId

KINDS = ("mean", "zero", "resample")
WHERE = ("firing", "after", "elsewhere")
AFTER = 5              # positions behind a firing that count as just after it
TOKENS = 10            # tokens listed for each direction
CHUNK = 256            # positions whose logits are held at once
EQUIVALENCE_PLACES = 8
CONTEXT = 12           # tokens, sink included, of the short rows on which the matched units are ablated


def ablate(
    subject: Subject,
    sweep: Sweep,
    unit: UnitId,
    *,
    kind: str = "mean",
    windows: int = 24,
    equivalence: bool = True,
    seed: int = 0,
) -> Evidence:
    """Takes the unit out of the running model and measures what its next-token predictions lose, and where.

    ΔCE = CE(ablated) − CE(clean) [nats a token] of the prediction of the NEXT token, on explain-side windows of the
    sink and 63 tokens: half of them hold exemplars of the unit (bands top, high, mid in turn, other documents first),
    half are drawn from the rest. The unit is set at all positions but the sink to its mean over the explain side, to
    zero, or (resample), position by position, to values it has at random explain positions.

    Rows {where, delta_ce, low, high, n, documents, clean_ce, kl}, where = firing (y ≥ τ), after (the 5 positions
    behind a firing, themselves quiet), elsewhere. low, high: 95 % percentile bootstrap over clusters of near-copy
    documents, None below 8 of them; n: positions; kl: mean KL(clean ‖ ablated) [nats]; all None where n = 0.
    checks: pushed and held_down = [token, change] where the unit's presence raises and lowers logits most: mean over
    the firing positions of the centred logits, clean − ablated. value: what the unit was set to, sign not applied
    (None for resample). fired: edited positions, of `positions`.

    delta_equivalence δ = 95th percentile of |mean ΔCE| over 50 units of the layer whose write norm ‖w‖ is nearest
    (stream dimensions all write 1: 50 drawn ones), ablated alike on `equivalence_n` firing positions, in rows cut to
    the sink and the last 11 tokens; same_rows is this unit's own mean there. effect: "none" iff the whole interval at
    firing positions lies within ±δ, "shown" if it lies outside 0 and not so, else "not shown".
    Raises Refused for an unknown kind, fewer than 2 windows, a head, and a unit that never fires on the explain side.

    Args:
        kind: what the unit is set to: mean, zero or resample.
        windows: number of windows of 64 tokens, half with firings.
        equivalence: whether to measure δ, which takes as long as the rest; without it nothing is called "none".
        seed: seeds the drawn windows, resampled values and intervals.
    """
    _check(subject, sweep, unit, kind, windows)
    generator = np.random.default_rng(seed)
    with subject.metered() as cost:
        texts = _texts(sweep, unit, windows, generator)
        found = _measure(subject, sweep, unit, kind, texts, generator)
        rows = [_row(found, where, seed) for where in range(len(WHERE))]
        checks = _checks(subject, sweep, unit, kind, found, len(texts))
        if equivalence:
            checks |= _equivalence(subject, sweep, unit, kind, found, generator)
    checks["effect"] = _effect(rows[0], checks.get("delta_equivalence"))
    warnings = [f"only {r['n']} positions {r['where']} in {r['documents']} documents: no interval" for r in rows[:1] if r["low"] is None]
    if equivalence and checks["delta_equivalence"] is not None:
        warnings.append(
            f"δ comes from {checks['equivalence_n']} positions a unit, so sampling noise widens it as well"
        )
    return Evidence(
        tool="ablate",
        unit=unit.bare,
        sign=unit.sign,
        arguments={"kind": kind, "windows": windows, "equivalence": equivalence, "seed": seed},
        summary=_summary(unit, kind, rows, checks),
        rows=rows,
        checks=checks,
        warnings=warnings,
        cost=cost,
    )


def _check(subject: Subject, sweep: Sweep, unit: UnitId, kind: str, windows: int) -> None:
    if kind not in KINDS:
        raise Refused(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    if windows < 2:
        raise Refused(f"windows = {windows} is too few; give at least 2, half with firings and half without.")
    if unit.kind == "attn":
        raise Refused(f"{unit} is a head, which has no activation whose firings could be found; name an mlp or resid unit.")
    subject.check(unit)
    if sweep.statistics(unit).peak <= 0:
        raise Refused(f"{unit} is never positive on the explain side; look at its other sign.")


# Texts


@dataclass(frozen=True)
class Text:
    """One window with the token behind it: the model runs on ids[:-1], whose predictions are of ids[1:]."""

    ids: list[int]
    cluster: int


def _texts(sweep: Sweep, unit: UnitId, windows: int, generator: np.random.Generator) -> list[Text]:
    """Half as many windows as asked hold exemplars of the unit, as many more are drawn from the explain side."""
    firing = _firing_windows(sweep, unit, windows // 2)
    every = [(d, first) for d in sweep.side("explain") for first in range(0, sweep.documents[d].length, STEP)]
    rest = [every[i] for i in generator.permutation(len(every)) if every[i] not in set(firing)]
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
    """Per position of the texts that has a next token, the sink left out: ΔCE, CE(clean), KL, where it lies (an index
    of WHERE), its cluster; `shift` [V] = mean centred logit change, clean − ablated, where the unit fires; the firing
    positions as (ids up to the position, next id, cluster); positions edited."""

    delta: np.ndarray
    clean: np.ndarray
    kl: np.ndarray
    where: np.ndarray
    cluster: np.ndarray
    shift: Tensor | None
    firings: list[tuple[list[int], int, int]]
    fired: int
    positions: int


def _measure(
    subject: Subject, sweep: Sweep, unit: UnitId, kind: str, texts: Sequence[Text], generator: np.random.Generator
) -> Found:
    threshold = sweep.statistics(unit).threshold
    parts: list[np.ndarray] = []
    firings: list[tuple[list[int], int, int]] = []
    shift, fired, positions = None, 0, 0
    rows = [text.ids[:-1] for text in texts]
    for batch in subject.batches(rows):
        mine = [rows[i] for i in batch]
        clean = subject.run(mine, read=[unit.site], normed=True)
        inner = _not_sink(clean.mask)
        values = _values(sweep, unit, kind, clean.mask.shape, generator)
        ablated = subject.run(mine, edits=[Edit(unit.site, values[..., None], (unit.index,), inner)], normed=True)
        fired, positions = fired + ablated.fired[0], positions + int(inner.sum())
        y = unit.sign * clean.readings[unit.site][..., unit.index]
        where = _where(y, inner, threshold)
        line, position = torch.nonzero(inner, as_tuple=True)
        targets = torch.tensor([texts[batch[b]].ids[p + 1] for b, p in zip(line.tolist(), position.tolist(), strict=True)])
        assert clean.normed is not None and ablated.normed is not None
        pair = clean.normed[line, position], ablated.normed[line, position]
        losses, change = _compare(subject, *pair, targets.to(line.device), where[line, position] == 0)
        cluster = torch.tensor([texts[batch[b]].cluster for b in line.tolist()])
        parts.append(np.stack([*losses.double().cpu().numpy(), where[line, position].cpu().numpy(), cluster.numpy()]))
        shift = change if shift is None else shift + change
        firings += [
            (mine[b][: p + 1], texts[batch[b]].ids[p + 1], texts[batch[b]].cluster)
            for b, p in torch.nonzero(inner & (where == 0)).tolist()
        ]
    delta, ce, kl, where_, cluster_ = np.concatenate(parts, axis=1)
    mean = shift / len(firings) if shift is not None and firings else None
    return Found(delta, ce, kl, where_.astype(int), cluster_.astype(int), mean, firings, fired, positions)


def _not_sink(mask: Tensor) -> Tensor:
    inner = mask.clone()
    inner[:, 0] = False
    return inner


def _where(y: Tensor, inner: Tensor, threshold: float) -> Tensor:
    """Index into WHERE of every position [B, T]; the sink neither fires nor starts an aftermath."""
    fires = inner & (y >= threshold)
    after = torch.zeros_like(fires)
    for step in range(1, AFTER + 1):
        after[:, step:] |= fires[:, :-step]
    return torch.where(fires, 0, torch.where(after, 1, 2))


def _values(sweep: Sweep, unit: UnitId, kind: str, shape: Sequence[int], generator: np.random.Generator) -> Tensor:
    """What the unit is set to, raw, at each position of `shape`."""
    if kind == "resample":
        pool = [unit.sign * e.activation for e in sweep.exemplars(unit, "explain", "random")]
        return torch.from_numpy(generator.choice(pool, size=tuple(shape)))
    return torch.full(tuple(shape), _constant(sweep, unit, kind), dtype=torch.float64)


def _constant(sweep: Sweep, unit: UnitId, kind: str) -> float:
    return float(sweep.mean(unit.site)[unit.index]) if kind == "mean" else 0.0


def _compare(
    subject: Subject, clean: Tensor, ablated: Tensor, targets: Tensor, fires: Tensor
) -> tuple[Tensor, Tensor]:
    """ΔCE, CE(clean) and KL [3, N] from normed streams [N, d], and Σ of the centred logit change [V] where it fires."""
    losses: list[Tensor] = []
    change = torch.zeros((), device=clean.device)
    for part in torch.arange(len(clean), device=clean.device).split(CHUNK):
        before, now = subject.unembed(clean[part]), subject.unembed(ablated[part])
        moved = (before - now)[fires[part]]
        change = change + (moved - moved.mean(dim=-1, keepdim=True)).sum(dim=0)
        p, q = before.log_softmax(-1), now.log_softmax(-1)
        ce, ablated_ce = (-x.gather(1, targets[part, None])[:, 0] for x in (p, q))
        losses.append(torch.stack([ablated_ce - ce, ce, (p.exp() * (p - q)).sum(dim=-1)]))
    return torch.cat(losses, dim=1), change


# The bound of "no effect"


def _equivalence(
    subject: Subject, sweep: Sweep, unit: UnitId, kind: str, found: Found, generator: np.random.Generator
) -> dict[str, Any]:
    """δ, this unit's mean ΔCE on the same rows, and how many units and positions stand behind them."""
    places = _spread(found.firings, EQUIVALENCE_PLACES, generator)
    others = matched(subject, unit, EQUIVALENCE_UNITS, generator)
    if not places or not others:
        return {"delta_equivalence": None, "same_rows": None, "equivalence_units": len(others), "equivalence_n": len(places)}
    rows = [[ids[0], *ids[1:][1 - CONTEXT :]] for ids, _, _ in places]
    targets = [target for _, target, _ in places]
    clean = _losses(subject, rows, targets, None)
    effects = []
    for group in _groups([unit, *others], rows):
        columns = torch.tensor([[u.index] for u in group for _ in rows])
        means = [_values(sweep, u, kind, (len(rows), 1), generator) for u in group]
        ablated = _losses(subject, rows * len(group), targets * len(group), (unit.site, columns, torch.cat(means)))
        effects += (ablated.view(len(group), -1) - clean).mean(dim=1).tolist()
    return {
        "delta_equivalence": float(np.quantile(np.abs(effects[1:]), EQUIVALENCE_QUANTILE)),
        "same_rows": effects[0],
        "equivalence_units": len(others),
        "equivalence_n": len(rows),
    }


def _spread(firings: list[tuple[list[int], int, int]], count: int, generator: np.random.Generator) -> list[tuple[list[int], int, int]]:
    """Up to `count` firings in random order, one a cluster first."""
    order = [firings[i] for i in generator.permutation(len(firings))]
    first = {f[2]: f for f in reversed(order)}
    chosen = [f for f in order if first[f[2]] is f]
    return [*chosen, *(f for f in order if first[f[2]] is not f)][:count]


def matched(subject: Subject, unit: UnitId, count: int, generator: np.random.Generator) -> list[UnitId]:
    """Up to `count` other units of the site whose write norm ‖w‖ is nearest; drawn ones where all write alike."""
    others = [UnitId(unit.model, unit.site, i) for i in generator.permutation(subject.count(unit.site)).tolist() if i != unit.index]
    if unit.kind == "mlp":
        norms = subject.adapter.linear(unit.layer, "neurons")[0].float().norm(dim=1)
        far = (norms - norms[unit.index]).abs().tolist()
        others.sort(key=lambda other: far[other.index])
    return others[:count]


def _groups(units: Sequence[UnitId], rows: Sequence[Sequence[int]], tokens: int = 2048) -> Iterator[Sequence[UnitId]]:
    size = max(1, tokens // (len(rows) * max(map(len, rows))))
    yield from (units[i : i + size] for i in range(0, len(units), size))


def _losses(
    subject: Subject, rows: Sequence[list[int]], targets: Sequence[int], put: tuple[str, Tensor, Tensor] | None
) -> Tensor:
    """CE [N] of each row's target behind its last token; `put`: site, columns [N, 1] and values of one unit a row."""
    lengths = torch.tensor([len(row) for row in rows])
    inner = _not_sink(torch.arange(int(lengths.max())) < lengths[:, None])
    edits = [Edit.by_row(*put, inner)] if put else []
    places = [(i, len(row) - 1) for i, row in enumerate(rows)]
    logits, _ = subject.next_token_logits(rows, places, edits)
    wanted = torch.tensor(targets, device=logits.device)
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu()
