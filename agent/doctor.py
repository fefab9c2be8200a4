"""What is here, what is missing, and what each lack costs."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..store.records import Refused
from ..tools import models
from .config import Home
from .embedded import lack
from .endpoint import Endpoint

ROOM = 3e9      # bytes that weights, sweeps and findings of a first project take together
LACKS = {
    "subject": "no embedded subject: name a folder or a hub id with --model",
    "masked LM": "no substitution and no patching by minimal pairs",
    "embedder": "no search by meaning",
    "corpus": "no builtin corpus: name text of yours with --corpus",
    "planner": "no embedded language model; the playbook needs none",
}


def examine(home: Home) -> list[dict[str, Any]]:
    """Rows {what, state: ok | missing | broken, found, cost}."""
    return [_python(), _torch(), _disk(home), *_weights(), _endpoint(home), _work(home), _findings(home)]


def _row(what: str, state: str, found: str, cost: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "found": found, "cost": cost}


def _python() -> dict[str, Any]:
    return _row("Python", "ok", f"{platform.python_version()} on {os.cpu_count()} cores, {sys.platform}")


def _torch() -> dict[str, Any]:
    try:
        build = version("torch")
    except PackageNotFoundError:
        return _row("torch", "missing", "not installed", "nothing can be measured; run make setup")
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: everything runs on the CPU"
    return _row("torch", "ok", f"{build}, {where}")


def _disk(home: Home) -> dict[str, Any]:
    place = next(p for p in (home.path, *home.path.parents) if p.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.0f} GB free"
    if free > ROOM:
        return _row("disk", "ok", found)
    return _row("disk", "missing", found, "a first project takes about 3 GB")


def _weights() -> list[dict[str, Any]]:
    return [_weight(row) for row in models.status()]


def _weight(row: models.Status) -> dict[str, Any]:
    cost = LACKS.get(row.role, "")
    if not row.present:
        return _row(row.name, "missing", f"`lamplighter models pull {row.name}`", cost)
    unserved = lack(row.name) if row.role == "planner" else None
    return _row(row.name, "missing", unserved, cost) if unserved else _row(row.name, "ok", row.role)


def _endpoint(home: Home) -> dict[str, Any]:
    try:
        chosen = Endpoint.configured(None, home.path)
    except Refused as refusal:
        return _row("endpoint", "broken", str(refusal), "no run with a language model of yours")
    return _row("endpoint", "ok", "none configured; LAMPLIGHTER_LLM_URL names one" if chosen is None else chosen.label)


def _work(home: Home) -> dict[str, Any]:
    if not (home.path / "work.sqlite").exists():
        return _row("work", "ok", f"no runs yet in {home.path}")
    try:
        waiting = home.work.pending()
    except Refused as refusal:
        return _row("work", "broken", str(refusal), "no run can start")
    return _row("work", "ok", f"{len(home.work.runs())} runs, {waiting} records on their way to the findings")


def _findings(home: Home) -> dict[str, Any]:
    if not home.findings.path.exists():
        return _row("findings", "ok", "nothing recorded yet")
    try:
        count = home.findings.sql("SELECT count(*) AS n FROM explanations")[0]["n"]
    except Refused as refusal:
        return _row("findings", "broken", str(refusal), "explanations cannot be read or written")
    return _row("findings", "ok", f"{count} explanations")
