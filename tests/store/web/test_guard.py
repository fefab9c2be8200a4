"""What a hostile request gets: a table, and what bytes on a socket meet."""

import socket
import time
from dataclasses import replace

import pytest

from lamplighter.store.guard import BODY, Doors, is_loopback, open_doors
from lamplighter.store.records import Refused

HOME = "http://127.0.0.1:8600"
IN = {"origin": HOME}
ELSEWHERE = {"sec-fetch-site": "cross-site"}

# method, path, headers, body → status. The client has a cookie unless the row says otherwise.
TABLE = [
    ("a page of ours", "GET", "/", {}, None, 200),
    ("the head of a page", "HEAD", "/", {}, None, 200),
    ("another's name that points here", "GET", "/", {"host": "evil.example"}, None, 421),
    ("another's name with our port", "GET", "/", {"host": "evil.example:8600"}, None, 421),
    ("our name in another's", "GET", "/", {"host": "127.0.0.1.evil.example:8600"}, None, 421),
    ("our address with another port", "GET", "/", {"host": "127.0.0.1:1"}, None, 421),
    ("a host that is none", "GET", "/", {"host": "127.0.0.1:8600@evil"}, None, 421),
    ("localhost is ours", "GET", "/static/base.css", {"host": "LOCALHOST:8600"}, None, 200),
    ("no cookie", "GET", "/", {"cookie": ""}, None, 401),
    ("no cookie, a unit", "GET", "/units/org/tiny/1-mlp/7", {"cookie": ""}, None, 401),
    ("no cookie, the API", "GET", "/api/v1/units", {"cookie": ""}, None, 401),
    ("no cookie, a picture", "GET", "/pictures/" + "ab" * 32 + ".png", {"cookie": ""}, None, 401),
    ("no cookie, a static file", "GET", "/static/pages.js", {"cookie": ""}, None, 200),
    ("a forged cookie", "GET", "/", {"cookie": "lamplighter-8600=bWU.9999999999.00"}, None, 401),
    ("a cookie that is no text of ours", "GET", "/", {"cookie": "lamplighter-8600=%00.%ff.."}, None, 401),
    ("another's cookie of the same name, first", "GET", "/", {"cookie": "lamplighter-8600=x"}, None, 401),
    ("a wrong token", "GET", "/?token=guess", {"cookie": ""}, None, 403),
    ("a wrong bearer", "GET", "/api/v1/units", {"authorization": "Bearer guess", "cookie": ""}, None, 401),
    ("a foreign page reads", "GET", "/api/v1/units", ELSEWHERE | {"sec-fetch-mode": "cors"}, None, 403),
    ("a foreign page embeds", "GET", "/", {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, None, 403),
    ("a link from elsewhere", "GET", "/", ELSEWHERE | {"sec-fetch-mode": "navigate"}, None, 200),
    ("a foreign form", "POST", "/try", {"origin": "https://evil.example"}, b"unit=x&text=y", 403),
    ("a form of another port", "POST", "/try", {"origin": "http://127.0.0.1:1"}, b"unit=x&text=y", 403),
    ("a form of nowhere", "POST", "/try", {"origin": "null"}, b"unit=x&text=y", 403),
    ("a write that hides its origin", "POST", "/try", {"origin": None}, b"unit=x&text=y", 403),
    ("a write that says it is foreign", "POST", "/try", {**IN, "sec-fetch-site": "same-site"}, b"unit=x&text=y", 403),
    ("a foreign review", "POST", "/review", {"origin": "https://evil.example"}, b"item=x&verdict=accept", 403),
    ("a review of nothing", "POST", "/review", IN, b"item=x&verdict=accept", 400),
    ("no cookie, a card", "GET", "/review", {"cookie": ""}, None, 401),
    ("scores before a verdict", "GET", "/review/behind/x", {}, None, 400),
    ("another method", "DELETE", "/units/org/tiny/1-mlp/7", IN, None, 405),
    ("a method that proxies speak", "TRACE", "/", IN, None, 405),
    ("a page that is read, written", "POST", "/units", IN, b"", 405),
    ("out of the folder", "GET", "/static/..%2f..%2fpyproject.toml", {}, None, 404),
    ("out of the folder, encoded twice", "GET", "/static/%252e%252e%252fserver.py", {}, None, 404),
    ("out of the folder, backslashes", "GET", "/static/..%5c..%5cserver.py", {}, None, 404),
    ("a template", "GET", "/static/unit.html.jinja", {}, None, 404),
    ("a file beside the pictures", "GET", "/pictures/..%2fsecret.txt", {}, None, 404),
    ("an absolute path", "GET", "/pictures/%2fetc%2fpasswd", {}, None, 404),
    ("a picture that is no digest", "GET", "/pictures/AB.png", {}, None, 404),
    ("a NUL", "GET", "/units/a%00b/1-mlp/7", {}, None, 400),
    ("no unit", "GET", "/units/nothing", {}, None, 400),
    ("a unit of SQL", "GET", "/units/x'%20OR%201=1--/1-mlp/7", {}, None, 404),
    ("markup for a unit", "GET", "/units/<script>alert(1)<%2fscript>/1-mlp/7", {}, None, 404),
    ("a place that is no number", "GET", "/units?skip=x", {}, None, 422),
    ("a place before the first", "GET", "/units?skip=-1", {}, None, 422),
    ("a score that is none", "GET", "/units?min_score=nan", {}, None, 422),
    ("an order of SQL", "GET", "/units?order=1;drop", {}, None, 400),
    ("a file by SQL", "GET", "/sql?q=select+*+from+read_text('/etc/passwd')", {}, None, 400),
    ("a write by SQL", "GET", "/sql?q=drop+table+runs", {}, None, 400),
    ("a write by SQL over the API", "POST", "/api/v1/sql", IN, b'{"query": "delete from runs"}', 400),
    ("no JSON", "POST", "/api/v1/sql", IN, b"{", 422),
    ("a long address", "GET", "/search?q=" + "a" * 9000, {}, None, 414),
    ("very many parts", "GET", "/?" + "&".join(f"a{n}=1" for n in range(200)), {}, None, 400),
    ("a large body", "POST", "/try", IN, b"x" * (BODY + 1), 413),
    ("a large text", "POST", "/try", IN, b"unit=x&text=" + b"a" * 5000, 422),
    ("a length that lies", "POST", "/try", {**IN, "content-length": str(10**12)}, b"x", 413),
]  # fmt: skip


@pytest.mark.parametrize(("what", "method", "path", "heads", "body", "status"), TABLE, ids=[row[0] for row in TABLE])
def test_a_hostile_request(served, what, method, path, heads, body, status) -> None:
    request = served.build_request(method, path, content=body)
    form = "application/x-www-form-urlencoded"
    kinds = {"/try": form, "/review": form, "/api/v1/sql": "application/json"}
    if path in kinds:
        request.headers["content-type"] = kinds[path]
    for name, value in heads.items():
        if value is None:
            del request.headers[name]
        else:
            request.headers[name] = value
    if method in ("GET", "HEAD"):
        request.headers.pop("origin", None)
    answer = served.send(request)
    assert answer.status_code == status, answer.text[:300]
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Traceback" not in answer.text
    assert "nobody reads this" not in answer.text
    assert "root:" not in answer.text
    if "static" not in path:
        assert answer.headers["cache-control"] == "no-store"


def test_a_token_buys_a_cookie(make_app) -> None:
    from starlette.testclient import TestClient

    app, doors = make_app()
    client = TestClient(app, base_url=HOME)
    answer = client.get(f"/?token={doors.tokens['me']}", follow_redirects=False)
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert doors.tokens["me"] not in cookie + answer.text
    assert client.get("/units").status_code == 200
    again, _ = make_app()                  # a restart: another token, the same cookie
    assert TestClient(again, base_url=HOME, cookies=dict(client.cookies)).get("/units").status_code == 200
    elsewhere, _ = make_app(port=8601)     # a cookie of another server on this machine
    stolen = {"lamplighter-8601": client.cookies["lamplighter-8600"]}
    assert TestClient(elsewhere, base_url="http://127.0.0.1:8601", cookies=stolen).get("/units").status_code == 401


def test_a_program_has_a_bearer_and_no_origin(make_app) -> None:
    from starlette.testclient import TestClient

    app, doors = make_app()
    client = TestClient(app, base_url=HOME, headers={"authorization": f"Bearer {doors.tokens['me']}"})
    assert client.get("/api/v1/units").json()["total"] == 4
    assert client.post("/api/v1/sql", json={"query": "select 1 as a"}).json()["rows"] == [{"a": 1}]


def test_a_cookie_ends_and_a_name_that_left_stays_out(make_app) -> None:
    _, doors = make_app(reviewers=["ann", "bob"])
    assert doors.read(doors.sign("ann")) == "ann"
    assert doors.read(doors.sign("ann", now=time.time() - 31 * 86_400)) is None
    assert doors.read(doors.sign("carol")) is None
    assert doors.read(doors.sign("ann")[:-1] + "0") in (None, "ann")
    other = replace(doors, secret=b"x" * 32)
    assert other.read(doors.sign("ann")) is None
    assert {doors.who(doors.tokens["ann"]), doors.who(doors.tokens["bob"])} == {"ann", "bob"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_want_named_reviewers(tmp_path, host) -> None:
    with pytest.raises(Refused, match="--reviewer"):
        open_doors(tmp_path, host, 1, [], "me")
    assert set(open_doors(tmp_path, host, 1, ["Ann"], "me").tokens) == {"ann"}


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 80, "a;b"])
def test_a_name_that_is_none(tmp_path, name) -> None:
    assert set(open_doors(tmp_path, "127.0.0.1", 1, [], name).tokens) == {"me"}
    with pytest.raises(Refused, match="no name"):
        open_doors(tmp_path, "127.0.0.1", 1, [name], "me")


