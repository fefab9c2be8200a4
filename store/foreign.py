"""Files that others wrote, read within bounds. Nothing in them is executed, no link is followed, and what does not fit
is named by file and line."""

import gzip
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from .records import Refused

LINE = 2**24           # bytes of a line, or of a JSON file
UNPACKED = 200         # bytes that a packed file may unfold to, for each of its own …
SPARE = 2**24          # … and these besides
FILES = 2_000_000      # in one folder
TENSORS = 2**32        # bytes of a file of tensors
SENTENCE = 4_000       # characters
NAME = 200
VALUES = 65_536        # items of a list
NAMED = 20             # of what was left out, so many are named

T = TypeVar("T")


class Malformed(ValueError):
    """A line or file that is not what it should be; says what is wrong with it."""


@dataclass
class Faults:
    """What was left out and why: `count` in all, the first NAMED of them by file and line."""

    count: int = 0
    named: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: str, line: int | None, why: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append({"file": file, "line": line, "why": why})

    def __str__(self) -> str:
        """The first of them."""
        if not self.named:
            return "nothing"
        first = self.named[0]
        place = first["file"] if first["line"] is None else f"{first['file']}, line {first['line']}"
        return f"{place}: {first['why']}"


# Files


def regular(path: Path) -> bool:
    """Whether it is a file and no link to one."""
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def below(folder: Path, *endings: str) -> list[Path]:
    """Files in a folder and its folders with one of these endings, in order; no link is followed.

    Raises Refused for more than FILES of them.
    """
    found: list[Path] = []
    if folder.is_symlink():
        return found
    for place, folders, names in os.walk(folder, followlinks=False):
        folders.sort(key=_as_people_count)
        paths = (Path(place, name) for name in sorted(names, key=_as_people_count) if name.endswith(endings))
        found += [path for path in paths if regular(path)]
        if len(found) > FILES:
            raise Refused(f"{folder} holds more than {FILES:,} files; import a part of it at a time.")
    return found


def _as_people_count(name: str) -> list[tuple[int, str]]:
    """batch-2 before batch-10."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def json_file(path: Path) -> Any:
    """What a JSON file holds. Raises Malformed."""
    try:
        if path.stat().st_size > LINE:
            raise Malformed(f"it has more than {LINE:,} bytes")
        return parsed(path.read_bytes())
    except OSError as error:
        raise Malformed(f"it cannot be read ({error.strerror or error})") from error


def lines(path: Path, shown: str, faults: Faults) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a text file that may be packed (.gz); empty lines are passed over.

    A line of more than LINE bytes, and a packed file that breaks off, are noted in `faults`. Raises Refused for a
    packed file that unfolds to far more than such files do.
    """
    number, read = 0, 0
    try:
        most = UNPACKED * path.stat().st_size + SPARE
        with _opened(path) as file:
            while line := file.readline(LINE + 1):
                number += 1
                read += len(line)
                if len(line) > LINE:
                    faults.add(shown, number, f"the line has more than {LINE:,} bytes")
                    read += _to_the_end(file, most - read)
                if read > most:
                    raise Refused(
                        f"{path} unfolds to more than {UNPACKED} times its size, as no text does; leave it out."
                    )
                if len(line) <= LINE and line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        faults.add(shown, number + 1, f"the file cannot be read any further ({error})")


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _to_the_end(file: IO[bytes], most: int) -> int:
    """Reads what is left of a line, up to `most` bytes and a piece; how many there were."""
    read = 0
    while read <= most and (piece := file.readline(LINE)):
        read += len(piece)
        if piece.endswith(b"\n"):
            break
    return read


def parsed(raw: bytes) -> Any:
    """JSON, with None for numbers that are not finite. Raises Malformed."""
    try:
        return json.loads(raw, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON ({str(error)[:100]})") from error


# What is in them


def fields(value: Any) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise Malformed("it is no JSON object")
    return value


def items(value: Any, what: str) -> list[Any]:
    """A list of at most VALUES items."""
    if not isinstance(value, list) or len(value) > VALUES:
        raise Malformed(f"{what} is no list of at most {VALUES:,}")
    return value


def text(value: Any, what: str, most: int = SENTENCE) -> str:
    """A text that is not blank, of at most `most` characters, and that a file can hold."""
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{what} is no text")
    if len(value) > most:
        raise Malformed(f"{what} has {len(value):,} characters, and at most {most:,} are taken")
    return plain(value, what)


def plain(value: Any, what: str) -> str:
    """Any text that a file can hold."""
    if not isinstance(value, str):
        raise Malformed(f"{what} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{what} holds half a character") from None
    return value


def name(value: Any, what: str) -> str | None:
    """A name, if one is given: on one line and short."""
    return None if value in (None, "") else text(value, what, NAME)


def whole(value: Any, what: str) -> int:
    """A number from 0 to 99,999,999, as JSON or in digits."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,8}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**8:
        raise Malformed(f"{what} is {str(value)[:20]!r}, which is no number of a unit or layer")
    return value


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def numbers(value: Any, what: str) -> list[float]:
    """A list of finite numbers."""
    found = [number(one) for one in items(value, what)]
    if None in found:
        raise Malformed(f"{what} holds what is no finite number")
    return [one for one in found if one is not None]


def tokens(value: Any, what: str) -> list[str]:
    """A list of texts."""
    return [plain(one, what) for one in items(value, what)]


def taken(make: Callable[[], T], file: str, line: int | None, faults: Faults) -> T | None:
    """What `make` gives, or None where it is Malformed or Refused, with the fault noted."""
    try:
        return make()
    except (Malformed, Refused) as error:
        faults.add(file, line, str(error).rstrip("."))
        return None
