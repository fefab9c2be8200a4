"""Steering: the unit is held at a strength, or its direction added to the stream, while the model reads and writes on.

What follows is partly mechanical: a direction that is added raises the tokens that it points at. So the texts that the
steered model writes are read once more by the model as it is, and a prompt is the method to beat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from . import stats
from .collect import position_key
from .features import Point
from .lens import by_path
from .losses import inside
from .stats import Floats
from .subject import Edit, Subject
from .sweep import Sweep
from .units import UnitId

MODES = ("clamp", "add")
STRENGTHS = {"clamp": (0.0, 1.0, 2.0, 4.0, 8.0), "add": (0.1, 0.2, 0.4, 0.8)}
START = 24             # tokens of a prompt, the sink included
LENS = 20              # tokens that the unit's direct path raises most
SHOWN = 5              # tokens listed a row
NONE, PROMPT = "none", "prompt"

Masked = Callable[[Tensor], Edit]      # the edit at the positions [B, T] that are given


@dataclass(frozen=True)
class _Way:
    """One way to steer: an edit, or words in front of each prompt, or neither."""

    name: str
    strength: float | None
    edit: Masked | None
    front: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Written:
    """What one way gave, by prompt [N]: its continuation, nats a token of it to the model as it is, whether the unit
    fires in it, the share of lens tokens, KL of the first token; and the mean change of centred logits [V] there."""

    ids: list[list[int]]
    ce: Floats
    fires: Floats
    lens: Floats
    kl: Floats
    shift: Tensor


def steer(
    subject: Subject, sweep: Sweep, unit: UnitId, *, mode: str = "clamp", strengths: Sequence[float] | None = None,
    prompts: int = 12, tokens: int = 16, prompt: str | None = None, seed: int = 0,
) -> Evidence:  # fmt: skip
    """Holds the unit at several strengths, lets the model write, and sets what comes of it beside a prompt's effect.

    clamp: y is set to strength × P (the unit's peak), at every position but the sink; of a feature only its own part of
    the stream changes, and what its SAE leaves unexplained stays. add: strength × ‖x‖ times the unit's write direction,
    as the stream receives it and of length 1, is added to the stream x behind the block that it writes in. Prompts: the
    first 23 tokens of random explain windows of different clusters in which the unit does not fire. Continuations are
    sampled (temperature 1) with the same random numbers in all ways. The way `prompt` changes nothing in the model, and
    puts a text in front.

    Rows {way, strength, kl, kl_low, kl_high, raises, ce, ce_change, ce_low, ce_high, fires, fires_low, fires_high,
    lens_share, text}: kl = mean KL(as it is ‖ steered) of the first token written [nats]; raises: tokens whose centred
    logits rise most there; ce: mean −log p a token of the continuation by the model as it is behind the bare prompt
    (log perplexity), ce_change the same less that of the way `none`; fires: share of the continuations in which the
    unit, of the model as it is and with nothing put in front, reaches τ; lens_share: share of tokens written that are
    among the 20 which its direct path raises most, mechanical (None without that path). Intervals: 95 % bootstrap over
    prompts (one a cluster), None below 8. fired: edited positions of all passes, of `positions`. Raises Refused for a
    head, an unknown mode, a unit that never fires on the explain side, and fewer than 2 prompts.

    Args:
        mode: clamp or add.
        strengths: peaks for clamp, shares of the stream's length for add; default 0, 1, 2, 4, 8 or .1, .2, .4, .8.
        prompts: number of prompts.
        tokens: number of tokens to write behind each.
        prompt: the text that the way `prompt` puts in front; default: the strongest explain exemplar.
        seed: draws prompts, continuations and intervals.
    """
    chosen = _check(subject, sweep, unit, mode, strengths, prompts, tokens)
    with subject.metered() as cost:
        starts = _starts(subject, sweep, unit, prompts, seed)
        run = _Run(subject, sweep, unit, starts, tokens, by_path(subject, unit)[:LENS], seed)
        front = subject.encode(prompt)[1:] if prompt is not None else _exemplar(sweep, unit)
        ways = [_Way(NONE, None, None), _Way(PROMPT, None, None, tuple(front)),
                *(_Way(mode, s, _edit(subject, sweep, unit, mode, s)) for s in chosen)]  # fmt: skip
        found = [run.write(way) for way in ways]
    rows = [_row(subject, way, one, found[0], seed) for way, one in zip(ways, found, strict=True)]
    checks = {
        "fired": run.fired, "positions": run.positions, "prompts": len(starts), "peak": sweep.statistics(unit).peak,
        "front": subject.text(front), "first_prompt": subject.text(starts[0]),
    }  # fmt: skip
    return Evidence(
        tool="steer", unit=unit.bare, sign=unit.sign,
        arguments={"mode": mode, "strengths": list(chosen), "prompts": prompts, "tokens": tokens, "prompt": prompt,
                   "seed": seed},
        summary=_summary(unit, rows), rows=rows, checks=checks, warnings=_warnings(rows), cost=cost,
    )  # fmt: skip


def _check(
    subject: Subject, sweep: Sweep, unit: UnitId, mode: str, strengths: Sequence[float] | None, prompts: int,
    tokens: int,
) -> tuple[float, ...]:  # fmt: skip
    if mode not in MODES:
        raise Refused(f"mode {mode!r} is unknown; choose clamp or add.")
    chosen = STRENGTHS[mode] if strengths is None else tuple(float(s) for s in strengths)
    if not chosen or not all(np.isfinite(chosen)):
        raise Refused(f"strengths {list(chosen)} are none to steer with; give some finite numbers.")
    if prompts < 2 or tokens < 1:
        raise Refused(f"prompts = {prompts} and tokens = {tokens} must be at least 2 and 1.")
    subject.check_readable(unit)
    sweep.require_positive(unit)
    return chosen


# What is steered


def _starts(subject: Subject, sweep: Sweep, unit: UnitId, count: int, seed: int) -> list[list[int]]:
    """Beginnings of explain windows of different clusters, in random order, in which the unit does not fire."""
    first = {d.cluster: d for d in reversed(sweep.documents) if d.side == "explain" and d.length >= START - 1}
    order = position_key(np.array(list(first), dtype=np.int64) + seed)
    documents = [list(first.values())[i] for i in np.argsort(order)]
    found: list[list[int]] = []
    threshold = sweep.statistics(unit).threshold
    for begin in range(0, len(documents), count):
        some = documents[begin : begin + count]
        rows = [[subject.sink, *sweep.tokens[d.start : d.start + START - 1].tolist()] for d in some]
        y = unit.sign * subject.activations(rows, [unit])[:, 1:, 0]
        found += [row for row, fires in zip(rows, (y >= threshold).any(dim=1).tolist(), strict=True) if not fires]
        if len(found) >= count:
            break
    if len(found) < 2:
        raise Refused(f"{unit} fires at the beginning of every document but {len(found)}; nothing is left to steer.")
    return found[:count]


def _exemplar(sweep: Sweep, unit: UnitId) -> list[int]:
    ids, position = sweep.window(sweep.exemplars(unit, "explain", "top")[0].place)
    return ids[1 : position + 1]


def _edit(subject: Subject, sweep: Sweep, unit: UnitId, mode: str, strength: float) -> Masked:
    if mode == "clamp":
        value = torch.full((1, 1, 1), unit.sign * strength * sweep.statistics(unit).peak)
        return lambda where: Edit(unit.site, value, (unit.index,), where)
    direction = subject.write_direction(unit)
    if not direction.norm():
        raise Refused(f"{unit} writes nothing, so that it has no direction to add; clamp it.")
    between = subject.norm_behind(unit.site)
    if between is not None:       # as the stream receives it
        direction = direction - direction.mean() if between[1] else direction
        direction = direction * between[0].to(direction)
    direction = direction / direction.norm()
    behind = Point(subject.writes_at(unit.site).layer, "resid")

    def add(x: Tensor) -> Tensor:
        longer: Tensor = x + strength * x.norm(dim=-1, keepdim=True) * direction.to(x)
        return longer

    return lambda where: Edit(behind, add, None, where)


# Writing


class _Run:
    """Writes behind the same prompts, with the same random numbers, in each way."""

    def __init__(
        self, subject: Subject, sweep: Sweep, unit: UnitId, starts: list[list[int]], tokens: int, lens: Sequence[int],
        seed: int,
    ) -> None:  # fmt: skip
        self.subject, self.sweep, self.unit, self.starts, self.tokens = subject, sweep, unit, starts, tokens
        self.lens = set(lens)
        generator = torch.Generator().manual_seed(seed)
        shape = (tokens, len(starts), subject.vocabulary)
        self.noise = -torch.log(-torch.log(torch.rand(shape, generator=generator).clamp(1e-20, 1 - 1e-7)))
        self.first = self._next(starts, None).log_softmax(-1)      # of the model as it is
        self.fired = self.positions = 0

    def write(self, way: _Way) -> _Written:
        """Samples by adding the same Gumbel noise to the logits of every way and taking the largest."""
        rows = [[start[0], *way.front, *start[1:]] for start in self.starts]
        behind: list[list[int]] = [[] for _ in rows]
        for step in range(self.tokens):
            logits = self._next([[*row, *new] for row, new in zip(rows, behind, strict=True)], way.edit)
            if step == 0:
                kl, shift = self._moved(logits)
            for new, token in zip(behind, (logits + self.noise[step]).argmax(dim=-1).tolist(), strict=True):
                new.append(token)
        lens = np.array([np.mean([token in self.lens for token in new]) if self.lens else np.nan for new in behind])
        return _Written(behind, self._ce(behind), self._fires(behind), lens, kl, shift)

    def _next(self, rows: list[list[int]], edit: Masked | None) -> Tensor:
        """Logits [N, V] of the next token, float32, on the CPU."""
        found = torch.empty(len(rows), self.subject.vocabulary)
        for batch in self.subject.batches(rows):
            mine = [rows[i] for i in batch]
            inner = inside(mine)
            places = [(line, len(row) - 1) for line, row in enumerate(mine)]
            logits, fired = self.subject.next_token_logits(mine, places, [edit(inner)] if edit else [])
            found[batch] = logits.float().cpu()
            if edit:
                self.fired += fired[0]
                self.positions += int(inner.sum())
        return found

    def _moved(self, logits: Tensor) -> tuple[Floats, Tensor]:
        now = logits.log_softmax(-1)
        kl = (self.first.exp() * (self.first - now)).sum(dim=-1)
        change = now - self.first
        return kl.double().numpy(), (change - change.mean(dim=-1, keepdim=True)).mean(dim=0)

    def _ce(self, behind: list[list[int]]) -> Floats:
        """Mean −log p of each continuation, behind its bare prompt, by the model as it is."""
        rows = [[*start, *new] for start, new in zip(self.starts, behind, strict=True)]
        total = np.zeros(len(rows))
        for batch in self.subject.batches(rows):
            mine = [rows[i][:-1] for i in batch]
            places = [(line, len(self.starts[i]) - 1 + k) for line, i in enumerate(batch) for k in range(self.tokens)]
            wanted = torch.tensor([token for i in batch for token in behind[i]])
            logits, _ = self.subject.next_token_logits(mine, places)
            ce = torch.nn.functional.cross_entropy(logits.float().cpu(), wanted, reduction="none")
            total[batch] = ce.view(len(batch), -1).mean(dim=1).double().numpy()
        return total

    def _fires(self, behind: list[list[int]]) -> Floats:
        """Whether the unit reaches τ anywhere in what was written, behind its bare prompt, in the model as it is."""
        rows = [[*start, *new] for start, new in zip(self.starts, behind, strict=True)]
        y = self.unit.sign * self.subject.activations(rows, [self.unit])[:, len(self.starts[0]) :, 0]
        return (y >= self.sweep.statistics(self.unit).threshold).any(dim=1).double().numpy()


# Showing


def _row(subject: Subject, way: _Way, own: _Written, none: _Written, seed: int) -> dict[str, Any]:
    moved = [i for i in own.shift.topk(SHOWN).indices.tolist() if way.name != NONE and own.shift[i] > 0]
    change = own.ce - none.ce
    return {
        "way": way.name, "strength": way.strength,
        "kl": float(own.kl.mean()), **_ends("kl", own.kl, seed), "raises": [subject.piece(i) for i in moved],
        "ce": float(own.ce.mean()), "ce_change": float(change.mean()), **_ends("ce", change, seed),
        "fires": float(own.fires.mean()), **_ends("fires", own.fires, seed),
        "lens_share": stats.number(own.lens.mean()), "text": subject.text(own.ids[0]),
    }  # fmt: skip


def _ends(name: str, values: Floats, seed: int) -> dict[str, float | None]:
    draws = stats.resampled(np.stack([values, np.ones(len(values))], axis=1), seed)
    low, high = stats.interval(stats.ratio(draws[:, 0], draws[:, 1]), len(values))
    return {f"{name}_low": low, f"{name}_high": high}


def _summary(unit: UnitId, rows: Sequence[dict[str, Any]]) -> str:
    none, prompt, *steered = rows
    best = max(steered, key=lambda row: (row["fires"], -row["ce"]))
    return (
        f"Steered ({best['way']} {best['strength']:g}), the model writes texts of which {best['fires']:.0%} make "
        f"{unit} fire at {best['ce']:.2f} nats a token; with nothing done {none['fires']:.0%} at {none['ce']:.2f}, "
        f"behind a prompt {prompt['fires']:.0%} at {prompt['ce']:.2f}."
    )


def _warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    said = ["lens_share is mechanical: adding a write raises the tokens that it points at, whatever they mean"]
    if not any(row["kl"] for row in rows[2:]):
        said.append("no strength changed the next token's distribution at all")
    return said


__all__ = ["steer"]
