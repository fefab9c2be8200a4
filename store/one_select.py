"""One SELECT of somebody else: what may be run, its rows as JSON has them, and a sentence for what is refused."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any

import duckdb

from .records import Refused

Connection = duckdb.DuckDBPyConnection

_NO_TABLE = re.compile(r"Table with name .* does not exist")
# What DuckDB says where a confined query asks for more than its tables hold, and what is told instead.
_REFUSALS = (
    (r"Cannot access (?:file|directory) \"(?P<what>[^\"]*)\"|file system operations",
     "The query reads or writes a file{what}, and nothing but the tables can be read here; `SHOW TABLES` names them."),
    (r"read-only mode",
     "The query would change the database, and here it can only be read; write one SELECT."),
    (r"Cannot change configuration option \"+(?P<what>[^\"]*)\"|configuration has been locked",
     "The query changes a setting{what}, and all settings are fixed here; leave that out."),
    (r"exists in the (?P<what>\w+) extension|external extensions",
     "The query needs an extension of DuckDB{what}, and none is loaded here; leave that out."),
    (r"pytz",
     "The query was refused: a time with a zone cannot be shown; cast it with ::TIMESTAMP (UTC)."),
)  # fmt: skip


def check_select(con: Connection, query: str) -> None:
    """Raises Refused for anything else than one SELECT (or VALUES, FROM, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN)."""
    if "\0" in query or any("\ud800" <= c <= "\udfff" for c in query):
        raise Refused("The query holds a character that is no text (NUL or half of a pair); leave it out.")
    kinds = [statement.type.name for statement in con.extract_statements(query)]
    if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN"):
        found = " and ".join(kinds) or "empty"
        raise Refused(f"Only one SELECT at a time is run here, and this query is {found}; write one SELECT.")


def refusal(error: duckdb.Error) -> Refused:
    """What to tell of a query that DuckDB refused."""
    said = str(error)
    for pattern, sentence in _REFUSALS:
        if found := re.search(pattern, said):
            what = found.groupdict().get("what")
            return Refused(sentence.replace("{what}", f" ({what})" if what else ""))
    why = first_line(error)
    if _NO_TABLE.search(why):
        why += '; `lamplighter sql "SHOW TABLES"` names those that there are'
    return Refused(f"The query was refused: {why}.")


def objects(
    description: Sequence[Any], rows: Sequence[Sequence[Any]], unpack: bool = False
) -> list[dict[str, Any]]:
    """Rows as JSON-ready objects, by the description of the result that they are of.

    Times come as ISO 8601 text, JSON columns as JSON text (with `unpack` as the values that it tells of), numbers that
    are not finite as None; a second column of one name gets `_1`, and so on.
    """
    names = _distinct([column[0] for column in description])
    how: list[Callable[[Any], Any]] = [
        _unpacked if unpack and str(column[1]) == "JSON" else _plain for column in description
    ]
    return [{name: read(value) for name, read, value in zip(names, how, row, strict=True)} for row in rows]


def fetched(
    con: Connection, query: str, parameters: Sequence[Any] | Mapping[str, Any] = (), unpack: bool = False
) -> list[dict[str, Any]]:
    """The rows that a query gives, as `objects` has them."""
    done = con.execute(query, dict(parameters) if isinstance(parameters, Mapping) else parameters)
    return objects(done.description or (), done.fetchall(), unpack)


def first_line(error: Exception) -> str:
    """The first line of what an error says, without its full stop."""
    return str(error).partition("\n")[0].strip().rstrip(".!")


def _distinct(names: list[str]) -> list[str]:
    """Column names made different, so that no column of `SELECT *` over a join is lost in an object."""
    taken: list[str] = []
    for name in names:
        n = 0
        while (unlike := f"{name}_{n}" if n else name) in taken:
            n += 1
        taken.append(unlike)
    return taken


def _plain(value: Any) -> Any:
    """A value of DuckDB as JSON has it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() | Decimal():
            return float(value) if math.isfinite(value) else None
        case datetime():
            return value.isoformat(timespec="microseconds")
        case date() | time_of_day():
            return value.isoformat()
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case bytes():
            return value.hex()
    return str(value)


def _unpacked(value: str | None) -> Any:
    return None if value is None else json.loads(value)
