"""A night that is killed ten times, and in the morning every unit is there once.

2,000 units of the cheapest subject (`night_subject.py`), 8 at a time, planned by a scripted model in this process. The
run is a process of its own. The seed draws the kills: how many units have ended by then, and up to a second more. Each
process takes kill -9, the last one goes on to the end.

A request is counted where it arrives, so that a reply that nobody lived to read counts too. Ideal is each request once;
a killed process pays at most what its workers had in flight. A second, unkilled run of the first units says that the
killed one asked nothing else.
"""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..agent.config import Home
from ..store.records import LLMCall
from ..testing import ScriptedEndpoint
from .night_process import Account, Process, account, file_bytes, the_run
from .night_subject import Made, answer, make_subject
from .report import Part, Progress, at_least, at_most

UNITS, WORKERS, KILLS = 2000, 8, 10
EACH = 20              # units to a kill, where there are fewer
REFERENCE = 40         # units of the unkilled run
LATE = 0.95            # of the units may have ended at the last kill
MOMENT = 1.0           # seconds drawn beside
KILLED = -signal.SIGKILL
MEGABYTES = 50.0       # of work files at the end


@dataclass(frozen=True)
class Killed:
    """A run that was killed: what it was, what it left, and what it asked for.

    lives: a row a process; ledger: rows of requests to the model; work, findings: bytes of these files.
    """

    workers: int
    found: Account
    lives: list[dict[str, Any]]
    requests: list[str]
    ledger: int
    work: int
    findings: int

    @property
    def kills(self) -> int:
        return sum(row["exit code"] == KILLED for row in self.lives)


def kills(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """The killed run, then the unkilled one of its first units."""
    units = max(12, round(size * UNITS))
    times = max(2, min(KILLS, units // EACH))
    with TemporaryDirectory() as place:
        made = make_subject(Path(place), units, seed)
        done = killed(made, Path(place), min(WORKERS, units // 4), times, seed, progress)
        some = Made(made.model, made.corpus, made.units[:REFERENCE])
        other = set(killed(some, Path(place, "reference"), 1, 0, seed, progress).requests)
    tables, claims = told(done)
    same = at_most("requests of an unkilled run that the killed one did not make",
                   float(len(other - set(done.requests))), 0, len(other))  # fmt: skip
    return tables, [*claims, same]


def killed(made: Made, place: Path, workers: int, times: int, seed: int, progress: Progress) -> Killed:
    """Runs it with so many workers, and kills it so many times."""
    place.mkdir(exist_ok=True)
    settings = {"LAMPLIGHTER_CACHE": str(place / "no-weights"), "OMP_NUM_THREADS": "1"}
    home = Home(place / "home")
    with ScriptedEndpoint(answer) as server:
        asked = [*made.arguments, "--planner", "llm", "--endpoint", server.url]
        asked += ["--workers", str(workers), "--home", str(home.path)]
        lives = _lives(asked, place / "err", settings, len(made.units), times, seed, progress)
    found = account(home, the_run(home, lives[-1]["said last"]))
    calls = sum(call.purpose != "models" for call in home.findings.read(LLMCall))
    sizes = (file_bytes(home), home.findings.path.stat().st_size)
    return Killed(workers, found, lives, _requests(server), calls, *sizes)


def _lives(
    asked: list[str], err: Path, settings: dict[str, str], units: int, times: int, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """Each process of the run in turn."""
    draw = random.Random(seed)
    rows = []
    for after in (*sorted(draw.sample(range(int(LATE * units)), times)), None):
        began = time.monotonic()
        with Process(asked, err, settings=settings) as run:

            def due(run: Process = run, after: int | None = after) -> bool:
                progress("units", run.done, units)
                return after is not None and run.begun and run.done >= after

            if run.until(due):
                run.until(lambda: False, draw.random() * MOMENT)
                run.kill()
            code = run.end()
            rows.append({
                "units ended by then": run.done, "seconds": round(time.monotonic() - began, 1), "exit code": code,
                "said last": run.last if code != KILLED else "",
            })  # fmt: skip
        if code != KILLED:
            break
    return rows


def _requests(server: ScriptedEndpoint) -> list[str]:
    """What a model was asked, the list of models left out: that is free everywhere."""
    return [json.dumps(request.body, sort_keys=True) for request in server.requests if request.body is not None]


def told(done: Killed) -> Part:
    """Its tables and claims."""
    found, n, different = done.found, done.found.units, len(set(done.requests))
    asked, bar = len(done.requests), done.workers * done.kills
    counts = {
        "units": n, "with a result": found.ended, "tried more than once": found.again, "kills": done.kills,
        "requests answered": asked, "different ones": different, "seconds": sum(row["seconds"] for row in done.lives),
        "findings.duckdb, bytes": done.findings,
    }  # fmt: skip
    claims = [
        at_least("units with a result", float(found.ended), n, n),
        at_most("units lost", float(found.lost), 0, n),
        at_most("results, explanations and scores that are there twice", float(found.twice), 0, n),
        at_most("units failed", float(found.failed), 0, n),
        at_most("experiments refused for the stores' sake", float(found.spoilt), 0, n),
        at_most("records that never came to the findings", float(found.waiting), 0, n),
        at_most("paid calls above the ideal", float(asked - different), bar, asked),
        at_most("paid calls that no row of the ledger tells of", float(asked - done.ledger), bar, asked),
        at_most("megabytes of work files at the end", done.work / 1e6, MEGABYTES, n),
        at_most("exit code of the last process", float(done.lives[-1]["exit code"]), 0, len(done.lives)),
    ]
    rows = [{"what": what, "n": count} for what, count in counts.items()]
    return {"killed run": rows, "its processes": done.lives}, claims


__all__ = ["Killed", "killed", "kills", "told"]
