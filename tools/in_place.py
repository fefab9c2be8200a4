"""Which tokens of the vocabulary fire a unit in the place of one, with what it needs before them held."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..store.records import Evidence, Refused
from .atlas import tokens_of_text
from .collect import position_key
from .frames import kept_text, read_means
from .held import Held, effect, hold, otherwise_in_text
from .measures import FIRES, KILLS
from .reader import Reader
from .subject import Subject
from .units import UnitId

SHOWN = 64       # firing tokens that become rows, the strongest
SILENT = 16      # silent tokens that do, drawn by hash
CERTAIN = 256    # tokens at most that are read over all draws
NAMED = 8        # tokens in a summary


def tokens_in_place(
    subject: Subject,
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    kept: Sequence[int] | None = None,
    n: int = 4096,
    seed: int = 0,
) -> Evidence:
    """Tries the vocabulary in the place of a text's tracked token, with what its minimal example keeps held before it.

    The token atlas asks which tokens fire a unit behind the sink alone; this asks it where a unit needs more. The text
    is pruned by the first search of `minimal_example` in mode resample. Of a vocabulary above n tokens, the n whose
    input embeddings (centred; cosine) are nearest to the tracked token's are tried. ratio = mean reading with the
    token in place / that of the minimal example. Every token is read in the first of the 8 draws; the 256 strongest of
    those with a ratio of at least 0.25 there are then read over all draws, and only they can be said to keep.

    Rows {token, id, activation, ratio, effect, in_text, ids}: up to 64 tokens read over all draws whose ratio is at
    least 0.5, the strongest first, then up to 16 tokens below 0.25 in the first draw, by hash. ids: the cut text with
    the token last; in_text: their reading / that of the text as it was (peak). checks: tried; fires: how many keep half
    of the minimal example's reading over all draws (at least so many, where more than 256 were candidates: candidates);
    kept, kept_text and reading (whole) of the minimal example. Raises Refused as `minimal_example` does, for n < 1, and
    for kept positions that are none.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        kept: positions to hold in place of the pruning's result, the text's strongest token among them.
        n: tokens tried.
        seed: seeds the draws and the pruning.
    """
    if n < 1:
        raise Refused(f"n = {n} tries no tokens; give at least 1.")
    given = subject.take(text, ids)
    reader = Reader(subject, [unit.site])
    with subject.metered() as cost:
        held = hold(reader, unit, given, kept, seed, widen=False)
        tokens = _candidates(subject, held.row[-1], n)
        once = reader([[*held.base[0][:-1], token] for token in tokens], unit) / held.whole
        order = torch.argsort(once, descending=True, stable=True).tolist()
        hopeful = [tokens[i] for i in order if once[i] >= KILLS]
        read = _over_all_draws(reader, unit, held, hopeful[:CERTAIN])
        first = dict(zip(tokens, once.tolist(), strict=True))
        quiet = np.array([token for token in tokens if first[token] < KILLS], dtype=np.int64)
        silent = quiet[np.argsort(position_key(quiet), kind="stable")[:SILENT]].tolist()
        firing = sorted(((r, token) for token, r in read.items() if r >= FIRES), key=lambda f: (-f[0], f[1]))
        shown = [*((token, ratio) for ratio, token in firing[:SHOWN]), *((token, first[token]) for token in silent)]
        in_text = reader([[*held.row[:-1], token] for token, _ in shown], unit) / held.peak
    pieces = subject.pieces(held.row)
    rows: list[dict[str, Any]] = [
        {
            "token": subject.piece(token), "id": token, "activation": ratio * held.whole, "ratio": ratio,
            "effect": effect(ratio), "in_text": own, "ids": [*held.row[:-1], token],
        }
        for (token, ratio), own in zip(shown, in_text.tolist(), strict=True)
    ]  # fmt: skip
    checks = {
        "fired": int(cost["forward_rows"]), "tried": len(tokens), "fires": len(firing), "candidates": len(hopeful),
        "kept": sorted(held.core), "kept_text": kept_text(pieces, held.core), "whole": held.whole,
        "peak": held.peak,
    }  # fmt: skip
    return Evidence(
        tool="tokens_in_place",
        unit=unit.bare,
        sign=unit.sign,
        arguments={
            "text": text, "ids": None if ids is None else given, "kept": None if kept is None else sorted(held.core),
            "n": n, "seed": seed,
        },
        summary=_summary(unit, checks, [subject.piece(token) for _, token in firing[:NAMED]]),
        rows=rows,
        checks=checks,
        warnings=otherwise_in_text(rows),
        cost=cost,
    )  # fmt: skip


def _candidates(subject: Subject, token: int, n: int) -> list[int]:
    """Tokens that text can give: all of them, or the n most alike to `token`, itself among them."""
    ids = tokens_of_text(subject)
    if len(ids) <= n:
        return ids
    return sorted(ids[i] for i in subject.alike([token])[ids].topk(n).indices.tolist())


def _over_all_draws(reader: Reader, unit: UnitId, held: Held, tokens: Sequence[int]) -> dict[int, float]:
    groups = [[[*row[:-1], token] for row in held.base] for token in tokens]
    return dict(zip(tokens, (value / held.whole for value in read_means(reader, unit, groups)), strict=True))


def _summary(unit: UnitId, checks: dict[str, Any], strongest: Sequence[str]) -> str:
    named = f", the strongest {', '.join(repr(token) for token in strongest)}" if strongest else ""
    bound = "at least " if checks["candidates"] > CERTAIN else ""
    return (
        f"Of {checks['tried']} tokens in place of the last of {checks['kept_text'][-60:]!r}, {bound}{checks['fires']} "
        f"keep half of what {unit} reads there{named}."
    )


__all__ = ["tokens_in_place"]
