"""A home with three units on record, one of them with hostile text, and the pages over it."""

import importlib.util
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamplighter.store.findings import Findings
from lamplighter.store.records import (
    Embedding,
    Evidence,
    Exemplar,
    Failure,
    Hypothesis,
    Investigation,
    Model,
    Record,
    Run,
    Score,
    Turn,
    Unit,
    Verdict,
    uuid7,
)

MODEL = "org/tiny"
HOSTILE = "</td><script>alert(1)</script> \u202etxet\u202c\u200b \x1b[31mred\x07 \"'><img src=x onerror=alert(2)>"
PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"
ARTIFACT = "ab" * 32


def missing(*modules: str) -> str | None:
    lacks = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacks)} is not installed" if lacks else None


WHY = missing("fastapi", "uvicorn", "multipart", "httpx")
collect_ignore_glob = ["test_*.py"] if WHY else []


def unit_records(index: int, sign: int = 1, sentence: str = "fires on the word “left”", verdict: str = "accepted",
                 text: str = "they turned", token: str = " left", site: str = "1-mlp") -> list[Record]:  # fmt: skip
    """All that an investigation leaves: one of each kind, and two of what pages show several of."""
    unit = f"{MODEL}/{site}/{index}"
    stamps: dict[str, Any] = {"unit": unit, "sign": sign, "run": "run-1"}
    made = Investigation(planner="playbook", status="submitted", steps=3, cost={}, seconds=2.0, **stamps)
    stamps["investigation"] = made.id
    made = replace(made, investigation=made.id)
    cost = {"forward_rows": 4, "forward_tokens": 40, "backward": 0, "seconds": 0.5}

    def evidence(tool: str, rows: list[dict[str, Any]], checks: dict[str, Any], **more: Any) -> Evidence:
        return Evidence(tool=tool, summary=f"{tool} says {text}", rows=rows, checks=checks, cost=cost,
                        provenance={"corpus": "c" * 8}, **stamps, **more)  # fmt: skip

    tokens = ["<s>", *(f" {word}" for word in text.split()), token]
    last = len(tokens) - 1
    cut_down = {"text": text + token, "tokens": tokens, "ids": list(range(len(tokens))), "kept": [last],
                "kept_text": token.strip(), "peak": 3.0, "retained": 2.7, "retention": 0.9, "mode": "resample",
                "one_minimal": True, "n_sets": 1, "shares": [None] * last + [1.0]}  # fmt: skip
    swapped = {"position": 2, "original": "left", "substitute": text, "activation": 0.1, "ratio": 0.04,
               "effect": "kills", "proposer": "masked"}  # fmt: skip
    carried = [
        {"role": "unit", "unit": unit, "direction": d, "carried": c, "carried_repeats": c, "metric": 1.0, "clean": 3.0,
         "corrupt": 0.1} for d, c in (("denoise", 0.4), ("noise", 0.2))
    ] + [{"role": "control", "unit": "x", "direction": "denoise", "carried": 0.01, "carried_repeats": 0.0,
          "metric": 0.0, "clean": None, "corrupt": None}]  # fmt: skip
    where = [{"where": w, "delta_ce": d, "low": d - 0.1, "high": d + 0.1, "n": 9}
             for w, d in (("firing", 0.3), ("after", 0.0))]  # fmt: skip
    lens = [{"side": s, "rank": 1, "token": text, "id": 3, "score": 1.0, "z": z, "beyond": True}
            for s, z in (("top", 5.0), ("bottom", -5.0))]  # fmt: skip
    steps = [
        evidence("minimal_example", [cut_down], {}),
        evidence("substitute", [swapped], {"kept_text": text}),
        evidence("patch", carried, {"clean_text": text + token, "corrupt_text": text + " right", "original": "left",
                                    "substitute": "right"}),
        evidence("ablate", where, {"pushed": [[text, 1.0, 3]], "held_down": [[" right", -1.0, 4]], "effect": "shown"},
                 warnings=[text]),
        evidence("lens", lens, {}, artifact=ARTIFACT),
    ]  # fmt: skip
    kept = Hypothesis(author="playbook", sentence=sentence, rule={"clauses": []}, rule_text=f"word {text}", kept=True,
                      evidence=[steps[0].id], tune_f1=0.9, **stamps)  # fmt: skip
    beaten = replace(kept, id=uuid7(), kept=False, sentence=f"another: {text}")
    pushes = replace(beaten, id=uuid7(), kept=True, side="output", sentence=f"pushes {text}", rule=None, rule_text=None)
    turn = Turn(question=f"is it {text}", by="playbook", tool="substitute", evidence=steps[1].id, ok=True,
                predictions={kept.id: [True, False], beaten.id: [False, False]}, outcome=[True, False],
                killed=[{"hypothesis": beaten.id, "by": kept.id, "difference": 0.2, "low": 0.1, "high": 0.3}],
                **stamps)  # fmt: skip
    f1 = Score(hypothesis=kept.id, metric="f1", side="score", value=0.8, low=0.7, high=0.9, n=40,
               floors={"always_on": 0.01, "shifted": 0.05}, **stamps)  # fmt: skip
    auc = replace(f1, id=turn.id + "x", hypothesis=pushes.id, metric="output_auc", value=0.95)
    none = Score(hypothesis=kept.id, metric="ce_recovered", side="score", value=None, reason=f"no {text}", **stamps)
    return [
        made, *steps, kept, beaten, pushes, turn, f1, auc, none,
        Unit(model=MODEL, site=site, index=index, peak=3.0, threshold=1.5, statistics={
            "tokens": {"explain": 1000, "tune": 500, "score": 600}, "firings": {"explain": 9, "tune": 4, "score": 5},
            "strata": {side: [5, 4, 3, 20, 568] for side in ("explain", "tune", "score")}}, **stamps),
        *(Exemplar(side="explain", band=band, document="d", position=7, activation=a, text=text + token, token=token,
                   **stamps) for band, a in (("top", 3.3), ("mid", 1.8))),
        Verdict(hypothesis=kept.id, verdict=verdict, reason=f"F1 0.80 {text}", p=0.001, q=0.01, **stamps),
        Embedding(hypothesis=kept.id, model="minilm", vector=[1.0, index / 10, 0.0], **stamps),
    ]  # fmt: skip


