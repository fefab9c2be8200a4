"""Per-token readings of one unit on any text: the plainest experiment, and the check on every other."""

from collections.abc import Sequence

from ..store.records import Evidence
from .subject import Subject
from .units import UnitId


def activate(subject: Subject, unit: UnitId, *, text: str | None = None, ids: Sequence[int] | None = None) -> Evidence:
    """Reads the unit at every token of a text of your choice, to test a guess about what makes it fire.

    y = sign × activation, in the activation's own scale, at each position of the whole text (causal: a token's y
    depends on what stands before it). Rows {position, token, id, activation}, one a token after the sink; positions
    index the ids with the sink at 0. The sink's own y is no part of the text and stands in checks["sink"], the
    position of the largest y in checks["peak_position"]. Raises Refused for an empty or over-long text and for a
    unit this model does not have.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
    """
    row = subject.take(text, ids)
    with subject.metered() as cost:
        values = read_tokens(subject, unit, row)
    peak = max(range(1, len(row)), key=values.__getitem__)
    pieces = subject.pieces(row)
    rows = [
        {"position": i, "token": pieces[i], "id": row[i], "activation": values[i]} for i in range(1, len(row))
    ]
    summary = f"{unit} reads at most {values[peak]:.3g}, on {pieces[peak]!r} (position {peak} of {len(row) - 1})."
    return Evidence(
        tool="activate",
        unit=unit.bare,
        sign=unit.sign,
        arguments={"text": text, "ids": None if ids is None else row},
        summary=summary + (" It is silent on this text." if values[peak] <= 0 else ""),
        rows=rows,
        checks={"fired": int(cost["forward_rows"]), "peak_position": peak, "peak": values[peak], "sink": values[0]},
        cost=cost,
    )


def read_tokens(subject: Subject, unit: UnitId, ids: Sequence[int]) -> list[float]:
    """y = sign × activation at every position of `ids`, the sink included."""
    values: list[float] = (unit.sign * subject.activations(ids, [unit])[0, :, 0]).tolist()
    return values
