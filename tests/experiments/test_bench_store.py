"""bench_store: its parts at a tiny size, and that what is slow, lost or wrong is seen."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from lamplighter.agent.config import Home
from lamplighter.experiments import store_hostile, store_ingest, store_review, store_search, store_served
from lamplighter.experiments.store_made import LEAN, MODEL, NUMBERS, WHOLE, Maker, at_work, made_home
from lamplighter.experiments.store_times import Times, percentile
from lamplighter.experiments.store_writer import writing
from lamplighter.store import findings as stored
from lamplighter.store.records import Evidence, Hypothesis
from lamplighter.store.work import Work

UNITS = 600


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def stand_in(texts: list[str]) -> list[list[float]]:
    """A vector for each text, without an embedder."""
    return [[random.Random(text + str(k)).random() for k in range(NUMBERS)] for text in texts]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_home(tmp_path_factory.mktemp("kept"), UNITS, 3, quiet)


@pytest.fixture
def home(kept: Path, tmp_path: Path) -> Home:
    return at_work(kept, tmp_path)


def claimed(claims: list, name: str) -> bool | None:
    return next(claim.holds for claim in claims if claim.name == name)


# What is made


def test_a_whole_unit_has_the_records_of_a_real_one_and_the_same_again() -> None:
    maker, lean = Maker(1, WHOLE), Maker(1, LEAN)
    records = maker.records(7)
    counts = Counter(record.TABLE for record in records)
    assert (counts["evidence"], counts["exemplars"], counts["scores"], counts["embeddings"]) == (15, 64, 11, 1)
    assert [record.to_json() for record in Maker(1, WHOLE).records(7)] == [record.to_json() for record in records]
    assert len({record.id for record in records}) == len(records)
    evidence = [len(one.to_json()) for one in records if isinstance(one, Evidence)]
    assert 4_000 < sum(evidence) / len(evidence) < 6_500, "5,140 characters in a real run"
    sentences = {record.sentence for n in range(50) for record in lean.records(n)
                 if isinstance(record, Hypothesis) and record.side == "input"}  # fmt: skip
    assert len(sentences) > 45


def test_a_made_home_is_whole_and_made_once(kept: Path) -> None:
    home = Home(kept)
    (row,) = home.findings.sql("""SELECT count(*) AS n, count(DISTINCT unit) AS units, count(input_f1) AS scored,
                                  count(output_explanation) AS out FROM explanations""")
    assert set(row.values()) == {UNITS}
    for table, each in (("evidence", 3), ("turns", 3), ("exemplars", 8), ("embeddings", 1), ("scores", 4)):
        (row,) = home.findings.sql(f"SELECT count(*) AS n, count(DISTINCT id) AS ids FROM {table}")
        assert row == {"n": each * UNITS, "ids": each * UNITS}
    (row,) = home.findings.sql("""SELECT count(*) AS n FROM turns t JOIN evidence e ON e.id = t.evidence
                                  AND e.investigation = t.investigation AND e.tool = t.tool""")
    assert row["n"] == 3 * UNITS
    assert made_home(kept.parent, UNITS, 3, lambda *_: pytest.fail("made again")) == kept


# Parts


def test_ingest_counts_what_is_there(tmp_path: Path) -> None:
    tables, claims = store_ingest.ingest(tmp_path, 0, 0.003, quiet)
    assert [row["evidence"] for row in tables["ingest"]] == ["as real evidence", "short"]
    assert tables["ingest"][0]["characters a row"] > 4 * tables["ingest"][1]["characters a row"]
    assert claimed(claims, "as real evidence: rows lost or twice") is True


def test_ingest_sees_a_slow_store_and_a_lost_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = [one for one in Maker(0, WHOLE).records(0) if isinstance(one, Evidence)]
    right = store_ingest.moved(tmp_path, pattern, 60, 0)
    append = stored.Findings.append_lines

    def slowly(self: stored.Findings, lines: object) -> int:
        time.sleep(1.0)
        return append(self, lines)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(stored.Findings, "append_lines", slowly)
        slow = store_ingest.moved(tmp_path, pattern, 60, 0)
    assert slow["rows a second"] < 60 and right["amiss"] == slow["amiss"] == 0
    lines = Work.outbox_lines

    def forgetful(self: Work, limit: int, most: int, behind: int = -1) -> list:
        return lines(self, limit, most, behind)[1:] if behind < 0 else []

    monkeypatch.setattr(Work, "outbox_lines", forgetful)
    assert store_ingest.moved(tmp_path, pattern, 60, 0)["amiss"] > 0


def test_size_counts_the_bytes_of_units(tmp_path: Path) -> None:
    tables, claims = store_ingest.size(tmp_path, 0, 0.004, quiet)
    whole, lean = tables["bytes a unit"]
    assert whole["n"] == lean["n"] == 4 and whole["records a unit"] > 4 * lean["records a unit"]
    assert whole["bytes of the database"] > 0 and all(claim.holds for claim in claims)


def test_search_is_timed_while_results_are_written(home: Home) -> None:
    tables, claims = store_search.asked(home, UNITS, 0, 3, quiet, stand_in)
    rows = {row["what"]: row for row in tables["search"]}
    assert {rows[f"by {by}, {kind}"]["n"] for by in store_search.WAYS for kind in ("no filter", "filtered")} == {3}
    around = {row["what"]: row["is"] for row in tables["around it"]}
    assert around["with an answer"] > 9 and around["embedder"] == "a stand-in"
    assert {claim.name for claim in claims} >= {"by meaning, filtered: p95 ms", "by word, no filter: p95 ms"}


def test_a_slowed_search_misses_its_bar(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    search = store_search.search

    def slowly(*given: object, **more: object) -> list:
        time.sleep(0.31)
        return search(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store_search, "search", slowly)
    _, claims = store_search.asked(home, UNITS, 0, 2, quiet, stand_in)
    missed = {claim.name for claim in claims if not claim.holds and "p95" in claim.name}
    assert len(missed) == 4


def test_a_writer_writes_and_says_how_much(home: Home) -> None:
    before = home.findings.sql("SELECT count(*) AS n FROM exemplars")[0]["n"]
    with writing(home, UNITS, 0, 50) as written:
        time.sleep(2.5)
    assert written["moved"] >= 50 and written["results a second"] > 10
    assert home.findings.sql("SELECT count(*) AS n FROM exemplars")[0]["n"] > before


@pytest.mark.timeout(300)
def test_pages_are_timed_at_a_server(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = store_served.page_kinds

    def without_search(*given: object) -> dict:      # it would load the embedder, which takes a minute
        found = kinds(*given)  # type: ignore[arg-type]
        return found | {"search page": lambda: "/units?skip=50"}

    monkeypatch.setattr(store_served, "page_kinds", without_search)
    with store_served.served(home.path) as server:
        tables, claims = store_served.visited(home, server, UNITS, 0, 3, quiet)
        assert server.process.poll() is None
    rows = {row["what"]: row for row in tables["pages"]}
    assert rows["unit page"]["n"] == rows["start page"]["n"] == 3 and rows["unit page"]["p95 ms"] > 0
    around = {row["what"]: row["is"] for row in tables["around pages"]}
    assert around["MB of the server at most"] > 50 and around["seconds behind the findings, most"] >= 0
    assert {"unit page: p95 ms", "start page: p95 ms"} <= {claim.name for claim in claims}
    with pytest.raises(ConnectionRefusedError):
        store_served.Visitor(server).get("/")


def test_the_address_of_a_made_unit(kept: Path) -> None:
    units = {row["unit"] for row in Home(kept).findings.sql("SELECT unit FROM units")}
    paths = {store_served.unit_path(number).removeprefix("/units/") for number in range(UNITS)}
    assert paths == units and all(unit.startswith(f"{MODEL}/0-mlp/") for unit in units)


@pytest.mark.skipif(bool(store_review.lacking()), reason=str(store_review.lacking()))
@pytest.mark.timeout(300)
def test_two_people_review_over_a_kill(home: Home) -> None:
    tables, claims = store_review.reviewed(home, 0, 3, 4, quiet)
    assert tables["review"][0]["n"] == 3 and tables["review"][1]["n"] == 8
    for name in ("cards given to two at once", "cards reviewed twice", "reviews lost or twice over a kill -9",
                 "cards out of hand after a kill -9", "console errors"):  # fmt: skip
        assert claimed(claims, name) is True, name


def test_without_a_browser_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_review, "chromium", lambda: None)
    tables, (claim,) = store_review.review(tmp_path, 0, 0.01, quiet)
    assert "no Chromium" in tables["review"][0]["is"] or "playwright" in tables["review"][0]["is"]
    assert claim.holds is None


@pytest.mark.timeout(300)
def test_hostile_requests_get_what_they_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the table, as all of it is told to the pages elsewhere; one row that must be seen as wrong is added."""
    table = store_hostile.requests
    wrong = store_hostile.Asked("a page that must not be there", "GET", "/", 404)
    monkeypatch.setattr(store_hostile, "requests", lambda port, unit: [*table(port, unit)[::6], wrong])
    monkeypatch.setattr(store_hostile, "LIMITED", [])
    monkeypatch.setattr(store_hostile, "_spoken", lambda server: spoken(server)[3:])
    tables, claims = store_hostile.hostile(tmp_path, 0, 0.01, quiet)
    assert [row["request"] for row in tables["hostile"] if not row["as it must be"]] == [wrong.what]
    assert claimed(claims, "hostile requests answered otherwise than they must be") is False
    assert claimed(claims, "the server lives after them") is True
    told = {row["request"]: row["the sentence"] for row in tables["hostile"]}
    assert told["hostile text on its unit's page"] == "shown as signs, escaped"


spoken = store_hostile._spoken


# Times


def test_a_percentile_lies_within_its_interval() -> None:
    draw = random.Random(0)
    seconds = [draw.expovariate(10) for _ in range(200)]
    value, low, high = percentile(seconds, 0)
    assert low <= value <= high and low < high
    assert percentile([], 0) == (None, None, None)
    times = Times("x", seconds)
    assert times.claim(0, value + 1).holds and not times.claim(0, value - 1).holds
    assert Times("nothing").claim(0, 1.0).holds is None
    assert Times("nothing").row(0)["p50 ms"] is None
