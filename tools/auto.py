"""`auto:N`: the units most worth explaining first, by the sweep's explain and tune sides alone, each with its why."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import measures
from .collect import SIGNS
from .sweep import STEP, Sweep
from .units import UnitId

RATE = (2e-4, 2e-2)     # firing rate on the tune side: rarer is unscorable, denser is no pattern
EXPECTED = 12           # clusters with a firing that the score side should hold, by the tune side's share
STRONG = 3.0            # standard deviations that a peak must reach
MASSIVE = 30.0          # a peak this many times the site's median is a massive activation, not a meaning
SAME_PLACE = 0.5        # share of best documents whose peak is their window's first token


@dataclass(frozen=True)
class Pick:
    """A chosen unit; `strength` = P in standard deviations of its activation; `why` is for people."""

    unit: UnitId
    strength: float
    why: str


def early_sites(layers: int) -> list[str]:
    """The MLPs at three early depths, where a run looks that names neither sites nor units."""
    return [f"{layer}-mlp" for layer in sorted({layers // 12, layers // 6, layers // 4})]


def pick_units(sweep: Sweep, n: int) -> list[Pick]:
    """The n strongest sparse units, taken from the swept MLP sites in turn (fewer if fewer qualify).

    Qualifies: firing rate on tune within RATE; enough firing clusters on tune to expect EXPECTED on score; the sink's
    own reading below τ; P of at least STRONG standard deviations, and no massive activation; peaks not bound to the
    start of the window. One side of a unit only.
    """
    ranked = [iter(_ranked(sweep, site)) for site in sweep.sites]
    picks: list[Pick] = []
    while ranked and len(picks) < n:
        for site in list(ranked):
            found = next(site, None)
            if found is None:
                ranked.remove(site)
            elif len(picks) < n:
                picks.append(found)
    return picks


def _ranked(sweep: Sweep, site: str) -> Iterator[Pick]:
    data = sweep.site(site)
    peak, std = data["peak"], data["std"]
    strength = peak / std.clamp(min=1e-12)
    good = _qualifies(sweep, data)
    seen: set[int] = set()
    width = peak.shape[1]
    for flat in torch.argsort(torch.where(good, strength, -1.0).flatten(), descending=True).tolist():
        s, index = divmod(flat, width)
        if not good[s, index]:
            return
        if index not in seen:
            seen.add(index)
            yield _pick(sweep, UnitId(sweep.model, site, index, SIGNS[s]), float(strength[s, index]))


def _qualifies(sweep: Sweep, data: dict[str, torch.Tensor]) -> torch.Tensor:
    peak = data["peak"]
    tokens = sweep.token_counts
    rate = data["tune.strata"][..., :2].sum(dim=-1) / max(tokens["tune"], 1)
    clusters = data["tune.clusters"] * tokens["score"] / max(tokens["tune"], 1)
    sink = torch.stack([sign * data["sink"] for sign in SIGNS])
    alive = torch.where(peak > 0, peak, torch.nan)     # dead units would pull the median to 0
    massive = peak > MASSIVE * alive.nanmedian(dim=1, keepdim=True).values
    first = _starts_window(sweep, data["explain.best_place"])
    sparse = (rate >= RATE[0]) & (rate <= RATE[1]) & (clusters >= EXPECTED)
    strong = (peak >= STRONG * data["std"]) & ~massive
    return sparse & (sink < measures.FIRES * peak) & strong & (first < SAME_PLACE)


def _starts_window(sweep: Sweep, places: torch.Tensor) -> torch.Tensor:
    """Share of the best documents [2, 10, U] whose peak lies on the first token after the sink [2, U]."""
    starts = torch.tensor([d.start for d in sweep.documents])
    document = torch.searchsorted(starts, places.clamp(min=0).long(), right=True) - 1
    first = (places.long() - starts[document]) % STEP == 0
    return ((places >= 0) & first).float().mean(dim=1)


def _pick(sweep: Sweep, unit: UnitId, strength: float) -> Pick:
    known = sweep.statistics(unit)
    why = (
        f"fires on {known.rate('tune'):.2%} of tune tokens in {known.clusters['tune']} clusters; "
        f"P {known.peak:.3g} is {strength:.0f} sd; the sink reads {known.sink:.2g}"
    )
    return Pick(unit, strength, why)
