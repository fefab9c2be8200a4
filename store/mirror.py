"""What the pages read: a private copy of the findings, made anew in the background when they were written.

A page must not wait for a run that writes, and DuckDB lets nobody read meanwhile. The copy holds, beside the tables of
the findings, one row a unit with all that stands on cards, and where the rows of each investigation lie, so that a page
reads those and nothing else. The copy's file has no name once it is open, so that it goes when the process ends.
"""

import json
import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from .findings import OFFLINE, Findings
from .records import Refused
from .work import Busy

POLL_SECONDS = 1.0       # between looks at whether the findings were written
PACE = 10.0              # a copy that took a second to make is kept for so many seconds
QUICK_SECONDS = 1.0      # a copy that takes less is made while somebody waits
LEFT_SECONDS = 3600.0    # a draft so old was left by a process that was killed
MEMORY = "1GB"           # of one copy that is read; one that is made may take more, and spills to disk beside it
MAKING = "2GB"
BEHIND = ("evidence", "exemplars", "turns", "scores", "hypotheses", "units")     # whose rows an investigation has

Rows = list[dict[str, Any]]

_MAKING = OFFLINE | {"memory_limit": MAKING}
_READING = OFFLINE | {"memory_limit": MEMORY, "enable_external_access": "false", "temp_directory": ""}
_PARTS = r"'^(.*)/([^/]+)/([^/]+)$'"

# One row a unit and sign that anything is known of, in the order of pages.
_CARDS = f"""
    CREATE TABLE page_cards AS
    WITH measured AS (
        SELECT unit, sign, peak, threshold FROM units
        QUALIFY row_number() OVER (PARTITION BY unit, sign ORDER BY created_at DESC, id DESC) = 1
    ), failed AS (
        SELECT unit, sign, count(*) AS failures FROM failures WHERE unit IS NOT NULL GROUP BY ALL
    ), by_hand AS (
        SELECT DISTINCT unit, sign FROM evidence WHERE investigation IS NULL AND unit IS NOT NULL
    ), known AS (
        SELECT unit, sign FROM explanations UNION SELECT unit, sign FROM measured UNION SELECT unit, sign FROM failed
        UNION SELECT unit, sign FROM by_hand
    ), standing AS (
        SELECT o.unit, o.sign, o.hypothesis, coalesce(h.provenance->>'$.origin', o.investigation) AS origin
        FROM current_outcomes o LEFT JOIN hypotheses h ON h.id = o.hypothesis
    )
    SELECT known.unit, known.sign, regexp_extract(known.unit, {_PARTS}, 1) AS model,
           regexp_extract(known.unit, {_PARTS}, 2) AS site,
           TRY_CAST(regexp_extract(known.unit, {_PARTS}, 3) AS BIGINT) AS "index",
           TRY_CAST(regexp_extract(known.unit, '/(\\d+)-[^/]+/[^/]+$', 1) AS BIGINT) AS layer,
           e.* EXCLUDE (unit, sign), coalesce(e.verdict, CASE WHEN failures > 0 THEN 'failed' END) AS state,
           s.hypothesis, s.origin, m.peak, m.threshold, coalesce(failures, 0) AS failures
    FROM known
    LEFT JOIN explanations e ON e.unit = known.unit AND e.sign IS NOT DISTINCT FROM known.sign
    LEFT JOIN standing s ON s.unit = known.unit AND s.sign IS NOT DISTINCT FROM known.sign
    LEFT JOIN measured m ON m.unit = known.unit AND m.sign IS NOT DISTINCT FROM known.sign
    LEFT JOIN failed f ON f.unit = known.unit AND f.sign IS NOT DISTINCT FROM known.sign
"""
_NUMBERED = """
    CREATE TABLE page_units AS
    SELECT row_number() OVER (ORDER BY model, layer, site, "index", sign DESC) - 1 AS place, * FROM page_cards
    ORDER BY place
"""
_PLACED = "JOIN page_units p ON p.unit = t.unit AND p.sign IS NOT DISTINCT FROM t.sign"
_FOUND = "SELECT '{table}' AS part, investigation, any_value(unit) AS unit, any_value(sign) AS sign, " \
    "min(rowid) AS first, max(rowid) AS last FROM {table} WHERE investigation IS NOT NULL GROUP BY investigation"
