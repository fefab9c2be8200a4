"""`lamplighter run` in a process of its own, as a night is run: followed by what it says, killed, and counted up.

What it says on stderr is all that is looked at while it works: nothing of its files is opened.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..agent.config import Home
from ..store.records import Refused, signed

PATIENCE = 24 * 3600.0      # seconds without an end after which a run is given up
GOODBYE = 300.0             # … after it was asked to stop
LOOK = 0.02                 # seconds between looks at what it says
_ENDED = re.compile(r"\((\d+) of \d+\)$")
_BEFORE = re.compile(r"^\d+ units, (\d+) done before$")
# What would have a run ask another language model than the one it is given.
_SETTINGS = ("LAMPLIGHTER_LLM_URL", "LAMPLIGHTER_LLM_KEY", "LAMPLIGHTER_LLM_MODEL", "LAMPLIGHTER_JUDGE_URL")


class Process:
    """A run that was started; `said` are its lines on stderr so far, `done` the units that it has counted as ended."""

    def __init__(self, arguments: Sequence[str], err: Path, *, module: Sequence[str] = ("lamplighter",),
                 before: Sequence[str] = (), settings: Mapping[str, str] | None = None) -> None:  # fmt: skip
        command = [*before, sys.executable, "-P", "-m", *module, "run", *arguments]
        known = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
        self._err = err.open("ab+")
        self._read = err.stat().st_size
        self._half = b""
        self.said: list[str] = []
        self.done, self.begun = 0, False
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._err,
            env=known | {"HF_HUB_OFFLINE": "1"} | dict(settings or {}),
        )  # fmt: skip

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:     # an error or Ctrl-C here: it gives its units back
            self.process.terminate()
            self.end(GOODBYE)
        self._err.close()

    def look(self) -> list[str]:
        """The lines that came since the last look."""
        data = os.pread(self._err.fileno(), 2**24, self._read)
        self._read += len(data)
        *lines, self._half = (self._half + data).split(b"\n")
        new = [line.decode("utf-8", "replace") for line in lines]
        self.said += new
        for line in new:
            if found := _ENDED.search(line) or _BEFORE.match(line):
                self.done, self.begun = max(self.done, int(found[1])), True
        return new

    def until(self, holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Looks until `holds`, the run ends, or so many seconds are over; whether it holds."""
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            self.look()
            if holds():
                return True
            if ended or time.monotonic() > end:
                return False
            time.sleep(LOOK)

    def says(self, pattern: str) -> str | None:
        """The first line so far in which the pattern is found."""
        return next((line for line in self.said if re.search(pattern, line)), None)

    def end(self, seconds: float = PATIENCE) -> int:
        """Waits for its end; the exit code. One that has not ended after so many seconds is killed."""
        if not self.until(lambda: self.process.poll() is not None, seconds):
            self.kill()
        self.look()
        return self.process.wait()

    def kill(self) -> int:
        """kill -9."""
        self.process.kill()
        return self.process.wait()

    @property
    def last(self) -> str:
        """The last line that it said."""
        return self.said[-1] if self.said else ""


@dataclass(frozen=True)
class Account:
    """How a run's units stand, by findings and queue together.

    ended: units with a result; lost: neither that nor failed; twice: results, kept explanations and scores of one
    metric that a unit has more than once; failed: units that the queue has as failed; waiting: records that never came
    to the findings; spoilt: experiments refused for the stores' sake; again: units that were tried more than once.
    """

    units: int
    ended: int
    lost: int
    twice: int
    failed: int
    waiting: int
    spoilt: int
    again: int

    @property
    def amiss(self) -> int:
        """0 where each unit has its result, once, and nothing of it was made of a failure."""
        return self.lost + self.twice + self.failed + self.waiting + self.spoilt


# How often a unit has what it should have once.
_TIMES = """
    SELECT count(*) AS n FROM investigations WHERE run = $run GROUP BY unit, sign
    UNION ALL
    SELECT count(*) FROM hypotheses WHERE run = $run AND kept GROUP BY unit, sign, side
    UNION ALL
    SELECT count(*) FROM scores WHERE run = $run GROUP BY unit, sign, metric, side
"""
_RESULTS = "SELECT DISTINCT unit, sign FROM investigations WHERE run = $run"
_SPOILT = """
    SELECT count(*) AS n FROM evidence
    WHERE run = $run AND NOT ok AND regexp_matches(summary, 'work\\.sqlite|findings\\.duckdb|No space|disk')
"""


def the_run(home: Home, said: str) -> str:
    """The newest run of a home. Raises Refused where none was opened, with what the process said last."""
    known = home.work.runs()
    home.work.close()
    if not known:
        raise Refused(f"no run was opened in {home.path} ({said[-300:]}); see what its command says.")
    return known[-1].id


def account(home: Home, run: str) -> Account:
    """Counts a run's units up, once nothing works on it any more. Raises Refused where there are no findings."""
    jobs, waiting = home.work.jobs(run), home.work.pending()
    home.work.close()
    times, rows, spoilt = (home.findings.sql(query, {"run": run}) for query in (_TIMES, _RESULTS, _SPOILT))
    units = {job.unit for job in jobs}
    ended = {signed(row) for row in rows}
    failed = {job.unit for job in jobs if job.status == "failed"}
    return Account(
        units=len(units), ended=len(ended & units), lost=len(units - ended - failed),
        twice=sum(row["n"] - 1 for row in times), failed=len(failed), waiting=waiting, spoilt=spoilt[0]["n"],
        again=sum(job.attempt > 1 for job in jobs),
    )  # fmt: skip


def file_bytes(home: Home) -> int:
    """Bytes of `work.sqlite` and what lies beside it."""
    return sum(path.stat().st_size for path in home.path.glob("work.sqlite*"))


__all__ = ["Account", "Process", "account", "file_bytes", "the_run"]
