"""Documents, near copies and sides: the fast near-copy search against the definition written out, and bad input."""

import hashlib
import json
import os
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools import copies, corpus, measures, models
from lamplighter.tools.copies import components, near_copies
from lamplighter.tools.corpus import headings, load_corpus


def text_of(seed: int, n: int) -> list[str]:
    """n words that no other seed has."""
    draw = random.Random(seed)
    return [f"{seed}w{draw.randrange(10**6)}".translate(str.maketrans("0123456789", "abcdefghij")) for _ in range(n)]


def slow_near_copies(texts: list[str]) -> list[tuple[int, int]]:
    """The definition, on tuples of words and every pair."""
    words = [re.findall(r"\w+", re.sub(r"\d", "0", text.casefold())) for text in texts]
    width = measures.SHINGLE

    def grams(sequence: list[str], n: int) -> list[tuple[str, ...]]:
        n = min(n, len(sequence))
        return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)] if n else []

    counts = Counter(gram for sequence in words for gram in set(grams(sequence, width)))
    limit = max(measures.COMMON_SHINGLE, measures.COMMON_SHARE * len(texts))
    rare = [{gram for gram in grams(sequence, width) if counts[gram] <= limit} for sequence in words]
    own = []
    for sequence in words:
        at = [k for k, gram in enumerate(grams(sequence, width)) if counts[gram] <= limit]
        kept = {place for k in at for place in range(k, min(k + width, len(sequence)))}
        own.append([word for place, word in enumerate(sequence) if place in kept])
    found = []
    for i, j in combinations(range(len(texts)), 2):
        shared = rare[i] & rare[j]
        runs = set(grams(words[i], measures.NEAR_RUN)) & set(grams(words[j], measures.NEAR_RUN))
        run = any(len(r) == measures.NEAR_RUN and rare[i] & set(grams(list(r), width)) for r in runs)
        short, long = sorted((own[i], own[j]), key=len)
        ordered = len(long) <= measures.ORDER_SIZES * len(short) and len(short) <= measures.ORDER_WORDS
        ordered = ordered and subsequence(short, long) >= measures.NEAR_ORDER * len(short)
        if shared and (run or ordered or len(shared) >= measures.NEAR_SHARE * min(len(rare[i]), len(rare[j]))):
            found.append((i, j))
    return found


def subsequence(one: list[str], other: list[str]) -> int:
    """By the textbook's table."""
    row = [0] * (len(other) + 1)
    for word in one:
        before, row = row, [0]
        for k, seen in enumerate(other):
            row.append(before[k] + 1 if word == seen else max(before[k + 1], row[k]))
    return row[-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcde"), max_size=80))
def test_a_common_subsequence_is_the_longest(one: list[str], other: list[str]) -> None:
    hashed = [copies.words(" ".join(words)) for words in (one, other)]
    assert copies.common_subsequence(*hashed) == subsequence(one, other)


def test_a_short_text_with_words_deleted_is_still_a_copy() -> None:
    """Of 400 texts of 50 words, each with a copy that lacks 30 % of them; by shingles alone some escape."""
    draw = random.Random(0)
    texts = []
    for seed in range(400):
        words = text_of(seed, 50)
        texts += [" ".join(words), " ".join(word for word in words if draw.random() >= 0.3)]
    wanted = [(2 * k, 2 * k + 1) for k in range(400)]
    assert near_copies(texts) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "ORDER_WORDS", 0)
        missed = set(wanted) - set(near_copies(texts))
    assert len(missed) > 10


def test_texts_that_share_a_phrase_are_no_copies() -> None:
    phrase = text_of(99, 6)
    texts = [" ".join(text_of(seed, 60) + phrase) for seed in range(4)]
    assert near_copies(texts) == []


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_near_copies_are_those_of_the_definition(data: st.DataObject) -> None:
    pool = [text_of(seed, 70) for seed in range(6)]
    piece = st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(1, 70))
    recipes = data.draw(st.lists(st.lists(piece, min_size=1, max_size=4), min_size=2, max_size=9))
    texts = [" ".join(word for seed, a, n in recipe for word in pool[seed][a : a + n]) for recipe in recipes]
    assert near_copies(texts) == slow_near_copies(texts)


