"""Sides: near copies put into the corpus stay on one, and no run of 13 tokens is on two."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ..tools import measures
from ..tools.corpus import load_corpus
from ..tools.subject import Subject
from ..tools.sweep import Read, apart, tokenise
from .report import Part, Progress, at_most

MODEL = "smollm2-135m"
DRAWS = 5              # corpora of each kind of copies


def split(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Near copies of 5 % of the documents, of three kinds, put into the corpus: each pair must share a side.

    DRAWS times with other documents, all of one kind at a time. And the windows that a sweep of the last such corpus
    reads: no run of 13 tokens may stand in one of explain and one of score.
    """
    texts = [document.text for document in load_corpus("builtin").documents]
    draw = random.Random(seed)
    counts = {kind: [0, 0] for kind in COPIES}
    rounds = [(kind, copied) for kind, copied in COPIES.items() for _ in range(max(1, round(size * DRAWS)))]
    for done, (kind, copied) in enumerate(rounds):
        progress("corpora with copies", done, len(rounds))
        chosen = draw.sample([text for text in texts if copied(text, draw) != text], round(0.05 * len(texts)))
        copies = [copied(text, draw) for text in chosen]
        corpus = load_corpus(str(_written(folder / f"copies-{seed}.jsonl", texts + copies)))
        side = {document.text: where for document, where in zip(corpus.documents, corpus.sides, strict=True)}
        counts[kind][0] += len(chosen)
        counts[kind][1] += sum(side[text] != side[copy] for text, copy in zip(chosen, copies, strict=True))
    rows = [{"copies with": kind, "n": n, "on another side": parted} for kind, (n, parted) in counts.items()]
    claims = [
        at_most(f"copies with {kind} on another side", float(parted), 0, n) for kind, (n, parted) in counts.items()
    ]
    documents = apart(corpus.name, tokenise(Subject.load(MODEL), corpus, None, progress))
    overlaps = []
    for windows in (200, 300, 1000, 5000):
        shared, explain, score = shared_runs(documents, windows)
        overlaps.append({"explain windows": explain, "score windows": score, "shared runs of 13 tokens": shared})
        name = f"runs shared by {explain:,} windows of explain and {score:,} of score"
        claims.append(at_most(name, float(shared), 0, explain + score))
    return {"near copies": rows, "overlap": overlaps}, claims


def _other_digits(text: str, draw: random.Random) -> str:
    return "".join(str((int(c) + 1) % 10) if c.isdecimal() and c.isascii() else c for c in text)


def _fewer_words(text: str, draw: random.Random) -> str:
    return " ".join(word for word in text.split() if draw.random() >= DELETED)


DELETED = 0.3
COPIES: dict[str, Callable[[str, random.Random], str]] = {
    "case": lambda text, draw: text.swapcase(), "digits": _other_digits, "30 % of words deleted": _fewer_words,
}  # fmt: skip


def _written(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def shared_runs(documents: Sequence[Read], windows: int) -> tuple[int, int, int]:
    """Runs of 13 tokens in both the first windows of explain and those of score, and how many windows these were."""
    found, counts = [], []
    for side in ("explain", "score"):
        mine = [w for d in documents if d.side == side for w in d.windows][:windows]
        run = measures.LEAK_RUN
        found.append({tuple(w[i : i + run]) for w in mine for i in range(len(w) - run + 1)})
        counts.append(len(mine))
    return len(found[0] & found[1]), counts[0], counts[1]


__all__ = ["COPIES", "shared_runs", "split"]
