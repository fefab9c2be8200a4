"""Generated findings: units that are explained by made-up sentences, with all the records that a real unit leaves.

Sentences come from a small grammar; their words, and those of texts, are drawn by Zipf's law from the words of Python's
own manual and made-up rarer ones. Embeddings are clustered random vectors: they cost what real ones cost to compare.
"""

import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agent.config import EMBEDDER, Home
from ..store.findings import writer
from ..store.records import TABLES, Model, Record, Run
from .report import Progress

VERSION = 2                  # of what is generated; a kept home of another version is made again
MODEL, LAYERS, EVERY = "made-300m", 30, 20_000      # units of a site
VOCABULARY = 30_000
CLUSTERS, NUMBERS = 512, 384
CHUNK = 10_000               # units that are written at a time
POOL = 2_000                 # units whose tool calls and texts are made; in a large home all others have one of theirs
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DIGESTS = {
    "model": "d4" * 32, "tokenizer": "09" * 32, "corpus": "7d" * 32, "sweep": "46" * 8, "measures": 4,
    "dtype": "float32", "device": "cpu", "seed": 0, "coders": {}, "code": "made",
}  # fmt: skip
_SENTENCES = (
    "fires on the word “{}”", "fires on words that begin with “{}”", "fires on “{}” behind “{}”",
    "fires on the words “{}” and “{}” in texts about {}", "fires on numbers behind “{}” and {}",
    "fires on the last word of “{} {} {}”", "fires on {} where {} comes up to five words before",
)  # fmt: skip
_VERDICTS = ("accepted", "accepted", "rejected", "rejected", "unclear")

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How many records of each kind an investigation leaves; of evidence, which tools'."""

    tools: tuple[str, ...]
    exemplars: int
    hypotheses: int
    metrics: tuple[str, ...]
    verdicts: int


# What a unit of smollm2-135m had in a run by the playbook, in the mean of ten: 15 tool calls, 64 places, 11 scores.
WHOLE = Shape(
    ("top_examples", *("minimal_example",) * 5, *("substitute",) * 3, "tokens_in_place", "shift", "patch", "try_rule",
     "ablate", "lens"), 64, 3,
    ("f1", "auprc", "pearson", "f1_at_prevalence", "boundary_rejection", "coverage", "ce_recovered", "kl_recovered",
     "hm", "output_auc", "steering_auc"), 2,
)  # fmt: skip
# What each of a great many has: all kinds, few of each.
LEAN = Shape(("minimal_example", "substitute", "ablate"), 8, 2, ("f1", "auprc", "pearson", "output_auc"), 1)