_INVESTIGATIONS = f"""
    CREATE TABLE page_investigations AS
    WITH found AS ({" UNION ALL ".join(_FOUND.format(table=table) for table in BEHIND)}), t AS (
        SELECT investigation, any_value(unit) AS unit, any_value(sign) AS sign,
               {", ".join(f"min(first) FILTER (part = '{t}') AS {t}_first, max(last) FILTER (part = '{t}') AS {t}_last"
                          for t in BEHIND)}
        FROM found GROUP BY investigation
    ), ended AS (
        SELECT * FROM investigations
        QUALIFY row_number() OVER (PARTITION BY coalesce(investigation, id) ORDER BY created_at DESC, id DESC) = 1
    ), asked AS (
        SELECT investigation, count(*) AS calls,
               CAST(sum(coalesce(tokens_in, 0) + coalesce(tokens_out, 0)) AS BIGINT) AS tokens, sum(usd) AS usd,
               count(*) - count(usd) AS unpriced
        FROM llm_calls WHERE investigation IS NOT NULL GROUP BY investigation
    )
    SELECT p.place, t.* EXCLUDE (unit, sign), e.run, e.planner, e.status, e.created_at AS ended, e.seconds,
           coalesce(calls, 0) AS calls, coalesce(tokens, 0) AS tokens, coalesce(usd, 0) AS usd,
           coalesce(unpriced, 0) AS unpriced
    FROM t {_PLACED}
    LEFT JOIN ended e ON coalesce(e.investigation, e.id) = t.investigation
    LEFT JOIN asked a ON a.investigation = t.investigation
    ORDER BY p.place, ended
"""
_VERDICTS = f"""
    CREATE TABLE page_verdicts AS
    SELECT p.place, t.id, t.created_at, t.run, t.investigation, t.verdict, t.reason, t.p, t.q
    FROM verdicts t {_PLACED} ORDER BY p.place, t.created_at, t.id
"""
_FAILURES = f"""
    CREATE TABLE page_failures AS SELECT p.place, t.created_at, t.run, t.investigation, t.kind,
           left(t.message, 2000) AS message, t.step, t.attempt
    FROM failures t {_PLACED} ORDER BY p.place, t.created_at, t.id
"""
_BY_HAND = f"""
    CREATE TABLE page_by_hand AS SELECT p.place, t.rowid AS number FROM evidence t {_PLACED}
    WHERE t.investigation IS NULL ORDER BY p.place, t.rowid
"""
_MADE = (_CARDS, _NUMBERED, "DROP TABLE page_cards", _INVESTIGATIONS, _VERDICTS, _FAILURES, _BY_HAND)


@dataclass(frozen=True)
class Copy:
    """One copy. state: when the findings that it holds were written [ns since 1970], and their size; made: a number
    that names it; seconds: what it took; start: what the start page says."""

    con: duckdb.DuckDBPyConnection
    state: tuple[int, int]
    made: int
    seconds: float
    start: dict[str, Any]

    @property
    def as_of(self) -> str:
        """When the findings that it holds were written (UTC)."""
        when = datetime.fromtimestamp(self.state[0] / 1e9, UTC)
        return when.isoformat(timespec="seconds").removesuffix("+00:00")

    def ask(self, sql: str, given: Sequence[Any] | Mapping[str, Any] = (), unpack: bool = False) -> Rows:
        """The rows of a SELECT, as `Findings.sql` gives them."""
        with self.con.cursor() as cursor:
            done = cursor.execute(sql, dict(given) if isinstance(given, Mapping) else given)
            names = [(column[0], unpack and str(column[1]) == "JSON") for column in done.description or ()]
            rows = done.fetchall()
        return [{n: _plain(value, packed) for (n, packed), value in zip(names, row, strict=True)} for row in rows]

    def behind(self, table: str, investigation: Mapping[str, Any] | None, order: str = "created_at, id") -> Rows:
        """The rows of an investigation (a row of page_investigations) in one of BEHIND, read from where they lie."""
        if investigation is None or investigation[f"{table}_first"] is None:
            return []
        sql = f"SELECT * FROM {table} WHERE rowid BETWEEN ? AND ? AND investigation = ? ORDER BY {order}"
        lie = [investigation[f"{table}_first"], investigation[f"{table}_last"], investigation["investigation"]]
        return self.ask(sql, lie, unpack=True)


