"""Sides: near copies put into the corpus stay together, and no run of 13 tokens is on two sides."""

import random
from collections.abc import Sequence
from pathlib import Path

from ..tools import measures
from ..tools.copies import components, near_copies
from ..tools.corpus import load_corpus
from ..tools.subject import Subject
from ..tools.sweep import Read, apart, tokenise
from .report import Part, Progress, at_most

MODEL = "smollm2-135m"
KINDS = ("case", "digits", "30 % of words deleted")


def split(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Near copies of 5 % of the documents, of three kinds, put into the corpus: each pair must share a cluster.

    And the windows that a sweep reads: no run of 13 tokens may stand in one of explain and one of score.
    """
    corpus = load_corpus("builtin")
    draw = random.Random(seed)
    count = len(corpus.documents)
    chosen = draw.sample(range(count), max(3, round(0.05 * count)))
    texts = [document.text for document in corpus.documents]
    texts += [_copied(texts[i], k % len(KINDS), draw) for k, i in enumerate(chosen)]
    clusters = components(len(texts), near_copies(texts))
    missed = [clusters[i] != clusters[count + k] for k, i in enumerate(chosen)]
    rows = [
        {"copies with": kind, "n": len(missed[k :: len(KINDS)]), "in another cluster": sum(missed[k :: len(KINDS)])}
        for k, kind in enumerate(KINDS)
    ]
    claims = [at_most("injected near copies in another cluster", float(sum(missed)), 0, len(missed))]
    documents = apart(corpus.name, tokenise(Subject.load(MODEL), corpus, None, progress))
    overlaps = []
    for windows in (200, 300, 1000, 5000):
        shared, explain, score = _shared_runs(documents, windows)
        overlaps.append({"explain windows": explain, "score windows": score, "shared runs of 13 tokens": shared})
        claims.append(at_most(f"runs that explain and score share in {windows} windows", float(shared), 0, windows))
    return {"near copies": rows, "overlap": overlaps}, claims


def _copied(text: str, kind: int, draw: random.Random) -> str:
    if kind == 0:
        return text.swapcase()
    if kind == 1:
        return "".join(str((int(c) + 1) % 10) if c.isdecimal() and c.isascii() else c for c in text)
    return " ".join(word for word in text.split() if draw.random() >= 0.3)


def _shared_runs(documents: Sequence[Read], windows: int) -> tuple[int, int, int]:
    """Runs of 13 tokens in both the first windows of explain and those of score, and how many windows these were."""
    found, counts = [], []
    for side in ("explain", "score"):
        mine = [w for d in documents if d.side == side for w in d.windows][:windows]
        run = measures.LEAK_RUN
        found.append({tuple(w[i : i + run]) for w in mine for i in range(len(w) - run + 1)})
        counts.append(len(mine))
    return len(found[0] & found[1]), counts[0], counts[1]


__all__ = ["split"]
