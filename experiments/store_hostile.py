"""Hostile requests, each with the answer that it must get: told to a server of `lamplighter serve`.

`requests` are told to the pages of the tests as well. What is told on the socket itself, and SQL that must be ended,
needs a process, and is told here alone.
"""

import html
import http.client
import json
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..agent.config import Home
from ..store.guard import BODY
from ..store.records import Evidence, Exemplar, Failure, Hypothesis, Record
from .report import Claim, Part, Progress
from .store_made import WHOLE, Maker
from .store_served import Served, served

SLOW_FROM = 0.5          # of the full size: those that take half a minute are told then
ELSEWHERE = {"sec-fetch-site": "cross-site"}
FORM, JSON = "application/x-www-form-urlencoded", "application/json"
HOSTILE = "</td><script>alert(1)</script> \u202etxet\u202c\u200b \x1b[31mred\x07 \"'><img src=x onerror=alert(2)>"
NEVER = ("Traceback", "root:", "nobody reads this", "File \"/")       # what no answer says
# Files that SQL is asked to write, at a place where anybody may.
WRITTEN = [str(Path(tempfile.gettempdir(), f"lamplighter-hostile.{kind}")) for kind in ("csv", "db")]


@dataclass(frozen=True)
class Asked:
    """A request and the status it must get. heads: over those of our own page; one that is None is left out."""

    what: str
    method: str
    path: str
    status: int
    heads: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None

    @property
    def kind(self) -> str | None:
        """What its body is."""
        return {"/try": FORM, "/review": FORM, "/api/v1/sql": JSON}.get(self.path)


