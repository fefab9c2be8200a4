"""Files that others wrote: bounds hold, faults are named by file and line, and nothing outside is read."""

import gzip
import json
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store import foreign
from lamplighter.store.foreign import Faults, Malformed
from lamplighter.store.records import Refused


def read(path):
    faults = Faults()
    return [(number, line) for number, line in foreign.lines(path, path.name, faults)], faults


@pytest.mark.parametrize("packed", [False, True])
def test_lines_are_numbered_and_empty_ones_passed_over(tmp_path, packed):
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    raw = b"one\n\n  \ntwo"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    found, faults = read(path)
    assert [(number, line.strip()) for number, line in found] == [(1, b"one"), (4, b"two")]
    assert faults.count == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_is_too_long_is_named_and_the_next_ones_are_read(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(foreign, "LINE", 100)
    path = tmp_path / ("a.gz" if packed else "a")
    raw = b"ok\n" + b"x" * 350 + b"\nalso\n" + b"y" * 100 + b"\n"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    found, faults = read(path)
    assert [number for number, _ in found] == [1, 3]
    assert [(fault["file"], fault["line"]) for fault in faults.named] == [(path.name, 2), (path.name, 4)]
    assert "more than 100 bytes" in str(faults) and str(faults).startswith(f"{path.name}, line 2: ")


@pytest.mark.parametrize("line", [b"\0" * 2**20 + b"\n", b"\0" * 2**20])
def test_a_bomb_is_refused_before_it_is_unfolded(tmp_path, monkeypatch, line):
    """What is read of it stays near the bound: here 200 times its size, and 2 MB."""
    monkeypatch.setattr(foreign, "SPARE", 2**21)
    monkeypatch.setattr(foreign, "LINE", 2**19)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(line * 100, 9))
    read_so_far, real = [], foreign._opened

    def counted(given):
        file = real(given)
        whole = file.readline
        file.readline = lambda size: read_so_far.append(len(line := whole(size))) or line
        return file

    monkeypatch.setattr(foreign, "_opened", counted)
    with pytest.raises(Refused, match="unfolds to more than 200 times its size"):
        read(path)
    assert sum(read_so_far) < 200 * path.stat().st_size + 2**21 + 2**20 < 2**20 * 100


def test_ordinary_text_packs_less_than_that(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    rows = [{"tokens": ["the", " same", " words"] * 40, "values": [0.0] * 120, "index": str(i)} for i in range(2000)]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 9))
    assert len(read(path)[0]) == 2000


def test_a_packed_file_that_breaks_off_is_named_where_it_does(tmp_path):
    path = tmp_path / "a.gz"
    whole = gzip.compress(b"".join(os.urandom(60).hex().encode() + b"\n" for _ in range(2000)))
    path.write_bytes(whole[: len(whole) // 2])
    found, faults = read(path)
    assert 100 < len(found) < 2000 and faults.named[0]["line"] == len(found) + 1
    path.write_bytes(b"no gzip at all")
    assert read(path)[0] == [] and "cannot be read any further" in str(read(path)[1])
    assert read(tmp_path / "missing")[1].count == 1


def test_links_lead_nowhere(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside):
        folder.mkdir()
    (outside / "secret.txt").write_text("s")
    (inside / "link.txt").symlink_to(outside / "secret.txt")
    (inside / "folder").symlink_to(outside)
    (inside / "own.txt").write_text("o")
    os.mkfifo(inside / "pipe.txt")       # opening one would wait for ever
    assert foreign.below(inside, ".txt") == [inside / "own.txt"]
    assert foreign.below(inside / "folder", ".txt") == []
    assert foreign.below(tmp_path / "nowhere", ".txt") == []


def test_files_come_in_the_order_of_their_numbers_and_are_bounded(tmp_path, monkeypatch):
    for number in (10, 2, 1):
        (tmp_path / f"batch-{number}.jsonl").write_text("")
    assert [path.stem for path in foreign.below(tmp_path, ".jsonl")] == ["batch-1", "batch-2", "batch-10"]
    monkeypatch.setattr(foreign, "FILES", 2)
    with pytest.raises(Refused, match="more than 2 files"):
        foreign.below(tmp_path, ".jsonl")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("was-here",))


BAD_JSON = {
    "half": b'{"a": ', "no UTF-8": b'{"a": "\xff"}', "deep": b"[" * 100_000, "pickle": pickle.dumps(Bomb()),
    "long number": b"9" * 10_000, "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_JSON)
def test_what_is_no_json_is_malformed(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Malformed, match="no JSON"):
        foreign.parsed(BAD_JSON[case])
    assert os.listdir() == [], "nothing was executed"


def test_a_json_file_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('["a"]')
    assert foreign.json_file(path) == ["a"]
    monkeypatch.setattr(foreign, "LINE", 4)
    with pytest.raises(Malformed, match="more than 4 bytes"):
        foreign.json_file(path)


def test_numbers_that_are_not_finite_are_none():
    told = foreign.parsed(b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5, "e": true, "f": "1"}')
    assert [foreign.number(told[name]) for name in "abcdef"] == [None, None, None, 1.5, None, None]
    assert foreign.number(10**400) is None
    with pytest.raises(Malformed, match="no finite number"):
        foreign.numbers([1, None], "values")


@pytest.mark.parametrize("value", ["", " \n", None, 5, "x" * 4001, "\ud800 half"])
def test_a_text_that_is_none_is_malformed(value):
    with pytest.raises(Malformed):
        foreign.text(value, "it")
    assert foreign.text("\0<script>\u202e", "it") == "\0<script>\u202e", "what is strange is shown, not taken away"


@pytest.mark.parametrize("value", [-1, 10**8, "12x", "-1", "", None, True, 1.0, "１"])
def test_an_index_that_is_none_is_malformed(value):
    with pytest.raises(Malformed):
        foreign.whole(value, "index")
    assert foreign.whole("007", "index") == foreign.whole(7, "index") == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_whatever_a_value_is_a_reader_gives_its_kind_or_says_malformed(value):
    kinds = {
        foreign.fields: dict, lambda v: foreign.text(v, ""): str, lambda v: foreign.numbers(v, ""): list,
        lambda v: foreign.tokens(v, ""): list, lambda v: foreign.whole(v, ""): int,
    }  # fmt: skip
    for reader, kind in kinds.items():
        try:
            assert isinstance(reader(value), kind)
        except Malformed:
            continue


def test_only_the_first_faults_are_kept_and_all_are_counted():
    faults = Faults()
    assert str(faults) == "nothing"
    for line in range(100):
        assert foreign.taken(lambda: foreign.whole("x", "index"), "f", line, faults) is None
    assert faults.count == 100 and len(faults.named) == foreign.NAMED
    assert str(faults) == "f, line 0: index is 'x', which is no number of a unit or layer"