@pytest.fixture
def recorded() -> Callable[..., list[Record]]:
    """recorded(index, …): what an investigation of that unit leaves."""
    return unit_records


def fill(home: Path) -> Path:
    (home / "pictures").mkdir(parents=True)
    (home / "pictures" / f"{ARTIFACT}.png").write_bytes(PNG)
    (home / "secret.txt").write_text("nobody reads this")
    where = {"unit": f"{MODEL}/2-mlp/9", "sign": 1, "run": "run-1"}
    broken = Failure(kind="Timeout", message=HOSTILE, step=HOSTILE, attempt=1, **where)
    by_hand = Evidence(tool="activate", summary="by hand", unit=f"{MODEL}/1-mlp/7", sign=1,
                       rows=[{"position": 1, "token": HOSTILE, "id": 2, "activation": 2.0}])  # fmt: skip
    Findings(home / "findings.duckdb").append([
        Model(name=MODEL, architecture="llama", layers=4, vocabulary=300, checks={}, tools=[]),
        Run(key="k", asked={}, status="done", units=["a", "b"], run="run-1"),
        *unit_records(7), *unit_records(8, -1, "fires on numbers", "unclear"),
        *unit_records(9, 1, HOSTILE, "rejected", HOSTILE, HOSTILE, "2-resid:sae"), broken, by_hand,
    ])  # fmt: skip
    return home


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home; its findings are read and never written."""
    return fill(tmp_path_factory.mktemp("web") / "home")


def searcher(index: Any) -> Callable[..., Any]:
    """Search without an embedder, as `Finder.find` is; by direction, units 7 and 8- of 1-mlp write the same."""
    from lamplighter.store.search import Searched, search, why_none

    rows = np.zeros((10, 2), dtype=np.float32)
    rows[[7, 8, 9]] = [[1, 0], [-1, 0], [0, 1]]

    def find(text: Any, *, like: Any = None, by: Any = None, filters: Any = None, top: int = 10, skip: int = 0) -> Any:
        directions = (lambda site: rows if site == "1-mlp" else None) if by == "direction" else None
        hits = search(index, text, by=by, like=like, directions=directions, filters=filters, top=top, skip=skip)
        notes = [] if hits or skip else [why_none(index, filters, words=True)]
        return Searched(hits, by or ("word" if like is None else "both"), notes, index.as_of)

    return find


def read(unit: str, text: str) -> dict[str, Any]:
    """Readings that grow from word to word."""
    rows = [{"token": f" {word}", "activation": float(n)} for n, word in enumerate(text.split())]
    return {"summary": f"{unit} reads {len(text)} characters.", "rows": rows, "fires": True,
            "scale": {"peak": 4.0, "threshold": 2.0, "sweep": "s", "corpus": "c"}}  # fmt: skip


@pytest.fixture(scope="session")
def make_app(filled: Path) -> Callable[..., Any]:
    """Pages over a home for doors on a port: `(app, doors)`."""
    from lamplighter.store.guard import open_doors
    from lamplighter.store.index import Index
    from lamplighter.store.review_pages import MirroredDesk
    from lamplighter.store.server import create_app, services
    from lamplighter.store.snapshot import Snapshots
    from lamplighter.store.work import Work

    def make(
        port: int = 8600, live: bool = True, home: Path = filled, reviewers: Any = (), overlap: int = 2
    ) -> tuple[Any, Any]:
        findings = Findings(home / "findings.duckdb")
        doors = open_doors(home, "127.0.0.1", port, reviewers, "me")
        index = Index(findings, "minilm")
        given = services(
            Snapshots(findings, home / "snapshots"), index, home / "pictures", searcher(index),
            read=read if live else None,
        )  # fmt: skip
        desk = MirroredDesk(Work(home / "work.sqlite"), findings, given.mirror, overlap)
        return create_app(given, doors, desk), doors

    return make


@pytest.fixture(scope="session")
def served(make_app: Callable[..., Any]) -> Iterator[Any]:
    """A client that was let in, as a browser on our own page."""
    from starlette.testclient import TestClient

    app, doors = make_app()
    with TestClient(app, base_url="http://127.0.0.1:8600", headers={"origin": "http://127.0.0.1:8600"}) as client:
        client.doors = doors
        client.get(f"/?token={doors.tokens['me']}")
        yield client


@contextmanager
def serving(make_app: Callable[..., Any], port: int = 0, **more: Any) -> Iterator[tuple[Any, int]]:
    """A real server: its doors and its port."""
    import uvicorn

    from lamplighter.store import server

    sock = server.listen("127.0.0.1", port)
    app, doors = make_app(sock.getsockname()[1], **more)
    app.seconds = 1.0
    made = uvicorn.Server(uvicorn.Config(app, http=server.Prompt, ws="none", log_level="error", lifespan="on"))
    thread = threading.Thread(target=made.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not made.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield doors, doors.port
    made.should_exit = True
    thread.join(10)


@pytest.fixture
def serve(make_app: Callable[..., Any]) -> Callable[..., AbstractContextManager[tuple[Any, int]]]:
    """Real servers, over a home of the test's own."""
    return partial(serving, make_app)