def requests(port: int, unit: str) -> list[Asked]:
    """Requests of somebody who was let in by 127.0.0.1:`port`, unless they say otherwise; `unit` is one on record."""
    own = {"origin": f"http://127.0.0.1:{port}"}
    page, cookie = f"/units/{unit}", f"lamplighter-{port}"
    foreign = {"origin": "https://evil.example"}
    many = "&".join(f"a{n}=1" for n in range(200))
    return [
        Asked("a page of ours", "GET", "/", 200),
        Asked("the head of a page", "HEAD", "/", 200),
        Asked("another's name that points here", "GET", "/", 421, {"host": "evil.example"}),
        Asked("another's name with our port", "GET", "/", 421, {"host": f"evil.example:{port}"}),
        Asked("our name in another's", "GET", "/", 421, {"host": f"127.0.0.1.evil.example:{port}"}),
        Asked("our address with another port", "GET", "/", 421, {"host": "127.0.0.1:1"}),
        Asked("a host that is none", "GET", "/", 421, {"host": f"127.0.0.1:{port}@evil"}),
        Asked("localhost is ours", "GET", "/static/base.css", 200, {"host": f"LOCALHOST:{port}"}),
        Asked("no cookie", "GET", "/", 401, {"cookie": ""}),
        Asked("no cookie, a unit", "GET", page, 401, {"cookie": ""}),
        Asked("no cookie, the API", "GET", "/api/v1/units", 401, {"cookie": ""}),
        Asked("no cookie, a picture", "GET", "/pictures/" + "ab" * 32 + ".png", 401, {"cookie": ""}),
        Asked("no cookie, a static file", "GET", "/static/pages.js", 200, {"cookie": ""}),
        Asked("a forged cookie", "GET", "/", 401, {"cookie": f"{cookie}=bWU.9999999999.00"}),
        Asked("a cookie that is no text of ours", "GET", "/", 401, {"cookie": f"{cookie}=%00.%ff.."}),
        Asked("another's cookie of the same name, first", "GET", "/", 401, {"cookie": f"{cookie}=x"}),
        Asked("a wrong token", "GET", "/?token=guess", 403, {"cookie": ""}),
        Asked("a wrong bearer", "GET", "/api/v1/units", 401, {"authorization": "Bearer guess", "cookie": ""}),
        Asked("a foreign page reads", "GET", "/api/v1/units", 403, ELSEWHERE | {"sec-fetch-mode": "cors"}),
        Asked("a foreign page embeds", "GET", "/", 403, {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}),
        Asked("a link from elsewhere", "GET", "/", 200, ELSEWHERE | {"sec-fetch-mode": "navigate"}),
        Asked("a foreign form", "POST", "/try", 403, foreign, b"unit=x&text=y"),
        Asked("a form of another port", "POST", "/try", 403, {"origin": "http://127.0.0.1:1"}, b"unit=x&text=y"),
        Asked("a form of nowhere", "POST", "/try", 403, {"origin": "null"}, b"unit=x&text=y"),
        Asked("a write that hides its origin", "POST", "/try", 403, {"origin": None}, b"unit=x&text=y"),
        Asked("a write that says it is foreign", "POST", "/try", 403, own | {"sec-fetch-site": "same-site"}, b"unit=x"),
        Asked("a foreign review", "POST", "/review", 403, foreign, b"item=x&verdict=accept"),
        Asked("a review of nothing", "POST", "/review", 400, own, b"item=x&verdict=accept"),
        Asked("no cookie, a card", "GET", "/review", 401, {"cookie": ""}),
        Asked("scores before a verdict", "GET", "/review/behind/x", 400),
        Asked("another method", "DELETE", page, 405, own),
        Asked("a method that proxies speak", "TRACE", "/", 405, own),
        Asked("a page that is read, written", "POST", "/units", 405, own, b""),
        Asked("out of the folder", "GET", "/static/..%2f..%2fpyproject.toml", 404),
        Asked("out of the folder, encoded twice", "GET", "/static/%252e%252e%252fserver.py", 404),
        Asked("out of the folder, backslashes", "GET", "/static/..%5c..%5cserver.py", 404),
        Asked("a template", "GET", "/static/unit.html.jinja", 404),
        Asked("a file beside the pictures", "GET", "/pictures/..%2fsecret.txt", 404),
        Asked("an absolute path", "GET", "/pictures/%2fetc%2fpasswd", 404),
        Asked("a picture that is no digest", "GET", "/pictures/AB.png", 404),
        Asked("a NUL", "GET", "/units/a%00b/1-mlp/7", 400),
        Asked("no unit", "GET", "/units/nothing", 400),
        Asked("a unit of SQL", "GET", "/units/x'%20OR%201=1--/1-mlp/7", 404),
        Asked("markup for a unit", "GET", "/units/<script>alert(1)<%2fscript>/1-mlp/7", 404),
        Asked("a place that is no number", "GET", "/units?skip=x", 422),
        Asked("a place before the first", "GET", "/units?skip=-1", 422),
        Asked("a score that is none", "GET", "/units?min_score=nan", 422),
        Asked("an order of SQL", "GET", "/units?order=1;drop", 400),
        Asked("a file by SQL", "GET", _sql("select * from read_text('/etc/passwd')"), 400),
        Asked("a file by its name", "GET", _sql("select * from '/etc/passwd'"), 400),
        Asked("a table of a file", "GET", _sql("select * from read_csv_auto('/etc/hosts')"), 400),
        Asked("another database", "GET", _sql(f"attach '{WRITTEN[1]}'"), 400),
        Asked("a setting", "GET", _sql("set enable_external_access=true"), 400),
        Asked("a setting by PRAGMA", "GET", _sql("pragma memory_limit='90GB'"), 400),
        Asked("a copy into a file", "GET", _sql(f"copy (select 1) to '{WRITTEN[0]}'"), 400),
        Asked("an extension", "GET", _sql("install httpfs"), 400),
        Asked("the environment", "GET", _sql("select getenv('PATH')"), 400),
        Asked("two statements", "GET", _sql("select 1; drop table runs"), 400),
        Asked("a write by SQL", "GET", _sql("drop table runs"), 400),
        Asked("a write by SQL over the API", "POST", "/api/v1/sql", 400, own, b'{"query": "delete from runs"}'),
        Asked("no JSON", "POST", "/api/v1/sql", 422, own, b"{"),
        Asked("a long address", "GET", "/search?q=" + "a" * 9000, 414),
        Asked("very many parts", "GET", "/?" + many, 400),
        Asked("a large body", "POST", "/try", 413, own, b"x" * (BODY + 1)),
        Asked("a large text", "POST", "/try", 422, own, b"unit=x&text=" + b"a" * 5000),
        Asked("a length that lies", "POST", "/try", 413, own | {"content-length": str(10**12)}, b"x"),
    ]  # fmt: skip


def _sql(query: str) -> str:
    return "/sql?q=" + quote(query)


# SQL that DuckDB by itself would carry out; the first few take seconds, those of `slow` all that a query may take.
LIMITED = [
    ("memory in one call", "select length(repeat('x', 4000000000)) as n"),
    ("memory in a list", "select list(repeat('x', 1000) || range) as l from range(100000000)"),
    ("a regex that would blow up", "select regexp_matches(repeat('a', 40), '(a|a?)+$(?!b)') as m"),
    ("a large answer", "select repeat('x', 1000000) as x from range(100)"),
]
SLOW = [
    ("a query without end", "select count(*) from range(1000000) a, range(1000000) b where a.range * b.range = 7"),
    ("a recursion without end", "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r"),
]  # fmt: skip