def test_where_loopback_is() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))


@pytest.mark.parametrize(
    ("host", "known"),
    [("10.0.0.7:80", True), ("[fe80::1]:80", True), ("box:80", True), ("box", True), ("evil.example:80", False),
     ("10.0.0.7:81", False)],
)  # fmt: skip
def test_hosts_of_an_open_server(host, known) -> None:
    doors = Doors("0.0.0.0", 80, b"k", {"ann": "t"}, frozenset({"box"}))
    assert doors.knows(host) is known


def test_the_secret_is_for_its_owner_alone(tmp_path) -> None:
    first = open_doors(tmp_path, "127.0.0.1", 1, [], "me")
    assert open_doors(tmp_path, "127.0.0.1", 1, [], "me").secret == first.secret
    assert (tmp_path / "serve.secret").stat().st_mode & 0o077 == 0


# On the socket


def head(line: str, port: int, *more: str) -> bytes:
    return "\r\n".join([line, f"Host: 127.0.0.1:{port}", *more, "", ""]).encode()


def test_a_head_that_never_ends_is_cut_off(spoken, running) -> None:
    began = time.monotonic()
    answer = spoken(b"GET / HTTP/1.1\r\n", *[b"X-Slow: 1\r\n"] * 8, pause=0.4, wait=10)
    assert b"200 OK" not in answer
    assert time.monotonic() - began < 8


