"""Direct logit attribution: what each part of the model adds to one logit difference by itself, and the unit with them.

The direct path alone: what a part writes, through the final norm with the scale that it has in this very pass, to the
logits. What later blocks make of the write is left out; `ablate` has the whole.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from .features import Point
from .subject import Subject
from .units import UnitId

LISTED = 8             # parts listed beside the unit


def attribute(
    subject: Subject, unit: UnitId, *, text: str | None = None, ids: Sequence[int] | None = None,
    answer: str | None = None, foil: str | None = None,
) -> Evidence:  # fmt: skip
    """Splits logit(answer) − logit(foil) behind a text into what each part of the model, and the unit, add directly.

    Of a part that writes w [d] at the last token: contribution = (γ ⊙ C(w)) / s · (W_U[answer] − W_U[foil]), γ the
    final norm's gain, C its centring (where it centres) and s its scale in this pass, frozen. Contributions of all
    parts and of the biases add up to the logit difference before a softcap (checks: `total`, `difference`, and
    `residue`, what they miss it by). A neuron writes its activation times its row of the down projection, a head its
    slice of z through the output projection, a feature its part of the decoder, a dimension of the stream itself; each
    is also a part of one of the others. A norm between a part and the stream (Gemma) is frozen as well.

    Rows {part, layer, contribution, share}: the unit first, then the parts of largest |contribution|; share: of the
    difference, None where that is 0. checks: answer, foil; fired (1: one pass); larger: units of the site whose own
    contribution is larger in absolute value here, of `units`. Raises Refused for features that write into an MLP, for
    answers that begin with the same token, with their tokenisation, and as `activate` does.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        answer: what may follow the text; its first token counts. Default: what the model finds most probable.
        foil: another thing that may follow. Default: the second most probable.
    """
    row = subject.take(text, ids)
    subject.check(unit)
    with subject.metered() as cost:
        own, parts, facts = _split(subject, unit, row, answer, foil)
    whole = facts["difference"]
    ranked = sorted(parts, key=lambda part: -abs(part["contribution"]))
    rows = [own, *ranked[:LISTED]]
    rows = [r | {"share": r["contribution"] / whole if whole else None} for r in rows]
    return Evidence(
        tool="attribute", unit=unit.bare, sign=unit.sign,
        arguments={"text": text, "ids": None if ids is None else row, "answer": answer, "foil": foil},
        summary=_summary(unit, rows, facts), rows=rows, checks=facts, warnings=_warnings(subject, unit), cost=cost,
    )  # fmt: skip


def _split(
    subject: Subject, unit: UnitId, row: Sequence[int], answer: str | None, foil: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """The unit's own row, a row a part, and the checks."""
    layers = range(subject.n_layers)
    last = Point(subject.n_layers - 1, "resid")
    points = [Point(layer, place) for layer in layers for place in ("attn_out", "mlp_out")]
    read: list[str | Point] = list(dict.fromkeys([*points, Point(0, "resid"), last, *_needed(subject, unit)]))
    done = subject.run([row], read=read, normed=True)
    assert done.normed is not None
    at = {point: value[0, -1].double() for point, value in done.readings.items()}
    given = answer_tokens(subject, answer, foil)
    likely = (i for i in subject.unembed(done.normed[:, -1])[0].topk(3).indices.tolist() if i not in given)
    a, f = (next(likely) if token is None else token for token in given)
    head = subject.model.get_output_embeddings()
    target = (head.weight[a] - head.weight[f]).double()
    gain, centres = subject.adapter.final_norm()
    scale = norm_scale(subject.adapter.norm, at[last], gain, centres)

    def direct(write: Tensor) -> Tensor:
        centred = write - write.mean(dim=-1, keepdim=True) if centres else write
        found: Tensor = (centred * gain.double() / scale) @ target
        return found

    first = at[Point(0, "resid")] - at[Point(0, "attn_out")] - at[Point(0, "mlp_out")]
    parts: list[dict[str, Any]] = [{"part": "embedding", "layer": None, "contribution": float(direct(first))}]
    names = {"attn_out": "attention", "mlp_out": "MLP"}
    parts += [{"part": names[p.place], "layer": p.layer, "contribution": float(direct(at[p]))} for p in points]
    shift = done.normed[0, -1].double() - gain.double() * _centred(at[last], centres) / scale
    bias = 0.0 if head.bias is None else float(head.bias[a] - head.bias[f])
    parts.append({"part": "biases", "layer": None, "contribution": float(shift @ target) + bias})
    whole = float(done.normed[0, -1].double() @ target) + bias
    total = sum(p["contribution"] for p in parts)
    writes = _writes(subject, unit, at)
    every = direct(writes)
    own = {"part": str(unit), "layer": unit.layer, "contribution": float(every[unit.index])}
    facts = {
        "answer": subject.piece(a), "foil": subject.piece(f), "difference": whole, "total": total,
        "residue": whole - total, "fired": 1, "larger": int((every.abs() > every[unit.index].abs()).sum()),
        "units": len(every),
    }  # fmt: skip
    return own, parts, facts


