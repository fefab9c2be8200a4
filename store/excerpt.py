"""The rows about some units, in memory, under the tables and views of the findings.

A view reads all findings to tell of one unit. Over an excerpt the same view reads that unit's rows alone and says the
same, because no view mixes units.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import duckdb

from .findings import OFFLINE, Findings, schema
from .one_select import Connection, fetched
from .records import TABLES

Sql = Callable[..., list[dict[str, Any]]]


@contextmanager
def about(findings: Findings, unit: str) -> Iterator[Sql]:
    """Yields `Findings.sql` over all rows about one unit (without its sign), as they are now.

    Rows that are about no unit (runs, models, sweeps) are not among them. Raises Refused as `Findings.sql` does.
    """
    with duckdb.connect(":memory:", config=dict(OFFLINE)) as con, opened(con):
        with findings.attached(con, "findings"):
            take(con, dict.fromkeys(TABLES, ()), "unit = $unit", {"unit": unit})
        yield partial(fetched, con)


@contextmanager
def opened(con: Connection) -> Iterator[None]:
    """An empty excerpt: a database called `excerpt` in memory, which is the current one while the block lasts."""
    con.execute("ATTACH ':memory:' AS excerpt")
    try:
        con.execute("USE excerpt")
        con.execute(schema())
        yield
    finally:
        con.execute("USE memory")
        con.execute("DETACH excerpt")


def take(
    con: Connection, tables: Mapping[str, Sequence[str]], where: str, parameters: Mapping[str, Any] | None = None
) -> None:
    """Copies rows of tables of the attached `findings` into the excerpt; the columns named with a table stay null.

    What findings of an older version do not have stays null too.
    """
    known = columns(con)
    for table, without in tables.items():
        there = known.get(("findings", table), [])
        names = [f'"{name}"' for name in known.get(("excerpt", table), []) if name in there and name not in without]
        if names:
            kept = ", ".join(names)
            con.execute(
                f"INSERT INTO excerpt.{table} BY NAME SELECT {kept} FROM findings.{table} WHERE {where}", parameters
            )


def columns(con: Connection) -> dict[tuple[str, str], list[str]]:
    """The columns of every table and view, by database and name."""
    sql = """SELECT database_name, table_name, list(column_name ORDER BY column_index)
             FROM duckdb_columns() WHERE NOT internal GROUP BY ALL"""
    return {(database, table): names for database, table, names in con.execute(sql).fetchall()}


def views(con: Connection) -> list[str]:
    """The views of the current database, each behind those that it reads."""
    sql = "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal AND database_name = current_database()"
    left = dict(con.execute(sql).fetchall())
    ordered: list[str] = []
    while left:
        read = {one: set(re.findall(r"\w+", sql)) & left.keys() - {one} for one, sql in left.items()}
        ready = sorted(one for one in left if not read[one])
        assert ready, f"views that read each other: {sorted(left)}"
        ordered += ready
        left = {one: sql for one, sql in left.items() if one not in ready}
    return ordered


def derive(con: Connection, names: Sequence[str]) -> None:
    """Turns views of the current database, in this order, into tables of the same names, columns and rows."""
    for name in names:
        con.execute(f"CREATE TABLE derived AS FROM {name}")
        con.execute(f"DROP VIEW {name}")
        con.execute(f"ALTER TABLE derived RENAME TO {name}")
