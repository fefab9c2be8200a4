"""The vocabulary lens: which tokens a unit's write raises and lowers if nothing but the final norm came after it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from .atlas import tokens_of_text
from .subject import Subject
from .units import UnitId

VOCABULARY_CHUNK = 8192    # rows of the unembedding held at once
QUANTILE = 0.95


def lens(subject: Subject, unit: UnitId, *, top: int = 10, directions: int = 200, seed: int = 0) -> Evidence:
    """Lists the tokens that the unit's write direction raises and lowers most on the direct path to the logits.

    For a unit that writes w [d] a unit of activation (of its sign; an MLP's row of the down projection, a stream
    dimension's basis vector), score_t = (W_U[t] − W̄) · γ ⊙ C(g ⊙ w): γ the final norm's gain, C its centring (only
    where it centres), g the gain of the norm between MLP and stream (Gemma, else 1), W̄ the mean row of the unembedding
    W_U, so that scores are centred logits. What the norms divide by is left out: it differs from place to place, and
    scales all scores alike.

    Null, token by token: random directions of the same norm, uniform on the sphere, on the same path. For these
    score_t has mean 0 and, exactly, sd_t = ‖w‖ ‖v_t‖ / √d, where score_t = v_t · w; z_t = score_t / sd_t. Tokens are
    ranked by z, since tokens with large v_t lead the raw list of every unit. A token is `beyond` if |z| exceeds
    checks["null_z"]: the 95 % quantile, over `directions` drawn directions, of the largest |z| of the vocabulary. So a
    random direction has any token beyond in 5 % of the cases.

    Rows {side, rank, token, id, score, z, beyond}: top (raised), then bottom (lowered), `top` of each. checks:
    beyond_top and beyond_bottom count the whole vocabulary; blocks_behind: blocks that read the write too and that the
    direct path leaves out. No pass is run, so `fired` is None. Raises Refused for a head, for features that
    write into an MLP, and for counts below 1.

    Args:
        top: tokens listed for each side.
        directions: random directions behind the null's largest z.
        seed: seeds the random directions.
    """
    if top < 1 or directions < 1:
        raise Refused(f"top = {top} and directions = {directions} must both be at least 1.")
    with subject.metered() as cost:
        write = subject.write_direction(unit)
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(directions, len(write), generator=generator, dtype=torch.float64)
        scores, z, largest = project(subject, unit, write, random.to(write))
    limit = float(torch.quantile(largest, QUANTILE))
    rows = [row for side in ("top", "bottom") for row in _rows(subject, side, scores, z, limit, top)]
    checks = {
        "fired": None,
        "null_z": limit,
        "beyond_top": int((z > limit).sum()),
        "beyond_bottom": int((z < -limit).sum()),
        "write_norm": float(write.norm()),
        "blocks_behind": subject.n_layers - 1 - subject.writes_at(unit.site).layer,
    }
    return Evidence(
        tool="lens",
        unit=unit.bare,
        sign=unit.sign,
        arguments={"top": top, "directions": directions, "seed": seed},
        summary=_summary(unit, rows, checks),
        rows=rows,
        checks=checks,
        warnings=_warnings(subject, unit),
        cost=cost,
    )


def project(subject: Subject, unit: UnitId, write: Tensor, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """score [V] and z [V] of `write` [d] where `unit` writes, and the largest |z| of each `random` [R, d] direction."""
    scores, spreads = [], []
    largest = torch.zeros(len(random), dtype=write.dtype, device=write.device)
    unit_norm = random / random.norm(dim=1, keepdim=True)
    for rows in paths(subject, unit, write.dtype):
        sizes = rows.norm(dim=1) / math.sqrt(len(write))
        scores.append(rows @ write)
        spreads.append(sizes * write.norm())
        null = (rows @ unit_norm.T) / sizes.clamp(min=torch.finfo(write.dtype).tiny)[:, None]
        largest = torch.maximum(largest, null.abs().amax(dim=0))
    score, spread = torch.cat(scores), torch.cat(spreads)
    return score, torch.where(spread > 0, score / spread, torch.zeros_like(score)), largest


def by_path(subject: Subject, unit: UnitId) -> list[int]:
    """The tokens of text by z of the unit's direct path, the one that it raises most first; none without that path."""
    if not subject.writes_to_stream(unit.site):
        return []
    write = subject.write_direction(unit)
    _, z, _ = project(subject, unit, write, torch.ones(1, len(write), dtype=write.dtype, device=write.device))
    text = torch.tensor(tokens_of_text(subject), device=z.device)
    order: list[int] = text[z[text].argsort(descending=True)].tolist()
    return order


def paths(subject: Subject, unit: UnitId, dtype: torch.dtype) -> Iterator[Tensor]:
    """Rows v_t [chunk, d], in the vocabulary's order, of the linear map from what `unit` writes to centred logits."""
    weight: Tensor = subject.model.get_output_embeddings().weight
    gain, centres = subject.adapter.final_norm()
    between = subject.norm_behind(unit.site)
    mean = weight.to(torch.float64).mean(dim=0).to(dtype)
    for start in range(0, len(weight), VOCABULARY_CHUNK):
        path = (weight[start : start + VOCABULARY_CHUNK].to(dtype) - mean) * gain.to(dtype)
        if centres:
            path = path - path.mean(dim=1, keepdim=True)
        if between is not None:
            path = path * between[0].to(dtype)
            if between[1]:
                path = path - path.mean(dim=1, keepdim=True)
        yield path


def _rows(subject: Subject, side: str, scores: Tensor, z: Tensor, limit: float, top: int) -> list[dict[str, Any]]:
    sign = 1 if side == "top" else -1
    ids = (sign * z).topk(min(top, len(z))).indices.tolist()
    return [
        {
            "side": side,
            "rank": rank,
            "token": subject.piece(i),
            "id": i,
            "score": float(scores[i]),
            "z": float(z[i]),
            "beyond": sign * float(z[i]) > limit,
        }
        for rank, i in enumerate(ids, 1)
    ]


def _summary(unit: UnitId, rows: list[dict[str, Any]], checks: dict[str, Any]) -> str:
    said = []
    for side, verb in (("top", "raises"), ("bottom", "lowers")):
        mine = [repr(r["token"]) for r in rows if r["side"] == side and r["beyond"]][:5]
        count = checks[f"beyond_{side}"]
        said.append(f"{verb} {', '.join(mine)} ({count} beyond chance)" if mine else f"{verb} no token beyond chance")
    behind = checks["blocks_behind"]
    return f"Directly, {unit} {' and '.join(said)} (|z| above {checks['null_z']:.1f}); {behind} blocks follow."


def _warnings(subject: Subject, unit: UnitId) -> list[str]:
    said = []
    layer = subject.writes_at(unit.site).layer
    behind = subject.n_layers - 1 - layer
    if behind:
        said.append(
            f"direct path only: {behind} of {subject.n_layers} blocks come after layer {layer} and read this write"
        )
    cap = getattr(subject.config, "final_logit_softcapping", None)
    if cap:
        said.append(f"the logits are capped at ±{cap:g} by tanh afterwards, which shrinks changes of large ones")
    return said
