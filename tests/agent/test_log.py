"""The log of a run: lines that machines read, whatever happens to texts, threads and disks."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.agent import log
from lamplighter.agent.config import Home
from lamplighter.agent.log import HIDDEN, LONGEST, bound, event, open_log


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def lines(home: Home, run: str = "r", end: str = "") -> list[dict[str, Any]]:
    path = home.path / "logs" / f"{run}.jsonl{end}"
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_line_has_its_stamps_and_what_the_event_brought(home: Home) -> None:
    with open_log(home, "r"):
        event("begun", units=3)
        with bound(unit="m/5-mlp/1-", attempt=2, worker="w"):
            event("step", what="plan", level=logging.WARNING)
            with bound(attempt=3):
                event("step", worker="other")
        event("ended")
    first, second, third, last = lines(home)
    told = {"level": "info", "event": "begun", "run": "r", "unit": None, "attempt": None, "worker": None, "units": 3}
    assert told.items() <= first.items()
    assert list(first)[:3] == ["time", "level", "event"] and first["time"].endswith("Z")
    assert (second["level"], second["unit"], second["attempt"], second["what"]) == ("warning", "m/5-mlp/1-", 2, "plan")
    assert (third["attempt"], third["worker"], third["unit"]) == (3, "other", "m/5-mlp/1-")
    assert last["unit"] is None


def test_without_an_open_log_an_event_goes_nowhere(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    event("lost", level=logging.CRITICAL)
    with open_log(home, "r"):
        event("kept")
    event("lost again", level=logging.ERROR)
    assert [line["event"] for line in lines(home)] == ["kept"] and capsys.readouterr() == ("", "")


def test_events_that_are_bound_to_another_run_are_in_its_log_alone(home: Home) -> None:
    with open_log(home, "a"), open_log(home, "b"):
        for run in ("a", "b"):
            with bound(run=run):
                event(f"of {run}")
        event("of nobody")
    assert [line["event"] for line in lines(home, "a")] == ["of a", "of nobody"]
    assert [line["event"] for line in lines(home, "b")] == ["of b", "of nobody"]
    assert {line["run"] for line in lines(home, "b")} == {"b"}


def test_threads_bind_their_own(home: Home) -> None:
    barrier = threading.Barrier(4)

    def toil(number: int) -> None:
        with bound(unit=f"u{number}", attempt=number):
            barrier.wait()
            for _ in range(50):
                event("step", number=number)

    with open_log(home, "r"), bound(unit="of the main thread"):
        threads = [threading.Thread(target=toil, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        event("joined")
    told = lines(home)
    assert len(told) == 201 and told[-1]["unit"] == "of the main thread"
    assert all((line["unit"], line["attempt"]) == (f"u{line['number']}", line["number"]) for line in told[:-1])
    assert all(line["run"] == "r" for line in told)


# Hostile facts

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=400), st.binary()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from texts(item)


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=5))
def test_any_fact_is_one_line_of_strict_json(facts: dict[str, Any]) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "told %s \ud83d", (), None)
    record.facts = facts
    line = log.JsonLine("r").format(record)
    assert line.isascii() and "\n" not in line and len(line) < log.LINE

    def refuse(text: str) -> Any:
        raise AssertionError(text)

    told = json.loads(line, parse_constant=refuse)
    assert all(len(text) <= LONGEST for text in texts(told))
    assert told["event"] == "told %s \ud83d"


def test_facts_cannot_pass_for_what_every_line_has(home: Home) -> None:
    with open_log(home, "r"):
        event("true", **{"event": "forged", "time": "never", "self": 1, "name": 2, "text": "a\u2028\n\x1b[2J"})
    (line,) = lines(home)
    assert line["event"] == "true" and line["time"] != "never" and line["name"] == 2
    assert line["text"] == "a\u2028\n\x1b[2J", "told as it is, in escapes"


def test_long_things_are_cut(home: Home) -> None:
    deep: list[Any] = []
    deep.append(deep)
    with open_log(home, "r") as opened:
        event("long", text="x" * 10_000, rows=list(range(1000)), deep=deep)
        event("longer", **{f"f{i}": ["y" * 200] * 20 for i in range(20)})
    first, second = lines(home)
    assert len(first["text"]) == LONGEST and first["text"].endswith("…") and len(first["rows"]) == log.MOST
    assert "bytes" in second["cut"] and "f0" in second["cut"] and opened.lost == 0


def test_no_key_is_in_a_log(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_LLM_KEY", "hunter2-hunter2")
    with open_log(home, "r"):
        event(
            "asked", api_key="abc", headers={"Authorization": "xyz", "n": 1}, tokens=12, llm_tokens=7, token="pst",
            error="refused hunter2-hunter2 with Bearer qwertyuiop and sk-abcdefgh12345678",
        )  # fmt: skip
    (line,) = lines(home)
    assert line["api_key"] == line["headers"]["Authorization"] == line["token"] == HIDDEN
    assert (line["tokens"], line["llm_tokens"], line["headers"]["n"]) == (12, 7, 1)
    assert line["error"] == f"refused {HIDDEN} with {HIDDEN} and {HIDDEN}"


# Files


def test_files_are_rotated_by_size_and_the_oldest_dropped(home: Home) -> None:
    handler = log.RunLog(home.path / "logs" / "r.jsonl", "r", max_bytes=1000, backups=2)
    log._logger.addHandler(handler)
    try:
        for number in range(60):
            event("step", number=number)
    finally:
        log._logger.removeHandler(handler)
        handler.close()
    files = sorted(path.name for path in (home.path / "logs").glob("r.jsonl*") if not path.name.endswith(".lock"))
    assert files == ["r.jsonl", "r.jsonl.1", "r.jsonl.2"] and handler.lost == 0
    assert all((home.path / "logs" / name).stat().st_size <= 1000 for name in files)
    kept = [line["number"] for end in (".2", ".1", "") for line in lines(home, end=end)]
    assert kept == list(range(kept[0], 60)) and kept[0] > 0
    assert (log.BYTES, log.BACKUPS) == (10_000_000, 5)


TWO = """
import sys
from pathlib import Path
from lamplighter.agent import log
handler = log.RunLog(Path(sys.argv[1]), "r", max_bytes=4000, backups=50)
log._logger.addHandler(handler)
for number in range(150):
    log.event("step", who=sys.argv[2], number=number)
