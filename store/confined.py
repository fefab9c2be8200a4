"""One SELECT of anybody, in a process of its own that can read one file and nothing else.

DuckDB by itself bounds neither the memory that a function's text takes nor the time of a single call (both measured
with `repeat`), and a query can bring its process down. So a child runs it, and the kernel holds it to its limits.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from .one_select import Connection, check_select, objects, refusal
from .records import Refused

SPARE_MEMORY = 1_500     # MB of address space beyond a query's own: what the process has beside it
GRACE = 1.0              # seconds from asking a query to stop to ending its process
START = 60.0             # seconds that a child may take to begin
FETCH = 1_000            # rows at a time

_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")      # and no keys


@dataclass(frozen=True)
class Limits:
    """What one query may take. memory, answer: megabytes; a longer answer than `rows` is cut, a larger one refused."""

    seconds: float = 30.0
    rows: int = 10_000
    memory: int = 1_000
    answer: int = 50


@dataclass(frozen=True)
class Answer:
    """JSON-ready rows; `cut`: there were more than the limit."""

    rows: list[dict[str, Any]]
    cut: bool = False


def ask(path: Path, query: str, limits: Limits | None = None) -> Answer:
    """Runs one SELECT on a DuckDB file that nobody writes. Raises FileNotFoundError where the file is not there.

    Raises Refused, in a sentence, for whatever else than reading the file's tables the query asks for, and where it
    takes more than its limits.
    """
    limits = limits or Limits()
    asked = json.dumps({"path": str(path), "query": query, "limits": asdict(limits)})
    command = [sys.executable, "-P", "-m", __name__]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    try:
        done = subprocess.run(
            command, input=asked.encode(), capture_output=True, env=kept | places,
            timeout=START + limits.seconds + GRACE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _too_long(limits) from None
    if done.returncode == -signal.SIGALRM:
        raise _too_long(limits)
    if done.returncode:
        raise _too_large(limits, done.returncode)
    told = json.loads(done.stdout)
    if told.get("gone"):
        raise FileNotFoundError(path)
    if "refused" in told:
        raise Refused(told["refused"])
    return Answer(told["rows"], told["cut"])


def answer(path: Path, query: str, limits: Limits) -> Answer:
    """What the child does: the query, with all that DuckDB itself can bound. Raises as `ask` does."""
    try:
        with _opened(path, limits) as con, _stopped_after(con, limits.seconds):
            check_select(con, query)
            return _read(con.execute(query), limits)
    except duckdb.InterruptException:
        raise _too_long(limits) from None
    except (duckdb.OutOfMemoryException, MemoryError):
        raise _too_large(limits) from None
    except duckdb.IOException as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise refusal(error) from error
    except duckdb.Error as error:
        raise refusal(error) from error


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[Connection]:
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
        "enable_external_access": "false", "python_enable_replacements": "false", "temp_directory": "",
        "memory_limit": f"{limits.memory}MB", "threads": str(max(1, (os.cpu_count() or 1) // 2)),
    }  # fmt: skip
    with duckdb.connect(str(path), read_only=True, config=config) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET lock_configuration = true")
        yield con


@contextmanager
def _stopped_after(con: Connection, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, con.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(done: Connection, limits: Limits) -> Answer:
    """Rows up to the limit, none of which is held twice."""
    rows: list[dict[str, Any]] = []
    description, size = done.description or (), 0
    while len(rows) <= limits.rows and (batch := done.fetchmany(min(FETCH, limits.rows + 1 - len(rows)))):
        for row in objects(description, batch):
            size += len(json.dumps(row, ensure_ascii=False).encode())
            if size > limits.answer * 1_000_000:
                many = len(rows) + 1
                raise Refused(f"{many} rows take more than {limits.answer} MB; select fewer columns or rows.")
            rows.append(row)
    return Answer(rows[: limits.rows], len(rows) > limits.rows)


def _too_long(limits: Limits) -> Refused:
    return Refused(f"The query took longer than {limits.seconds:g} s and was stopped; narrow it.")


def _too_large(limits: Limits, code: int | None = None) -> Refused:
    how = "" if code is None else f", or ended its process ({code})"
    return Refused(f"The query took more than {limits.memory:,} MB of memory{how}; select fewer columns or rows.")


def _hold_to(limits: Limits) -> None:
    """Has the kernel bound this process: no file can be written, and time and memory end with it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = (limits.memory + SPARE_MEMORY) * 1_000_000
    with suppress(ValueError, OSError):        # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.setitimer(signal.ITIMER_REAL, limits.seconds + GRACE)


def main() -> None:
    """The child: reads what is asked from stdin, and writes rows or a refusal to stdout."""
    asked = json.load(sys.stdin)
    limits = Limits(**asked["limits"])
    _hold_to(limits)
    told: dict[str, Any]
    try:
        told = asdict(answer(Path(asked["path"]), asked["query"], limits))
    except FileNotFoundError:
        told = {"gone": True}
    except Refused as refused:
        told = {"refused": str(refused)}
    sys.stdout.buffer.write(json.dumps(told, ensure_ascii=False).encode())


if __name__ == "__main__":
    main()
