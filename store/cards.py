"""Cards: what stands for each unit, in memory, with its words and the vector of its sentence.

A card is a row of the view `explanations` with the unit's model, site and kind and what people made of it; and one is
each explanation that another tool made, with its `source`, which has no score of ours beside its verdict. To keep up
with the findings, the rows about units that gained some are read again, under the same views.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from . import excerpt
from .findings import OFFLINE, Findings
from .one_select import Connection

Vectors = NDArray[np.float32]
Marks = dict[str, tuple[int, str]]

FETCH = 50_000           # vectors read at a time

# The tables that cards are made of, and the columns that they do not need.
SOURCES: dict[str, tuple[str, ...]] = {
    "verdicts": ("provenance",),
    "hypotheses": ("rule", "evidence"),
    "scores": ("provenance", "details", "references"),
    "investigations": ("provenance", "cost"),
    "reviews": (),
    "import_verdicts": ("provenance", "reason"),
}
VECTORS = "embeddings"
READ = (*SOURCES, VECTORS)

# The words of a column `text`: Han and kana one by one, else runs of letters and digits.
WORDS = r"""
    regexp_extract_all(lower(nfc_normalize(text)), '[\p{Han}\p{Hiragana}\p{Katakana}]|[\pL\pM\pN]+')
"""
_TABLES = """
    CREATE TABLE stems (word INTEGER, stem VARCHAR);
    CREATE TABLE terms (term VARCHAR, word INTEGER);
    CREATE TABLE words (word INTEGER, card INTEGER, n INTEGER, length INTEGER);
"""
_NEW_ROWS = "SELECT DISTINCT unit FROM findings.{table} WHERE rowid > {last}"
_NEW_VECTORS = """
    SELECT DISTINCT unit FROM findings.hypotheses
    WHERE id IN (SELECT hypothesis FROM findings.{table} WHERE rowid > {last})
"""
_TOUCHED = "unit IN (SELECT unit FROM excerpt.touched)"
_NEWEST = """
    CREATE TABLE excerpt.newest AS
    SELECT hypothesis, place, (row_number() OVER (ORDER BY place) - 1)::INTEGER AS number FROM (
        SELECT hypothesis, arg_max(rowid, (created_at, id)) AS place FROM findings.embeddings
        WHERE model = $embedder AND len(vector) = $numbers
              AND hypothesis IN (
                  SELECT id FROM excerpt.hypotheses WHERE kept
                  UNION ALL SELECT hypothesis FROM excerpt.foreign_cards
              ) GROUP BY hypothesis
    )
"""
_FETCHED = """
    SELECT n.number, e.vector::FLOAT[{numbers}] AS numbers FROM findings.embeddings e
    JOIN excerpt.newest n ON n.place = e.rowid AND n.number >= $first AND n.number < $first + $many
"""
# What other tools made, by the author as its planner. Their own claims are no scores of ours, and are left out.
_FOREIGN = """
    CREATE TABLE excerpt.foreign_cards AS
    SELECT h.unit, h.sign, regexp_extract(h.unit, '^(.*)/([^/]+)/([^/]+)$', 1) AS model,
           regexp_extract(h.unit, '^(.*)/([^/]+)/([^/]+)$', 2) AS site, h.sentence AS explanation, v.verdict,
           h.author AS planner, h.run, h.investigation, h.created_at, h.id AS hypothesis,
           h.provenance->>'$.imported_from' AS source
    FROM excerpt.hypotheses h
    LEFT JOIN (
        SELECT hypothesis, arg_max(verdict, (created_at, id)) AS verdict
        FROM excerpt.import_verdicts GROUP BY hypothesis
    ) v ON v.hypothesis = h.id
    WHERE json_exists(h.provenance, '$.imported_from')
"""
_CARDS = r"""
    CREATE TABLE excerpt.cards AS
    WITH found AS (
        SELECT e.*, o.model, o.site, o.hypothesis, r.state AS review FROM explanations e
        JOIN current_outcomes o ON o.unit = e.unit AND o.sign IS NOT DISTINCT FROM e.sign
        LEFT JOIN review_states r ON r.unit = e.unit AND r.sign IS NOT DISTINCT FROM e.sign
        UNION ALL BY NAME FROM excerpt.foreign_cards
    )
    SELECT (row_number() OVER (ORDER BY unit, sign DESC, source NULLS FIRST, f.hypothesis) - 1 + $first)::INTEGER
               AS card, f.*,
           CASE WHEN contains(site, ':') THEN 'feature' ELSE regexp_extract(site, '-(\w+)$', 1) END AS kind,
           TRY_CAST(regexp_extract(site, '^(\d+)-', 1) AS INTEGER) AS layer,
           TRY_CAST(regexp_extract(unit, '([^/]+)$', 1) AS BIGINT) AS "index", newest.number,
           CASE WHEN number IS NOT NULL
                THEN (count(number) OVER (ORDER BY number) - 1 + $vectors)::INTEGER END AS vector,
           concat_ws(' ', explanation, output_explanation, rule) AS text
    FROM found f
    LEFT JOIN excerpt.newest newest ON newest.hypothesis = f.hypothesis