handler.close()
sys.exit(handler.lost)
"""


def test_two_processes_write_one_log_and_lose_nothing(home: Home) -> None:
    path = home.path / "logs" / "r.jsonl"
    both = [subprocess.Popen([sys.executable, "-c", TWO, path, who]) for who in "ab"]
    assert [process.wait(120) for process in both] == [0, 0]
    ends = [path.name.removeprefix("r.jsonl") for path in path.parent.glob("r.jsonl*") if path.suffix != ".lock"]
    told = [(line["who"], line["number"]) for end in ends for line in lines(home, end=end)]
    assert sorted(told) == [(who, number) for who in "ab" for number in range(150)] and len(ends) > 3


# Disks


def test_a_full_disk_is_told_once_and_ends_nothing(
    home: Home, room_for: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(home, "r") as opened:
        event("before")
        size = (home.path / "logs" / "r.jsonl").stat().st_size
        with room_for(size + 30):
            for number in range(5):
                event("lost", number=number)
        event("after", number=9)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("lamplighter: the log") and "cannot be written" in said and opened.lost == 5
    raw = (home.path / "logs" / "r.jsonl").read_text().splitlines()
    assert json.loads(raw[0])["event"] == "before" and json.loads(raw[-1])["event"] == "after"
    assert len(raw) == 3, "the line that was cut off has an end of its own"


def test_a_folder_that_cannot_be_made_ends_nothing(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.path.mkdir()
    (home.path / "logs").write_text("a file")
    with open_log(home, "r") as opened:
        event("one")
        event("two")
    assert opened.lost == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_log_that_was_deleted_is_begun_again(home: Home) -> None:
    with open_log(home, "r"):
        event("one")
        (home.path / "logs" / "r.jsonl").unlink()
        event("two")
    assert [line["event"] for line in lines(home)] == ["two"]
