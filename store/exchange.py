"""What leaves a home: its records as JSON lines or Parquet, whole, filtered, or without the text of the corpus.

A table a kind of record, a file a table. JSON columns are JSON text in Parquet. A folder is written beside its place
and put there when it is whole.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from .findings import Findings
from .records import SCHEMA, TABLES, Refused

PAGE = 2_000            # rows read at a time
QUOTED = 4              # words in a row that a sentence shares with a text make it a quotation
UNIT = "^(.*)/([^/]+)/([^/]+)$"

Row = dict[str, Any]

# Columns that hold text of the corpus, or words about it that may quote it.
TEXTUAL: dict[str, tuple[str, ...]] = {
    "exemplars": ("text", "token"),
    "evidence": ("arguments", "summary", "rows", "checks", "warnings"),
    "turns": ("question",),
    "hypotheses": ("rule", "rule_text"),
    "failures": ("message", "step", "request"),
}
# Columns that people or models wrote, or that repeat what they wrote: left out where they quote a text of the unit.
QUOTING: dict[str, tuple[str, ...]] = {
    "hypotheses": ("sentence",), "scores": ("reason",), "verdicts": ("reason",), "import_verdicts": ("reason",),
}  # fmt: skip
_WHO = ("hypothesis", "sentence", "explanation", "rule", "clause", "why")     # keys of evidence that hold no text


@dataclass(frozen=True)
class Wanted:
    """Which units' records are meant: of a model, a site, or whose explanation has a verdict; None means all."""

    model: str | None = None
    site: str | None = None
    verdict: str | None = None

    def where(self, table: str) -> tuple[str, list[Any]]:
        """A condition on the rows of a table, and its values."""
        if self == Wanted():
            return "true", []
        if table in ("models", "sweeps"):
            name = "name" if table == "models" else "model"
            return (f"{name} = ?", [self.model]) if self.model else ("true", [])
        of_units, values = self._units()
        if table == "runs":
            return f"run IN (SELECT run FROM investigations WHERE {of_units})", values
        return of_units, values

    def _units(self) -> tuple[str, list[Any]]:
        parts: list[str] = ["unit IS NOT NULL"]
        values: list[Any] = []
        for group, value in ((1, self.model), (2, self.site)):
            if value is not None:
                parts.append(f"regexp_extract(unit, '{UNIT}', {group}) = ?")
                values.append(value)
        if self.verdict is not None:
            parts.append("(unit, sign) IN (SELECT (unit, sign) FROM explanations WHERE verdict = ?)")
            values.append(self.verdict)
        return " AND ".join(parts), values


def explained(findings: Findings, wanted: Wanted) -> list[Row]:
    """The rows of the view `explanations` that have an explanation, in order."""
    where, values = wanted.where("explanations")
    sql = f"SELECT * FROM explanations WHERE explanation IS NOT NULL AND {where} ORDER BY unit, sign DESC"
    return findings.sql(sql, values)


# Rows


def columns(findings: Findings) -> dict[str, dict[str, str]]:
    """The tables that there are, in their order, each with its columns and their types in DuckDB."""
    rows = findings.sql(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY column_index"
    )
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        known[row["table_name"]][row["column_name"]] = row["data_type"]
    return {table: known[table] for table in TABLES if table in known}


def pages(findings: Findings, table: str, wanted: Wanted) -> Iterator[list[Row]]:
    """The rows of a table, oldest first, PAGE at a time; JSON columns as JSON text."""
    where, values = wanted.where(table)
    after: list[Any] = ["0001-01-01", ""]
    while True:
        sql = f'SELECT * FROM "{table}" WHERE {where} AND (created_at, id) > (?::TIMESTAMP, ?) ORDER BY created_at, id'
        page = findings.sql(f"{sql} LIMIT {PAGE}", [*values, *after])
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = [page[-1]["created_at"], page[-1]["id"]]


# Without text


