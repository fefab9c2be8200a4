"""The direct path: what one unit of activation does to the logits if nothing in between reacts.

The logit lens of nostalgebraist (2020) applied to a unit's write direction, with a null beside it: some tokens'
unembedding rows are long or lie along the stream's main axes, and head every list.
"""

from typing import Any

import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from .subject import Subject
from .units import UnitId

CHUNK = 32      # random directions unembedded at once


def lens(subject: Subject, unit: UnitId, *, top: int = 10, directions: int = 200, seed: int = 0) -> Evidence:
    """Lists the tokens whose logits the unit raises and lowers directly, with a null of random directions.

    Effect of token t = W_U[t] · (γ ⊙ w), w the unit's write direction by its sign (centred where the final norm
    centres), γ the final norm's gain; its scale is frozen at 1 and the softcap left out, so effects are in logits per
    unit of activation and of inverse norm, centred over the vocabulary. z = effect / sd of the same token's effect
    over random directions of the norm of w (their mean is 0): a token whose row is long for every direction gets no
    credit. Rows {side: raised | lowered, rank, token, id, effect, z}, sorted by z. checks: write_norm; max_z and
    min_z beside null_max_z, the 95th percentile over the random directions of their own largest z; beyond_null,
    whether max_z or −min_z exceeds it; layer and layers. Raises Refused for a head and for a unit that writes nothing.

    Args:
        top: tokens listed on each side.
        directions: random directions behind z and the null.
        seed: seeds the random directions.
    """
    if top < 1 or directions < 2:
        raise Refused(f"top = {top} and directions = {directions} are too few; give at least 1 and 2.")
    with subject.metered() as cost:
        write = _write(subject, unit)
        effect = _project(subject, write[None])[0]
        spread, null = _null(subject, write, directions, seed)
        z = effect / spread
        rows = [_row(subject, "raised", r, int(t), effect, z) for r, t in enumerate(z.topk(top).indices)]
        rows += [_row(subject, "lowered", r, int(t), effect, z) for r, t in enumerate((-z).topk(top).indices)]
    checks: dict[str, Any] = {
        "write_norm": float(write.norm()),
        "max_z": float(z.max()),
        "min_z": float(z.min()),
        "null_max_z": null,
        "beyond_null": bool(torch.maximum(z.max(), -z.min()) > null),
        "layer": unit.layer,
        "layers": subject.n_layers,
        "fired": 0,
    }
    return Evidence(
        tool="lens", unit=unit.bare, sign=unit.sign,
        arguments={"top": top, "directions": directions, "seed": seed},
        summary=_summary(unit, rows, checks, top), rows=rows, checks=checks,
        warnings=_warnings(subject, unit), cost=cost,
    )  # fmt: skip


def _write(subject: Subject, unit: UnitId) -> Tensor:
    """The unit's write direction [d], float32; a stream dimension writes itself."""
    if unit.kind == "resid":
        subject.check(unit)
        direction = torch.zeros(subject.width(unit.site), device=subject.device)
        direction[unit.index] = unit.sign
        return direction
    direction = subject.write_direction(unit).float()
    if not bool(direction.any()):
        raise Refused(f"{unit} writes nothing: its row of the down projection is zero.")
    return direction


def _project(subject: Subject, directions: Tensor) -> Tensor:
    """Centred logit effects [N, V] of directions [N, d] through the final norm's gain and the unembedding."""
    gain, centres = subject.adapter.final_norm()
    if centres:
        directions = directions - directions.mean(dim=1, keepdim=True)
    with torch.inference_mode():
        rows: Tensor = subject.model.get_output_embeddings().weight.float()
        effects = (directions * gain.float()) @ rows.T
    return effects - effects.mean(dim=1, keepdim=True)


def _null(subject: Subject, write: Tensor, directions: int, seed: int) -> tuple[Tensor, float]:
    """Per-token sd [V] over random directions of the norm of `write`, and the 95th percentile of their largest z."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((directions, len(write)), generator=generator).to(write)
    drawn = drawn / drawn.norm(dim=1, keepdim=True) * write.norm()
    parts = [drawn[i : i + CHUNK] for i in range(0, directions, CHUNK)]
    squares = torch.stack([_project(subject, part).square().sum(dim=0) for part in parts]).sum(dim=0)
    spread = (squares / directions).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    largest = torch.cat([(_project(subject, part) / spread).amax(dim=1) for part in parts])
    return spread, float(largest.quantile(0.95))


def _row(subject: Subject, side: str, rank: int, token: int, effect: Tensor, z: Tensor) -> dict[str, Any]:
    return {
        "side": side, "rank": rank + 1, "token": subject.piece(token), "id": token,
        "effect": float(effect[token]), "z": float(z[token]),
    }  # fmt: skip


def _summary(unit: UnitId, rows: list[dict[str, Any]], checks: dict[str, Any], top: int) -> str:
    raised, lowered = (", ".join(repr(r["token"]) for r in part[:5]) for part in (rows[:top], rows[top:]))
    strength = "beyond" if checks["beyond_null"] else "no more than"
    return (
        f"Directly, {unit} raises {raised} (z up to {checks['max_z']:.1f}) and lowers {lowered} "
        f"(z down to {checks['min_z']:.1f}); {strength} what random directions reach ({checks['null_max_z']:.1f})."
    )


def _warnings(subject: Subject, unit: UnitId) -> list[str]:
    behind = subject.n_layers - 1 - unit.layer
    found = [f"direct path only: {behind} of {subject.n_layers} blocks come after layer {unit.layer} and may react."]
    if getattr(subject.config, "final_logit_softcapping", None):
        found.append("this model caps its logits softly: effects are those before the cap.")
    return found
