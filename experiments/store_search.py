"""Search in a large home while results are written to it: by meaning, by word, both, with filters and without."""

import random
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.config import Embed, Home, load_embedder
from ..agent.find import embeds, unseen
from ..store.filters import Filters
from ..store.search import search
from .report import Claim, Part, Progress
from .store_made import LAYERS, LEAN, MODEL, NUMBERS, Maker, at_work, made_home
from .store_times import Times
from .store_writer import RATE, writing

UNITS = 300_000
QUERIES = 220
BARS = {"meaning": 300.0, "word": 150.0}
WAYS = ("meaning", "word", "both")


def find(folder: Path, seed: int, size: float, tell: Progress) -> Part:
    """Questions of an index that a thread keeps fresh, as MCP has it; some as `query` asks, which reads first."""
    units = max(300, round(UNITS * size))
    made = made_home(folder, units, seed, tell)
    home = at_work(made, folder)
    try:
        return asked(home, units, seed, max(20, round(QUERIES * min(1.0, 10 * size))), tell)
    finally:
        home.work.close()
        shutil.rmtree(home.path, ignore_errors=True)


def asked(
    home: Home, units: int, seed: int, many: int, tell: Progress, embed: Embed | None = None, rate: int = RATE
) -> Part:
    """Asks `many` questions of each kind; `embed` in place of the embedder."""
    embed, by_whom = (embed, "a stand-in") if embed else _embedder(seed)
    maker, draw = Maker(seed, LEAN), random.Random(seed)
    reading = Times("the index is read at first")
    reading.of(home.index.refresh)
    embed(["a first text, which loads what is needed"])
    parts = {part: Times(part) for part in ("embed the question", "rank by meaning")}
    kinds = {(by, kind): Times(f"by {by}, {kind}") for kind in ("no filter", "filtered") for by in WAYS}
    anew = Times("by both, the findings' news read first")
    lags: list[float] = []
    found = 0

    def ask(by: str, filters: Filters, fresh: bool = False) -> list[dict[str, Any]]:
        text = maker.phrase(draw)
        if fresh:
            home.index.refresh()
        ready = None
        if by != "word":
            vectors = parts["embed the question"].of(lambda: embed([text]))
            ready = lambda _: vectors  # noqa: E731
        rank = partial(search, home.index, text, ready, by=by, filters=filters, top=20)
        rows = parts["rank by meaning"].of(rank) if by == "meaning" else rank()
        unseen(home.index, by, filters)
        return rows

    with writing(home, units, seed, rate) as written, home.index.kept_fresh():
        for number in range(many):
            for (by, kind), times in kinds.items():
                filters = _filters(draw) if kind == "filtered" else Filters()
                found += bool(times.of(partial(ask, by, filters)))
            lags.append(_lag(home))
            tell("questions", number + 1, many)
    with writing(home, units + 10**6, seed, rate):
        for _ in range(max(1, many // 5)):
            anew.of(partial(ask, "both", Filters(), True))
    rows = [times.row(seed, BARS.get(by)) for (by, _), times in kinds.items()]
    rows += [part.row(seed) for part in (*parts.values(), anew, reading)]
    around = {
        "explained units": units, "questions": many * len(kinds), "with an answer": found, "embedder": by_whom,
        "vectors": f"clustered random, {NUMBERS} numbers",
        "seconds behind the findings, median": float(np.median(lags)), "seconds behind the findings, most": max(lags),
        "results written a second": written["results a second"], "writer was kept waiting": written["busy"],
    }  # fmt: skip
    claims = [times.claim(seed, BARS[by]) for (by, _), times in kinds.items() if by in BARS]
    steady = written["results a second"]
    claims.append(Claim("results written a second meanwhile", steady, written["moved"], f"about {rate}",
                        steady >= 0.8 * rate))  # fmt: skip
    return {"search": rows, "around it": [{"what": name, "is": value} for name, value in around.items()]}, claims


def _lag(home: Home) -> float:
    """Seconds since the index was last seen to hold all that the findings do."""
    assert home.index.as_of is not None
    return (datetime.now(UTC).replace(tzinfo=None) - datetime.fromisoformat(home.index.as_of)).total_seconds()


def _embedder(seed: int) -> tuple[Embed, str]:
    """The one that queries are embedded with; where it was not pulled, random vectors, which is then said."""
    if embeds():
        return load_embedder(), "minilm"
    maker = Maker(seed, LEAN)
    return lambda texts: maker.vectors(len(texts[0]), len(texts)).tolist(), "none here: random vectors"


def _filters(draw: random.Random) -> Filters:
    """One of the kinds of filters that people set."""
    return draw.choice((
        Filters(site=f"{draw.randrange(LAYERS)}-mlp"), Filters(min_score=draw.choice((0.5, 0.8))),
        Filters(verdict="accepted"), Filters(model=MODEL, planner="playbook"),
        Filters(min_score=0.5, site=f"{draw.randrange(LAYERS)}-mlp", sign=1), Filters(review="unreviewed", kind="mlp"),
    ))  # fmt: skip


__all__ = ["asked", "find"]
