"""The embedded planner's server: llama.cpp in a child process, on loopback, from weights that `models pull` fetched.

One child a run, started at the first call. It ends with its parent however that ends, kill -9 included: it reads a
pipe that only the parent holds open, and the end of that pipe is its own. The key is random and travels over the
pipe, so that it stands in no list of processes.
"""

import ctypes.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from ..store.records import Refused
from ..tools import models

CONTEXT = 8192          # tokens; the longest investigation that a planner writes stays below this
START_SECONDS = 180.0   # loading 1.1 GB from a cold disk; seven seconds from a warm one


def lack(name: str) -> str | None:
    """What keeps the embedded model `name` from being served here, with the way out; None if nothing does."""
    if not models.installed(name):
        return f"the embedded language model {name} is not here; run `lamplighter models pull {name}`."
    if find_spec("xllamacpp") is None:
        return "the package xllamacpp, which serves the embedded language model, is not installed; run `make setup`."
    if sys.platform == "linux" and ctypes.util.find_library("gomp") is None:
        return "the system library libgomp.so.1 is missing; install it (Debian and Ubuntu: apt install libgomp1)."
    return None


class EmbeddedServer:
    """`url` and `key` of a server for the embedded model `name`; the child starts when they are first asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = secrets.token_urlsafe(24)
        self._child: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._url = ""

    def connect(self) -> tuple[str, str]:
        """(URL, key) of the living server. Raises Refused, with the way out, where it cannot be had."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        return self._url, self._key

    def close(self) -> None:
        """Ends the child, if there is one."""
        if self._child is not None:
            assert self._child.stdin is not None and self._child.stdout is not None
            with suppress(BrokenPipeError):      # it has ended before it read its key
                self._child.stdin.close()
            self._child.wait()
            self._child.stdout.close()
        if self._log is not None:
            self._log.close()
        self._child = self._log = None

    def _start(self) -> None:
        self.close()
        missing = lack(self.name)
        if missing is not None:
            raise Refused(missing)
        weights = models.folder(self.name) / "model.gguf"
        self._log = tempfile.TemporaryFile("w+", errors="replace")     # noqa: SIM115 — open as long as the child
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(weights)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(BrokenPipeError):          # it has ended by now; what it said is read below
            self._child.stdin.write(self._key + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            self._child.kill()                   # it may still be about to end, and is not to be taken for alive
            self._child.wait()
            raise Refused(f"the embedded language model {self.name} did not start: {self._last_words()}")
        self._url = str(json.loads(line)["url"])

    def _last_words(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        said = [line.strip() for line in self._log if line.strip()] or ["it said nothing"]
        return f"{said[-1][:200]}; run `lamplighter doctor`."


def _serve(weights: Path) -> None:
    """What the child does: serves until the pipe from its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C is for the parent, which still wants its last reply
    key = sys.stdin.readline().strip()
    signal.alarm(int(START_SECONDS))                 # a load that hangs ends the child, and the parent reads that
    import xllamacpp

    wish = xllamacpp.CommonParams()
    wish.model.path = str(weights)
    wish.hostnames, wish.port, wish.api_keys = ["127.0.0.1"], 0, [key]
    wish.n_ctx, wish.n_parallel, wish.use_jinja = CONTEXT, 1, True
    wish.cpuparams.n_threads = os.cpu_count() or 1
    server = xllamacpp.Server(wish)
    signal.alarm(0)
    print(json.dumps({"url": server.listening_address}), flush=True)  # noqa: T201
    sys.stdin.read()
    os._exit(0)          # the server's threads do not end by themselves


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
