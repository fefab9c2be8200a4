"""Fetches one wheel with pip, as a file: nothing of it is installed, imported or built."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..store.records import Refused

_POLL = 0.1         # seconds between two looks at a running download


def download(wheel: str, scratch: Path, lock: int, told: Callable[[int], None]) -> Path:
    """Runs `pip download` for `NAME==VERSION` and returns the one file it left in `scratch`.

    pip keeps its temporary files in `scratch` too, so that a download needs room on one disk only; `told(bytes)` hears
    how large it has grown. The child inherits the file descriptor `lock`, so that a lock held through it lasts until
    the child is gone, even when this process is killed. pip's own configuration (index, certificates) applies.
    Raises Refused when pip fails and OSError(ENOSPC) when it ran out of disk.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--ignore-requires-python", "--progress-bar=off", "--disable-pip-version-check"]
    with (scratch / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [*command, "--dest", str(scratch), wheel],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,),
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        try:
            while child.poll() is None:
                told(_largest(scratch))
                time.sleep(_POLL)
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        said = log.read()
    files = list(scratch.glob("*.whl"))
    if child.returncode or len(files) != 1:
        raise _failure(wheel, said)
    return files[0]


def _failure(wheel: str, said: str) -> Exception:
    """What pip's last words mean for the user."""
    if os.strerror(errno.ENOSPC) in said:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in said:
        return Refused(f"{sys.executable} has no pip to fetch {wheel} with; run `{sys.executable} -m ensurepip`.")
    errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()[-1:] or ["nothing"]
    last = errors[-1].removeprefix("ERROR: ").rstrip(". ")
    return Refused(
        f"{wheel} cannot be fetched: the package index does not have it or cannot be reached (pip says: {last}); "
        "check the network and pip's index settings, then pull again."
    )


def _largest(scratch: Path) -> int:
    """Bytes of the largest file under `scratch`; pip moves and removes files while this looks."""
    sizes = [0]
    for parent, _, files in os.walk(scratch):
        for file in files:
            try:
                sizes.append(os.stat(os.path.join(parent, file)).st_size)
            except FileNotFoundError:
                continue
    return max(sizes)
