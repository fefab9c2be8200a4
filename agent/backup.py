"""A backup: the two stores of a home as of one moment, each a file that can be opened, and a manifest that proves them.

A run may be at work meanwhile. To go back to a backup, put its files in the place of the home's.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import duckdb

from .. import __version__
from ..store.findings import Findings, undrained
from ..store.records import Refused, utc_now
from ..tools import measures
from .config import Home

MANIFEST = "manifest.json"
WORK, FINDINGS = "work.sqlite", "findings.duckdb"
FORMAT = 1
SPARE = 100_000_000      # bytes that a backup leaves free

# What a backup leaves out, and why.
LEFT_OUT = {
    "sweeps": "sweeps can be made again; the first run that needs one makes it",
    "saes": "SAEs can be added again, those trained here only by training them again: copy the folder yourself",
    "snapshots": "they are made again when they are asked for",
    "pictures": "replaying the evidence that names one makes it again",
    "logs": "nothing here reads them",
    "reports": "they can be written again",
    "config.toml": "it may hold a key",
}


def backup(home: Home, folder: Path | None = None) -> dict[str, Any]:
    """Copies the queue and the findings into `folder` (by default backups/<time> in the home); returns the manifest.

    Nothing that is there is overwritten, and a backup that was cut off leaves no folder. Raises Refused where there is
    nothing to back up, no room, or a folder of that name; Busy where results are moved for too long.
    """
    if not (home.path / WORK).exists() and not home.findings.path.exists():
        raise Refused(f"there is nothing to back up in {home.path}; name a home with --home.")
    place = (folder or home.path / "backups" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")).absolute()
    if place.exists():
        raise Refused(f"{place} is there already and is not overwritten; name another folder.")
    draft = place.with_name(f".{place.name}.{uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _check_room(home, place)
        draft.mkdir()
        facts = _filled(home, draft)
        if place.exists():          # another backup of the same second was quicker
            raise Refused(f"{place} was made by another process just now; name another folder.")
        os.rename(draft, place)
    except OSError as error:
        why = error.strerror or error
        raise Refused(f"the backup cannot be written to {place} ({why}); make room or name another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"folder": str(place), **facts}


def _check_room(home: Home, place: Path) -> None:
    parts = [path for name in (WORK, FINDINGS) for path in home.path.glob(f"{name}*")]
    needed, left = sum(path.stat().st_size for path in parts), shutil.disk_usage(place.parent).free
    if left < needed + SPARE:
        raise Refused(
            f"the backup takes up to {needed / 1e6:,.0f} MB, and of the {left / 1e6:,.0f} MB free on the disk of "
            f"{place.parent} {SPARE / 1e6:,.0f} MB are kept free; make room or name a folder on another disk."
        )


def _filled(home: Home, draft: Path) -> dict[str, Any]:
    """Fills a folder and returns its manifest. No result is moved meanwhile, so that none is in neither file."""
    with undrained(home.work) as hold:
        home.work.copy_to(draft / WORK)
        hold()
        if home.findings.path.exists():
            home.findings.copy_to(draft)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(draft.iterdir())}
    with read_only(draft / WORK, still=True) as con:
        version, rows = con.execute("PRAGMA user_version").fetchone()[0], work_rows(con)
    findings = Findings(draft / FINDINGS)
    known = findings.path.exists()
    facts = {
        "format": FORMAT, "made": utc_now(), "home": str(home.path), "files": files,
        "rows": {WORK: rows, FINDINGS: findings_rows(findings) if known else {}},
        "versions": {
            "lamplighter": __version__, "measures": measures.VERSION, "duckdb": duckdb.__version__,
            "sqlite": sqlite3.sqlite_version, WORK: version, FINDINGS: findings_version(findings) if known else None,
        },
        "left_out": {name: why for name, why in LEFT_OUT.items() if (home.path / name).exists()},
    }  # fmt: skip
    with open(draft / MANIFEST, "x", encoding="utf-8") as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False))
        file.flush()
        os.fsync(file.fileno())
    return facts


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def read_only(path: Path, still: bool) -> Iterator[sqlite3.Connection]:
    """A work file opened so that nothing in it or beside it changes. still: nobody else writes it, as in a backup."""
    uri = f"file:{quote(str(path))}?mode=ro{'&immutable=1' if still else ''}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as con:
        con.row_factory = sqlite3.Row
        yield con


def work_rows(con: sqlite3.Connection) -> dict[str, int]:
    """How many rows each table of a work file has."""
    sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    names = [name for (name,) in con.execute(sql)]
    return {name: con.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}


def findings_rows(findings: Findings) -> dict[str, int]:
    """How many rows each table of the findings has. Raises Refused where they cannot be read."""
    sql = "SELECT table_name AS name FROM duckdb_tables() WHERE NOT internal ORDER BY table_name"
    names = [row["name"] for row in findings.sql(sql)]
    parts = " UNION ALL ".join(f"SELECT '{name}' AS name, count(*) AS n FROM \"{name}\"" for name in names)
    return {row["name"]: row["n"] for row in findings.sql(f"{parts} ORDER BY name")} if names else {}


def findings_version(findings: Findings) -> int:
    """The schema of the findings. Raises Refused where they cannot be read or are newer than this code."""
    return int(findings.sql("SELECT max(version) AS version FROM schema_version")[0]["version"])


__all__ = [
    "FINDINGS", "MANIFEST", "WORK", "backup", "findings_rows", "findings_version", "read_only", "sha256", "work_rows",
]  # fmt: skip
