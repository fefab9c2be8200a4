"""A night that is killed ten times, and in the morning every unit is there once.

2,000 units of the cheapest subject (`night_subject.py`), 8 at a time, planned by a scripted model in this process. The
run is a process of its own. The seed draws the kills: how many units have ended by then, and up to a second more. Each
process takes kill -9, the last one goes on to the end.

A request is counted where it arrives, so that a reply that nobody lived to read counts too. Ideal is each request once,
a killed process pays at most what its workers had in flight. A second, unkilled run of the first units says that the
killed one asked nothing else.
"""

import json
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..agent.config import Home
from ..store.records import LLMCall
from ..testing import ScriptedEndpoint
from .night_process import Account, Process, account, file_bytes
from .night_subject import Made, answer, make_subject
from .report import Claim, Part, Progress, at_least, at_most

UNITS, WORKERS, KILLS = 2000, 8, 10
EACH = 20              # units to a kill, where there are fewer
REFERENCE = 40         # units of the unkilled run
LATE = 0.95            # of the units may have ended at the last kill
MOMENT = 1.0           # seconds drawn beside
MEGABYTES = 50.0       # of work files at the end


def kills(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """The killed run, then the unkilled one of its first units."""
    units = max(12, round(size * UNITS))
    return killed(units, min(WORKERS, units // 4), max(2, min(KILLS, units // EACH)), seed, progress)


def killed(units: int, workers: int, times: int, seed: int, progress: Progress) -> Part:
    """So many units, workers and kills."""
    with TemporaryDirectory() as place:
        made = make_subject(Path(place), units, seed)
        empty = {"LAMPLIGHTER_CACHE": f"{place}/no-weights", "OMP_NUM_THREADS": "1"}
        home, began = Home(Path(place, "home")), time.monotonic()
        with ScriptedEndpoint(answer) as server:
            asked = [*made.arguments, *_options(home, server, workers)]
            rows, code = _lives(asked, Path(place, "err"), empty, units, times, seed, progress)
        seconds = time.monotonic() - began
        (state,) = home.work.runs()
        found = account(home, state.id)
        ledger = sum(call.purpose != "models" for call in home.findings.read(LLMCall))
        size, requests = file_bytes(home), _requests(server)
        other = _reference(made, Path(place), empty, units)
        whole = [
            {"what": "units", "n": units}, {"what": "with a result", "n": found.ended},
            {"what": "requests answered", "n": len(requests)}, {"what": "different ones", "n": len(set(requests))},
            {"what": "kills", "n": sum(row["exit code"] == -9 for row in rows)},
            {"what": "seconds", "n": round(seconds)},
            {"what": "findings.duckdb, bytes", "n": home.findings.path.stat().st_size},
        ]  # fmt: skip
        claims = _claims(found, rows, code, requests, ledger, size, workers * times, other)
        return {"killed run": whole, "its processes": rows}, claims


def _options(home: Home, server: ScriptedEndpoint, workers: int) -> list[str]:
    return ["--planner", "llm", "--endpoint", server.url, "--workers", str(workers), "--home", str(home.path)]


def _lives(
    asked: list[str], err: Path, settings: dict[str, str], units: int, times: int, seed: int, progress: Progress
) -> tuple[list[dict[str, Any]], int]:
    """Each process of the run in turn, and the exit code of the last."""
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(int(LATE * units)), times))
    rows, code = [], -1
    for after in (*moments, None):
        began = time.monotonic()
        with Process(asked, err, settings=settings) as run:

            def due(run: Process = run, after: int | None = after) -> bool:
                progress("units", run.done, units)
                return after is not None and run.begun and run.done >= after

            if run.until(due):
                time.sleep(draw.random() * MOMENT)
                run.look()
                code = run.kill()
            else:
                code = run.end()
            rows.append({
                "units ended by then": run.done, "seconds": round(time.monotonic() - began, 1), "exit code": code,
                "said last": run.last if code != -9 else "",
            })  # fmt: skip
        if code != -9:
            break
    return rows, code


def _requests(server: ScriptedEndpoint) -> list[str]:
    """What a model was asked, the list of models left out: that is free everywhere."""
    return [json.dumps(request.body, sort_keys=True) for request in server.requests if request.body is not None]


def _reference(made: Made, place: Path, settings: dict[str, str], units: int) -> set[str]:
    """What an unkilled run of the first units asks, without the probes."""
    some = Made(made.model, made.corpus, made.units[: min(REFERENCE, max(4, units // 4))])
    with ScriptedEndpoint(answer, probes=True) as server:
        asked = [*some.arguments, *_options(Home(place / "reference"), server, 1)]
        with Process(asked, place / "reference-err", settings=settings) as run:
            run.end()
    return set(_requests(server))


def _claims(
    found: Account, rows: list[dict[str, Any]], code: int, requests: list[str], ledger: int, size: int, bar: int,
    other: set[str],
) -> list[Claim]:  # fmt: skip
    n, distinct = found.units, set(requests)
    return [
        at_least("units with a result", float(found.ended), n, n),
        at_most("units lost", float(found.lost), 0, n),
        at_most("results, explanations and scores that are there twice", float(found.twice), 0, n),
        at_most("units failed", float(found.failed), 0, n),
        at_most("experiments refused for the stores' sake", float(found.spoilt), 0, n),
        at_most("records that never came to the findings", float(found.waiting), 0, n),
        at_most("paid calls above the ideal", float(len(requests) - len(distinct)), bar, len(requests)),
        at_most("paid calls that no row of the ledger tells of", float(len(requests) - ledger), bar, len(requests)),
        at_most("requests of an unkilled run that the killed one did not make", float(len(other - distinct)), 0,
                len(other)),
        at_most("megabytes of work files at the end", size / 1e6, MEGABYTES, n),
        at_most("exit code of the last process", float(code), 0, len(rows)),
    ]  # fmt: skip


__all__ = ["killed", "kills"]
