"""By which paths a unit's difference between two texts reaches the logits: directly, or through which later part."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from .attribute import answer_tokens
from .features import Point
from .masked import MaskedLM
from .minimal_pair import minimal_pair
from .patch import Answers, share, unscorable, whole_pair
from .patch_grid import DIRECTIONS, INFLATED, NORMS, Metric
from .subject import Edit, Subject
from .sweep import Sweep
from .units import UnitId

INSIDE = {"attn_out": "attn", "mlp_out": "mlp"}      # what a write is made of: z, or neurons
NAMES = {"attn_out": "attention", "mlp_out": "MLP"}


def path_patch(
    subject: Subject, masked: MaskedLM, sweep: Sweep, unit: UnitId, *, text: str | None = None,
    ids: Sequence[int] | None = None, corrupt: str | None = None, answer: str | None = None, foil: str | None = None,
    direction: str = "denoise", norm: str = "recomputed", seed: int = 0,
) -> Evidence:  # fmt: skip
    """Splits what the unit carries between a firing text and its silenced copy by the later parts that take it up.

    Clean, corrupt (made, or given), t⁺, t⁻ and M as in `patch`. denoise: base is the corrupt run, and the unit has its
    clean value at the last position; noise: the other way about. For each receiver (attention and MLP of the blocks
    behind the unit): its neurons or z are what they are when it alone sees the change, all other parts between held at
    their base values; put into the base run, with all behind recomputed. `direct`: all later parts held, so that only
    the stream takes the change to the final norm. carried = (M_patched − M_base) / (M_source − M_base). A path through
    several parts counts for the first of them alone, so that in a linear model `direct` and the receivers add up to the
    unit itself (`total`); here they need not, since neither parts nor norm are linear. norm: whether the final norm's
    scale is recomputed in each run, or frozen to the base's.

    Rows {receiver, layer, carried, metric}: total, direct, then receivers by |carried|. checks: m_clean, m_corrupt, sd,
    t_plus, t_minus, norm, reason, fired (edits made). carried is None where the pair cannot be scored, as in `patch`.
    Raises Refused as `patch` does.

    Args:
        text: a text on which the unit fires; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        corrupt: a text of as many tokens to hold against the text, instead of one that is searched for.
        answer: what should follow the text rather than the corrupt one; its first token counts, with its space.
        foil: what should follow the corrupt text instead.
        direction: denoise or noise.
        norm: recomputed or frozen.
        seed: seeds the search for the pair, and its repeats.
    """
    for name, value, known in (("direction", direction, DIRECTIONS), ("norm", norm, NORMS)):
        if value not in known:
            raise Refused(f"{name} {value!r} is unknown; choose one of {', '.join(known)}.")
    with subject.metered() as cost:
        answers = answer_tokens(subject, answer, foil)
        pair = minimal_pair(subject, masked, sweep, unit, text, ids, corrupt, seed)
        rows, checks = paths_of(subject, unit, pair.clean, pair.corrupt, pair.kept, direction, norm, seed, answers)
    checks |= pair.facts()
    return Evidence(
        tool="path_patch", unit=unit.bare, sign=unit.sign,
        arguments={"text": text, "ids": None if ids is None else list(ids), "corrupt": corrupt, "answer": answer,
                   "foil": foil, "direction": direction, "norm": norm, "seed": seed},
        summary=_summary(unit, rows, checks, direction), rows=rows, checks=checks,
        warnings=[INFLATED] if None in answers else [], cost=cost,
    )  # fmt: skip


def paths_of(
    subject: Subject, unit: UnitId, clean: Sequence[int], corrupt: Sequence[int], kept: Sequence[int], direction: str,
    norm: str, seed: int, answers: Answers = (None, None),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Rows and checks of `path_patch` for a pair made by hand, of equal length; the unit may be a head."""
    last = len(clean) - 1
    stays, generator = sorted({0, last, *kept}), np.random.default_rng(seed)
    both, sd, reason = whole_pair(subject, unit, clean, corrupt, last, stays, generator, answers=answers)
    later = behind(subject, unit)
    top = Point(subject.n_layers - 1, "resid")
    read = list(dict.fromkeys([*later, top, *subject.before([unit.site])]))
    denoise = direction == "denoise"
    base, source, values = (
        (corrupt, clean, both.clean_values) if denoise else (clean, corrupt, both.corrupt_values)
    )
    done = subject.run([list(base), list(source)], read=read, normed=True)
    assert done.normed is not None
    metric = Metric(subject, done.readings[top][0, -1], done.normed[0, -1], norm, both.t_plus, both.t_minus)
    low, high = metric(done.readings[top][:, -1], done.normed[:, -1]).tolist()
    names, patched, fired = _patched(subject, unit, base, values[:1], done.readings, later, metric)
    reason = reason or unscorable(high - low, None)
    rows = [
        {"receiver": name, "layer": layer, "carried": (m - low) / (high - low) if reason is None else None, "metric": m}
        for (name, layer), m in zip(names, patched, strict=True)
    ]
    rows = [*rows[:2], *sorted(rows[2:], key=lambda row: -abs(row["metric"] - low))]
    checks = {
        "m_clean": float(both.m_clean[0]), "m_corrupt": float(both.m_corrupt[0]), "sd": sd,
        "t_plus": subject.piece(both.t_plus), "t_minus": subject.piece(both.t_minus), "norm": norm, "reason": reason,
        "clean_text": subject.text(clean), "corrupt_text": subject.text(corrupt), "fired": fired,
    }  # fmt: skip
    return rows, checks


