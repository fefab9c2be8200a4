"""Where a difference between two texts travels: every block and position patched, one at a time.

The texts are a minimal pair that the tool makes itself, as in `patch`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from .attribute import answer_tokens, norm_scale
from .features import Point
from .heatmap import heatmap
from .masked import MaskedLM
from .minimal_pair import minimal_pair
from .patch import Answers, Pairs, share, unscorable, whole_pair
from .subject import BATCH_TOKENS, Edit, Subject
from .sweep import Sweep
from .units import UnitId

PLACES = {"resid": "resid", "attention": "attn_out", "mlp": "mlp_out"}
DIRECTIONS = ("denoise", "noise")
NORMS = ("recomputed", "frozen")
INFLATED = "t+ and t- are chosen and measured on the same pair, which inflates the gap but not the shares' order"


def patch_grid(
    subject: Subject, masked: MaskedLM, sweep: Sweep, unit: UnitId, *, text: str | None = None,
    ids: Sequence[int] | None = None, corrupt: str | None = None, answer: str | None = None, foil: str | None = None,
    place: str = "resid", direction: str = "denoise", norm: str = "recomputed", seed: int = 0,
) -> Evidence:  # fmt: skip
    """Shows where the difference between a firing text and its silenced copy travels to the next token's logits.

    Clean, corrupt (made, or given), t⁺, t⁻ and M as in `patch`. For each block and each position from the first token
    that differs to the last: what stands at `place` there (the stream behind the block, or what attention or the MLP
    writes) is put from one run into the other, and all behind it recomputed. carried = (M_patched − M_base) /
    (M_source − M_base); denoise puts clean values into the corrupt run (base corrupt), noise corrupt values into the
    clean run. Positions before the first difference are equal in both runs, so they carry exactly 0 and are left out.
    norm: whether the final norm's scale is recomputed in the patched run, or frozen to that of the base run; with it
    frozen, the source too is measured on the base's scale, so that shares of the last block's stream are 1 at the last
    position.

    Rows {layer, position, token, carried, metric}, largest |carried| first. checks: `grid` [layers][positions] of
    carried, positions, tokens (of clean, with corrupt's behind a slash where they differ), m_clean, m_corrupt, sd,
    t_plus, t_minus, norm, reason, fired (edits made) of `edits`. carried is None where the pair cannot be scored, with
    the reason, as in `patch`. Picture: the grid. Raises Refused as `patch` does.

    Args:
        text: a text on which the unit fires; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        corrupt: a text of as many tokens to hold against the text, instead of one that is searched for.
        answer: what should follow the text rather than the corrupt one; its first token counts, with its space.
        foil: what should follow the corrupt text instead.
        place: resid, attention or mlp.
        direction: denoise or noise.
        norm: recomputed or frozen.
        seed: seeds the search for the pair, and its repeats.
    """
    for name, value, known in (("place", place, PLACES), ("direction", direction, DIRECTIONS), ("norm", norm, NORMS)):
        if value not in known:
            raise Refused(f"{name} {value!r} is unknown; choose one of {', '.join(known)}.")
    with subject.metered() as cost:
        answers = answer_tokens(subject, answer, foil)
        pair = minimal_pair(subject, masked, sweep, unit, text, ids, corrupt, seed)
        rows, checks = grid_of(
            subject, unit, pair.clean, pair.corrupt, pair.kept, place, direction, norm, seed, answers
        )
    checks |= pair.facts()
    return Evidence(
        tool="patch_grid", unit=unit.bare, sign=unit.sign,
        arguments={"text": text, "ids": None if ids is None else list(ids), "corrupt": corrupt, "answer": answer,
                   "foil": foil, "place": place, "direction": direction, "norm": norm, "seed": seed},
        summary=_summary(unit, rows, checks, place, direction), rows=rows, checks=checks,
        warnings=_warnings(checks, None in answers), cost=cost,
    )  # fmt: skip


def grid_of(
    subject: Subject, unit: UnitId, clean: Sequence[int], corrupt: Sequence[int], kept: Sequence[int], place: str,
    direction: str, norm: str, seed: int, answers: Answers = (None, None),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Rows and checks of `patch_grid` for a pair made by hand, of equal length."""
    last = len(clean) - 1
    stays, generator = sorted({0, last, *kept}), np.random.default_rng(seed)
    both, sd, reason = whole_pair(subject, unit, clean, corrupt, last, stays, generator, answers=answers)
    first = next(i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    patched, low, high, fired = _patched(subject, base, source, PLACES[place], first, norm, both)
    reason = reason or unscorable(high - low, None)
    carried = (patched - low) / (high - low) if reason is None else None
    words = [subject.piece(a) + (f"/{subject.piece(b)}" if a != b else "") for a, b in zip(clean, corrupt, strict=True)]
    rows = [
        {"layer": layer, "position": first + k, "token": words[first + k],
         "carried": None if carried is None else float(carried[layer, k]), "metric": float(patched[layer, k])}
        for layer in range(patched.shape[0]) for k in range(patched.shape[1])
    ]  # fmt: skip
    checks = {
        "grid": None if carried is None else carried.tolist(), "positions": list(range(first, len(clean))),
        "tokens": words[first:], "m_clean": float(both.m_clean[0]), "m_corrupt": float(both.m_corrupt[0]), "sd": sd,
        "t_plus": subject.piece(both.t_plus), "t_minus": subject.piece(both.t_minus), "norm": norm, "reason": reason,
        "clean_text": subject.text(clean), "corrupt_text": subject.text(corrupt), "fired": fired, "edits": len(rows),
    }  # fmt: skip
    return sorted(rows, key=lambda row: -abs(row["carried"] or 0)), checks


def _patched(
    subject: Subject, base: Sequence[int], source: Sequence[int], place: str, first: int, norm: str, both: Pairs
) -> tuple[Tensor, float, float, int]:
    """M [layers, positions] of the patched base runs, M of base and of source, and how many edits were made."""
    points = [Point(layer, place) for layer in range(subject.n_layers)]
    top = Point(subject.n_layers - 1, "resid")
    read = dict.fromkeys([top, *points, *(before for point in points for before in subject.before([point]))])
    done = subject.run([list(base), list(source)], read=list(read), normed=True)
    assert done.normed is not None
    metric = Metric(subject, done.readings[top][0, -1], done.normed[0, -1], norm, both.t_plus, both.t_minus)
    low, high = metric(done.readings[top][:, -1], done.normed[:, -1]).tolist()
    places = list(range(first, len(base)))
    found = torch.empty(len(points), len(places), dtype=torch.float64)
    size = max(1, BATCH_TOKENS // len(base))
    fired = 0
    for layer, point in enumerate(points):
        values = done.readings[point][1:2]
        for first_of in range(0, len(places), size):
            some = places[first_of : first_of + size]
            where = torch.zeros(len(some), len(base), dtype=torch.bool)
            where[torch.arange(len(some)), torch.tensor(some)] = True
            edit = Edit(point, values, where=where)
            start = {p: done.readings[p][:1].expand(len(some), -1, -1) for p in subject.before([point])}
            one = subject.run([list(base)] * len(some), read=[top], edits=[edit], normed=True, start=start)
            assert one.normed is not None
            found[layer, first_of : first_of + len(some)] = metric(one.readings[top][:, -1], one.normed[:, -1])
            fired += one.fired[0]
    return found, low, high, fired


class Metric:
    """M = logit t⁺ − logit t⁻ from the last stream [N, d] or what the final norm made of it, by the way of `norm`."""

    def __init__(self, subject: Subject, x: Tensor, normed: Tensor, norm: str, t_plus: int, t_minus: int) -> None:
        gain, self._centres = subject.adapter.final_norm()
        self._subject, self._frozen, self._pair = subject, norm == "frozen", (t_plus, t_minus)
        x = x.double()
        self._gain = gain.double() / norm_scale(subject.adapter.norm, x, gain, self._centres)
        self._x, self._normed = x, normed.double()

    def __call__(self, x: Tensor, normed: Tensor) -> Tensor:
        """M [N], float64, on the CPU."""
        if self._frozen:
            change = x.double() - self._x
            change = change - change.mean(dim=-1, keepdim=True) if self._centres else change
            normed = (self._normed + change * self._gain).to(normed.dtype)
        logits = self._subject.unembed(normed)
        return (logits[:, self._pair[0]] - logits[:, self._pair[1]]).double().cpu()


def draw(evidence: Evidence) -> bytes | None:
    """The grid as a PNG; None where the pair could not be scored."""
    checks, asked = evidence.checks, evidence.arguments
    if checks["grid"] is None:
        return None
    values = np.array(checks["grid"])
    rows = [str(layer) for layer in range(len(values))]
    title = f"{evidence.unit}: {asked['direction']}, {asked['place']} ({asked['norm']} norm)"
    return heatmap(values, rows, checks["tokens"], title, "carried share")


def _summary(
    unit: UnitId, rows: Sequence[dict[str, Any]], checks: dict[str, Any], place: str, direction: str
) -> str:
    swap = f"{checks['original']!r} → {checks['substitute']!r}" if "original" in checks else "the swap"
    if checks["reason"]:
        return f"{unit}, {swap}: not scorable, since {checks['reason']}."
    best = rows[0]
    return (
        f"Of what {swap} does to {checks['t_plus']!r} over {checks['t_minus']!r}, {place} of block {best['layer']} at "
        f"{best['token']!r} carries most ({direction}: {share(best['carried'])})."
    )


def _warnings(checks: dict[str, Any], chosen: bool) -> list[str]:
    said = [INFLATED] if chosen else []
    if len(checks["positions"]) == 1:
        said.append("the texts differ at the last token alone: the grid has one position, and tells of depth only")
    return said


__all__ = ["Metric", "draw", "grid_of", "patch_grid"]