class Silent:
    """Takes the text of the corpus out of rows. `dropped` counts, by table and column, what was taken out."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.dropped: dict[str, int] = defaultdict(int)

    def page(self, table: str, rows: list[Row]) -> list[Row]:
        """The rows of a table without text."""
        quoting = QUOTING.get(table, ())
        said = self._said({(row["unit"], row["sign"]) for row in rows}) if quoting else {}
        made = []
        for row in rows:
            known = said.get((row["unit"], row["sign"]), set())
            quotes = [name for name in quoting if row[name] is not None and _quotes(row, name, known)]
            out = self._emptied(table, row, (*TEXTUAL.get(table, ()), *quotes))
            if table == "scores":
                out["details"] = json.dumps(_numbers(json.loads(row["details"] or "{}")))
            made.append(out)
        return made

    def explanations(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of the view `explanations` without rules, and without those whose sentence quotes a text."""
        said = self._said({(row["unit"], row["sign"]) for row in rows})
        kept = [row for row in rows if runs(row["explanation"]).isdisjoint(said[row["unit"], row["sign"]])]
        self.dropped["explanations.explanation"] += len(rows) - len(kept)
        return [row | {"rule": None, "output_explanation": None} for row in kept]

    def _emptied(self, table: str, row: Row, names: Sequence[str]) -> Row:
        there = [name for name in names if name in row]       # a file of an older version has fewer columns
        for name in there:
            self.dropped[f"{table}.{name}"] += row[name] is not None
        return {**row, **dict.fromkeys(there)}

    def _said(self, units: set[tuple[str | None, int | None]]) -> dict[tuple[str | None, int | None], set[int]]:
        """Every QUOTED words in a row of the texts that are recorded of each unit, as hashes."""
        found: dict[tuple[str | None, int | None], set[int]] = {unit: set() for unit in units}
        names = [unit for unit, _ in units if unit is not None]
        if not names:
            return found
        here = "unit IN (SELECT unnest(?::VARCHAR[]))"
        for row in self._findings.sql(f"SELECT unit, sign, text FROM exemplars WHERE {here}", [names]):
            found.setdefault((row["unit"], row["sign"]), set()).update(runs(row["text"]))
        sql = f"SELECT unit, sign, arguments, rows FROM evidence WHERE {here}"
        for row in self._findings.sql(sql, [names], unpack=True):
            for text in _texts([row["arguments"], row["rows"]]):
                found.setdefault((row["unit"], row["sign"]), set()).update(runs(text))
        return found


def _quotes(row: Row, name: str, known: set[int]) -> bool:
    """Whether a column repeats a text, or, as why a unit was abstained from, may hold a pattern that was held back."""
    return row.get("verdict") == "abstained" or not runs(row[name]).isdisjoint(known)


def runs(text: str) -> set[int]:
    """Hashes of every QUOTED words in a row."""
    words = re.findall(r"\w+", text.casefold())
    return {hash(tuple(words[i : i + QUOTED])) for i in range(len(words) - QUOTED + 1)}


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, lists of tokens joined."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _WHO:
                yield from _texts(inner)
    elif isinstance(value, list):
        if value and all(isinstance(one, str) for one in value):
            yield "".join(value)
        for inner in value:
            yield from _texts(inner)


def _numbers(value: Any) -> Any:
    """A JSON value without its texts: what is left of lists and objects keeps its shape."""
    if isinstance(value, Mapping):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return None if isinstance(value, str) else value


