"""The log of a run: one JSON object a line in `logs/<run>.jsonl` of the home, for machines and for the day after.

Each line has time, level, event, run, unit, attempt and worker, and what else the event brought. A line is ASCII and
strict JSON, whatever a text held; corpus text is cut, and what looks like a key is left out. A log that cannot be
written never ends a run: its lines are counted as lost, and that is told once.
"""

import fcntl
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from .config import Home

BYTES = 10_000_000       # of one file; BACKUPS older ones stay beside it
BACKUPS = 5
LONGEST = 200            # characters of a text
MOST = 20                # items of a list, and fields of an object
DEEPEST = 4              # lists in lists
LINE = 8000              # bytes of a line: it is written at once, and no other process's falls into it
STAMPS = ("run", "unit", "attempt", "worker")

_logger = logging.getLogger("lamplighter.run")
_logger.propagate = False
_logger.setLevel(logging.DEBUG)
_logger.addHandler(logging.NullHandler())
_bound: ContextVar[dict[str, Any]] = ContextVar("lamplighter-log", default={})  # noqa: B039 — never changed in place
_SECRET_NAME = re.compile(r"(?i)(^|_)(api_?key|key|secret|password|authorization|bearer|token)$")
_SECRET = re.compile(r"(?i)\bbearer\s+\S+|\b(sk|pk|hf|ghp|gho|xox[abp])[-_][\w-]{8,}")
_KEYS = ("LAMPLIGHTER_LLM_KEY", "LAMPLIGHTER_JUDGE_KEY")
HIDDEN = "(hidden)"


def event(name: str, /, *, level: int = logging.INFO, **facts: Any) -> None:
    """Writes one line into the logs that are open; nothing where none is. `facts` may be of any type."""
    _logger.log(level, name, extra={"facts": {**_bound.get(), **facts}})


@contextmanager
def bound(**facts: Any) -> Iterator[None]:
    """Every event of the block, in this thread, carries these facts too; a thread started inside binds its own."""
    token = _bound.set({**_bound.get(), **facts})
    try:
        yield
    finally:
        _bound.reset(token)


@contextmanager
def open_log(home: Home, run: str) -> Iterator["RunLog"]:
    """Events of the block go to the log of `run`; those that are bound to another run do not."""
    handler = RunLog(home.path / "logs" / f"{run}.jsonl", run)
    _logger.addHandler(handler)
    try:
        yield handler
    finally:
        _logger.removeHandler(handler)
        handler.close()


class RunLog(RotatingFileHandler):
    """The files of one run's log, which several processes may write. `lost` counts lines that could not be written."""

    def __init__(self, path: Path, run: str, max_bytes: int = BYTES, backups: int = BACKUPS) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="ascii", delay=True)
        self.run, self.lost = run, 0
        self.setFormatter(JsonLine(run))
        self.addFilter(lambda record: getattr(record, "facts", {}).get("run", run) == run)

    def _open(self) -> TextIOWrapper:
        """The file, on a line of its own: one that was cut off when the disk was full is ended first."""
        path = Path(self.baseFilename)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a", encoding="ascii")  # noqa: SIM115
        if stream.tell() and not _ends_a_line(path):
            stream.write("\n")
        return stream

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 — logging's name
        """Whether the line would make the file too long; where another process has begun a new one, that is taken."""
        if self.stream is not None and not _same(self.stream, self.baseFilename):
            self._let_go()
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 — logging's name
        """Begins a new file, unless another process has just done so."""
        with open(f"{self.baseFilename}.lock", "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.stream is not None and _same(self.stream, self.baseFilename):
                super().doRollover()
            else:
                self._let_go()
        if self.stream is None:
            self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 — logging's name
        """Counts a lost line, tells of the first, and lets the file go: the next line tries anew."""
        self.lost += 1
        self._let_go()
        if self.lost == 1:
            kind, error, _ = sys.exc_info()
            why = (getattr(error, "strerror", None) or str(error) or (kind.__name__ if kind else "")).splitlines()[:1]
            sys.stderr.write(
                f"lamplighter: the log {self.baseFilename} cannot be written ({''.join(why)}); the run goes on, and "
                "lines are lost until it can.\n"
            )

    def _let_go(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):     # what is left in its buffer is lost with it
                stream.close()

    def close(self) -> None:
        """Closes the file; what cannot be written any more is lost."""
        self._let_go()
        super().close()


class JsonLine(logging.Formatter):
    """A record as one line of strict JSON."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run

    def format(self, record: logging.LogRecord) -> str:
        facts = dict(getattr(record, "facts", {}))
        stamps = {name: facts.pop(name, self.run if name == "run" else None) for name in STAMPS}
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **stamps}
        told = _plain(head)
        more = {k: v for k, v in _plain(facts).items() if k not in head}
        line = json.dumps(told | more, allow_nan=False)
        if len(line) < LINE:
            return line
        return json.dumps(told | {"cut": _text(f"{len(line)} bytes: {', '.join(more)}")}, allow_nan=False)


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it: texts cut and without keys, long and deep things cut, anything else by its text."""
    match value:
        case None | bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case Mapping() if depth < DEEPEST:
            pairs = [(_text(str(k)), v) for k, v in list(value.items())[:MOST]]
            return {k: HIDDEN if _is_secret(k, v) else _plain(v, depth + 1) for k, v in pairs}
        case list() | tuple() | set() | frozenset() if depth < DEEPEST:
            return [_plain(item, depth + 1) for item in list(value)[:MOST]]
    return _text(str(value))


def _is_secret(name: str, value: Any) -> bool:
    """By its name; counts, of tokens for example, are none."""
    return bool(_SECRET_NAME.search(name)) and isinstance(value, str | bytes)


def _text(text: str) -> str:
    for name in _KEYS:
        key = os.environ.get(name, "")
        if len(key) > 3:         # a shorter one is no secret, and would cut words to pieces
            text = text.replace(key, HIDDEN)
    shown = _SECRET.sub(HIDDEN, text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _same(stream: TextIO, path: str) -> bool:
    """Whether a stream is still the file of this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


__all__ = ["BACKUPS", "BYTES", "HIDDEN", "LONGEST", "RunLog", "bound", "event", "open_log"]
