"""What a hostile request gets: a table, and what bytes on a socket meet."""

import socket
import time
from dataclasses import replace

import pytest

from lamplighter.experiments.store_hostile import requests
from lamplighter.store.guard import Doors, is_loopback, open_doors
from lamplighter.store.records import Refused

HOME = "http://127.0.0.1:8600"


@pytest.mark.parametrize("asked", requests(8600, "org/tiny/1-mlp/7"), ids=lambda asked: asked.what)
def test_a_hostile_request(served, asked) -> None:
    """The table that `lamplighter experiment bench_store` tells a real server."""
    request = served.build_request(asked.method, asked.path, content=asked.body)
    if asked.kind:
        request.headers["content-type"] = asked.kind
    for name, value in asked.heads.items():
        if value is None:
            del request.headers[name]
        else:
            request.headers[name] = value
    if asked.method in ("GET", "HEAD"):
        request.headers.pop("origin", None)
    answer = served.send(request)
    assert answer.status_code == asked.status, answer.text[:300]
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Traceback" not in answer.text
    assert "nobody reads this" not in answer.text
    assert "root:" not in answer.text
    if "static" not in asked.path:
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
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP, "else asyncio leaves answers waiting for more to send"
    with pytest.raises(Refused, match="--port"):
        listen("203.0.113.9", 8600)