class Maker:
    """Makes the records of unit number 0, 1, 2 …; the same for the same seed."""

    def __init__(self, seed: int, shape: Shape = WHOLE) -> None:
        self.seed, self.shape = seed, shape
        self.words = vocabulary()
        draw = np.random.default_rng(seed)
        self.drawn = np.minimum(zipf(draw, 400_000), len(self.words)) - 1
        self.told = [self.words[k] for k in self.drawn]
        self.centres = draw.standard_normal((CLUSTERS, NUMBERS), dtype=np.float32)

    def records(self, number: int) -> list[Record]:
        """All records of one unit, in the order in which a run posts them."""
        vectors = self.vectors(number, 1)
        rows = list(self.rows(number))
        return [
            TABLES[table](**row, **({"vector": vectors[0].tolist()} if table == "embeddings" else {}))
            for table, row in rows
        ]  # fmt: skip

    def vectors(self, first: int, many: int) -> NDArray[np.float32]:
        """Their embeddings: of length 1, around one of the centres."""
        draw = np.random.default_rng((self.seed, first))
        made = self.centres[draw.integers(0, CLUSTERS, many)]
        made = made + 0.8 * draw.standard_normal((many, NUMBERS), dtype=np.float32)
        return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)

    def phrase(self, draw: random.Random, least: int = 2, most: int = 5) -> str:
        """Some words that explanations have, as somebody searches for them."""
        return " ".join(self._word(draw) for _ in range(draw.randint(least, most)))

    def rows(self, number: int) -> Iterator[tuple[str, Row]]:
        """Tables and fields, without the vector."""
        draw = random.Random(f"{self.seed}/{number}")
        moment = int(BEGAN.timestamp() * 1000) + 1000 * number
        head, count = f"{moment:012x}", iter(range(4096))
        when = (BEGAN + timedelta(seconds=number)).isoformat(timespec="microseconds").removesuffix("+00:00")

        def named() -> str:
            return f"{head[:8]}-{head[8:]}-7{next(count):03x}-8000-{number:012x}"

        investigation, word = named(), self._word(draw)
        site, index = f"{number // EVERY % LAYERS}-mlp", number % EVERY + EVERY * (number // (EVERY * LAYERS))
        about: Row = {
            "created_at": when, "run": "made", "unit": f"{MODEL}/{site}/{index}", "sign": 1,
            "investigation": investigation, "provenance": DIGESTS,
        }  # fmt: skip
        peak = round(draw.uniform(2, 9), 6)
        kept = [named() for _ in range(self.shape.hypotheses)]
        f1 = draw.random()
        for k, (tool, cost, more) in enumerate(self._evidence(draw, word, peak)):
            id = named()
            yield "evidence", about | {"id": id, "tool": tool, "cost": cost, "ok": True, "artifact": None} | more
            yield "turns", about | {
                "id": named(), "question": f"what does {tool} say of “{word}” and {self._word(draw)}", "by": "playbook",
                "tool": tool, "evidence": id, "ok": True, "killed": [],
                "predictions": {kept[0]: [True, False] * 4} if k else {}, "outcome": [True, False] * 4 if k else [],
            }  # fmt: skip
        yield "investigations", about | {
            "id": investigation, "planner": draw.choice(("playbook", "playbook", "llm:made")), "status": "submitted",
            "steps": len(self.shape.tools), "cost": {"forward_rows": 900.0}, "seconds": round(draw.uniform(5, 90), 3),
        }  # fmt: skip
        yield "units", about | {
            "id": named(), "model": MODEL, "site": site, "index": index, "peak": peak, "threshold": peak / 2,
            "statistics": {
                "mean": draw.random(), "std": draw.random(),
                "tokens": dict.fromkeys(("explain", "tune", "score"), 9999),
                "firings": {"explain": 32, "tune": 13, "score": draw.randint(10, 99)},
                "strata": {side: [3, 9, 20, 99, 8061] for side in ("explain", "tune", "score")},
            },
        }  # fmt: skip
        for k in range(self.shape.exemplars):
            text = self._text(draw, 12, 40)
            yield "exemplars", about | {
                "id": named(), "side": ("explain", "tune", "score")[k % 5 // 2], "document": draw.randbytes(32).hex(),
                "band": ("top", "high", "mid", "boundary", "low", "random")[k % 6], "position": draw.randint(8, 62),
                "activation": peak * draw.random(), "text": f"{text} {word}", "token": f" {word}",
            }  # fmt: skip
        rule = {"clauses": [{"at": {"word": f"(?i){word}"}, "piece": "last", "need": [], "not": []}]}
        yield "hypotheses", about | {
            "id": kept[0], "author": "playbook", "sentence": self.sentence(draw, word), "rule": rule,
            "rule_text": f"word {word}", "kept": True, "evidence": [], "tune_f1": f1, "side": "input",
        }  # fmt: skip
        pushed = ", ".join(f"“ {self._word(draw)}”" for _ in range(4))
        for k, id in enumerate(kept[1:]):
            output = k == len(kept) - 2
            yield "hypotheses", about | {
                "id": id, "author": "playbook", "rule": None, "rule_text": None, "kept": output, "evidence": [],
                "sentence": f"pushes {pushed}" if output else self.sentence(draw, word), "tune_f1": None,
                "side": "output" if output else "input",
            }  # fmt: skip
        for metric in self.shape.metrics:
            value = f1 if metric == "f1" else draw.random()
            yield "scores", about | {
                "id": named(), "hypothesis": kept[-1] if metric.endswith("_auc") else kept[0], "metric": metric,
                "side": "score", "value": value, "low": max(0.0, value - 0.08), "high": min(1.0, value + 0.08),
                "n": draw.randint(20, 99), "references": {}, "reason": None, "judge": None,
                "floors": {"always_on": 0.01, "shifted": draw.random() / 9, "other_units": draw.random() / 9},
                "details": {"firings": 20, "clusters": 12, "per_clause": [[1, draw.random(), draw.random()]]},
            }  # fmt: skip
        verdict = draw.choice(_VERDICTS)
        for q in (None, 0.02)[: self.shape.verdicts]:
            yield "verdicts", about | {
                "id": named(), "hypothesis": kept[0], "verdict": verdict, "reason": f"F1 {f1:.2f} by rule", "p": 0.001,
                "q": q,
            }  # fmt: skip
        yield "embeddings", about | {"id": named(), "hypothesis": kept[0], "model": EMBEDDER}

    def sentence(self, draw: random.Random, word: str) -> str:
        """One of the grammar, about `word` first."""
        form = draw.choice(_SENTENCES)
        return form.format(word, *(self._word(draw) for _ in range(form.count("{}") - 1)))

    def _word(self, draw: random.Random) -> str:
        word: str = self.told[draw.randrange(len(self.told))]
        return word

    def _text(self, draw: random.Random, least: int, most: int) -> str:
        at = draw.randrange(len(self.told) - most)
        return " ".join(self.told[at : at + draw.randint(least, most)])

    def _ids(self, draw: random.Random, many: int) -> list[int]:
        at = draw.randrange(len(self.drawn) - many)
        ids: list[int] = self.drawn[at : at + many].tolist()
        return [1, *ids]

    def _evidence(self, draw: random.Random, word: str, peak: float) -> Iterator[tuple[str, Row, Row]]:
        """Tool, cost and fields of what each tool returned, as long as what real ones return."""
        for tool in self.shape.tools:
            rows = [self._result(tool, draw, word, peak) for _ in range(_RESULTS[tool])]
            cost = {"forward_rows": 107, "forward_tokens": draw.randint(99, 9999), "backward": 0, "seconds": 0.508}
            text = self._text(draw, 10, 20)
            yield tool, cost, {
                "arguments": {"text": None, "ids": self._ids(draw, 39), "kept": [38], "seed": 0}, "rows": rows,
                "summary": f"{tool} of “{word}”: {text}.", "warnings": [],
                "checks": {"fired": 107, "kept_text": word, "whole": peak, "peak": peak, "clean_text": text,
                           "corrupt_text": f"{text} {word}", "held": [38, 39], "left_out": 0},
            }  # fmt: skip

    def _result(self, tool: str, draw: random.Random, word: str, peak: float) -> Row:
        """One row of what a tool returned."""
        if tool == "minimal_example":
            words = self._text(draw, 36, 36).split() + [word]
            shares = [None] * (len(words) - 1) + [1.0]
            return {
                "text": " ".join(words), "tokens": ["<s>", *(f" {w}" for w in words)], "kept": [len(words)],
                "ids": self._ids(draw, len(words)), "kept_text": word, "peak": peak, "retained": peak * 0.6,
                "retention": 0.6, "mode": "resample", "one_minimal": True, "n_sets": 1, "shares": [None, *shares],
            }  # fmt: skip
        if tool == "ablate":
            low = draw.uniform(-0.2, 0.2)
            return {"where": draw.choice(("firing", "after")), "delta_ce": low + 0.05, "low": low, "high": low + 0.1,
                    "sd": None, "n": 12, "documents": 12, "clean_ce": 3.0, "kl": draw.random()}  # fmt: skip
        if tool == "lens":
            z = draw.gauss(0, 4)
            return {"side": "top" if z > 0 else "bottom", "rank": draw.randint(1, 10), "token": f" {self._word(draw)}",
                    "id": draw.randrange(49152), "score": z / 1.3, "z": z, "beyond": abs(z) > 4.7}  # fmt: skip
        if tool == "patch":
            part = draw.random()
            return {"role": "unit", "unit": f"{MODEL}/5-mlp/1", "direction": draw.choice(("denoise", "noise")),
                    "carried": part, "carried_repeats": part / 3, "metric": -13.6, "clean": peak,
                    "corrupt": -0.1}  # fmt: skip
        place = {"document": draw.randbytes(16).hex(), "offset": draw.randrange(4000), "band": "top",
                 "text": self._text(draw, 12, 20)} if tool == "top_examples" else {}  # fmt: skip
        ratio = draw.random()
        return place | {
            "position": 38, "original": word, "substitute": self._word(draw), "token": f" {self._word(draw)}",
            "activation": peak * ratio, "ratio": ratio, "effect": "kills" if ratio < 0.25 else "keeps",
            "in_text": draw.random(), "ids": self._ids(draw, 39), "proposer": "masked", "ring": 1,
        }  # fmt: skip


_RESULTS = {
    "top_examples": 8, "minimal_example": 2, "substitute": 11, "tokens_in_place": 26, "shift": 12, "patch": 24,
    "try_rule": 5, "ablate": 3, "lens": 20,
}  # fmt: skip


@cache
def vocabulary() -> list[str]:
    """Words by how often they are used: those of Python's manual, then made-up ones."""
    from pydoc_data.topics import topics

    counted = Counter(re.findall(r"[a-z]{2,}", " ".join(topics.values()).lower()))
    known = [word for word, _ in counted.most_common()]
    letters = "bcdfglmnprstv"
    made = ("".join(part) for part in product(letters, "aeiou", letters, "aeiou", letters, ("", "er", "ing", "s")))
    return known + list(islice((word for word in made if word not in counted), VOCABULARY - len(known)))


def zipf(draw: np.random.Generator, many: int) -> NDArray[np.int64]:
    """Ranks from 1 to VOCABULARY, each as likely as 1 / rank."""
    return np.floor(np.exp(draw.random(many) * math.log(VOCABULARY))).astype(np.int64)


def made_home(folder: Path, units: int, seed: int, tell: Progress) -> Path:
    """The folder of a home with so many explained units, made once and kept; nothing is to be written there."""
    place = folder / f"store-{VERSION}-{units}-{seed}"
    if (place / "findings.duckdb").exists():
        return place
    draft = folder / f".{place.name}"
    shutil.rmtree(draft, ignore_errors=True)
    home = Home(draft)
    home.work.close()
    home.findings.append([
        Model(name=MODEL, architecture="llama", layers=LAYERS, vocabulary=49152, checks={}, tools=[]),
        Run(key="made", asked={}, status="done", units=[], run="made"),
    ])  # fmt: skip
    _write(home, Maker(seed, LEAN), units, tell)
    draft.rename(place)
    return place


def at_work(made: Path, folder: Path) -> Home:
    """A copy of a kept home, to be written to and removed."""
    place = folder / "at-work"
    shutil.rmtree(place, ignore_errors=True)
    return Home(Path(shutil.copytree(made, place)))


def _write(home: Home, maker: Maker, units: int, tell: Progress) -> None:
    """Writes all units in their order, past the outbox."""
    pooled = ("evidence", "turns", "exemplars")
    bare = Maker(maker.seed, replace(maker.shape, tools=(), exemplars=0))
    with writer(home.findings.path) as con:
        columns: dict[str, dict[str, str]] = {}
        sql = "SELECT table_name, column_name, data_type FROM duckdb_columns() ORDER BY table_name, column_index"
        for table, name, kind in con.execute(sql).fetchall():
            columns.setdefault(table, {})[name] = kind
        many = min(units, POOL)
        rows = _by_table(maker, range(many))
        for table in pooled:
            con.register("made", _arrow(rows[table], columns[table]))
            con.execute(f"""CREATE TEMP TABLE pool_{table} AS SELECT *, row_number() OVER (
                            PARTITION BY unit ORDER BY id) - 1 AS place, dense_rank() OVER (ORDER BY unit) - 1 AS number
                            FROM made""")  # fmt: skip
        for first in range(0, units, CHUNK):
            some = range(first, min(units, first + CHUNK))
            rows = _by_table(bare, some)
            for table, found in rows.items():
                vectors = maker.vectors(first, len(some)) if table == "embeddings" else None
                con.register("made", _arrow(found, columns[table], vectors))
                con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM made")
            con.register("made", _arrow(rows["investigations"], columns["investigations"]))
            for table in pooled:
                con.execute(_pooled(table, columns[table], many))
            tell("units made", some[-1] + 1, units)
        con.execute("CHECKPOINT")


def _pooled(table: str, columns: dict[str, str], many: int) -> str:
    """SQL that gives each of the units in `made` the rows of one unit of the pool, under ids and times of its own."""
    mark = {"evidence": "4", "turns": "5", "exemplars": "6"}
    id = "left(u.id, 14) || '7{}' || lpad(to_hex(p.place), 2, '0') || right(u.id, 18)"
    own = {name: f"u.{name}" for name in ("created_at", "run", "investigation", "unit", "sign")}
    own |= {"id": id.format(mark[table])} | ({"evidence": id.format(mark["evidence"])} if table == "turns" else {})
    chosen = ", ".join(f'{own[name]} AS "{name}"' if name in own else f'p."{name}"' for name in columns)
    return f"""INSERT INTO {table} BY NAME SELECT {chosen} FROM made u
               JOIN pool_{table} p ON p.number = hash(u.id) % {many} ORDER BY u.id, p.place"""


def _by_table(maker: Maker, numbers: range) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for number in numbers:
        for table, row in maker.rows(number):
            rows.setdefault(table, []).append(row)
    return rows


def _arrow(rows: list[Row], columns: dict[str, str], vectors: NDArray[np.float32] | None = None) -> Any:
    import pyarrow as pa

    arrays = {name: _column(rows, name, kind) for name, kind in columns.items() if name != "vector"}
    if vectors is not None:
        starts = np.arange(0, vectors.size + 1, NUMBERS)
        arrays["vector"] = pa.ListArray.from_arrays(starts, pa.array(vectors.ravel()))
    return pa.table(arrays)


def _column(rows: list[Row], name: str, kind: str) -> Any:
    import pyarrow as pa

    if kind != "JSON":
        return pa.array([row[name] for row in rows])
    if all(row[name] is DIGESTS for row in rows):
        return pa.array([json.dumps(DIGESTS)] * len(rows))
    return pa.array([None if row[name] is None else json.dumps(row[name]) for row in rows], pa.string())


__all__ = ["LEAN", "WHOLE", "Maker", "Shape", "at_work", "made_home"]