def test_a_body_that_never_ends_is_refused(spoken, running) -> None:
    port = running[1]
    token = running[0].partition("token=")[2]
    more = ("Content-Length: 1000", f"Authorization: Bearer {token}")
    answer = spoken(head("POST /try HTTP/1.1", port, *more), *[b"a"] * 2, pause=0.2, wait=10)
    assert b"408" in answer.split(b"\r\n")[0]


def test_a_body_in_chunks_is_counted(spoken, running) -> None:
    port, token = running[1], running[0].partition("token=")[2]
    more = ("Transfer-Encoding: chunked", f"Authorization: Bearer {token}")
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    assert b"413" in spoken(head("POST /try HTTP/1.1", port, *more), *[chunk] * 6).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("two hosts", "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("no HTTP", "\x16\x03\x01 hello\r\n\r\n"),
        ("two lengths", "POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1\r\nContent-Length: 9\r\n\r\na"),
        ("a long head", "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX: {long}\r\n\r\n"),
    ],
)
def test_a_request_that_is_none(spoken, running, what, said) -> None:
    answer = spoken(said.format(port=running[1], long="a" * 70_000).encode("latin-1"), wait=4)
    assert answer.startswith(b"HTTP/1.1 4") or b"ConnectionResetError" in answer
    assert b"200 OK" not in answer


def test_it_listens_where_it_is_told(running) -> None:
    from lamplighter.store.server import listen

    with socket.create_connection(("127.0.0.1", running[1])) as con:
        assert con.getpeername()[0] == "127.0.0.1"
    with pytest.raises(Refused, match="--port"):
        listen("203.0.113.9", 8600)
