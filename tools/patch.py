"""Activation patching on a minimal pair: how much of the difference between two texts one unit carries.

The pair is made here: a text on which the unit fires, and the same text with one word of its minimal example swapped
for one that silences the unit. The unit's value from one run is put into the other at the tracked position.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..store.records import Evidence, Refused
from .frames import filler_pool, stretches, track
from .masked import MaskedLM
from .measures import CONTROL_UNITS, KEEP, KILLS, PATCH_NOISE
from .reader import Reader
from .subject import Edit, Subject
from .substitute import substitute
from .sweep import Sweep
from .units import UnitId

PAIRS = 6              # repeats behind the noise of the gap
TOKEN_SWAPS = 32       # tokens tried in the place of each kept token where no word of equal length silences

Ids = Sequence[int]


def patch(
    subject: Subject,
    masked: MaskedLM,
    sweep: Sweep,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Evidence:
    """Tests whether the unit passes on what it detects: puts its value from a firing text into a silenced copy of it.

    Clean is the text cut at its tracked position (default: the unit's strongest explain exemplar, or the last 8, 16 or
    32 tokens of it where these keep half the reading); corrupt is clean with a word of as many tokens that kills the
    unit (`substitute`) and leaves the lowest reading in the text itself, at most half; one before the tracked token is
    preferred. Where no such word exists, single kept tokens are swapped for 32 drawn ones each, and the reading must
    fall below a quarter (checks["proposer"] is then token).

    t⁺, t⁻ = tokens whose next-token logits rise and fall most from corrupt to clean; M = logit t⁺ − logit t⁻ [logits].
    They are chosen and measured on this pair, which inflates |M|; they are then held for `pairs` repeats, in which all
    tokens but the kept words are drawn anew, the same on both sides. Carried share = (M_patched − M_base) /
    (M_source − M_base): denoise puts the clean value into the corrupt run (base corrupt, source clean: sufficient?),
    noise the corrupt value into the clean run (necessary?).

    Rows {role, unit, direction, carried, carried_repeats, metric, clean, corrupt}: the unit both ways, then 20 random
    units of the layer, denoise only. carried_repeats: ratio of the sums over the repeats (None for controls); metric:
    M_patched; clean, corrupt: y there. carried is None where |M_clean − M_corrupt| is 0 or below 3 sd of that gap over
    the repeats, and checks["reason"] says so. checks: the texts, the swap and its proposer, position, kept, t_plus,
    t_minus, m_clean, m_corrupt, sd, gap_repeats (mean gap over the repeats), controls_above (controls that carry at
    least as much, by absolute value), fired (edits made). Raises Refused where the unit is silent, and where nothing
    of equal token length silences it.

    Args:
        text: a text on which the unit fires; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        pairs: number of repeats, at least 2.
        seed: seeds the search for the pair, the repeats' fillers and the control units.
    """
    with subject.metered() as cost:
        clean, pair = minimal_pair(subject, masked, sweep, unit, text, ids, seed)
        rows, checks = patch_pair(
            subject, unit, clean, pair["ids"], len(clean) - 1, kept=pair["kept"], pairs=pairs, seed=seed
        )
    checks |= {name: pair[name] for name in ("original", "substitute", "proposer")}
    return Evidence(
        tool="patch",
        unit=unit.bare,
        sign=unit.sign,
        arguments={"text": text, "ids": None if ids is None else list(ids), "pairs": pairs, "seed": seed},
        summary=_summary(unit, rows, checks),
        rows=rows,
        checks=checks,
        warnings=_warnings(checks),
        cost=cost,
    )


def minimal_pair(
    subject: Subject, masked: MaskedLM, sweep: Sweep, unit: UnitId, text: str | None, ids: Ids | None, seed: int
) -> tuple[list[int], dict[str, Any]]:
    """The clean row of an experiment on `text` or `ids` (default: an exemplar), and its corrupt side by `find_pair`."""
    chosen = text is None and ids is None
    given = _exemplar(subject, sweep, unit) if chosen else subject.take(text, ids)
    clean, _ = track(Reader(subject, [unit.site]), unit, given)
    return clean, find_pair(subject, masked, unit, given, clean, seed)


def _exemplar(subject: Subject, sweep: Sweep, unit: UnitId) -> list[int]:
    """The strongest explain exemplar up to its reading: the fewest of its last 8, 16, 32, 63 tokens behind the sink
    that keep half of it, since the search for the pair takes long on long texts."""
    best = sweep.exemplars(unit, "explain", "top")
    if not best:
        raise Refused(f"{unit} is never positive on the explain side; give a text on which it is.")
    ids, position = sweep.window(best[0].place)
    rows = [[ids[0], *ids[max(1, position + 1 - n) : position + 1]] for n in (8, 16, 32, 63)]
    readings = subject.readings(rows, unit).tolist()
    return next(row for row, y in zip(rows, readings, strict=True) if y >= KEEP * readings[-1])


def find_pair(
    subject: Subject, masked: MaskedLM, unit: UnitId, given: Ids, clean: Ids, seed: int
) -> dict[str, Any]:
    """{ids, original, substitute, proposer, kept} of the corrupt side of `clean`, the tracked cut of `given`.

    Raises Refused with the number of substitutes tried if none kills the unit at equal length.
    """
    found = substitute(subject, masked, unit, ids=given, seed=seed)
    kept = found.checks["held"]
    words = [r for r in found.rows if r["effect"] == "kills" and len(r["ids"]) == len(clean)]
    best = _quietest(subject, unit, clean, words, KEEP)
    if best is None:
        tokens = list(_token_swaps(subject, clean, found.checks["kept"], np.random.default_rng(seed)))
        best = _quietest(subject, unit, clean, tokens, KILLS)
    if best is None:
        raise Refused(
            f"none of {len(found.rows)} words and {len(tokens)} tokens put into {found.checks['kept_text']!r} silences "
            f"{unit} at equal token length; give another text."
        )
    return {"kept": kept, **{k: best[k] for k in ("ids", "original", "substitute", "proposer")}}


def _quietest(
    subject: Subject, unit: UnitId, clean: Ids, swaps: Sequence[dict[str, Any]], share: float
) -> dict[str, Any] | None:
    """The swap that leaves the lowest reading, below `share` of the clean one; swaps that leave the tracked token in
    place come first, because a new last token moves the next-token logits by itself."""
    if not swaps:
        return None
    peak, *readings = subject.readings([clean, *(s["ids"] for s in swaps)], unit).tolist()
    silent = [i for i, y in enumerate(readings) if y < share * peak]
    best = min(silent, key=lambda i: (swaps[i]["ids"][-1] != clean[-1], readings[i]), default=None)
    return None if best is None else swaps[best]


def _token_swaps(
    subject: Subject, clean: Ids, kept: Sequence[int], generator: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """One kept token at a time replaced by tokens drawn from the built-in corpus."""
    pool = np.unique(filler_pool(subject))
    for position in kept:
        for token in generator.permutation(pool)[:TOKEN_SWAPS].tolist():
            if token != clean[position]:
                yield {
                    "ids": [*clean[:position], token, *clean[position + 1 :]],
                    "original": subject.piece(clean[position]),
                    "substitute": subject.piece(token),
                    "proposer": "token",
                }


def differing(subject: Subject, clean: Ids, corrupt: Ids, kept: Collection[int]) -> list[int]:
    """Positions at which two rows differ. Raises Refused, printing both tokenisations of the differing span, unless
    the rows are equally long and differ at kept positions, and only there."""
    longest = min(len(clean), len(corrupt))
    first = next((i for i in range(longest) if clean[i] != corrupt[i]), longest)
    tail = next((i for i in range(longest - first) if clean[-1 - i] != corrupt[-1 - i]), longest - first)
    spans = " and ".join(str(subject.pieces(row[first : len(row) - tail])) for row in (clean, corrupt))
    if len(clean) != len(corrupt):
        raise Refused(
            f"clean and corrupt have {len(clean)} and {len(corrupt)} tokens, differing in {spans}; "
            "swap words of equally many tokens."
        )
    places = [i for i in range(longest) if clean[i] != corrupt[i]]
    if not places:
        raise Refused("clean and corrupt are the same tokens; swap a word.")
    if not set(places) <= set(kept):
        raise Refused(f"clean and corrupt differ beside the kept words, in {spans}; change kept words only.")
    return places


# Measuring


@dataclass(frozen=True)
class Pairs:
    """The pair and its repeats: clean and corrupt rows [1 + pairs, T], values of the site there at the position
    [1 + pairs, width], and M of each; t_plus, t_minus come from the first. stream: what clean rows, then corrupt ones,
    hold in front of the site."""

    clean: NDArray[np.int64]
    corrupt: NDArray[np.int64]
    clean_values: Tensor
    corrupt_values: Tensor
    m_clean: Tensor
    m_corrupt: Tensor
    t_plus: int
    t_minus: int
    stream: dict[Any, Tensor]


def patch_pair(
    subject: Subject, unit: UnitId, clean: Ids, corrupt: Ids, position: int, *,
    kept: Collection[int], pairs: int = PAIRS, seed: int = 0, fillers: Sequence[int] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Rows and checks of `patch` for a pair made by hand; heads are allowed as well (clean, corrupt are then None).

    `kept`: positions that the repeats leave alone; those of the differing words and `position` must be among them.
    `fillers`: ids to draw the others from (default: the built-in corpus). What follows `position` is cut off.
    Raises Refused for pairs < 2, a position outside the rows, and as `differing` does.
    """
    if pairs < 2:
        raise Refused(f"pairs = {pairs} gives no spread; ask for at least 2.")
    if not 1 <= position < min(len(clean), len(corrupt)):
        raise Refused(f"position {position} is outside the rows (1 to {min(len(clean), len(corrupt)) - 1}).")
    subject.check(unit)
    places = differing(subject, clean, corrupt, kept)
    if not any(i <= position for i in places):
        raise Refused(f"clean and corrupt differ after position {position} only, which cannot matter there.")
    generator = np.random.default_rng(seed)
    stays = sorted({0, position, *kept})
    both, sd, reason = whole_pair(subject, unit, clean, corrupt, position, stays, generator, pairs, fillers)
    drawn = generator.permutation(subject.count(unit.site)).tolist()
    controls = [UnitId(unit.model, unit.site, i) for i in drawn if i != unit.index][:CONTROL_UNITS]
    patched, fired = _patched(subject, unit, controls, both, position)
    rows = _rows(subject, unit, controls, both, patched, reason is None)
    above = sum(abs(r["carried"]) >= abs(rows[0]["carried"]) for r in rows[2:]) if reason is None else None
    checks = {
        "fired": fired,
        "clean_text": subject.text(clean[: position + 1]),
        "corrupt_text": subject.text(corrupt[: position + 1]),
        "position": position,
        "differing": places,
        "kept": [i for i in stays if i],
        "t_plus": subject.piece(both.t_plus),
        "t_minus": subject.piece(both.t_minus),
        "m_clean": float(both.m_clean[0]),
        "m_corrupt": float(both.m_corrupt[0]),
        "sd": sd,
        "gap_repeats": float((both.m_clean - both.m_corrupt)[1:].mean()),
        "resampled": position + 1 - len([i for i in stays if i <= position]),
        "controls_above": above,
        "reason": reason,
    }
    return rows, checks