def norm_scale(norm: torch.nn.Module, x: Tensor, gain: Tensor, centres: bool) -> Tensor:
    """What a norm divides x [d] by: ‖γ ⊙ C(x)‖ / ‖norm(x) − norm(0)‖."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    with torch.inference_mode():
        out = (norm(x.to(weight.dtype)[None, None]) - norm(torch.zeros_like(weight)[None, None]))[0, 0].double()
    scale: Tensor = (gain.double() * _centred(x, centres)).norm() / out.norm()
    return scale


def _centred(x: Tensor, centres: bool) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True) if centres else x


def _needed(subject: Subject, unit: UnitId) -> list[str | Point]:
    """What is read to know what every unit of the site writes."""
    point = subject.writes_at(unit.site)
    reads = [subject.coder(unit.site).reads] if unit.kind == "feature" else []
    return [unit.site, *reads, *([point] if point.place in ("mlp", "attn") else [])]


def _writes(subject: Subject, unit: UnitId, at: dict[Any, Tensor]) -> Tensor:
    """What each unit of the site adds to the stream [units, d], with the norm behind it frozen."""
    point, values = subject.writes_at(unit.site), at[unit.site]
    between = subject.norm_behind(unit.site)
    if unit.kind == "attn":
        weight = subject.adapter.linear(point.layer, "heads")[0].double()
        count = subject.count(unit.site)
        rows = (values[:, None] * weight).view(count, -1, weight.shape[1]).sum(dim=1)
    elif unit.kind == "resid":
        rows = torch.diag(values)
    else:
        rows = values[:, None] * subject.write_rows(unit.site).double()
        if unit.kind == "feature":
            coder = subject.coder(unit.site)
            rows = rows * coder.scale(at[coder.reads]).double()
    if between is None:
        return rows
    part = {"mlp": ("mlp", "neurons"), "attn": ("attention", "heads")}[point.place]
    gain, centres = between
    weight, bias = subject.adapter.linear(point.layer, part[1])
    raw = at[Point(point.layer, point.place)] @ weight.double() + (0 if bias is None else bias.double())
    norm = subject.adapter.module(point.layer, f"{part[0]}_write")
    return gain.double() * _centred(rows, centres) / norm_scale(norm, raw, gain, centres)


def answer_tokens(subject: Subject, answer: str | None, foil: str | None) -> tuple[int | None, int | None]:
    """First tokens of two things that may follow a text; None for one that is not given.

    Raises Refused for an empty one, and for two that begin with the same token, with their tokenisation.
    """
    spelled = []
    for name, words in (("answer", answer), ("foil", foil)):
        spelled.append([] if words is None else subject.encode(words)[1:])
        if words is not None and not spelled[-1]:
            raise Refused(f"the {name} is empty; give what may follow the text, with its space in front.")
    first, other = (ids[0] if ids else None for ids in spelled)
    if first is not None and first == other:
        shown = " and ".join(str(subject.pieces(ids)) for ids in spelled)
        raise Refused(f"answer and foil begin with the same token ({shown}); name two that differ from the first.")
    return first, other


def _summary(unit: UnitId, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    first = rows[1]
    where = first["part"] + ("" if first["layer"] is None else f" {first['layer']}")
    return (
        f"Of {facts['difference']:+.3g} for {facts['answer']!r} over {facts['foil']!r}, {unit} adds "
        f"{rows[0]['contribution']:+.3g} directly ({facts['larger']} of {facts['units']} units of its site add more); "
        f"most comes from {where} ({first['contribution']:+.3g})."
    )


def _warnings(subject: Subject, unit: UnitId) -> list[str]:
    said = []
    behind = subject.n_layers - 1 - subject.writes_at(unit.site).layer
    if behind:
        said.append(f"direct path only: {behind} of {subject.n_layers} blocks read this write too")
    cap = getattr(subject.config, "final_logit_softcapping", None)
    if cap:
        said.append(f"differences are before the softcap of {cap:g}, which shrinks large logits")
    return said


__all__ = ["answer_tokens", "attribute", "norm_scale"]
