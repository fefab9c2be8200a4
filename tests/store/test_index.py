"""The index: the same as the views say, whatever was recorded in between, by whom, and where it was kept."""

import random
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store import background, imported
from lamplighter.store import index as module
from lamplighter.store import kept as kept_module
from lamplighter.store.cards import gain, stem
from lamplighter.store.excerpt import about
from lamplighter.store.findings import Findings
from lamplighter.store.index import Index
from lamplighter.store.records import (
    VERDICTS,
    Busy,
    Embedding,
    ImportVerdict,
    Refused,
    Review,
    Score,
    Verdict,
    uuid7,
)
from lamplighter.store.search import explained, search

INTERNAL = ("card", "model", "site", "kind", "layer", "index", "hypothesis", "vector")


def cards(index):
    """By unit, sign and, of what another tool made, its id: the card, and its vector."""
    with index.reading() as (con, state):
        done = con.execute("SELECT * FROM cards")
        names = [column[0] for column in done.description]
        rows = [dict(zip(names, row, strict=True)) for row in done.fetchall()]
        found = {}
        for row in rows:
            place = row["vector"]
            vector = None if place is None else [round(float(x), 5) for x in state.vectors_at(np.array([place]))[0]]
            key = row["unit"], row["sign"], row["hypothesis"] if row["source"] else None
            found[key] = {k: v for k, v in row.items() if k not in INTERNAL}, vector
        words = Counter(dict.fromkeys(found, 0))
        for *key, n in con.execute(
            "SELECT unit, sign, CASE WHEN source IS NOT NULL THEN hypothesis END AS made, sum(n) "
            "FROM words JOIN cards USING (card) GROUP BY ALL"
        ).fetchall():
            words[tuple(key)] = n
        assert con.execute("SELECT count(*) FROM words WHERE card NOT IN (SELECT card FROM cards)").fetchall() == [(0,)]
    return found, words


def derived(findings, embedder="tiny"):
    """The same, read by the views over everything."""
    with duckdb.connect(str(findings.path), read_only=True) as con:
        done = con.execute("SELECT * FROM explanations")
        names = [column[0] for column in done.description]
        rows = {(row[0], row[1], None): dict(zip(names, row, strict=True)) for row in done.fetchall()}
        states = {(unit, sign, None): state for unit, sign, state in
                  con.execute("SELECT unit, sign, state FROM review_states").fetchall()}  # fmt: skip
        for key, row in rows.items():
            row |= {"review": states.get(key), "source": None}
        done = con.execute("SELECT unit, sign, hypothesis, explanation, author, verdict, created_at, source, "
                           "NULL AS run, NULL AS investigation FROM imported")  # fmt: skip
        for unit, sign, made, *said in done.fetchall():
            told = ("explanation", "planner", "verdict", "created_at", "source", "run", "investigation")
            rows[unit, sign, made] = dict.fromkeys([*names, "review"]) | {"unit": unit, "sign": sign} | dict(
                zip(told, said, strict=True))  # fmt: skip
        vectors = dict(con.execute(
            "SELECT (o.unit, o.sign, o.made), arg_max(e.vector, (e.created_at, e.id)) FROM ("
            "    SELECT unit, sign, NULL AS made, hypothesis FROM current_outcomes "
            "    UNION ALL SELECT unit, sign, hypothesis, hypothesis FROM imported"
            ") o JOIN embeddings e ON e.hypothesis = o.hypothesis AND e.model = ? GROUP BY 1", [embedder],
        ).fetchall())  # fmt: skip
    return rows, vectors


def agrees(index, findings):
    found, words = cards(index)
    rows, vectors = derived(findings)
    assert {key: card for key, (card, _) in found.items()} == rows
    length = {key: sum(x * x for x in vector) ** 0.5 for key, vector in vectors.items()}
    for key, (card, vector) in found.items():
        wanted = vectors.get(key)
        assert vector == (None if wanted is None else pytest.approx([x / length[key] for x in wanted], abs=1e-4))
        text = " ".join(filter(None, (card["explanation"], card["output_explanation"], card["rule"])))
        assert words[key] == len(text.split())


