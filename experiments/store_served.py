"""`lamplighter serve` in a process of its own, asked as a browser asks, on a home that is written to."""

import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from ..agent.config import Home
from ..store.records import Refused
from .report import Claim, Part, Progress
from .store_made import EVERY, LAYERS, LEAN, MODEL, Maker, at_work, made_home
from .store_search import UNITS
from .store_times import Times
from .store_writer import RATE, writing

ASKED = 200              # of each page
BARS = {"unit page": 100.0, "start page": 300.0}
RARELY = {"search page": 10}      # asked for in every tenth round; what has no bar in every fourth
READY = 900.0            # seconds in which the first page is there: everything is copied once
SILENT = 60.0            # … and any other


class Served:
    """A server that runs: its address for each name that may come in, its port, its process."""

    def __init__(self, process: "subprocess.Popen[bytes]", addresses: dict[str, str]) -> None:
        self.process, self.addresses = process, addresses
        self.port = int(re.search(r":(\d+)/", next(iter(addresses.values())))[1])  # type: ignore[index]

    def token(self, name: str | None = None) -> str:
        """What lets somebody in."""
        address = self.addresses[name] if name else next(iter(self.addresses.values()))
        return address.partition("token=")[2]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def memory(self) -> dict[str, float]:
        """MB of it in memory now, and at most so far; nothing where there is no /proc."""
        try:
            told = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return {}
        return {name: int(re.search(rf"{key}:\s+(\d+)", told)[1]) / 1000  # type: ignore[index]
                for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}  # fmt: skip

    def worked(self) -> float:
        """Seconds of CPU that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(home: Path, *more: str, port: int = 0) -> Iterator[Served]:
    """`lamplighter serve` on a home while the block lasts. Raises Refused where it does not begin."""
    command = [sys.executable, "-P", "-m", "lamplighter", "serve", "--port", str(port), "--home", str(home), "--json"]
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen([*command, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            said = (home / "serve.log").read_text()[-300:]
            raise Refused(f"lamplighter serve did not begin ({said.strip()}); see what it says.")
        server = Served(process, json.loads(line)["addresses"])
        _wait_for(server)
        yield server
    finally:
        process.stdout.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(server: Served) -> None:
    """Until it takes connections, which is some moments after it has told its address."""
    deadline = time.monotonic() + SILENT
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=SILENT).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return


class Visitor:
    """Somebody who came in, on one connection."""

    def __init__(self, server: Served, name: str | None = None, patience: float = SILENT) -> None:
        self.server = server
        self.con = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience)
        self.heads = {"authorization": f"Bearer {server.token(name)}"}

    def get(self, path: str) -> bytes:
        """The whole of a page. Raises Refused where it is not given."""
        try:
            self.con.request("GET", path, headers=self.heads)
            answer = self.con.getresponse()
            body = answer.read()
        except (http.client.HTTPException, ConnectionError):      # it closed a connection that was not used
            self.con.close()
            self.con.request("GET", path, headers=self.heads)
            answer = self.con.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise Refused(f"{path} was answered with {answer.status} ({body[:200]!r}); see what the server says.")
        return body

    def facts(self, path: str) -> dict[str, Any]:
        """The same of the API."""
        found: dict[str, Any] = json.loads(self.get(path))
        return found

    def lag(self, began: datetime) -> float:
        """Seconds for which results were written that pages do not tell of, where writing began then."""
        as_of = datetime.fromisoformat(self.facts("/api/v1/models")["as_of"]).replace(tzinfo=UTC)
        return (datetime.now(UTC) - max(as_of, began)).total_seconds()


def pages(folder: Path, seed: int, size: float, tell: Progress) -> Part:
    """Units drawn at random, the start page, lists and search, while results are written to the same home."""
    units = max(300, round(UNITS * size))
    home = at_work(made_home(folder, units, seed, tell), folder)
    try:
        with served(home.path) as server:
            return visited(home, server, units, seed, max(10, round(ASKED * min(1.0, 10 * size))), tell)
    finally:
        home.work.close()
        shutil.rmtree(home.path, ignore_errors=True)


def visited(home: Home, server: Served, units: int, seed: int, many: int, tell: Progress, rate: int = RATE) -> Part:
    """Asks for `many` of each page that has a bar, and fewer of others, in turn, with a short rest between."""
    first = Times("first start page, which copies the findings")
    patient, visitor = Visitor(server, patience=READY), Visitor(server)
    first.of(lambda: patient.get("/"))
    memory = {"before the writer": server.memory().get("now")}
    draw, maker = random.Random(seed), Maker(seed, LEAN)
    kinds = page_kinds(draw, maker, units)
    search = Times("search, the first time")
    search.of(lambda: patient.get(kinds["search page"]()))
    times = {kind: Times(kind) for kind in kinds}
    lags, seen = [], set()
    worked, began, since = server.worked(), time.perf_counter(), datetime.now(UTC)
    with writing(home, units, seed, rate) as written:
        for number in range(many):
            for kind, address in kinds.items():
                if number % RARELY.get(kind, 1 if kind in BARS else 4):
                    continue
                path = address()
                times[kind].of(lambda path=path: visitor.get(path))  # type: ignore[misc]
                time.sleep(0.01)
            lags.append(visitor.lag(since))
            seen.add(visitor.facts("/api/v1/models")["as_of"])
            tell("pages", number + 1, many)
        worked, wall = server.worked() - worked, time.perf_counter() - began
        memory |= {"with the writer on": server.memory().get("now"), "at most": server.memory().get("most")}
    bars = {kind: BARS.get(kind) for kind in kinds}
    patient.con.close()
    costs = {kind: _cost(server, visitor, address, many) for kind, address in kinds.items()}
    visitor.con.close()
    rows = []
    for one in (*times.values(), first, search):
        one.worked.clear()           # this process only waited
        cost = costs.get(one.name, "not told")
        rows.append(one.row(seed, bars.get(one.name), **{"server's CPU ms each, writer off": cost}))
    around = {
        "explained units": units, "results written a second": written["results a second"],
        "writer was kept waiting": written["busy"], "seconds behind the findings, median": float(np.median(lags)),
        "seconds behind the findings, most": max(lags), "copies seen": len(seen),
        "server's CPU seconds a second": worked / wall,
        **{f"MB of the server {when}": mb for when, mb in memory.items()},
    }  # fmt: skip
    claims = [times[kind].claim(seed, bar) for kind, bar in BARS.items()]
    steady = written["results a second"]
    claims.append(Claim("results written a second meanwhile (pages)", steady, written["moved"], f"about {rate}",
                        steady >= 0.8 * rate))  # fmt: skip
    return {"pages": rows, "around pages": [{"what": name, "is": value} for name, value in around.items()]}, claims


def _cost(server: Served, visitor: Visitor, address: Callable[[], str], many: int) -> float:
    """CPU milliseconds of the server for a page, in the mean of some in a row, whatever else the machine does."""
    worked = server.worked()
    for _ in range(max(5, many // 10)):
        visitor.get(address())
    return 1000 * (server.worked() - worked) / max(5, many // 10)


def page_kinds(draw: random.Random, maker: Maker, units: int) -> dict[str, Callable[[], str]]:
    """What pages there are, each as a way to draw an address."""

    def unit() -> str:
        return unit_path(draw.randrange(units))

    def listed(**more: Any) -> str:
        asked = {"model": MODEL, "site": f"{draw.randrange(max(1, min(LAYERS, units // EVERY)))}-mlp", **more}
        return "/units?" + urlencode(asked)

    return {
        "unit page": unit, "start page": lambda: "/", "list of a layer": lambda: listed(order="best"),
        "list by verdict and F1": lambda: listed(verdict="accepted", min_score=0.5),
        "list of all, deep in": lambda: f"/units?skip={50 * draw.randint(0, max(0, units // 50 - 1))}",
        "search page": lambda: "/search?" + urlencode({"q": maker.phrase(draw)}),
        "unit as JSON": lambda: "/api/v1" + unit(),
        "units like one": lambda: f"/search?by=meaning&like={unit().removeprefix('/units/')}",
    }  # fmt: skip


def unit_path(number: int) -> str:
    """The address of the page of a made unit."""
    site, index = f"{number // EVERY % LAYERS}-mlp", number % EVERY + EVERY * (number // (EVERY * LAYERS))
    return f"/units/{quote(f'{MODEL}/{site}/{index}', safe='/')}"


__all__ = ["Served", "Visitor", "page_kinds", "pages", "served", "unit_path", "visited"]