"""
_MADE = "SELECT * EXCLUDE (number, text) FROM excerpt.cards"
_TOKENS = f"CREATE TABLE excerpt.tokens AS SELECT card, unnest({WORDS}) AS term FROM excerpt.cards"
_NEW_TERMS = "SELECT DISTINCT term FROM excerpt.tokens WHERE term NOT IN (SELECT term FROM memory.terms)"
_SPELLED = """
    CREATE TABLE excerpt.spelled AS SELECT r.term, r.stem FROM (
        SELECT unnest(from_json(?::JSON, '[{"term": "VARCHAR", "stem": "VARCHAR"}]')) AS r
    )
"""
_ADD_STEMS = """
    INSERT INTO memory.stems
    SELECT (row_number() OVER (ORDER BY stem) - 1 + (SELECT count(*) FROM memory.stems))::INTEGER, stem
    FROM (SELECT DISTINCT stem FROM excerpt.spelled WHERE stem NOT IN (SELECT stem FROM memory.stems))
"""
_ADD_TERMS = "INSERT INTO memory.terms SELECT term, word FROM excerpt.spelled JOIN memory.stems USING (stem)"
_ADD_WORDS = """
    INSERT INTO memory.words
    WITH counted AS (
        SELECT word, card, count(*)::INTEGER AS n FROM excerpt.tokens JOIN memory.terms USING (term) GROUP BY word, card
    )
    SELECT word, card, n, (sum(n) OVER (PARTITION BY card))::INTEGER FROM counted ORDER BY word, card