def planted(seed: int, n: int = 400, share: float = 0.22) -> tuple[str, str]:
    """Two texts of n words of which `share` of the shingles are common, in scattered pieces of 20 words."""
    one, other = text_of(2 * seed, n), text_of(2 * seed + 1, n)
    pieces = -(-int(share * (n - 7)) // 13)     # a piece of 20 words holds 13 shingles
    for k in range(pieces):
        at = k * (n // pieces)
        other[at : at + 20] = one[at : at + 20]
    return " ".join(one), " ".join(other)


def test_every_planted_pair_is_found_and_a_single_minimum_misses_most() -> None:
    pairs = [planted(seed) for seed in range(25)]
    texts = [text for pair in pairs for text in pair]
    assert near_copies(texts) == [(2 * k, 2 * k + 1) for k in range(25)]
    smallest = [copies.shingles(copies.words(text), measures.SHINGLE).min() for text in texts]
    assert sum(smallest[2 * k] == smallest[2 * k + 1] for k in range(25)) <= 12


def test_an_excerpt_is_found_in_a_text_a_hundred_times_its_size() -> None:
    whole = text_of(1, 20_000)
    excerpt = whole[9_000:9_060] + text_of(2, 140)
    assert near_copies([" ".join(whole), " ".join(excerpt)]) == [(0, 1)]
    sketches = [set(sorted(copies.shingles(copies.words(" ".join(t)), 8))[:256]) for t in (whole, excerpt)]
    assert not sketches[0] & sketches[1]    # comparing bottom sketches with each other would have missed it


def test_a_long_shared_run_counts_even_where_its_share_is_small() -> None:
    for seed in range(4):   # two sketches of 256 out of 30,000 shingles would share .4 of the 43 on average
        one, other = text_of(10 + seed, 30_000), text_of(20 + seed, 30_000)
        other[700:750] = one[2_000:2_050]
        assert near_copies([" ".join(one), " ".join(other)]) == [(0, 1)]
    other[725] = "changed"
    assert near_copies([" ".join(one), " ".join(other)]) == []


def test_boilerplate_in_many_documents_joins_none() -> None:
    licence = text_of(99, 80)
    texts = [" ".join(text_of(seed, 60) + licence) for seed in range(7)]
    assert near_copies(texts) == []
    assert near_copies(texts[:2]) == [(0, 1)]
    phrase = text_of(98, 12)    # makes a candidate of the first two, whose only long run is boilerplate
    texts[:2] = [" ".join([*phrase, text]) for text in texts[:2]]
    assert near_copies(texts) == slow_near_copies(texts) == []


def test_case_digits_and_punctuation_do_not_hide_a_copy() -> None:
    text = "On 12 May 1942 the 3rd regiment left the town by train, and 400 men with it."
    other = "on 27 may 1815 THE 9th Regiment left the town -- by train and 533 men with it"
    assert near_copies([text, other]) == [(0, 1)]
    assert near_copies(["", "one", "two"]) == []
    assert copies.words("Ⅷ. STRASSE, 1942!").tolist() == copies.words("viii straße (1815)").tolist()


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40)
)))  # fmt: skip
def test_components_are_the_transitive_closure(case: tuple[int, list[tuple[int, int]]]) -> None:
    n, pairs = case
    reach = {i: {i} for i in range(n)}
    for _ in range(n):
        for i, j in pairs:
            reach[i] |= reach[j]
            reach[j] |= reach[i]
    numbers = components(n, pairs)
    assert all((numbers[i] == numbers[j]) == (j in reach[i]) for i in range(n) for j in range(n))
    assert list(dict.fromkeys(numbers)) == list(range(max(numbers) + 1))


def rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_sides_follow_the_hash_of_the_cluster_and_never_split_one(tmp_path: Path) -> None:
    pairs = [planted(seed, n=60, share=0.4) for seed in range(150)]
    texts = [text for pair in pairs for text in pair]
    read = load_corpus(rows(tmp_path / "pairs.jsonl", texts))
    assert len(read.documents) == 300 and len(set(read.clusters)) == 150
    by_document = 0     # what sides drawn document by document would have split
    for k in range(150):
        ids = sorted(hashlib.sha256(text.encode()).hexdigest() for text in pairs[k])
        draws = [int(hashlib.sha256((measures.SALT + one).encode()).hexdigest(), 16) % 100 for one in ids]
        sides = ["explain" if draw < 50 else "tune" if draw < 65 else "score" for draw in draws]
        assert read.sides[2 * k] == read.sides[2 * k + 1] == sides[0]
        by_document += sides[0] != sides[1]
    assert by_document > 50
    shares = Counter(read.sides)
    assert abs(shares["explain"] / 300 - 0.50) < 0.12 and abs(shares["tune"] / 300 - 0.15) < 0.09