def hostile(folder: Path, seed: int, size: float, tell: Progress) -> Part:
    """Told one after another to a server on a small home in which a unit has hostile text everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        home = Home(Path(place) / "home")
        home.path.mkdir()
        (home.path / "secret.txt").write_text("nobody reads this")
        unit = written(home, seed)
        with served(home.path) as server:
            rows = list(_told(server, unit, size >= SLOW_FROM, tell))
            alive = server.process.poll() is None and _send(server, Asked("after all", "GET", "/", 200))[0] == 200
        home.work.close()
        made = [path for path in WRITTEN if Path(path).exists()]
    wrong = [row for row in rows if not row["as it must be"]]
    claims = [
        Claim("hostile requests answered otherwise than they must be", float(len(wrong)), len(rows), "0", not wrong),
        Claim("the server lives after them", float(alive), 1, "1", alive),
        Claim("files that they made", float(len(made)), 1, "0", not made),
    ]  # fmt: skip
    return {"hostile": rows}, claims


def written(home: Home, seed: int) -> str:
    """Puts two units on record, of which the first, returned, has hostile text in all that is shown."""
    maker = Maker(seed, WHOLE)
    records: list[Record] = []
    for record in maker.records(0):
        match record:
            case Exemplar():
                records.append(replace(record, text=HOSTILE, token=HOSTILE[-5:]))
            case Hypothesis():
                records.append(replace(record, sentence=HOSTILE, rule_text=HOSTILE))
            case Evidence():
                rows = [row | {name: HOSTILE for name in ("token", "substitute", "kept_text") if name in row}
                        for row in record.rows]  # fmt: skip
                records.append(replace(record, summary=HOSTILE, rows=rows, warnings=[HOSTILE]))
            case _:
                records.append(record)
    about: dict[str, Any] = {"unit": records[0].unit, "sign": 1, "run": "made"}
    records.append(Failure(kind=HOSTILE, message=HOSTILE, step=HOSTILE, attempt=1, **about))
    home.findings.append([*records, *maker.records(1)])
    return str(records[0].unit)


def _told(server: Served, unit: str, slow: bool, tell: Progress) -> Iterator[dict[str, Any]]:
    """A row for each request."""
    asked = requests(server.port, unit)
    asked += [Asked(what, "GET", _sql(query), 400) for what, query in (LIMITED + SLOW if slow else LIMITED)]
    for number, one in enumerate(asked):
        began = time.monotonic()
        status, heads, body = _send(server, one)
        good = status == one.status and _armed(heads) and not any(word in body for word in NEVER)
        yield _row(one.what, status, one.status, _sentence(body), good, time.monotonic() - began)
        tell("hostile requests", number + 1, len(asked))
    shown = (("hostile text on its unit's page", f"/units/{unit}"), ("… in a list", "/units"),
             ("… in a search", "/search?q=script"), ("… in an answer of SQL", _sql("select sentence from hypotheses")),
             ("… on a card to review", "/review"))  # fmt: skip
    for what, path in shown:
        status, _, body = _send(server, Asked(what, "GET", path, 200))
        clean = status == 200 and not re.search("<script>alert|<img src=x|[\u202a-\u202e\u200b\x1b\x07]", body)
        signs = "\\u202e" in body and "\\x1b" in body and "&lt;script&gt;" in body
        told = "shown as signs, escaped" if clean and signs else "not shown" if clean else "AS IT IS"
        yield _row(what, status, 200, told, clean and (signs or path in ("/review", "/search?q=script")))
    for what, parts, pause, wanted in _spoken(server):
        began = time.monotonic()
        answer = _say(server.port, parts, pause)
        first = answer.split(b"\r\n")[0].decode("latin-1") or "closed without an answer"
        good = bool(re.match(wanted, first)) and b"200 OK" not in answer
        yield _row(what, first, wanted, _sentence(answer.decode("utf-8", "replace")), good, time.monotonic() - began)


def _row(
    what: str, status: int | str, wanted: int | str, sentence: str, good: bool, seconds: float = 0.0
) -> dict[str, Any]:
    return {"request": what, "status": status, "must be": wanted, "the sentence": sentence[:110], "as it must be": good,
            "seconds": round(seconds, 2)}  # fmt: skip


def _send(server: Served, asked: Asked) -> tuple[int, Mapping[str, str], str]:
    """The answer to a request as our own page would send it, but for what it says otherwise."""
    own: dict[str, str | None] = {"host": f"127.0.0.1:{server.port}", "cookie": _cookie(server)}
    if asked.method == "POST":
        own |= {"origin": f"http://127.0.0.1:{server.port}", "content-type": asked.kind}
        own |= {"content-length": str(len(asked.body or b""))}
    con = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        con.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**own, **asked.heads}.items():
            if value:
                con.putheader(name, value)
        con.endheaders(asked.body)
        answer = con.getresponse()
        heads = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, heads, answer.read().decode("utf-8", "replace")
    finally:
        con.close()


def _cookie(server: Served) -> str:
    """What the token buys."""
    con = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        con.request("GET", f"/?token={server.token()}")
        return str(con.getresponse().getheader("set-cookie")).partition(";")[0]
    finally:
        con.close()


def _armed(heads: Mapping[str, str]) -> bool:
    """Whether an answer keeps a browser from doing more with it than is meant."""
    policy = heads.get("content-security-policy", "")
    sniffed = heads.get("x-content-type-options") != "nosniff"
    return "default-src 'self'" in policy and "unsafe" not in policy and not sniffed


def _sentence(body: str) -> str:
    """What an answer says to people: of JSON its error, of a page what stands in its middle, else the text."""
    body = body.partition("\r\n\r\n")[2] if body.startswith("HTTP/") else body
    if body.startswith("{"):
        told = json.loads(body)
        return f"{told['error']}; {told['hint']}" if told.get("hint") else str(told.get("error", ""))
    for part in (r'class="problem"[^>]*>(.*?)</', r"<main[^>]*>(.*?)</main>"):
        if found := re.search(part, body, re.DOTALL):
            body = found[1]
            break
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def _spoken(server: Served) -> list[tuple[str, Sequence[bytes], float, str]]:
    """What is said byte by byte, with pauses, and how the first line of the answer must begin."""
    own = f"Host: 127.0.0.1:{server.port}"
    bearer = f"Authorization: Bearer {server.token()}"

    def head(line: str, *more: str) -> bytes:
        return "\r\n".join([line, *more, "", ""]).encode()

    refused = r"HTTP/1.1 4\d\d|closed"
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    return [
        ("a head that never ends", [b"GET / HTTP/1.1\r\n", *[b"X-Slow: 1\r\n"] * 20], 1.0, refused),
        ("a body that never ends", [head("POST /try HTTP/1.1", own, bearer, "Content-Length: 1000"), b"a", b"a"], 0.5,
         "HTTP/1.1 408"),
        ("a body in chunks, too large", [head("POST /try HTTP/1.1", own, bearer, "Transfer-Encoding: chunked"),
         *[chunk] * 6], 0.0, "HTTP/1.1 413"),
        ("a flood of heads", [head("GET / HTTP/1.1", own, *(f"X-{n}: {'a' * 90}" for n in range(2000)))], 0.0, refused),
        ("a head too long", [head("GET / HTTP/1.1", own, f"X: {'a' * 70_000}")], 0.0, refused),
        ("two hosts", [head("GET / HTTP/1.1", own, "Host: evil.example")], 0.0, "HTTP/1.1 400"),
        ("no host", [head("GET / HTTP/1.1")], 0.0, refused),
        ("no HTTP", [b"\x16\x03\x01 hello\r\n\r\n"], 0.0, refused),
        ("two lengths", [head("POST / HTTP/1.1", own, "Content-Length: 1", "Content-Length: 9") + b"a"], 0.0, refused),
    ]  # fmt: skip


def _say(port: int, parts: Sequence[bytes], pause: float) -> bytes:
    """Says them and gives back what is answered until the server closes or says nothing more; 40 s at most."""
    answer = b""
    with (
        suppress(TimeoutError, ConnectionError),       # what was answered until then is what there is
        socket.create_connection(("127.0.0.1", port), timeout=40) as con,
    ):
        for part in parts:
            con.sendall(part)
            time.sleep(pause)
        while chunk := con.recv(65_536):
            answer += chunk
            con.settimeout(1.0)      # a connection that is kept is not waited for
    return answer


__all__ = ["HOSTILE", "Asked", "hostile", "requests", "written"]
