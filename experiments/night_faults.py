"""A night on which something else fails: the disk, the clock, the endpoint, or findings that somebody else holds.

A run of 60 units of the cheapest subject, 4 at a time, meets one fault after a third of its units:

- disk nearly full: on a small file system of its own a file grows until less is free than a run keeps free, then goes;
- disk full: the same until nothing is free, in the middle of whatever is being written;
- clock stepped: every second and a half, an hour back, right, an hour ahead, right (`night_clock.py`);
- endpoint down: nobody listens on its port for a while; endpoint failing: it answers 503 for a while;
- findings held: another process has `findings.duckdb` open for longer than a use of it waits; held at the end: until
  the run gives up.

A run may wait, or end and say why in one sentence: then the same command is given again. In the end every unit has its
result, once, and none has failed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from ..agent.config import Home
from ..agent.life import ROOM
from ..store.findings import WAIT_SECONDS
from ..testing import ScriptedEndpoint, Status, Step
from .night_process import Account, Process, account, the_run
from .night_subject import Made, answer, make_subject
from .report import Claim, Part, Progress

UNITS, WORKERS = 60, 4
COMMANDS = 4           # given at most
LASTS = 2 * WAIT_SECONDS + 2.0     # seconds that a fault lasts once it was said, or nothing was said for SILENT seconds
SILENT = 20.0
HUNG = 1800.0          # seconds after which a run that does not end is killed
EVERY = 1.5            # seconds between steps of the clock
SPARE = 200 * 2**20    # bytes of the small file system beyond those that are kept free
TOLD = 200             # characters of what was said
COUNTED = ("ended", "lost", "twice", "failed", "waiting", "spoilt", "again")
BAR = "0, and an early end is told in one sentence"
FAILED = 4             # exit code: units failed, and the same command will not try them again

_HOLD = """
import sys, time, duckdb
while True:
    try:
        con = duckdb.connect(sys.argv[1])
        break
    except duckdb.IOException:
        time.sleep(0.01)
print("held", flush=True)
sys.stdin.read()
"""


class Unmeasured(RuntimeError):
    """The fault cannot be made on this machine; the sentence says why."""


class Model:
    """The scripted model on one port: it may be `down`, so that nobody listens, or `ill`, so that it answers 503."""

    def __init__(self) -> None:
        self._server = ScriptedEndpoint(self._answer)
        self._server.__enter__()
        self.url = self._server.url

    @property
    def ill(self) -> bool:
        return not self._server.probes

    @ill.setter
    def ill(self, ill: bool) -> None:
        self._server.probes = not ill          # a short question is answered as any other

    def _answer(self, body: dict[str, Any]) -> Step:
        return Status(503) if self.ill else answer(body)

    def down(self) -> None:
        self._server.stop()

    def up(self) -> None:
        self._server = ScriptedEndpoint(self._answer, port=int(self.url.rpartition(":")[2]))
        self._server.__enter__()


@dataclass(frozen=True)
class Scene:
    """Where a run works, and what happens to it there.

    home: as the run sees it; disturb: makes the fault and takes it away again; says: a pattern of what a run says of
    it; before, module: how its process is started; seen: the home as it can be read afterwards.
    """

    home: Path
    disturb: Callable[[Process], None]
    says: str
    seen: Callable[[], Path]
    before: tuple[str, ...] = ()
    module: tuple[str, ...] = ("lamplighter",)


Fault = Callable[[Path, Model], AbstractContextManager[Scene]]


def faults(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Every fault, each with a run of its own."""
    return met(list(FAULTS), max(6, round(size * UNITS)), WORKERS, seed, progress)


def met(names: Sequence[str], units: int, workers: int, seed: int, progress: Progress) -> Part:
    """These faults, on so many units and workers."""
    rows, claims = [], []
    with TemporaryDirectory() as subject:
        made = make_subject(Path(subject), units, seed)
        for number, name in enumerate(names):
            progress("faults", number, len(names))
            with TemporaryDirectory() as place:
                row, claim = _meets(name, made, workers, Path(place))
            rows.append(row)
            claims.append(claim)
    return {"faults": rows}, claims


def _meets(name: str, made: Made, workers: int, place: Path) -> tuple[dict[str, Any], Claim]:
    model, what = Model(), f"units lost, there twice or failed: {name}"
    try:
        with FAULTS[name](place, model) as scene:
            codes, said = _commands(scene, made, model, workers, place)
            home = Home(scene.seen())
            found = account(home, the_run(home, said or ""))
    except Unmeasured as error:
        return _row(name, None, [], f"not measured: {error}"), Claim(what, None, 0, BAR, None)
    finally:
        model.down()
    told = len(codes) == 1 or str(said).startswith("lamplighter: ")
    whole = found.amiss == 0 and codes[-1] == 0 and told
    return _row(name, found, codes, said), Claim(what, float(found.amiss), found.units, BAR, whole)