# Writing


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `place` once it is whole; nothing is there before, and nothing is overwritten.

    Raises Refused where something is there, or it cannot be written.
    """
    if place.exists() or place.is_symlink():
        raise Refused(f"{place} is there already and is not overwritten; name another folder.")
    draft = place.with_name(f".{place.name}.{uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                _to_disk(path)
        if place.exists():          # another process was quicker
            raise Refused(f"{place} was made by another process just now; name another folder.")
        os.rename(draft, place)
    except OSError as error:
        why = error.strerror or error
        raise Refused(f"{place} cannot be written ({why}); make room or name another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_records(
    findings: Findings, wanted: Wanted, folder: Path | None, form: str, licence: str, no_text: bool
) -> dict[str, Any]:
    """Writes each table as JSON lines or Parquet (form) and a README into an empty folder; counts alone without one.

    Returns {rows: by table, dropped: by column}. Of what a run adds meanwhile there may be a part.
    """
    silent = Silent(findings) if no_text else None
    known, counts = columns(findings), dict[str, int]()
    for table, types in known.items():
        writer = _Nowhere() if folder is None else _WRITERS[form](folder / f"{table}.{form}", table, types)
        with writer:
            counts[table] = 0
            for page in pages(findings, table, wanted):
                counts[table] += len(page)
                writer.add(page if silent is None else silent.page(table, page))
    dropped = dict(silent.dropped) if silent else {}
    if folder is not None:
        (folder / "README.md").write_text(card(known, counts, form, licence, no_text), "utf-8")
    return {"rows": counts, "dropped": {name: n for name, n in dropped.items() if n}}


class _Nowhere:
    def __enter__(self) -> "_Nowhere":
        return self

    def __exit__(self, *_: object) -> None: ...

    def add(self, rows: Sequence[Row]) -> None: ...


class _Lines(_Nowhere):
    """A line a record, as `Record.to_json` writes it and `Record.from_json` reads it."""

    def __init__(self, path: Path, table: str, types: Mapping[str, str]) -> None:
        self._path, self._json = path, [name for name, kind in types.items() if kind == "JSON"]
        self._file: TextIO | None = None

    def __enter__(self) -> "_Lines":
        self._file = open(self._path, "x", encoding="utf-8")  # noqa: SIM115 — closed at the end of the block
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, rows: Sequence[Row]) -> None:
        assert self._file is not None
        for row in rows:
            unpacked = {name: None if row[name] is None else json.loads(row[name]) for name in self._json}
            line = json.dumps({"schema": SCHEMA} | row | unpacked, ensure_ascii=False, allow_nan=False)
            self._file.write(f"{line}\n")


class _Parquet(_Nowhere):
    """Columns by their types in DuckDB; times to the microsecond in UTC, JSON as text."""

    def __init__(self, path: Path, table: str, types: Mapping[str, str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {
            "VARCHAR": pa.string(), "JSON": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(),
            "BOOLEAN": pa.bool_(), "TIMESTAMP": pa.timestamp("us"), "FLOAT[]": pa.list_(pa.float32()),
        }  # fmt: skip
        self._times = [name for name, kind in types.items() if kind == "TIMESTAMP"]
        self._schema = pa.schema([(name, kinds[kind]) for name, kind in types.items()])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, rows: Sequence[Row]) -> None:
        import datetime

        import pyarrow as pa

        whole = [row | {name: datetime.datetime.fromisoformat(row[name]) for name in self._times} for row in rows]
        self._writer.write_table(pa.Table.from_pylist(whole, schema=self._schema))


_WRITERS: dict[str, type[_Lines] | type[_Parquet]] = {"jsonl": _Lines, "parquet": _Parquet}


# The dataset card


def card(
    known: Mapping[str, Mapping[str, str]], counts: Mapping[str, int], form: str, licence: str, no_text: bool
) -> str:
    """The README of a data set: its licence, what each table is, and its columns."""
    shown = [table for table in known if counts[table]]
    configs = "".join(f"- config_name: {t}\n  data_files: {t}.{form}\n" for t in shown)
    head = f"---\nlicense: {licence}\ntags:\n- interpretability\nconfigs:\n{configs}---\n"
    text = (
        "No text of the corpus is in it: columns that could hold some are empty, and sentences that quote "
        f"{QUOTED} words in a row of a recorded text are left out. Sentences name the words that a unit fires on."
        if no_text
        else "Tables hold text of the corpora that were read (`sweeps.corpus`): the licences of these hold for it."
    )
    json_kind = "an object of its own" if form == "jsonl" else "JSON text"
    parts = [
        head, "# Explanations of single units of a language model",
        "Made by lamplighter: each row is a record that was measured. It carries its id, when it was made (UTC), the "
        "run, the investigation, the unit and its sign, and digests of what it rests on (`provenance`).",
        f"Licence: {licence}. {text}", f"Columns of type JSON hold {json_kind}.",
    ]  # fmt: skip
    for table in shown:
        rows = "".join(f"| `{name}` | {kind} |\n" for name, kind in known[table].items())
        told = " ".join((getdoc(TABLES[table]) or "").split())
        parts += [f"## {table}", told, f"{counts[table]:,} rows.", f"| column | type |\n|---|---|\n{rows}".rstrip()]
    return "\n\n".join(parts) + "\n"


__all__ = [
    "QUOTED", "TEXTUAL", "Silent", "Wanted", "columns", "explained", "new_folder", "pages", "runs", "write_records",
]  # fmt: skip