def behind(subject: Subject, unit: UnitId) -> list[Point]:
    """The writes that come behind the unit's in a pass, what the unit is itself a part of not counted."""
    point = subject.writes_at(unit.site)
    own = [Point(point.layer, "mlp_out")] if point.place in ("attn", "attn_out", "mlp_in") else []
    return own + [Point(layer, place) for layer in range(point.layer + 1, subject.n_layers) for place in INSIDE]


def _patched(
    subject: Subject, unit: UnitId, base: Sequence[int], values: Tensor, before: dict[Any, Tensor],
    later: Sequence[Point], metric: Metric,
) -> tuple[list[tuple[str, int | None]], list[float], int]:  # fmt: skip
    """Names and M of total, direct and each receiver, and how many edits were made."""
    top, row = Point(subject.n_layers - 1, "resid"), list(base)
    columns = subject.columns(unit.site, [unit.index])
    at = torch.zeros(1, len(row), dtype=torch.bool)
    at[0, -1] = True
    sender = Edit(unit.site, values[:, None, columns], (unit.index,), at)
    held = [Edit(point, before[point][:1]) for point in later]
    inside = {point: Point(point.layer, INSIDE[point.place]) for point in later}
    start = {point: values[:1] for point, values in before.items()}
    total = subject.run([row], read=[top], edits=[sender], normed=True, start=start)
    alone = subject.run([row], read=[top, *inside.values()], edits=[sender, *held], normed=True, start=start)
    assert total.normed is not None and alone.normed is not None
    found = [float(metric(p.readings[top][:, -1], p.normed[:, -1])) for p in (total, alone)]  # type: ignore[index]
    fired = total.fired[0] + alone.fired[0]
    if later:
        edits = []
        for line, point in enumerate(later):
            where = torch.zeros(len(later), len(row), dtype=torch.bool)
            where[line, -1] = True
            edits.append(Edit(inside[point], alone.readings[inside[point]], where=where))
        one = subject.run([row] * len(later), read=[top], edits=edits, normed=True)
        assert one.normed is not None
        found += metric(one.readings[top][:, -1], one.normed[:, -1]).tolist()
        fired += sum(one.fired)
    names: list[tuple[str, int | None]] = [("total", None), ("direct", None)]
    return names + [(NAMES[point.place], point.layer) for point in later], found, fired


def _summary(unit: UnitId, rows: Sequence[dict[str, Any]], checks: dict[str, Any], direction: str) -> str:
    swap = f"{checks['original']!r} → {checks['substitute']!r}" if "original" in checks else "the swap"
    if checks["reason"]:
        return f"{unit}, {swap}: not scorable, since {checks['reason']}."
    total, direct, *through = rows
    first = through[0] if through else direct
    most = f"; most of the rest through {first['receiver']} {first['layer']} ({share(first['carried'])})"
    return (
        f"Of what {swap} does to {checks['t_plus']!r} over {checks['t_minus']!r}, {unit} carries "
        f"{share(total['carried'])}, {share(direct['carried'])} directly{most if through else ''} ({direction})."
    )


__all__ = ["behind", "path_patch", "paths_of"]
