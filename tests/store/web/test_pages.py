"""What the pages say, to people and to programs, without a browser."""

import html
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter import store
from lamplighter.store.pages import unit_url, visible
from lamplighter.store.plain import clean

UNIT = "/units/org/tiny/1-mlp/7"
HOSTILE_UNIT = "/units/org/tiny/2-resid:sae/9"
PAGES = ["/", "/units", "/units?order=best&low=0.5&high=1", UNIT, "/units/org/tiny/1-mlp/8-", HOSTILE_UNIT,
         "/units/org/tiny/2-mlp/9", "/near/org/tiny/1-mlp/7", "/search", "/search?q=left", "/sql", "/sql?q=select+1",
         "/sql?q=select+sentence+from+hypotheses", "/api/v1", "/review", "/agreement",
         "/agreement?audit=1", "/units/org/tiny/1-mlp/99", "/nowhere"]  # fmt: skip


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
    lamps = [link for link in links if "low=0.8" in link]
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
    near = served.get("/near/org/tiny/1-mlp/7", headers={"hx-request": "true"}).text
    assert "<html" not in near
    assert near.index("1-mlp/8-") < near.index("2-resid:sae/9")


def test_a_unit_that_failed_says_so(served) -> None:
    page = served.get("/units/org/tiny/2-mlp/9").text
    assert "Timeout" in page
    assert "no explanation was put forward" in page


def test_a_text_is_tried(served, make_app) -> None:
    from starlette.testclient import TestClient

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


def test_pictures_come_as_they_are(served) -> None:
    answer = served.get("/pictures/" + "ab" * 32 + ".png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")


def test_the_api_pages_through_all_units(served) -> None:
    names, url = [], "/api/v1/units?each=2&order=worst"
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
    assert described["openapi"].startswith("3.")
    page = Tags(served.get("/api/v1").text).text
    for path in described["paths"]:
        assert path in page
    assert "/api/v1/units/{name}" in described["paths"]


def test_search_and_sql(served) -> None:
    assert "0.50" in served.get("/search?q=left&site=1-mlp").text
    rows = served.get("/sql", params={"q": "select verdict, count(*) as n from explanations group by 1 order by 1"})
    assert [word in rows.text for word in ("accepted", "rejected", "unclear")] == [True] * 3
    problem = served.get("/sql", params={"q": "select * from nothing"})
    assert problem.status_code == 400
    assert "nothing" in problem.text
    assert served.get("/api/v1/search", params={"q": "x"}).json()["rows"][0]["explanation"] == "x"


def test_nothing_recorded_is_said(make_app, tmp_path) -> None:
    from starlette.testclient import TestClient

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