"""


@dataclass
class State:
    """One index, as it stands. `con` has the tables cards, words, terms and stems.

    chunks: vectors of length 1, of `numbers` numbers each, which the cards name by their place (`vector`). mean_length:
    words of a card. marks: of each table that was read, its last row and that row's id. gained: cards since it was
    kept on disk.
    """

    con: Connection
    chunks: tuple[Vectors, ...] = ()
    numbers: int | None = None
    next_card: int = 0
    marks: Marks = field(default_factory=dict)
    cards: int = 0
    mean_length: float = 0.0
    gained: int = 0

    def __post_init__(self) -> None:
        self.count()

    @property
    def vectors(self) -> int:
        """How many vectors there are, those of former cards included."""
        return sum(len(chunk) for chunk in self.chunks)

    def vectors_at(self, places: NDArray[Any]) -> Vectors:
        """The vectors of some places [n, numbers]."""
        made = np.zeros((len(places), self.numbers or 0), dtype=np.float32)
        first = 0
        for chunk in self.chunks:
            mine = (places >= first) & (places < first + len(chunk))
            made[mine] = chunk[places[mine] - first]
            first += len(chunk)
        return made

    def count(self, con: Connection | None = None) -> None:
        """Counts cards and words anew."""
        con = con or self.con
        there = ("memory", "cards") in excerpt.columns(con)
        self.cards = one(con, "SELECT count(*) FROM memory.cards") if there else 0
        words = one(con, "SELECT coalesce(sum(n), 0)::DOUBLE FROM memory.words")
        self.mean_length = words / max(1, self.cards)


def empty() -> State:
    """An index of nothing."""
    con = duckdb.connect(":memory:", config=dict(OFFLINE))
    con.execute(_TABLES)
    return State(con)


def gain(state: State, findings: Findings, embedder: str) -> int | None:
    """Reads the units of which the findings have gained rows, and returns how many cards that made.

    None, with nothing done, where `state` is not of these findings. Searches may go on meanwhile.
    """
    with state.con.cursor() as con, excerpt.opened(con):
        with findings.attached(con, "findings"):
            marks = _marks(con)
            if any(_id_at(con, table, last) != id for table, (last, id) in state.marks.items()):
                return None
            excerpt.take(con, SOURCES, _touch(con, state.marks))
            con.execute(_FOREIGN)
            found = _read_vectors(con, state, embedder)
        _make_cards(con, state)
        _spell(con)
        con.execute(f"CREATE TABLE IF NOT EXISTS memory.cards AS {_MADE} LIMIT 0")
        with _transaction(con):
            state.chunks = _merged((*state.chunks, found[_numbers(con)]))     # first, as cards refer to them
            for sql in (_ADD_STEMS, _ADD_TERMS):
                con.execute(sql)
            con.execute(f"DELETE FROM memory.words WHERE card IN (SELECT card FROM memory.cards WHERE {_TOUCHED})")
            con.execute(f"DELETE FROM memory.cards WHERE {_TOUCHED}")
            con.execute(f"INSERT INTO memory.cards {_MADE}")
            con.execute(_ADD_WORDS)
        made = int(one(con, "SELECT count(*) FROM excerpt.cards"))
        state.count(con)
    state.next_card, state.gained, state.marks = state.next_card + made, state.gained + made, marks
    return made


def one(con: Connection, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
    """The one value that a query gives."""
    return con.execute(sql, parameters).fetchall()[0][0]


def _marks(con: Connection) -> Marks:
    """Of each table, the last row and its id. Rows are only ever added, so that these tell what was added since."""
    there = excerpt.columns(con)
    marks = {}
    for table in READ:
        last = one(con, f"SELECT max(rowid) FROM findings.{table}") if ("findings", table) in there else None
        if last is not None:
            marks[table] = (int(last), str(_id_at(con, table, last)))
    return marks


def _id_at(con: Connection, table: str, row: int) -> str | None:
    found = con.execute(f"SELECT id FROM findings.{table} WHERE rowid = ?", [row]).fetchall()
    return found[0][0] if found else None


def _touch(con: Connection, marks: Marks) -> str:
    """Notes the units that have rows behind the marks, and returns the condition by which rows are of them."""
    con.execute("CREATE TABLE excerpt.touched (unit VARCHAR)")
    if not marks:
        return "true"
    there = excerpt.columns(con)
    for table in READ:
        if ("findings", table) in there:
            units = _NEW_VECTORS if table == VECTORS else _NEW_ROWS
            last = marks[table][0] if table in marks else -1
            con.execute(f"INSERT INTO excerpt.touched {units.format(table=table, last=last)}")
    return _TOUCHED


def _read_vectors(con: Connection, state: State, embedder: str) -> Vectors:
    """The newest vector of each sentence, made of length 1 [n, numbers]; excerpt.newest has the number of each.

    Vectors of another size than most are left out, as if there were none.
    """
    if state.numbers is None:
        state.numbers = one(con, "SELECT mode(len(vector)) FROM findings.embeddings WHERE model = ?", [embedder])
    size = state.numbers or 0
    con.execute(_NEWEST, {"embedder": embedder, "numbers": size})
    found = np.zeros((one(con, "SELECT count(*) FROM excerpt.newest"), size), dtype=np.float32)
    for first in range(0, len(found), FETCH):
        rows = con.execute(_FETCHED.format(numbers=size), {"first": first, "many": FETCH}).fetchnumpy()
        found[rows["number"]] = np.stack(list(rows["numbers"]))
    found[~np.isfinite(found).all(axis=1)] = 0
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(lengths > 0, lengths, 1)     # one without a length stays as it is, and is like nothing
    return found


def _numbers(con: Connection) -> NDArray[Any]:
    """Which of the vectors that were read are of sentences that stand, in the order of the cards' vectors."""
    sql = "SELECT number FROM excerpt.cards WHERE number IS NOT NULL ORDER BY number"
    return np.asarray(con.execute(sql).fetchnumpy()["number"], dtype=np.int64)


def _merged(chunks: tuple[Vectors, ...]) -> tuple[Vectors, ...]:
    """The same rows in few pieces: a piece is joined to the one before it unless that is more than twice as long."""
    pieces = [chunk for chunk in chunks if len(chunk)]
    while len(pieces) > 1 and len(pieces[-2]) <= 2 * len(pieces[-1]):
        last = pieces.pop()
        pieces[-1] = np.concatenate([pieces[-1], last])
    return tuple(pieces)


def _make_cards(con: Connection, state: State) -> None:
    """Fills excerpt.cards and excerpt.tokens, by the views over what was taken."""
    excerpt.derive(con, ["outcomes", "current_outcomes"])       # others read them again and again
    con.execute(_CARDS, {"first": state.next_card, "vectors": state.vectors})
    con.execute(_TOKENS)


def _spell(con: Connection) -> None:
    """Fills excerpt.spelled with the stem of each word that is new."""
    new = [term for (term,) in con.execute(_NEW_TERMS).fetchall()]
    con.execute(_SPELLED, [json.dumps([{"term": term, "stem": stem(term)} for term in new])])


def stem(term: str) -> str:
    """An English word without its ending, by Snowball's rules; any other word as it is."""
    return _stemmer()(term) if len(term) > 3 and term.isascii() and term.isalpha() else term


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.snowball import EnglishStemmer  # takes a second, which is not always needed

    made: Callable[[str], str] = EnglishStemmer().stem
    return made


@contextmanager
def _transaction(con: Connection) -> Iterator[None]:
    con.execute("BEGIN")
    try:
        yield
    except BaseException:
        con.execute("ROLLBACK")
        raise
    con.execute("COMMIT")