# What a run, a re-score or a new embedding may add, in any order.
EVENT = st.tuples(
    st.sampled_from(["m/0-mlp/1", "m/0-mlp/2", "o/m/3-resid:s/4"]), st.sampled_from([1, -1]),
    st.sampled_from(["accepted", "unclear", "abstained", "failed", "undecided", "score", "vector", "review", "edit",
                     "undo", "import", "import", "decide"]),
)  # fmt: skip


@settings(max_examples=6, deadline=None, database=None)
@given(batches=st.lists(st.lists(EVENT, min_size=1, max_size=4), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_whatever_is_recorded_the_index_says_what_the_views_say(batches, seed, explanation, tmp_path_factory):
    findings = Findings(tmp_path_factory.mktemp("drawn") / "findings.duckdb")
    index, rng, clock = Index(findings, "tiny"), random.Random(seed), 0
    known, reviews, brought = [], [], []
    for batch in batches:
        records = []
        for unit, sign, what in batch:
            clock += rng.choice([-3, 1, 2])
            made = explanation(
                unit, None if what == "abstained" else f"says {clock} words", [rng.random() + 0.1, 1.0], sign=sign,
                at=(clock := max(clock, 0)), verdict=what if what in VERDICTS else "x",
                pushes="raises all" if rng.random() < 0.5 else None, rule="a b" if rng.random() < 0.5 else None,
            )  # fmt: skip
            if what == "undecided":
                made = [record for record in made if not isinstance(record, Verdict)]
            base = {"unit": unit, "sign": sign, "created_at": f"2026-01-01T00:01:{clock:02d}.000000"}
            if what == "score" and known:
                made = [Score(**base | {"unit": known[-1].unit, "sign": known[-1].sign}, hypothesis=known[-1].id,
                              metric="f1", side="score", value=rng.random(), low=0.0, high=1.0)]  # fmt: skip
            if what in ("review", "edit", "undo") and known:
                of, before = known[-1], [one for one in reviews if one.edit]
                edit = replace(
                    of, id=uuid7(), created_at=base["created_at"], author="person:ann", investigation=uuid7(),
                    sentence="says a person", provenance={"origin": of.investigation},
                )  # fmt: skip
                said = {"unit": of.unit, "sign": of.sign, "hypothesis": of.id, "reviewer": "ann", "client": "test"}
                if what == "review":
                    made = [Review(**said, verdict=rng.choice(["accept", "reject", "unsure"]))]
                elif what == "edit":
                    made = [edit, Review(**said, verdict="edit", edit=edit.id)]
                else:
                    made = [Review(**said, verdict="undo", undoes=one.id) for one in before[-1:]]
                reviews += [one for one in made if isinstance(one, Review)]
            if what == "vector" and known:
                made = [Embedding(**base | {"unit": known[-1].unit, "sign": known[-1].sign}, hypothesis=known[-1].id,
                                  model="tiny", vector=[1.0, rng.random()])]  # fmt: skip
            if what == "import":
                source, sentence = rng.choice(["delphi", "openai"]), f"says {rng.randrange(10**9)} other"
                made = imported.explanation(source, unit, sign, sentence, author=None, origin="o")
                brought += made
                if rng.random() < 0.5:
                    made.append(Embedding(**base, hypothesis=made[0].id, model="tiny", vector=[rng.random(), 1.0]))
            if what == "decide" and brought:
                of = brought[-1]
                made = [ImportVerdict(**base | {"unit": of.unit, "sign": of.sign}, hypothesis=of.id,
                                      verdict=rng.choice(["accepted", "rejected"]), reason="r")]  # fmt: skip
            known += made[:1] if what in VERDICTS else []
            records += made
        findings.append(records)
        index.refresh()
        agrees(index, findings)


def test_an_index_that_reads_only_what_is_new_would_miss_nothing_less(findings, explanation):
    """Negative control of the above: without the rows of the units that were touched, the views say less."""
    findings.append(explanation("m/0-mlp/1", "first", at=1))
    index = Index(findings, "tiny")
    index.refresh()
    (old,) = findings.read(Score)
    findings.append([Score(unit="m/0-mlp/1", sign=1, hypothesis=old.hypothesis, metric="f1", side="score", value=0.75)])
    assert index.refresh() == 1
    (row,), _ = explained(index)
    assert row["input_f1"] == 0.75 and row["explanation"] == "first", "the sentence was recorded before"


def test_nothing_is_read_where_nothing_was_recorded(findings, explanation, monkeypatch):
    findings.append(explanation("m/0-mlp/1", "first"))
    index = Index(findings, "tiny")
    assert index.refresh() == 1
    before = index.as_of
    monkeypatch.setattr(module, "gain", lambda *_: pytest.fail("the findings were opened"))
    assert index.refresh() == 0
    assert index.as_of > before


def test_findings_that_were_put_in_the_place_of_others_are_read_from_the_beginning(findings, explanation, tmp_path):
    other = Findings(tmp_path / "other.duckdb")
    findings.append(explanation("m/0-mlp/1", "old") + explanation("m/0-mlp/2", "older"))
    other.append(explanation("m/0-mlp/3", "of another home") + explanation("m/0-mlp/4", "too"))
    index = Index(findings, "tiny")
    index.refresh()
    shutil.copy(other.path, findings.path)
    assert index.refresh() == 2
    assert [row["unit"] for row in explained(index)[0]] == ["m/0-mlp/3", "m/0-mlp/4"]


def test_an_index_of_other_findings_is_told_apart_by_its_last_rows(findings, explanation, tmp_path):
    findings.append(explanation("m/0-mlp/1", "old"))
    index = Index(findings, "tiny")
    index.refresh()
    other = Findings(tmp_path / "other.duckdb")
    other.append(explanation("m/0-mlp/1", "old"))
    assert gain(index._state, other, "tiny") is None
    assert gain(index._state, findings, "tiny") == 0


def test_a_file_of_an_older_version_is_read_as_it_is(findings, explanation, monkeypatch):
    from lamplighter.store import findings as findings_module
    from lamplighter.store.work import ddl_after

    first = findings_module.schema().removesuffix(ddl_after(findings_module._DDL, 1))
    findings.path.parent.mkdir(parents=True)
    with duckdb.connect(str(findings.path)) as con:
        con.execute(first)
        con.execute("INSERT INTO schema_version VALUES (1, '2026-01-01')")
        base = "'x' AS id, 'i' AS investigation, 'm/0-mlp/1' AS unit, 1 AS sign, TIMESTAMP '2026-01-01' AS created_at"
        con.execute(f"INSERT INTO verdicts BY NAME SELECT {base}, 'accepted' AS verdict")
        con.execute(f"INSERT INTO hypotheses BY NAME SELECT {base}, 'from long ago' AS sentence, true AS kept")
    index = Index(findings, "tiny")
    assert [row["explanation"] for row in explained(index)[0]] == ["from long ago"]
    with about(findings, "m/0-mlp/1") as sql:
        assert sql("SELECT verdict, explanation FROM unit_cards") == [
            {"verdict": "accepted", "explanation": "from long ago"}
        ]


def test_a_vector_that_names_no_unit_is_of_its_sentence(findings, explanation):
    (made, *_) = records = explanation("m/0-mlp/1", "first")
    findings.append(records)
    index = Index(findings, "tiny")
    index.refresh()
    findings.append([Embedding(hypothesis=made.id, model="tiny", vector=[1.0, 1.0])])
    assert index.refresh() == 1
    agrees(index, findings)
    assert search(index, "x", lambda _: [[1.0, 1.0]], by="meaning")[0]["similarity"] == 1.0


def test_stems():
    assert [stem(word) for word in ("splitting", "splits", "ordinals", "endings", "9ths", "the", "über", "wörter")] == [
        "split", "split", "ordin", "end", "9ths", "the", "über", "wörter"
    ]  # fmt: skip


# Several at a time


def test_searches_go_on_while_the_index_is_refreshed(findings, explanation):
    findings.append(row for i in range(40) for row in explanation(f"m/0-mlp/{i}", f"fires on w{i}", [1.0, i / 40]))
    index = Index(findings, "tiny")
    index.refresh()
    errors, found, over = [], [], threading.Event()

    def ask(number):
        rng = random.Random(number)
        while not over.is_set():
            i = rng.randrange(40)
            try:
                rows = search(index, f"w{i}", by="word")
                found.append(len(rows))
                assert {row["unit"] for row in rows} == {f"m/0-mlp/{i}"}
                rows = search(index, "x", lambda _: [[1.0, 0.5]], by="meaning", top=40)
                assert len({row["unit"] for row in rows}) == 40, "an outcome is replaced as a whole"
            except Exception as error:
                errors.append(error)
                return

    askers = [threading.Thread(target=ask, args=(n,)) for n in range(2)]
    for asker in askers:
        asker.start()
    for at in range(1, 4):
        findings.append([row for i in range(at, 40, 3) for row in explanation(
            f"m/0-mlp/{i}", f"fires on w{i} again", [1.0, i / 40], at=at)])  # fmt: skip
        assert index.refresh() == len(range(at, 40, 3))
    over.set()
    for asker in askers:
        asker.join()
    assert errors == [] and len(found) >= 4
    assert sum(row["explanation"].endswith("again") for row in explained(index)[0]) == 39


def test_a_thread_keeps_it_fresh_and_tells_of_trouble(findings, explanation, monkeypatch):
    monkeypatch.setattr(background, "IDLE", 0)
    findings.append(explanation("m/0-mlp/1", "first"))
    index = Index(findings, "tiny")

    def wait(what):
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    before = set(threading.enumerate())
    with index.kept_fresh(every=0.02):
        wait(lambda: index.as_of)
        findings.append(explanation("m/0-mlp/2", "second"))
        wait(lambda: explained(index)[1] == 2)

        def held(*_):
            raise Busy("it is in use by process 7; wait.")

        with index._turn:                      # no refresh is half done
            monkeypatch.setattr(module, "gain", held)
        findings.append(explanation("m/0-mlp/3", "third"))
        wait(lambda: index.trouble)
        assert explained(index)[1] == 2, "what is there is served"
        monkeypatch.undo()
        wait(lambda: explained(index)[1] == 3)
        wait(lambda: index.trouble is None)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "index"]


def test_a_home_without_findings_is_trouble_and_no_end(findings, explanation):
    index = Index(findings, "tiny")
    with index.kept_fresh(every=0.02):
        deadline = time.monotonic() + 20
        while not index.trouble and time.monotonic() < deadline:
            time.sleep(0.01)
        assert index.trouble.startswith("Nothing is recorded")
        with pytest.raises(Refused, match="Nothing is recorded"):
            explained(index)


# On disk


@pytest.fixture
def keeping(monkeypatch):
    monkeypatch.setattr(module, "KEPT_FROM", 2)


def folders(index):
    return sorted(path.name for path in index.folder.iterdir())


def test_a_large_index_is_kept_for_other_processes(findings, explanation, tmp_path, keeping, monkeypatch):
    for i in range(4):
        findings.append(explanation(f"m/0-mlp/{i}", f"fires on w{i}", [1.0, float(i)]))
    findings.append(explanation("m/0-mlp/1", "fires on w1 anew", [5.0, 1.0], at=1))
    first = Index(findings, "tiny", tmp_path / "kept")
    first.refresh()
    findings.append(explanation("m/0-mlp/1", "fires on w1 once more", [5.0, 1.0], at=2))
    first.refresh()
    assert len(folders(first)) == 1 and first._state.gained == 1
    read = []
    monkeypatch.setattr(module, "gain", lambda state, *rest: read.append(state.cards) or gain(state, *rest))
    again = Index(findings, "tiny", tmp_path / "kept")
    assert again.refresh() == 1, "what was recorded after it was kept"
    assert read == [4]
    agrees(again, findings)
    assert search(again, "w1 anew", by="word")[0]["words"] == ["w1"]
    findings.append(explanation("m/0-mlp/9", "fires on w9", [0.0, 1.0]))
    assert again.refresh() == 1
    agrees(again, findings)


def test_vectors_of_former_cards_are_not_kept(findings, explanation, tmp_path, keeping):
    findings.append([row for i in range(3) for row in explanation(f"m/0-mlp/{i}", f"w{i}", [1.0, float(i)])])
    index = Index(findings, "tiny", tmp_path / "kept")
    index.refresh()
    for at in (1, 2):
        changed = [explanation(f"m/0-mlp/{i}", f"w{i} {at}", [2.0, float(i)], at=at) for i in (0, 2)]
        findings.append(sum(changed, []))
        index.refresh()
    assert index._state.vectors == 7
    loaded = kept_module.kept("tiny", tmp_path / "kept")
    assert (loaded.vectors, loaded.cards) == (3, 3)
    agrees(Index(findings, "tiny", tmp_path / "kept"), findings)


def test_only_the_newest_two_of_a_kind_are_left(findings, explanation, tmp_path, keeping):
    for at in range(4):
        findings.append([row for i in range(2) for row in explanation(f"m/0-mlp/{i}", f"w{i} {at}", at=at)])
        Index(findings, "tiny", tmp_path / "kept").refresh()
    Index(findings, "other", tmp_path / "kept").refresh()
    prefixes = Counter(name.rsplit("-", 5)[0] for name in folders(Index(findings, "x", tmp_path / "kept")))
    assert sorted(prefixes.values()) == [1, 2]


@pytest.mark.parametrize("harm", ["no tables", "no vectors", "half the vectors", "other tables", "of other findings"])
def test_a_kept_index_that_cannot_be_used_is_made_again(findings, explanation, tmp_path, keeping, harm):
    findings.append([row for i in range(3) for row in explanation(f"m/0-mlp/{i}", f"w{i}", [1.0, float(i)])])
    index = Index(findings, "tiny", tmp_path / "kept")
    index.refresh()
    (name,) = folders(index)
    place = tmp_path / "kept" / name
    if harm == "no tables":
        (place / "index.duckdb").unlink()
    elif harm == "no vectors":
        (place / "vectors.npy").unlink()
    elif harm == "half the vectors":
        (place / "vectors.npy").write_bytes((place / "vectors.npy").read_bytes()[:60])
    elif harm == "other tables":
        (place / "index.duckdb").unlink()
        duckdb.connect(str(place / "index.duckdb")).close()
    else:
        findings.path.unlink()
        findings.append([row for i in range(3) for row in explanation(f"m/0-mlp/{i}", f"v{i}", [1.0, float(i)])])
    agrees(Index(findings, "tiny", tmp_path / "kept"), findings)


def test_an_index_that_cannot_be_kept_is_an_index(findings, explanation, tmp_path, keeping):
    (tmp_path / "file").write_text("")
    findings.append([row for i in range(3) for row in explanation(f"m/0-mlp/{i}", f"w{i}")])
    index = Index(findings, "tiny", tmp_path / "file" / "kept")
    assert index.refresh() == 3
    agrees(index, findings)


def test_stale_vectors_are_dropped_in_time(findings, explanation, monkeypatch):
    monkeypatch.setattr(module, "KEPT_FROM", 0)
    index = Index(findings, "tiny")
    for at in range(5):
        findings.append(explanation("m/0-mlp/1", f"w{at}", [1.0, float(at)], at=at))
        index.refresh()
        assert index._state.vectors <= 3
        agrees(index, findings)


# One unit


def test_a_view_over_one_unit_says_what_it_says_over_all(findings, explanation):
    for i in range(3):
        for sign in (1, -1):
            findings.append(explanation(f"m/0-mlp/{i}", f"w{i}", [1.0], sign=sign, pushes="raises a"))
    wanted = findings.sql("SELECT * FROM unit_cards WHERE unit = 'm/0-mlp/1' ORDER BY sign", unpack=True)
    with about(findings, "m/0-mlp/1") as sql:
        assert sql("SELECT * FROM unit_cards ORDER BY sign", unpack=True) == wanted
        assert sql("SELECT count(*) AS n FROM scores WHERE sign = ?", [1]) == [{"n": 1}]
        assert sql("SELECT $a AS a", {"a": 1}) == [{"a": 1}]
    with about(findings, "m/0-mlp/7") as sql:
        assert sql("SELECT * FROM unit_cards") == []
    nowhere = Findings(findings.path.with_name("no"))
    with pytest.raises(Refused, match="Nothing is recorded"), about(nowhere, "m/0-mlp/1"):
        pytest.fail("there is nothing to read")