def test_a_document_keeps_its_side_when_others_come_and_go(tmp_path: Path) -> None:
    texts = [" ".join(text_of(seed, 50)) for seed in range(80)]
    whole = load_corpus(rows(tmp_path / "whole.jsonl", texts))
    some = load_corpus(rows(tmp_path / "some.jsonl", texts[::-1][:40]))
    sides = {document.id: side for document, side in zip(whole.documents, whole.sides, strict=True)}
    assert all(sides[document.id] == side for document, side in zip(some.documents, some.sides, strict=True))
    assert whole.digest != some.digest
    assert whole.digest == load_corpus(str(tmp_path / "whole.jsonl")).digest


def test_a_big_cluster_goes_to_explain(tmp_path: Path) -> None:
    texts = [" ".join(text_of(seed, 60)) for seed in range(200)]
    plain = load_corpus(rows(tmp_path / "plain.jsonl", texts))
    k = plain.sides.index("score")
    block = text_of(500, 300)
    grown = [texts[k], *(" ".join([*texts[k].split(), *block[i : i + 200]]) for i in (0, 30, 60, 90))]
    big = load_corpus(rows(tmp_path / "big.jsonl", texts + grown[1:]))
    assert big.notes["big_clusters"] == 1
    cluster = big.clusters[k]
    inside = [i for i, each in enumerate(big.clusters) if each == cluster]
    assert len(inside) == 5 and {big.sides[i] for i in inside} == {"explain"}


def test_the_order_of_a_side_is_a_shuffle_that_does_not_depend_on_the_file(tmp_path: Path) -> None:
    texts = [" ".join(text_of(seed, 20)) for seed in range(60)]
    one = load_corpus(rows(tmp_path / "one.jsonl", texts))
    other = load_corpus(rows(tmp_path / "other.jsonl", texts[::-1]))
    order = [one.documents[i].id for i in one.side("explain")]
    assert order == [other.documents[i].id for i in other.side("explain")] == sorted(order)
    assert one.side("explain") != sorted(one.side("explain"))
    assert sum(len(one.side(side)) for side in measures.SIDES) == 60
    with pytest.raises(Refused, match="'test' is no side"):
        one.side("test")


def test_a_token_limit_keeps_whole_clusters_and_their_sides(tmp_path: Path) -> None:
    texts = [text for seed in range(60) for text in planted(seed, n=60, share=0.4)]
    path = rows(tmp_path / "all.jsonl", texts)
    whole, part = load_corpus(path), load_corpus(path, tokens=3_000)
    size = sum(len(document.text.encode()) for document in part.documents) / 4
    assert 3_000 <= size < 3_000 + 2 * 60 * 15 and part.notes["left_out"] == 120 - len(part.documents)
    sides = {document.id: side for document, side in zip(whole.documents, whole.sides, strict=True)}
    assert all(sides[document.id] == side for document, side in zip(part.documents, part.sides, strict=True))
    assert all(count == 2 for count in Counter(part.clusters).values())
    with pytest.raises(Refused, match="0 tokens"):
        load_corpus(path, tokens=0)


def test_the_digest_covers_the_version_of_the_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows(tmp_path / "a.jsonl", ["some text here"])
    before = load_corpus(path).digest
    monkeypatch.setattr(measures, "VERSION", measures.VERSION + 1)
    assert load_corpus(path).digest != before


