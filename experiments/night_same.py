"""One night of real units killed three times, beside the same night left alone: both find the same.

60 units of `smollm2-135m`, drawn as in `bench_input --only real`, by the playbook, one at a time and on one thread,
since passes that are shared or split otherwise round otherwise. Both runs share the sweep and work at the same time.
The seed draws the kills: how many units have ended by then, and where in the next one.

Compared by unit is every record that a run leaves, without ids, times, costs and which evidence was recalled. Homes
stay in `night/` of the experiments folder, named by units and code: a bench that was stopped goes on from there, and
kills that were made are not made again. A process of the unkilled run that was cut off is counted and told.
"""

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..agent.config import Home
from ..store.records import TABLES, LLMCall, Model, Record, Run, Sweep, Verdict
from ..tools.subject import Subject
from ..tools.toolbox import code_digest
from .input_real import MODEL, TOKENS, real_units
from .night_process import Account, Process, account, the_run
from .report import Claim, Part, Progress, at_least, at_most

KILLS = 3
LATE = 0.95            # of the units may have ended at the last kill
# What differs from one time to the next, wherever it stands in a record.
_PASSING = {
    "id", "created_at", "run", "investigation", "hypothesis", "evidence", "cost", "seconds", "recalled",
}  # fmt: skip
_KINDS: list[type[Record]] = [kind for kind in TABLES.values() if kind not in (Run, Sweep, Model, LLMCall)]

Story = dict[str, dict[str, list[str]]]     # by kind and unit


@dataclass(frozen=True)
class Night:
    """What both runs are asked for; `sweeps` is the folder of sweeps that they share, where one was made."""

    model: str
    corpus: str
    units: list[str]
    tokens: int | None = None
    sweeps: Path | None = None

    def arguments(self, home: Path, workers: int = 1) -> list[str]:
        """The options of its command."""
        asked = ["--model", self.model, "--corpus", self.corpus, "--units", ",".join(self.units)]
        asked += [] if self.tokens is None else ["--tokens", str(self.tokens)]
        return [*asked, "--planner", "playbook", "--workers", str(workers), "--home", str(home)]