class Mirror:
    """Keeps a copy fresh. `copy` is the newest one; it raises Refused while there is none, and why.

    summary: what the start page says, computed once a copy.
    """

    def __init__(self, findings: Findings, folder: Path, summary: Callable[[Copy], dict[str, Any]]) -> None:
        self.findings, self.folder, self.summary = findings, Path(folder), summary
        self._copy: Copy | None = None
        self._why: Refused | None = None
        self._held: tuple[int, int] | None = None
        self._next = 0.0
        self._made = 0
        self._making = threading.Lock()
        self._stop = threading.Event()

    @property
    def copy(self) -> Copy:
        """The newest copy; the first is made now."""
        if self._copy is None:
            self.refresh()
        if self._copy is None:
            raise self._why or self._nothing()
        return self._copy

    @property
    def quick(self) -> bool:
        """Whether a copy is made in less time than a person waits for."""
        return self._copy is None or self._copy.seconds < QUICK_SECONDS

    def start(self) -> None:
        """Looks after the copy in a thread, until `close`."""
        threading.Thread(target=self._look, name="mirror", daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()

    def refresh(self, now: bool = True) -> bool:
        """Makes a new copy if the findings were written since; unless `now`, not before the last has had its time."""
        if not self._making.acquire(blocking=self._copy is None):
            return False                 # another thread makes one
        try:
            state = self._state()
            if state == self._held or (not now and time.monotonic() < self._next):
                return False
            try:
                if state is None:
                    raise self._nothing()
                self._copy, self._why, self._held = self._make(state), None, state
            except (Refused, duckdb.Error, OSError) as error:
                self._why = error if isinstance(error, Refused) else Refused(
                    f"the findings cannot be copied to {self.folder} ({error}); make room or give access."
                )
                if not isinstance(error, Busy) and state is not None:
                    logging.getLogger("lamplighter").warning("%s", self._why)
                self._next = time.monotonic() + POLL_SECONDS
                return False
            self._next = time.monotonic() + PACE * self._copy.seconds
            return True
        finally:
            self._making.release()

    def _nothing(self) -> Refused:
        return Refused(f"Nothing is recorded in {self.findings.path.parent} yet; run `lamplighter run` first.")

    def _look(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self.refresh(now=False)

    def _state(self) -> tuple[int, int] | None:
        """When the findings were last written, and their size, what a killed writer left beside them included."""
        files = []
        for path in (self.findings.path, self.findings.path.with_name(f"{self.findings.path.name}.wal")):
            with suppress(FileNotFoundError):
                files.append(path.stat())
        return (max(f.st_mtime_ns for f in files), sum(f.st_size for f in files)) if files else None

    def _make(self, state: tuple[int, int]) -> Copy:
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        with tempfile.TemporaryDirectory(prefix="pages-", dir=self.folder) as draft:
            self.findings.copy_to(Path(draft))
            path = str(Path(draft) / self.findings.path.name)
            Findings(Path(path)).bring_up_to_date()
            with duckdb.connect(path, config={**_MAKING, "temp_directory": f"{draft}/spill"}) as con:
                for sql in _MADE:
                    con.execute(sql)
            opened = duckdb.connect(path, read_only=True, config=dict(_READING))
        opened.execute("SET TimeZone = 'UTC'")
        self._made += 1
        copy = Copy(opened, state, self._made, 0.0, {})
        start = self.summary(copy)
        return replace(copy, seconds=time.monotonic() - began, start=start)

    def _clear(self) -> None:
        """Removes what killed processes left."""
        for path in self.folder.glob("pages-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_SECONDS:
                    shutil.rmtree(path)


def _plain(value: Any, packed: bool) -> Any:
    """A value of DuckDB as JSON has it; packed: what a JSON text tells of."""
    match value:
        case str() if packed:
            return json.loads(value)
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return value.isoformat(timespec="microseconds")
        case list():
            return [_plain(one, False) for one in value]
    return value


__all__ = ["BEHIND", "Copy", "Mirror"]