def test_long_files_are_cut_at_their_top_headings(tmp_path: Path) -> None:
    body = " ".join(["word"] * 800)
    cases = {
        "wiki.txt": f" = One =\n\n{body}\n\n = = Part = =\n\n{body}\n\n = Two =\n\n{body}\n",
        "notes.md": f"preface\n\n# One\n\n{body}\n\n## Part\n\n```\n# no heading\n```\n\n# Two\n\n{body} {body}\n",
        "single.md": f"# Title\n\n## One\n\n{body}\n\n## Two\n\n{body}\n",
        "guide.rst": f"One\n===\n\n{body}\n\nPart\n----\n\n{body}\n\nTwo\n===\n\n{body}\n",
    }
    want = {"wiki.txt": ["One", "Two"], "notes.md": ["preface", "One", "Two"], "single.md": ["Title", "One", "Two"],
            "guide.rst": ["One", "Two"]}  # fmt: skip
    for name, text in cases.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = load_corpus(str(tmp_path / name))
        assert [document.name for document in read.documents] == [f"{name}: {title}" for title in want[name]]
        assert " ".join(document.text for document in read.documents).split() == text.split()
    (tmp_path / "short.md").write_text("# One\n\na few words\n\n# Two\n\nmore words\n", encoding="utf-8")
    assert len(load_corpus(str(tmp_path / "short.md")).documents) == 1
    assert headings("plain text\nof two lines\n") == []


def test_a_folder_reads_every_known_kind_in_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("never read")
    (tmp_path / "b.txt").write_text("\ufeffplain text", encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty.md").write_text("")
    rows(tmp_path / "a.jsonl", ["row one", "row two", "row one"])
    pq.write_table(pa.table({"text": [None, "in a table"], "n": [1, 2]}), tmp_path / "sub" / "t.parquet")
    read = load_corpus(str(tmp_path))
    assert [document.text for document in read.documents] == ["row one", "row two", "plain text", "in a table"]
    assert [document.name for document in read.documents] == ["a.jsonl:1", "a.jsonl:2", "b.txt", "t.parquet:2"]
    assert read.notes["duplicates_dropped"] == 1


def test_bad_input_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "field.jsonl").write_text('{"text": "fine"}\n\n{"body": "no"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "data.bin").write_bytes(b"\x00")
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "column.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "number.parquet")
    cases = {
        "latin.txt": r"latin.txt is not UTF-8 text \(byte 0xe9 at offset 3\)",
        "empty.txt": "is empty",
        "broken.jsonl": "broken.jsonl line 2 is no JSON",
        "field.jsonl": "field.jsonl line 3 is no object",
        "bad.parquet": "bad.parquet cannot be read as Parquet",
        "column.parquet": "no column of strings called text; it has body",
        "number.parquet": "no column of strings called text",
        "data.bin": "cannot be read as a corpus",
        "folder": r"holds no \.txt",
        "missing.txt": "there is no such file or folder",
    }
    for name, message in cases.items():
        with pytest.raises(Refused, match=message) as refused:
            load_corpus(str(tmp_path / name))
        assert "\n" not in str(refused.value)


def test_builtin_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(tmp_path))
    with pytest.raises(Refused, match="`lamplighter models pull builtin-corpus`"):
        load_corpus("builtin")
    assert len(corpus.filler_text().split()) > 5_000


def test_builtin_is_large_varied_and_balanced() -> None:
    if not models.installed("builtin-corpus"):
        if "weights" in os.environ.get("LAMPLIGHTER_REQUIRE", ""):
            pytest.fail("builtin-corpus is required and not pulled")
        pytest.skip("builtin-corpus is not pulled")
    read = load_corpus("builtin")
    assert len(read.documents) >= 500
    sizes = Counter[str]()
    for document in read.documents:
        sizes[document.name.split("==")[0] if "==" in document.name else "committed"] += len(document.text)
    total = sum(sizes.values())
    assert total > 1_100_000 and sizes.pop("committed") > 100_000
    assert len(sizes) > 20 and max(sizes.values()) < 0.25 * total
    assert max(len(document.text) for document in read.documents) < 7_500
    assert read.notes["big_clusters"] == 0
    assert min(Counter(read.sides).values()) > 50


def test_local_is_what_the_environment_holds() -> None:
    read = load_corpus("local")
    assert any(document.name.startswith("pytest ") for document in read.documents)
    assert any(document.name == "pydoc lambda" for document in read.documents)


@pytest.mark.parametrize("name", ["", "  "])
def test_a_corpus_without_a_name_is_not_the_current_folder(name: str) -> None:
    with pytest.raises(Refused, match="the corpus has no name"):
        load_corpus(name)