def whole_pair(
    subject: Subject, unit: UnitId, clean: Ids, corrupt: Ids, position: int, stays: Sequence[int],
    generator: np.random.Generator, pairs: int = PAIRS, fillers: Sequence[int] | None = None,
) -> tuple[Pairs, float, str | None]:  # fmt: skip
    """A pair, cut at `position`, beside its repeats; the sd of the gap over these, and why it has no score, if so."""
    both = read_pairs(subject, unit, repeats(subject, clean, corrupt, position, stays, pairs, generator, fillers))
    gaps = both.m_clean - both.m_corrupt
    sd = float(gaps[1:].std())
    return both, sd, unscorable(float(gaps[0]), sd)


def repeats(
    subject: Subject, clean: Ids, corrupt: Ids, position: int, stays: Sequence[int], pairs: int,
    generator: np.random.Generator, fillers: Sequence[int] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Clean and corrupt rows [1 + pairs, T]: the pair itself, then repeats with the same fillers on both sides."""
    pool = filler_pool(subject, fillers)
    drawn = stretches(pool, 1 + pairs, position + 1, generator)
    inside = [i for i in stays if i <= position]
    sides = []
    for row in (clean, corrupt):
        whole = np.asarray(row[: position + 1], dtype=np.int64)
        rows = drawn.copy()
        rows[:, inside] = whole[inside]
        rows[0] = whole
        sides.append(rows)
    return sides[0], sides[1]


def read_pairs(subject: Subject, unit: UnitId, rows: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Pairs:
    """One pass over both sides."""
    n = len(rows[0])
    before = subject.before([unit.site])
    done = subject.run(torch.from_numpy(np.concatenate(rows)), read=[unit.site, *before], normed=True)
    assert done.normed is not None
    values, logits = done.readings[unit.site][:, -1], subject.unembed(done.normed[:, -1])
    rise = logits[0] - logits[n]
    t_plus, t_minus = int(rise.argmax()), int(rise.argmin())
    metric = (logits[:, t_plus] - logits[:, t_minus]).double().cpu()
    return Pairs(*rows, values[:n], values[n:], metric[:n], metric[n:], t_plus, t_minus,
                 {point: done.readings[point] for point in before})  # fmt: skip


def _patched(
    subject: Subject, unit: UnitId, controls: Sequence[UnitId], both: Pairs, position: int
) -> tuple[Tensor, int]:
    """M of the patched runs, one pass: the unit into each corrupt row, into each clean row, then each control into the
    first corrupt row; and how many edits were made."""
    n = len(both.clean)
    rows = np.concatenate([both.corrupt, both.clean, np.repeat(both.corrupt[:1], len(controls), axis=0)])
    units = [*[unit] * 2 * n, *controls]
    columns = torch.tensor([subject.columns(u.site, [u.index]) for u in units], device=both.clean_values.device)
    source = torch.cat([both.clean_values, both.corrupt_values, both.clean_values[:1].expand(len(controls), -1)])
    where = torch.zeros(rows.shape, dtype=torch.bool)
    where[:, position] = True
    edit = Edit.by_row(unit.site, columns, source.gather(1, columns)[:, None], where)
    places = [(i, position) for i in range(len(rows))]
    whose = [*range(n, 2 * n), *range(n), *[n] * len(controls)]     # rows, in the order of `stream`
    start = {point: values[whose] for point, values in both.stream.items()}
    logits, fired = subject.next_token_logits(torch.from_numpy(rows), places, [edit], start)
    return (logits[:, both.t_plus] - logits[:, both.t_minus]).double().cpu(), fired[0]


def unscorable(gap: float, sd: float) -> str | None:
    """Why the pair cannot be scored, or None."""
    if gap == 0:
        return "clean and corrupt give the same logits"
    if abs(gap) < PATCH_NOISE * sd:
        return f"the gap {gap:.3g} is below {PATCH_NOISE:g} sd of it over repeated pairs (sd {sd:.3g})"
    return None


def _rows(
    subject: Subject, unit: UnitId, controls: Sequence[UnitId], both: Pairs, patched: Tensor, scorable: bool
) -> list[dict[str, Any]]:
    n = len(both.clean)
    gaps = both.m_clean - both.m_corrupt
    denoised, noised = patched[:n] - both.m_corrupt, both.m_clean - patched[n : 2 * n]
    by_control = patched[2 * n :] - both.m_corrupt[0]
    moves = [(unit, "denoise", denoised, patched[0]), (unit, "noise", noised, patched[n])]
    moves += [(c, "denoise", m[None], p) for c, m, p in zip(controls, by_control, patched[2 * n :], strict=True)]
    whole = float(gaps[1:].sum())
    return [
        {
            "role": "unit" if number < 2 else "control",
            "unit": str(who),
            "direction": direction,
            "carried": float(move[0] / gaps[0]) if scorable else None,
            "carried_repeats": float(move[1:].sum()) / whole if scorable and number < 2 and whole else None,
            "metric": float(metric),
            "clean": _y(who, both.clean_values),
            "corrupt": _y(who, both.corrupt_values),
        }
        for number, (who, direction, move, metric) in enumerate(moves)
    ]


def _y(unit: UnitId, values: Tensor) -> float | None:
    return None if unit.kind == "attn" else unit.sign * float(values[0, unit.index])


# Showing


def _summary(unit: UnitId, rows: list[dict[str, Any]], checks: dict[str, Any]) -> str:
    swap = f"{checks['original']!r} → {checks['substitute']!r}"
    tokens = f"{checks['t_plus']!r} over {checks['t_minus']!r}"
    if checks["reason"]:
        return f"{unit}, {swap} ({tokens}): not scorable, since {checks['reason']}."
    controls = sorted(abs(r["carried"]) for r in rows[2:])
    most = f"; random units at most {controls[-1]:.0%}" if controls else ""
    return (
        f"Put into the text where {swap} silences it, {unit} brings back {_share(rows[0]['carried_repeats'])} of what "
        f"the swap does to {tokens}; taken out of the other, {_share(rows[1]['carried_repeats'])} goes (over repeats; "
        f"on the pair itself {rows[0]['carried']:.0%} and {rows[1]['carried']:.0%}){most}."
    )


def _share(value: float | None) -> str:
    return "an undefined share" if value is None else f"{value:.0%}"


def _warnings(checks: dict[str, Any]) -> list[str]:
    said = ["t+ and t- are chosen and measured on the same pair, which inflates the gap; compare carried_repeats"]
    if not checks["resampled"]:
        said.append("every token is kept, so the repeats are all alike and sd is 0: the gap's noise is unknown")
    if checks["controls_above"]:
        said.append(f"{checks['controls_above']} of the random units carry at least as much")
    return said
