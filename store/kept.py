"""An index on disk, so that a process begins with it and reads only what the findings gained since.

It is no record of anything: one that is lost, damaged or of another version is made again.
"""

import json
import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import duckdb
import numpy as np

from .cards import State, Vectors, one
from .findings import OFFLINE, STORAGE, VERSION, quoted
from .one_select import Connection
from .records import uuid7

FORMAT = 2               # of what is in the files
NEWEST = 2               # folders that are left: others may just be reading the one before the newest

# Vectors are numbered anew, without those that no card has any more.
_CARDS = """
    CREATE TABLE kept.cards AS SELECT * REPLACE (
        CASE WHEN vector IS NOT NULL THEN (count(vector) OVER (ORDER BY vector) - 1)::INTEGER END AS vector
    ) FROM memory.cards ORDER BY card
"""


def keep(state: State, embedder: str, folder: Path) -> None:
    """Writes an index to a folder of its own, whole or not at all. Raises OSError or duckdb.Error where it cannot."""
    draft = folder / f".{uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        with state.con.cursor() as con:
            _write_vectors(con, state, draft / "vectors.npy")
            _write_tables(con, state, draft / "index.duckdb")
        os.replace(draft, folder / f"{_prefix(embedder)}{uuid7()}")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in _folders(embedder, folder)[NEWEST:]:
        shutil.rmtree(old, ignore_errors=True)


def kept(embedder: str, folder: Path) -> State | None:
    """The newest index of this kind that can be read, or None."""
    for place in _folders(embedder, folder):
        with suppress(OSError, ValueError, KeyError, duckdb.Error):
            return _read(place)
    return None


def _write_vectors(con: Connection, state: State, path: Path) -> None:
    places = con.execute("SELECT vector FROM cards WHERE vector IS NOT NULL ORDER BY vector").fetchnumpy()["vector"]
    made = np.lib.format.open_memmap(path, "w+", np.float32, (len(places), state.numbers or 0))
    for first in range(0, len(places), 50_000):
        made[first : first + 50_000] = state.vectors_at(places[first : first + 50_000])
    made.flush()


def _write_tables(con: Connection, state: State, path: Path) -> None:
    con.execute(f"ATTACH '{quoted(path)}' AS kept (STORAGE_VERSION '{STORAGE}')")
    try:
        con.execute(_CARDS)
        for table in ("stems", "terms", "words"):
            con.execute(f"CREATE TABLE kept.{table} AS FROM memory.{table}")
        facts = {"marks": state.marks, "numbers": state.numbers, "next_card": state.next_card}
        con.execute("CREATE TABLE kept.facts AS SELECT ? AS facts", [json.dumps(facts)])
    finally:
        con.execute("DETACH kept")


def _read(place: Path) -> State:
    vectors: Vectors = np.load(place / "vectors.npy", mmap_mode="r")       # shared by all processes that read it
    con = duckdb.connect(":memory:", config=dict(OFFLINE))
    con.execute(f"ATTACH '{quoted(place / 'index.duckdb')}' AS kept (READ_ONLY)")
    facts = json.loads(one(con, "SELECT facts FROM kept.facts"))
    for table in ("cards", "stems", "terms", "words"):
        con.execute(f"CREATE TABLE memory.{table} AS FROM kept.{table}")
    con.execute("DETACH kept")
    marks = {table: (int(last), str(id)) for table, (last, id) in facts["marks"].items()}
    return State(con, (vectors,) if len(vectors) else (), facts["numbers"], facts["next_card"], marks)


def _prefix(embedder: str) -> str:
    """How the folders of this kind begin: their form, the views behind the cards, and the embedder."""
    return f"index-{FORMAT}-{VERSION}-{sha256(embedder.encode()).hexdigest()[:12]}-"


def _folders(embedder: str, folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob(f"{_prefix(embedder)}*"), reverse=True)