def _row(name: str, found: Account | None, codes: Sequence[int], said: str | None) -> dict[str, Any]:
    counts = {what: None if found is None else getattr(found, what) for what in COUNTED}
    ended = ", ".join(map(str, codes))
    return {"fault": name, "commands": len(codes), "exit codes": ended, **counts, "said": (said or "")[:TOLD]}


def _commands(
    scene: Scene, made: Made, model: Model, workers: int, place: Path
) -> tuple[list[int], str | None]:
    """Exit codes of the commands that it took, and how the fault was told: the line with which the first of them ended
    early, else that with which it waited."""
    asked = [*made.arguments, "--planner", "llm", "--endpoint", model.url]
    asked += ["--workers", str(workers), "--home", str(scene.home)]
    settings = {"LAMPLIGHTER_CACHE": str(place / "no-weights"), "OMP_NUM_THREADS": "1"}
    codes, said = [], None
    for number in range(COMMANDS):
        start = partial(Process, module=scene.module, before=scene.before, settings=settings)
        with start(asked, place / "err") as run:
            if number == 0:
                third = len(made.units) // 3
                run.until(lambda run=run, third=third: run.begun and run.done >= third)  # type: ignore[misc]
                scene.disturb(run)
            codes.append(run.end(HUNG))
            said = said or (run.last if codes[-1] else run.says(scene.says))
        if codes[-1] in (0, FAILED):
            break
    return codes, said


def _lasts(run: Process, says: str) -> None:
    """Waits until the run has told of the fault, or for SILENT seconds, and then LASTS more; less if it ends."""
    run.until(lambda: run.says(says) is not None, SILENT)
    run.until(lambda: False, LASTS)


# The disk


@contextmanager
def _small_disk(leave: int, says: str, place: Path, model: Model) -> Iterator[Scene]:
    """A file system in memory that only this process and the run see; `leave`: bytes left free on it for a while."""
    disk = place / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec cat'
    spaces = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk), str(ROOM + SPARE)]
    try:
        holder = subprocess.Popen(spaces, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise Unmeasured(f"no file system of its own can be had ({error})") from error
    with holder:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            why = " ".join(holder.stderr.read().decode("utf-8", "replace").split())
            raise Unmeasured(f"no file system of its own can be had ({why})")
        inside = Path(f"/proc/{holder.pid}/root{disk}")
        enter = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")

        def disturb(run: Process) -> None:
            with (inside / "ballast").open("wb") as ballast:
                _fill(ballast.fileno(), leave)
                _lasts(run, says)
            (inside / "ballast").unlink()

        def seen() -> Path:
            return Path(copytree(inside / "home", place / "copied"))

        yield Scene(disk / "home", disturb, says, seen, before=enter)


def _fill(file: int, leave: int) -> None:
    """Makes a file grow until no more than `leave` bytes are free beside it."""
    while True:
        known = os.fstatvfs(file)
        more = known.f_bavail * known.f_frsize - leave
        if more <= 0:
            return
        try:
            os.posix_fallocate(file, os.fstat(file).st_size, more)
        except OSError:                 # the run was quicker; what is free now is less
            time.sleep(0.001)


# The clock, the endpoint, the findings


@contextmanager
def _clock(place: Path, model: Model) -> Iterator[Scene]:
    module = ("lamplighter.experiments.night_clock", str(EVERY))
    yield Scene(place / "home", lambda run: None, "clock", lambda: place / "home", module=module)


@contextmanager
def _endpoint(ill: bool, place: Path, model: Model) -> Iterator[Scene]:
    says = "the endpoint http"

    def disturb(run: Process) -> None:
        if ill:
            model.ill = True
            _lasts(run, says)
            model.ill = False
        else:
            model.down()
            _lasts(run, says)
            model.up()

    yield Scene(place / "home", disturb, says, lambda: place / "home")


@contextmanager
def _held(to_the_end: bool, place: Path, model: Model) -> Iterator[Scene]:
    """Another process has the findings open, and nobody else can."""
    home, says = place / "home", "is in use by"
    with ExitStack() as stack:

        def disturb(run: Process) -> None:
            command = [sys.executable, "-c", _HOLD, str(home / "findings.duckdb")]
            holder = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert holder.stdin is not None and holder.stdout is not None
            holder.stdout.readline()
            if to_the_end:
                run.end()
            else:
                run.until(lambda: False, LASTS)
            holder.stdin.close()
            holder.wait()

        yield Scene(home, disturb, says, lambda: home)


FAULTS: dict[str, Fault] = {
    "disk nearly full": partial(_small_disk, ROOM // 2, "free on the disk"),
    "disk full": partial(_small_disk, 0, "free on the disk|cannot be used|cannot be made|cannot be written"),
    "clock stepped": _clock,
    "endpoint down": partial(_endpoint, False),
    "endpoint failing": partial(_endpoint, True),
    "findings held": partial(_held, False),
    "findings held to the end": partial(_held, True),
}

__all__ = ["FAULTS", "faults", "met"]
