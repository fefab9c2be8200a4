"""What the pages say, to people and to programs, without a browser."""

import html
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lamplighter import store
from lamplighter.store import imported, mirror, snapshot
from lamplighter.store.confined import Answer
from lamplighter.store.filters import Filters
from lamplighter.store.findings import Findings
from lamplighter.store.pages import unit_url, visible
from lamplighter.store.plain import clean
from lamplighter.store.records import ImportVerdict, Score

UNIT = "/units/org/tiny/1-mlp/7"
HOSTILE_UNIT = "/units/org/tiny/2-resid:sae/9"
PAGES = ["/", "/units", "/units?order=best&min_score=0.5&max_score=1&kind=", UNIT, "/units/org/tiny/1-mlp/8-",
         HOSTILE_UNIT, "/units/org/tiny/2-mlp/9", "/search?like=org/tiny/1-mlp/7", "/search", "/search?q=left",
         "/search?q=script&sign=1&planner=llm", "/sql", "/sql?q=select+1", "/sql?q=select+sentence+from+hypotheses",
         "/api/v1", "/review", "/agreement", "/agreement?audit=1", "/units/org/tiny/1-mlp/99", "/nowhere"]  # fmt: skip


class Tags(HTMLParser):
    """Elements with their attributes, ids, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_holds_nothing_that_runs(served, path) -> None:
    answer = served.get(path)
    assert answer.status_code in (200, 404)
    told = Tags(answer.text)
    names = [tag for tag, _ in told.found]
    assert names.count("main") == names.count("h1") == 1
    scripts = [attributes for tag, attributes in told.found if tag == "script"]
    assert [one["src"] for one in scripts] == ["/static/htmx.min.js", "/static/pages.js"]
    assert "style" not in names
    for tag, attributes in told.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action"):
            value = attributes.get(name) or "/"
            assert value.startswith(("/", "#")), f"{tag} {name}={value}"
    ids = [attributes["id"] for _, attributes in told.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not [c for c in answer.text if not c.isprintable() and c not in "\n"], "what cannot be seen is told"


def test_hostile_text_is_text(served) -> None:
    page = served.get(HOSTILE_UNIT).text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    seen = Tags(page).text
    assert r"\u202etxet\u202c\u200b" in seen
    assert r"\x1b[31mred\x07" in seen


@given(st.text())
def test_visible_text_is_escaped_and_seen(text) -> None:
    shown = str(visible(text))
    bare = re.sub(r"</?span[^>]*>", "", shown)
    assert "<" not in bare
    assert html.unescape(bare).isprintable()
    plain = "".join(c for c in text if c.isprintable())
    assert clean(plain) == plain
    assert str(visible(plain)).count("<") == 0


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_unit_has_an_address(model) -> None:
    from urllib.parse import parse_qs, unquote, urlsplit

    name = f"{model}/5-mlp/3-"
    parts = urlsplit(unit_url(name))
    back = parse_qs(parts.query)["unit"][0] if parts.query else unquote(parts.path.removeprefix("/units/"))
    assert back == name
    assert ".." not in parts.path.split("/")


def test_the_start_page_leads_to_units(served) -> None:
    told = Tags(served.get("/").text)
    links = [attributes["href"] for tag, attributes in told.found if tag == "a"]
    lamps = [link for link in links if "lamp=8" in link]
    assert len(lamps) == 2
    listed = served.get(lamps[0])
    assert "org/tiny" in listed.text
    assert "2 units" in re.sub(r"<[^>]+>", "", listed.text)


def test_the_page_of_a_unit_has_the_whole_chain(served) -> None:
    seen = " ".join(Tags(served.get(UNIT).text).text.split())
    for what in (
        "fires on the word “left”", "0.80 [0.70, 0.90]", "highest floor 0.05 (shifted)", "0.95 [0.70, 0.90]",
        "they turned left", "110 % of P", "keeps 90 % of 3", "kills it", "silenced: 0.1", "denoise 0.40, noise 0.20",
        "firing 0.30 [0.20, 0.40]", "beyond chance", "fires at 9 of 1,000 tokens", "is it they turned",
        "right on 2 of 2", "put out: “another: they turned”, F1 0.20 below another", "lamplighter replay",
        "5 experiments: 20 rows, 200 tokens", "no they turned", "by hand", "corpus",
    ):  # fmt: skip
        assert what in seen, what
    assert "pictures/" + "ab" * 32 in served.get(UNIT).text


def test_sides_and_neighbours_in_order(served) -> None:
    page = served.get(UNIT).text
    assert 'rel="next" href="/units/org/tiny/1-mlp/8-"' in page
    assert 'rel="prev"' not in page
    assert served.get("/units/org/tiny/1-mlp/8?sign=-1").status_code == 200
    assert served.get("/units/org/tiny/1-mlp/8").status_code == 404
    assert "its other side, org/tiny/1-mlp/8-, is known" in served.get("/units/org/tiny/1-mlp/8").text
    jump = served.get("/units?unit=org/tiny/1-mlp/7", follow_redirects=False)
    assert (jump.status_code, jump.headers["location"]) == (303, UNIT)
    near = served.get("/search?like=org/tiny/1-mlp/7&top=8", headers={"hx-request": "true"}).text
    assert "<html" not in near
    assert near.index("1-mlp/8-") < near.index("2-resid:sae/9")
    assert "1st by meaning (cosine 1.00)" in near


def test_a_unit_that_failed_says_so(served) -> None:
    page = served.get("/units/org/tiny/2-mlp/9").text
    assert "Timeout" in page
    assert "no explanation was put forward" in page


def test_a_text_is_tried(served, make_app) -> None:
    answer = served.post("/try", data={"unit": "org/tiny/1-mlp/7", "text": "a <b> c"}, headers={"hx-request": "true"})
    assert answer.status_code == 200
    assert "<html" not in answer.text
    assert "&lt;b&gt;<sub>25</sub>" in answer.text
    whole = served.post("/try", data={"unit": "org/tiny/1-mlp/7", "text": "a b"})
    assert "<html" in whole.text
    assert served.post("/try", data={"unit": "org/tiny/1-mlp/7", "text": "  "}).status_code == 400
    app, doors = make_app(live=False)
    client = TestClient(app, base_url="http://127.0.0.1:8600", headers={"origin": "http://127.0.0.1:8600"})
    client.get(f"/?token={doors.tokens['me']}")
    refused = client.post("/try", data={"unit": "org/tiny/1-mlp/7", "text": "a"})
    assert (refused.status_code, "--live" in refused.text) == (400, True)


def test_a_text_of_several_lines_is_read_as_it_was_written(served) -> None:
    """A form ends lines with two characters, unless a script sends it."""
    for end in ("\r\n", "\n"):
        told = served.post("/try", data={"unit": "org/tiny/1-mlp/7", "text": f"one{end}two"})
        assert "reads 7 characters" in told.text


def test_what_other_tools_say_is_on_the_page_by_source(make_app, own, recorded) -> None:
    texts = [imported.Text([0.0, 2.5, 5.0], ["a", " lake", "<script>"]), imported.Text([1.0], ids=[7])]
    unit, alone = "org/tiny/1-mlp/7", "org/tiny/1-mlp/70"
    claims = [imported.Claim("recall_alt", "value", 0.81), imported.Claim("other", "value", None)]
    said = "<script>\u202ego</script>"
    records = imported.explanation("neuronpedia", unit, 1, said, author="gpt-z", origin="f:1", claims=claims)
    detection = Score(hypothesis=records[0].id, unit=unit, sign=1, metric="detection", side="score", judge="j", n=60,
                      value=0.7, low=0.6, high=0.8, floors={"always": 0.25}, details={"qualified": True})  # fmt: skip
    decided = ImportVerdict(hypothesis=records[0].id, unit=unit, sign=1, verdict="rejected", reason="below its floor")
    records += imported.explanation("delphi", alone, 1, "fires on ponds", author=None, origin="f:2")
    records += imported.texts("delphi", alone, 1, texts, "f:2") + imported.texts("neuronpedia", unit, 1, texts, "f:1")
    Findings(own / "findings.duckdb").append([*records, detection, decided])
    app, doors = make_app(home=own)
    client = TestClient(app, base_url="http://127.0.0.1:8600", headers={"origin": "http://127.0.0.1:8600"})
    client.get(f"/?token={doors.tokens['me']}")

    told = Tags(client.get(f"/units/{unit}").text)
    assert sum(tag == "script" for tag, _ in told.found) == 2 and "<script>" in told.text
    assert r"\u202ego" in told.text
    for words in ("neuronpedia:gpt-z", "recall_alt value 0.81; other value undefined", "0.70 [0.60, 0.80]", "0.25",
                  "below its floor", "Which text they were made from is unknown", " lake", "1 came as numbers"):
        assert words in told.text
    assert "by hand, " in told.text and "import:" not in told.text, "what was imported was not done by hand"
    facts = client.get(f"/api/v1/units/{unit}").json()
    assert facts["imported"][0]["claimed"][0]["value"] == 0.81 and facts["imported"][0]["explain_text"] == "unknown"

    page = client.get(f"/units/{alone}")
    assert page.status_code == 200, "one that nobody looked at here has a page too"
    for words in ("fires on ponds", "not explained here", " lake"):
        assert words in page.text
    start = client.get("/api/v1/models").json()
    assert start["units"] == 4 and alone not in client.get("/units").text, "nobody looked at it here"
    assert start["imported"] == [
        {"source": "delphi", "explanations": 1, "units": 1, "scored": 0, "accepted": 0},
        {"source": "neuronpedia", "explanations": 1, "units": 1, "scored": 1, "accepted": 0},
    ]
    assert "neuronpedia: 1 explanation of 1 unit, 1 scored here, 0 accepted" in Tags(client.get("/").text).text
    assert client.get(f"/units/{alone}-").status_code == 404
    (found,) = client.get("/api/v1/search?q=ponds").json()["rows"]
    assert (found["unit"], found["source"], found["verdict"]) == (alone, "delphi", None)
    assert "By delphi, not scored here" in client.get("/search?q=ponds").text


def test_pictures_come_as_they_are(served) -> None:
    answer = served.get("/pictures/" + "ab" * 32 + ".png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")


def test_the_api_pages_through_all_units(served) -> None:
    names, url = [], "/api/v1/units?top=2&order=worst"
    while url:
        page = served.get(url).json()
        names += [unit["name"] for unit in page["units"]]
        url = page["next"]
    assert sorted(names) == ["org/tiny/1-mlp/7", "org/tiny/1-mlp/8-", "org/tiny/2-mlp/9", "org/tiny/2-resid:sae/9"]
    assert page["previous"] is not None
    assert names[-1] == "org/tiny/2-mlp/9", "without a score, last"


def test_a_unit_as_json(served) -> None:
    told = served.get("/api/v1" + UNIT).json()
    assert told["ok"] is True
    assert told["card"]["explanation"] == "fires on the word “left”"
    assert {score["metric"] for score in told["scores"]} == {"f1", "output_auc", "ce_recovered"}
    assert [step["tool"] for step in told["chain"]] == ["minimal_example", "substitute", "patch", "ablate", "lens"]
    other = served.get("/api/v1/units/org/tiny/1-mlp/99")
    assert other.status_code == 404
    assert other.json()["ok"] is False
    assert other.json()["hint"]


def test_the_api_describes_itself(served) -> None:
    described = served.get("/api/v1/openapi.json").json()
    search = described["paths"]["/api/v1/search"]["get"]
    asked = {one["name"]: one for one in search["parameters"]}
    assert {"q", "like", "by", "top", "skip", *(field.name for field in fields(Filters))} == asked.keys()
    assert asked["kind"]["schema"]["enum"] == ["mlp", "attn", "resid", "feature"]
    answer = described["components"]["schemas"]["Found"]["properties"]
    assert {"rows", "by", "notes", "next", "previous", "as_of"} == answer.keys()
    assert described["openapi"].startswith("3.")
    page = Tags(served.get("/api/v1").text).text
    for path in described["paths"]:
        assert path in page
    assert "/api/v1/units/{name}" in described["paths"]


def seen(answer) -> str:
    """What a person reads of a page, its blanks made one."""
    return " ".join(Tags(answer.text).text.split())


def test_a_search_says_why_each_was_found(served) -> None:
    page = seen(served.get("/search?q=on+the+left&by=word&site=1-mlp"))
    assert "org/tiny/1-mlp/7 accepted fires on the word “left”" in page
    assert "1st by word (the, left)" in page or "1st by word (left)" in page
    assert "1 to 1, by word, the nearest first" in page
    none = seen(served.get("/search?q=nonsense"))
    assert "Nothing was found by word." in none
    assert "No explanation that passes the filters has any of these words" in none


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", {"1-mlp/7", "1-mlp/8-", "2-resid:sae/9"}),
        ("model=org/tiny&site=1-mlp", {"1-mlp/7", "1-mlp/8-"}),
        ("sign=-1", {"1-mlp/8-"}),
        ("kind=feature", {"2-resid:sae/9"}),
        ("verdict=unclear&planner=playbook", {"1-mlp/8-"}),
        ("min_score=0.8&max_score=0.8&site=&sign=", {"1-mlp/7", "1-mlp/8-", "2-resid:sae/9"}),
        ("min_score=0.81", set()),
        ("planner=llm", set()),
        ("review=unreviewed&site=1-mlp", {"1-mlp/7", "1-mlp/8-"}),
        ("review=accepted", set()),
    ],
)
def test_lists_and_searches_take_the_same_filters(served, asked, found) -> None:
    """Each of the three words is of one unit that has an explanation."""
    hits = served.get(f"/api/v1/search?q=left+numbers+script&by=word&{asked}").json()["rows"]
    assert {row["unit"].removeprefix("org/tiny/") + ("-" if row["sign"] == -1 else "") for row in hits} == found
    listed = served.get(f"/api/v1/units?{asked}").json()["units"]
    assert {row["name"].removeprefix("org/tiny/") for row in listed if row["explanation"]} == found
    page = served.get(f"/search?q=left+numbers+script&by=word&{asked}").text
    assert {name for name in ("1-mlp/7", "1-mlp/8-", "2-resid:sae/9") if f">org/tiny/{name}</a>" in page} == found


@pytest.mark.parametrize("asked", ["kind=smell", "verdict=good", "review=x", "sign=2"])
def test_a_filter_that_there_is_not_is_refused(served, asked) -> None:
    for path in ("/units", "/search?q=x", "/api/v1/units", "/api/v1/search?q=x"):
        answer = served.get(f"{path}{'&' if '?' in path else '?'}{asked}")
        assert answer.status_code == 400
        assert "is none that there is" in answer.text
        assert "write one of" in answer.text


def test_what_was_found_comes_in_parts(served) -> None:
    url, units = "/api/v1/search?q=left+numbers+script&by=word&top=1&site=", []
    while url:
        part = served.get(url).json()
        units += [row["unit"] for row in part["rows"]]
        last, url = part, part["next"]
    assert sorted(units) == ["org/tiny/1-mlp/7", "org/tiny/1-mlp/8", "org/tiny/2-resid:sae/9"]
    assert last["previous"] == "/api/v1/search?q=left+numbers+script&by=word&top=1&skip=1"
    page = served.get("/search?q=left+numbers+script&by=word&top=1&skip=1").text
    assert 'rel="prev" href="/search?q=left+numbers+script&amp;by=word&amp;top=1&amp;skip=0"' in page
    assert 'rel="next" href="/search?q=left+numbers+script&amp;by=word&amp;top=1&amp;skip=2"' in page
    assert "2 to 2, by word" in seen(served.get("/search?q=left+numbers+script&by=word&top=1&skip=1"))


def test_units_that_write_alike(served, make_app) -> None:
    answer = served.get("/search?like=org/tiny/1-mlp/7&by=direction&top=8", headers={"hx-request": "true"})
    assert "org/tiny/1-mlp/8-" in answer.text
    assert "1st by direction (cosine 1.00)" in answer.text
    assert "2-resid:sae/9" not in answer.text, "that site has none here"
    assert "by=direction" in served.get(UNIT).text
    app, doors = make_app(live=False)
    told = TestClient(app, base_url="http://127.0.0.1:8600", headers={"authorization": f"Bearer {doors.tokens['me']}"})
    assert "lamplighter serve --live" in told.get(UNIT).text
    assert "by=direction" not in told.get(UNIT).text


def test_a_search_that_cannot_be_made_is_told(served) -> None:
    for asked, told in (
        ("like=org/tiny/1-mlp/99&by=meaning", "No explanation of 'org/tiny/1-mlp/99' is recorded"),
        ("q=x&like=org/tiny/1-mlp/7", "give one of the two"),
        ("q=x&by=smell", "'smell' is no way to search"),
        ("q=x&by=meaning", "needs an embedder"),
        ("q=x&by=direction", "name the unit"),
    ):
        for path in ("/search", "/api/v1/search"):
            answer = served.get(f"{path}?{asked}")
            assert (answer.status_code, told in html.unescape(answer.text)) == (400, True), (path, asked)
    assert served.get("/api/v1/search").json()["error"] == "A search is for a text or for units like one"


def test_sql_says_as_of_when_and_what_was_cut(served) -> None:
    query = "select verdict, count(*) as n from explanations group by 1 order by 1"
    page = seen(served.get("/sql", params={"q": query}))
    assert "3 rows. As of 20" in page
    assert "accepted1 rejected1 unclear1" in page
    assert "500 rows, and there are more" in seen(served.get("/sql?q=from+range(501)"))
    told = served.post("/api/v1/sql", json={"query": "from range(10001)"}).json()
    assert (len(told["rows"]), told["cut"], told["behind"]) == (10_000, True, False)
    assert told["as_of"].startswith("20")
    assert served.post("/api/v1/sql", json={"query": "show tables"}).json()["rows"].count({"name": "units"}) == 1


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("select * from nothing", '`lamplighter sql "SHOW TABLES"` names those that there are'),
        ("drop table runs", "Only one SELECT at a time is run here, and this query is DROP; write one SELECT."),
        ("select 1; select 2", "this query is SELECT and SELECT"),
        ("attach 'x.db'", "this query is ATTACH"),
        ("from read_text('/etc/passwd')", "The query reads or writes a file (/etc/passwd), and nothing but the tables"),
        ("select repeat('x', 3000000)", "1 rows take more than 2 MB; select fewer columns or rows."),
        ("select 'x'::int", "The query was refused: Conversion Error"),
    ],
)
def test_sql_that_is_refused_gets_its_sentence(served, query, told) -> None:
    page = served.get("/sql", params={"q": query})
    assert page.status_code == 400
    assert told in html.unescape(page.text)
    if "repeat" not in query:
        answer = served.post("/api/v1/sql", json={"query": query})
        assert answer.status_code == 400
        assert told in "; ".join(filter(None, (answer.json()["error"], answer.json()["hint"])))


def test_a_third_query_at_a_time_is_told_to_wait(served, monkeypatch) -> None:
    running, end = threading.Semaphore(0), threading.Event()

    def ask(*_) -> Answer:
        running.release()
        end.wait(20)
        return Answer([{"a": 1}])

    monkeypatch.setattr(snapshot, "ask", ask)
    monkeypatch.setattr(snapshot, "WAIT_SECONDS", 0.05)
    with ThreadPoolExecutor(2) as two:
        asked = [two.submit(served.post, "/api/v1/sql", json={"query": "select 1"}) for _ in range(2)]
        assert running.acquire(timeout=20) and running.acquire(timeout=20)
        third = served.get("/sql?q=select+1")
        end.set()
        assert [one.result().json()["rows"] for one in asked] == [[{"a": 1}]] * 2
    assert third.status_code == 503
    assert "2 other queries are being run" in third.text
    assert served.get("/sql?q=select+1").status_code == 200


def test_a_unit_that_was_just_recorded_is_there(make_app, own, recorded, monkeypatch) -> None:
    monkeypatch.setattr(mirror, "QUICK_SECONDS", 60.0)
    app, doors = make_app(home=own)
    heads = {"authorization": f"Bearer {doors.tokens['me']}"}
    client = TestClient(app, base_url="http://127.0.0.1:8600", headers=heads)
    assert client.get("/units/org/tiny/1-mlp/3").status_code == 404
    Findings(own / "findings.duckdb").append(recorded(3, sentence="fires on threes"))
    assert "fires on threes" in client.get("/units/org/tiny/1-mlp/3").text
    assert client.get("/api/v1/units").json()["total"] == 5
    assert [path.suffix for path in (own / "snapshots").iterdir()] == [".duckdb"], "the newest alone, for sql too"
    assert client.get("/sql?q=select+count(*)+from+explanations").status_code == 200
    assert [path.suffix for path in (own / "snapshots").iterdir()] == [".duckdb"]


def test_nothing_recorded_is_said(make_app, tmp_path) -> None:
    app, doors = make_app(home=tmp_path / "new")
    client = TestClient(app, base_url="http://127.0.0.1:8600")
    client.get(f"/?token={doors.tokens['me']}")
    assert "lamplighter run" in client.get("/").text
    assert client.get("/units").status_code == 400


# Files


def web(name: str) -> bytes:
    return files(store).joinpath("web", name).read_bytes()


def test_vendored_files_are_what_they_were() -> None:
    told = web("htmx.txt").decode()
    assert f"sha256 of the file: {sha256(web('htmx.min.js')).hexdigest()}\n" in told
    assert "Zero-Clause BSD" in told


def test_static_files_are_cached_by_what_they_hold(served) -> None:
    first = served.get("/static/htmx.min.js")
    again = served.get("/static/htmx.min.js", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.content == web("htmx.min.js")


def test_nothing_is_asked_of_other_servers() -> None:
    for name in ("base.css", "pages.css", "pages.js", *(p.name for p in files(store).joinpath("web").iterdir())):
        if name.endswith((".css", ".jinja", "pages.js")):
            assert not re.findall(rb"(?:https?:)?//[\w-]+\.\w", web(name)), name


def test_pages_are_small(served) -> None:
    assert len(served.get("/").content) < 40_000
    json.dumps(served.get("/api/v1/models").json(), allow_nan=False)
