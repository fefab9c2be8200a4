"""From the outbox into the findings: how fast, and how many bytes a unit takes once it is there."""

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.config import Home
from ..store.findings import drain
from ..store.records import Evidence, uuid7
from .report import Claim, Part, Progress, at_least
from .store_made import LEAN, WHOLE, Maker
from .store_times import percentile

ROWS = 20_000            # evidence that is moved at a time
ROUNDS = 5
BAR = 20_000             # evidence rows a second
UNITS = 1_000            # whole units, whose bytes are counted
MADE = 400               # units whose evidence is taken again and again, under other ids
SHORT = 700              # characters of short evidence


def ingest(folder: Path, seed: int, size: float, tell: Progress) -> Part:
    """Evidence of made units, as long as real evidence is, from a full outbox through `drain`."""
    many = max(50, round(ROWS * size))
    maker = Maker(seed, WHOLE)
    made = [one for n in range(max(2, round(MADE * size))) for one in maker.records(n) if isinstance(one, Evidence)]
    short = [_short(one) for one in made]
    tables: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for name, pattern in (("as real evidence", made), ("short", short)):
        rounds = []
        for number in range(ROUNDS):
            rounds.append(moved(folder, pattern, many, seed + number))
            tell(name, number + 1, ROUNDS)
        wall = [row["rows a second"] for row in rounds]
        low, high = _interval(wall, seed)
        rate = float(np.median(wall))
        tables.append({
            "evidence": name, "characters a row": rounds[0]["characters"], "rows a round": many, "rounds": ROUNDS,
            "rows a second": rate, "low": low, "high": high, "bar": BAR,
            "rows a CPU second": float(np.median([row["rows a CPU second"] for row in rounds])),
            "MB a second": rate * rounds[0]["characters"] / 1e6,
            "posted a second": float(np.median([row["posted a second"] for row in rounds])),
        })  # fmt: skip
        if name == "as real evidence":
            claims.append(at_least("evidence rows a second from the outbox", rate, BAR, many * ROUNDS, low, high))
        claims.append(Claim(
            f"{name}: rows lost or twice", float(sum(row["amiss"] for row in rounds)), many * ROUNDS, "0",
            not any(row["amiss"] for row in rounds),
        ))  # fmt: skip
    return {"ingest": tables}, claims


def moved(folder: Path, pattern: Sequence[Evidence], many: int, seed: int) -> dict[str, float]:
    """One round: rows are posted, moved and counted up, in a home of their own that holds a round already."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        home = Home(Path(place))
        home.findings.append(_again(draw.choices(pattern, k=min(many, 2_000))))
        rows = _again(draw.choices(pattern, k=many))
        began = time.perf_counter()
        for first in range(0, many, 500):
            home.work.post(rows[first : first + 500])
        posted = time.perf_counter() - began
        began, worked = time.perf_counter(), time.process_time()
        count = drain(home.work, home.findings)
        wall, worked = time.perf_counter() - began, time.process_time() - worked
        found = Counter(row["id"] for row in home.findings.sql("SELECT id FROM evidence"))
        amiss = sum(abs(found[row.id] - 1) for row in rows) + abs(count - many) + home.work.pending()
        home.work.close()
    return {
        "rows a second": many / wall, "rows a CPU second": many / worked, "posted a second": many / posted,
        "characters": sum(len(row.to_json()) for row in rows[:500]) / len(rows[:500]), "amiss": amiss,
    }  # fmt: skip


def size(folder: Path, seed: int, size: float, tell: Progress) -> Part:
    """Whole units through the outbox: bytes of `findings.duckdb` for each, and which records they are."""
    tables: dict[str, list[dict[str, Any]]] = {"bytes a unit": [], "records of a whole unit": []}
    claims = []
    for name, shape in (("whole, as a run of the playbook leaves it", WHOLE), ("lean, as in the other parts", LEAN)):
        many = max(4, round(UNITS * size))
        maker = Maker(seed, shape)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            home = Home(Path(place))
            counts: Counter[str] = Counter()
            texts: Counter[str] = Counter()
            for number in range(many):
                records = maker.records(number)
                home.work.post(records)
                for one in records:
                    counts[one.TABLE] += 1
                    texts[one.TABLE] += len(one.to_json())
                if number % 100 == 99 or number == many - 1:
                    drain(home.work, home.findings)
                    tell("units written", number + 1, many)
            home.work.close()
            explained = home.findings.sql("SELECT count(*) AS n FROM explanations WHERE explanation IS NOT NULL")
            there = explained[0]["n"]
            parts = _parts(home)
            size_bytes = home.findings.path.stat().st_size
            shutil.rmtree(place, ignore_errors=True)
            Path(place).mkdir()
        of = size_bytes / max(1, there)
        tables["bytes a unit"].append({
            "units": name, "n": there, "records a unit": sum(counts.values()) / many,
            "characters as JSON": sum(texts.values()) / many, "bytes of the database": of,
            "of 300,000 units GB": of * 300_000 / 1e9,
        })  # fmt: skip
        claims.append(Claim(f"bytes a unit, {name.split(',')[0]}", of, there, "printed", there == many))
        if shape is WHOLE:
            tables["records of a whole unit"] = [
                {"table": table, "records a unit": n / many, "characters each": texts[table] / n,
                 "bytes a unit": parts.get(table, 0) / many}
                for table, n in counts.most_common()
            ]  # fmt: skip
    return tables, claims


def _parts(home: Home) -> dict[str, int]:
    """Bytes of blocks of each table; blocks that tables share are counted for each."""
    sql = "SELECT table_name FROM duckdb_tables()"
    found = {}
    for (table,) in (tuple(row.values()) for row in home.findings.sql(sql)):
        blocks = home.findings.sql(
            f"SELECT count(DISTINCT block_id) AS n FROM pragma_storage_info('{table}') WHERE persistent"
        )
        found[table] = blocks[0]["n"] * 262_144
    return found


def _again(rows: Sequence[Evidence]) -> list[Evidence]:
    """The same under new ids, in the order of time."""
    fields = [{**vars(row), "id": uuid7()} for row in rows]
    return [Evidence(**one) for one in sorted(fields, key=lambda one: str(one["id"]))]


def _short(one: Evidence) -> Evidence:
    cut = {**vars(one), "rows": one.rows[:1], "arguments": {"seed": 0}, "checks": {}, "provenance": {}}
    if len(Evidence(**cut).to_json()) > SHORT:
        cut["rows"] = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in one.rows[:1]]
    return Evidence(**cut)


def _interval(rates: Sequence[float], seed: int) -> tuple[float, float]:
    """The 95 % interval of the median of a few rounds, by bootstrap."""
    _, low, high = percentile([rate / 1000 for rate in rates], seed, 0.5)
    assert low is not None and high is not None
    return low, high


__all__ = ["ingest", "moved", "size"]