def night(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """The drawn units by both runs; takes hours, and may be stopped and begun again."""
    sweep, units = real_units(Subject.load(MODEL), folder, seed, size, progress)
    asked = Night(MODEL, "builtin", [str(unit) for unit in units], TOKENS, folder / "sweeps")
    return same(asked, folder / "night", min(KILLS, max(1, len(units) // 4)), seed, progress)


def same(asked: Night, folder: Path, kills: int, seed: int, progress: Progress) -> Part:
    """Both runs, from where they are, and what they found."""
    code = code_digest("agent", "store", "tools")
    place = folder / f"{sha256(json.dumps([asked.units, seed, kills]).encode()).hexdigest()[:12]}-{code}"
    homes = {name: _home(asked, place / name) for name in ("unkilled", "killed")}
    settings = {"OMP_NUM_THREADS": "1"}
    with Process(asked.arguments(homes["unkilled"].path), place / "unkilled-err", settings=settings) as alone:
        made, code_killed = _lives(asked, homes["killed"], alone, place, kills, seed, settings, progress)
        codes = {"killed": code_killed, "unkilled": alone.end()}
    runs = {name: the_run(home, alone.last) for name, home in homes.items()}
    stories = {name: story(home, runs[name]) for name, home in homes.items()}
    accounts = {name: account(home, runs[name]) for name, home in homes.items()}
    rows = [
        {"run": name, "exit code": codes[name], "units": accounts[name].units, "ended": accounts[name].ended,
         **_processes(home, runs[name])}
        for name, home in homes.items()
    ]  # fmt: skip
    found, differ = _compared(stories["killed"], stories["unkilled"])
    return {"nights": rows, "what they found": found}, _claims(accounts, differ, len(made), kills, rows)


def _home(asked: Night, path: Path) -> Home:
    """A home that has the shared sweeps."""
    path.mkdir(parents=True, exist_ok=True)
    if asked.sweeps is not None and not (path / "sweeps").exists():
        (path / "sweeps").symlink_to(asked.sweeps.absolute(), target_is_directory=True)
    return Home(path.absolute())


def _lives(
    asked: Night, home: Home, alone: Process, place: Path, kills: int, seed: int, settings: dict[str, str],
    progress: Progress,
) -> tuple[list[int], int]:  # fmt: skip
    """Runs, kills and runs on; the units that had ended at each kill ever made, and the last exit code."""
    draw, total = random.Random(seed), len(asked.units)
    drawn = sorted(draw.sample(range(max(kills, int(LATE * total))), kills))
    file = place / "kills.json"
    made: list[int] = json.loads(file.read_text("utf-8")) if file.exists() else []
    for after in (*drawn[len(made) :], None):
        began = time.monotonic()
        with Process(asked.arguments(home.path), place / "killed-err", settings=settings) as run:

            def due(run: Process = run, after: int | None = after) -> bool:
                alone.look()
                progress("units", run.done + alone.done, 2 * total)
                return after is not None and run.begun and run.done >= after

            first = run.done if run.until(lambda run=run: run.begun) else 0  # type: ignore[misc]
            since = time.monotonic() if run.begun else began
            if not run.until(due):
                return made, run.end()
            pace = (time.monotonic() - since) / max(1, run.done - first)
            run.until(lambda: False, draw.random() * pace)
            if run.process.poll() is None:
                run.kill()
                made.append(run.done)
                _keep(file, made)
    raise AssertionError("the last process has no kill before it")


def _keep(file: Path, made: list[int]) -> None:
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(made), "utf-8")
    os.replace(draft, file)


def _processes(home: Home, run: str) -> dict[str, Any]:
    """How many processes began the run, how many of these wrote no end, and the hours of those that did."""
    rows = home.findings.read(Run, run=run)
    ends = [row for row in rows if row.status != "running"]
    begun = len(rows) - len(ends)
    hours = round(ends[-1].seconds / 3600, 2)
    return {"processes": begun, "cut off": begun - len(ends), "hours of the last process": hours}


# What was found


def story(home: Home, run: str) -> Story:
    """Everything that a run found, in an order that depends on what it says alone. Of verdicts, each unit's last."""
    told: Story = {}
    for kind in _KINDS:
        by_unit: dict[str, list[str]] = defaultdict(list)
        for record in home.findings.read(kind, run=run):
            unit = f"{record.unit}{'-' if record.sign == -1 else ''}"
            line = json.dumps(_lasting(asdict(record)), sort_keys=True)
            by_unit[unit] = [line] if kind is Verdict else [*by_unit[unit], line]
        told[kind.TABLE] = {unit: sorted(lines) for unit, lines in by_unit.items()}
    return told


def _lasting(value: Any) -> Any:
    """A record without what differs from time to time. Predictions go by ids of hypotheses: only they are kept."""
    if isinstance(value, dict):
        kept = {k: _lasting(v) for k, v in value.items() if k not in _PASSING}
        if "predictions" in kept:
            kept["predictions"] = sorted(json.dumps(v) for v in kept["predictions"].values())
            kept["killed"] = sorted(json.dumps({k: v for k, v in one.items() if k != "by"}) for one in kept["killed"])
        return kept
    return [_lasting(v) for v in value] if isinstance(value, list) else value


def _compared(ours: Story, theirs: Story) -> tuple[list[dict[str, Any]], set[str]]:
    """A row a kind of record, and the units of which any differs."""
    rows, every = [], set()
    for kind in ours:
        a, b = ours[kind], theirs[kind]
        differ = {unit for unit in a.keys() | b.keys() if a.get(unit) != b.get(unit)}
        every |= differ
        rows.append({
            "records": kind, "killed": sum(map(len, a.values())), "unkilled": sum(map(len, b.values())),
            "units that differ": len(differ),
        })  # fmt: skip
    return rows, every


def _claims(
    accounts: dict[str, Account], differ: set[str], made: int, kills: int, rows: Sequence[dict[str, Any]]
) -> list[Claim]:
    n = accounts["killed"].units
    cut = next(row["cut off"] for row in rows if row["run"] == "unkilled")
    return [
        at_most("units whose findings differ from those of the unkilled run", float(len(differ)), 0, n),
        at_most("units of the killed run lost, there twice or failed", float(accounts["killed"].amiss), 0, n),
        at_most("units of the unkilled run lost, there twice or failed", float(accounts["unkilled"].amiss), 0, n),
        at_least("kills", float(made), kills, n),
        at_most("processes of the unkilled run that were cut off", float(cut), 0, 1),
    ]


__all__ = ["Night", "night", "same", "story"]