@pytest.fixture(scope="session")
def running(make_app: Callable[..., Any]) -> Iterator[tuple[str, int]]:
    """A real server: the address that lets one in, and its port. Connections that say nothing end after a second."""
    from lamplighter.store import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "KEEP_ALIVE", 1.0)
        with serving(make_app) as (doors, port):
            yield doors.address("me"), port


@pytest.fixture
def own(filled: Path, tmp_path: Path) -> Path:
    """A copy of the home, to be written to."""
    return Path(shutil.copytree(filled, tmp_path / "own", ignore=shutil.ignore_patterns("snapshots", "work.sqlite*")))


@pytest.fixture
def spoken(running: tuple[str, int]) -> Callable[..., bytes]:
    """Says bytes to the server, in parts with pauses, and gives back all that it answers until it closes."""

    def say(*parts: bytes, pause: float = 0.0, wait: float = 5.0) -> bytes:
        with socket.create_connection(("127.0.0.1", running[1]), timeout=wait) as con:
            answer = b""
            try:
                for part in parts:
                    con.sendall(part)
                    time.sleep(pause)
                while chunk := con.recv(65536):
                    answer += chunk
            except (TimeoutError, ConnectionError) as error:
                answer += f"<{type(error).__name__}>".encode()
            return answer

    return say
