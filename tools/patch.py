"""Activation patching on a minimal pair: how much of the difference between two texts one unit carries.

The unit's value from one run is put into the other at the tracked position.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..store.records import Evidence, Refused
from .attribute import answer_tokens
from .frames import filler_pool, stretches
from .masked import MaskedLM
from .measures import CONTROL_UNITS, PATCH_NOISE
from .minimal_pair import differing, minimal_pair
from .subject import Edit, Subject
from .sweep import Sweep
from .units import UnitId

PAIRS = 6              # repeats behind the noise of the gap

Ids = Sequence[int]
Answers = tuple[int | None, int | None]     # t⁺ and t⁻; None: chosen on the pair


def patch(
    subject: Subject,
    masked: MaskedLM,
    sweep: Sweep,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    corrupt: str | None = None,
    answer: str | None = None,
    foil: str | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Evidence:
    """Tests whether the unit passes on what it detects: puts its value from a firing text into a silenced copy of it.

    Clean is the text cut at its tracked position (default: the unit's strongest explain exemplar, or the last 8, 16 or
    32 tokens of it where these keep half the reading); corrupt is clean with a word of as many tokens that kills the
    unit (`substitute`) and leaves the lowest reading in the text itself, at most half; one before the tracked token is
    preferred. Where no such word exists, single kept tokens are swapped for 32 drawn ones each, and the reading must
    fall below a quarter (checks["proposer"] is then token). With `corrupt` the pair is the caller's own: both texts as
    they stand, read at their last token, without repeats; heads need it, since nothing can be searched for them.

    t⁺, t⁻ = tokens whose next-token logits rise and fall most from corrupt to clean, or `answer` and `foil`; M =
    logit t⁺ − logit t⁻ [logits]. Chosen and measured on this pair, they inflate |M|; they are then held for `pairs`
    repeats, in which all tokens but the kept words are drawn anew, the same on both sides. Carried share = (M_patched −
    M_base) / (M_source − M_base): denoise puts the clean value into the corrupt run (base corrupt, source clean:
    sufficient?), noise the corrupt value into the clean run (necessary?). All behind the edit is computed anew, and so
    is the final norm's scale, which `patch_grid` and `path_patch` can freeze.

    Rows {role, unit, direction, carried, carried_repeats, metric, clean, corrupt}: the unit both ways, then 20 random
    units of the layer, denoise only. carried_repeats: ratio of the sums over the repeats (None for controls); metric:
    M_patched; clean, corrupt: y there (None for a head). carried is None where |M_clean − M_corrupt| is 0 or below 3 sd
    of that gap over the repeats, and checks["reason"] says so. checks: the texts, the swap and its proposer, position,
    kept, t_plus, t_minus, m_clean, m_corrupt, sd, gap_repeats (mean gap over the repeats; both None where every token
    is kept, so that there are none), controls_above (controls that carry at least as much, by absolute value), fired
    (edits made). Raises Refused where the unit is silent, where nothing of equal token length silences it, for texts of
    unequal length, and for answers that begin with the same token, with their tokenisation.

    Args:
        text: a text on which the unit fires; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        corrupt: a text of as many tokens to hold against the text, instead of one that is searched for.
        answer: what should follow the text rather than the corrupt one; its first token counts, with its space.
        foil: what should follow the corrupt text instead.
        pairs: number of repeats, at least 2.
        seed: seeds the search for the pair, the repeats' fillers and the control units.
    """
    with subject.metered() as cost:
        answers = answer_tokens(subject, answer, foil)
        pair = minimal_pair(subject, masked, sweep, unit, text, ids, corrupt, seed)
        rows, checks = patch_pair(
            subject, unit, pair.clean, pair.corrupt, len(pair.clean) - 1,
            kept=pair.kept, pairs=pairs, seed=seed, answers=answers,
        )  # fmt: skip
    checks |= pair.facts()
    return Evidence(
        tool="patch",
        unit=unit.bare,
        sign=unit.sign,
        arguments={"text": text, "ids": None if ids is None else list(ids), "corrupt": corrupt, "answer": answer,
                   "foil": foil, "pairs": pairs, "seed": seed},
        summary=_summary(unit, rows, checks),
        rows=rows,
        checks=checks,
        warnings=_warnings(rows, checks, None in answers),
        cost=cost,
    )  # fmt: skip


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
    answers: Answers = (None, None),
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
    both, sd, reason = whole_pair(subject, unit, clean, corrupt, position, stays, generator, pairs, fillers, answers)
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
        "gap_repeats": None if sd is None else float((both.m_clean - both.m_corrupt)[1:].mean()),
        "norm": "recomputed",
        "resampled": position + 1 - len([i for i in stays if i <= position]),
        "controls_above": above,
        "reason": reason,
    }
    return rows, checks


def whole_pair(
    subject: Subject, unit: UnitId, clean: Ids, corrupt: Ids, position: int, stays: Sequence[int],
    generator: np.random.Generator, pairs: int = PAIRS, fillers: Sequence[int] | None = None,
    answers: Answers = (None, None),
) -> tuple[Pairs, float | None, str | None]:  # fmt: skip
    """A pair, cut at `position`, beside its repeats; the sd of the gap over these, and why it has no score, if so.

    Where every token stays there are no repeats, and sd is None.
    """
    pairs = pairs if set(range(position + 1)) - set(stays) else 0
    rows = repeats(subject, clean, corrupt, position, stays, pairs, generator, fillers)
    both = read_pairs(subject, unit, rows, answers)
    gaps = both.m_clean - both.m_corrupt
    sd = float(gaps[1:].std()) if pairs else None
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


def read_pairs(
    subject: Subject, unit: UnitId, rows: tuple[NDArray[np.int64], NDArray[np.int64]], answers: Answers
) -> Pairs:
    """One pass over both sides."""
    n = len(rows[0])
    before = subject.before([unit.site])
    done = subject.run(torch.from_numpy(np.concatenate(rows)), read=[unit.site, *before], normed=True)
    assert done.normed is not None
    values, logits = done.readings[unit.site][:, -1], subject.unembed(done.normed[:, -1])
    rise = logits[0] - logits[n]
    up, down = answers
    t_plus = next(i for i in rise.topk(2).indices.tolist() if i != down) if up is None else up
    t_minus = next(i for i in (-rise).topk(2).indices.tolist() if i != t_plus) if down is None else down
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


def unscorable(gap: float, sd: float | None) -> str | None:
    """Why the pair cannot be scored, or None."""
    if gap == 0:
        return "clean and corrupt give the same logits"
    if sd is not None and abs(gap) < PATCH_NOISE * sd:
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
    here = [share(row["carried"]) for row in rows[:2]]
    if checks["sd"] is None:
        back, gone, where = *here, "on this pair alone"
    else:
        back, gone = (share(row["carried_repeats"]) for row in rows[:2])
        where = f"over repeats; on the pair itself {' and '.join(here)}"
    return (
        f"Put into the text with {swap}, {unit} brings back {back} of what the swap does to "
        f"{tokens}; taken out of the other, {gone} goes ({where}){most}."
    )


def share(value: float | None) -> str:
    """A carried share in per cent."""
    return "an undefined share" if value is None else f"{round(value, 2) + 0.0:.0%}"      # no minus in front of 0 %


def _warnings(rows: list[dict[str, Any]], checks: dict[str, Any], chosen: bool) -> list[str]:
    said, clean = [], rows[0]["clean"]
    if clean is not None and clean == rows[0]["corrupt"]:
        said.append(f"the unit reads {clean:.3g} in both texts, so that there is nothing for it to carry")
    if chosen:
        compare = "" if checks["sd"] is None else "; compare carried_repeats"
        said.append(f"t+ and t- are chosen and measured on the same pair, which inflates the gap{compare}")
    if checks["sd"] is None:
        said.append("every token is kept, so there are no repeats: the gap's noise is unknown")
    if checks["controls_above"]:
        said.append(f"{checks['controls_above']} of the random units carry at least as much")
    return said
