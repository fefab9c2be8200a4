"""Who may ask the pages anything: what stands between a browser and them, for every request alike.

A page on this machine can be reached by every other page that the same browser has open, and by names that somebody
else's name server points here. So the name that was asked for must be ours, a write must come from our own page, and
everything but the static files wants a cookie that only a token buys. Bodies are small and prompt, or refused.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from .claims import reviewer_name
from .records import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY = 64 * 1024         # bytes of a request's body, at most
BODY_SECONDS = 10.0      # in which it is here
TARGET = 8 * 1024        # bytes of path and query together
DAYS = 30                # for which a cookie is good
OPEN = "/static/"        # all that is told to anybody

HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Doors:
    """Where the pages are served, and to whom. host, port: what is listened on; tokens: a name's, which may come in.

    secret: what cookies are signed with; it outlives the process, so that nobody is thrown out by a restart.
    """

    host: str
    port: int
    secret: bytes
    tokens: Mapping[str, str]
    names: frozenset[str] = field(default_factory=frozenset)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def cookie(self) -> str:
        """Its name; cookies do not know ports, so that the name does."""
        return f"lamplighter-{self.port}"

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server: by a name of its own, or elsewhere than on loopback by address.

        Another's name that points here is never a literal address, so that those are safe.
        """
        found = _HOST.fullmatch(host.lower())
        if found is None or int(found[2] or 80) != self.port:
            return False
        name = found[1].strip("[]")
        own = {"localhost", "127.0.0.1", "::1", self.host.lower()} if self.loopback else {"localhost", *self.names}
        return name in own or (not self.loopback and _is_address(name))

    def who(self, token: str) -> str | None:
        """Whose token that is."""
        found = None
        for name, known in self.tokens.items():       # all of them, so that time tells nothing
            if hmac.compare_digest(token.encode(), known.encode()):
                found = name
        return found

    def sign(self, name: str, now: float | None = None) -> str:
        """A cookie that says who has come in, and until when."""
        until = int(time.time() if now is None else now) + DAYS * 86_400
        told = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=") + f".{until}"
        return f"{told}.{self._mark(told)}"

    def read(self, cookie: str) -> str | None:
        """Who has the cookie; None where it is not ours, too old, or of somebody who may not come in any more."""
        told, _, mark = cookie.rpartition(".")
        if not hmac.compare_digest(mark.encode(), self._mark(told).encode()):
            return None
        packed, _, until = told.partition(".")
        name = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)).decode()
        return name if int(until) > time.time() and name in self.tokens else None

    def _mark(self, told: str) -> str:
        return hmac.new(self.secret, f"{self.port} {told}".encode(), hashlib.sha256).hexdigest()

    def address(self, name: str) -> str:
        """The address that lets `name` in."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{shown}:{self.port}/?token={quote(self.tokens[name])}"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def open_doors(home: Path, host: str, port: int, reviewers: Iterable[str], me: str, names: Iterable[str] = ()) -> Doors:
    """Doors with new tokens. Raises Refused for another address than loopback without named reviewers, and for a name
    that is none."""
    known = [reviewer_name(name) for name in reviewers]
    if not known and not is_loopback(host):
        raise Refused(
            f"{host} can be reached from other machines; name who may come in, as in --reviewer ann --reviewer bob."
        )
    tokens = {name: secrets.token_urlsafe(32) for name in known or [_my_name(me)]}
    return Doors(host, port, _secret(home), tokens, frozenset(name.lower() for name in names))


def _my_name(me: str) -> str:
    """The name that the system knows its user by, where reviews can be kept under it."""
    try:
        return reviewer_name(me)
    except Refused:
        return "me"


def _secret(home: Path) -> bytes:
    """What cookies of this home are signed with, made once, for its owner's eyes alone."""
    path = home / "serve.secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        if len(path.read_bytes()) != 32:
            path.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be kept ({error.strerror}); give access or choose another --home.") from error


class Guard:
    """Every request goes through here first; what it lets on has its body whole and `reviewer` in its state."""

    def __init__(self, app: App, doors: Doors, body: int = BODY, seconds: float = BODY_SECONDS) -> None:
        self.app, self.doors, self.body, self.seconds = app, doors, body, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        tell = _armed(send, scope["method"] == "HEAD")
        try:
            message = await self._let_in(scope, receive)
        except _Out as out:
            await out.tell(tell)
            return

        async def once() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            told, message = message, None
            return told

        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, once, tell)

    async def _let_in(self, scope: Scope, receive: Receive) -> Message | None:
        """The whole body of a request that may go on; raises _Out for any other."""
        heads: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            heads.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        self._check_target(scope, heads)
        given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        bearer = _bearer(heads)
        _check_site(scope["method"], heads, bearer is not None)
        if not scope["path"].startswith(OPEN):
            who = self.doors.who(bearer) if bearer is not None else self._by_cookie(heads)
            if bearer is None and "token" in given and scope["method"] in ("GET", "HEAD") and scope["path"] == "/":
                who = self.doors.who(given["token"][0])
                if who is not None:
                    raise _In(self.doors, who)
                raise _Out(403, "That is no token of this server; open the address that `lamplighter serve` printed.")
            if who is None:
                raise _Out(
                    401, "Nobody comes in without a token; open the address that `lamplighter serve` printed.",
                    {"www-authenticate": "Bearer"},
                )  # fmt: skip
            scope.setdefault("state", {})["reviewer"] = who
        if scope["method"] != "POST":
            return None
        return await self._whole_body(heads, receive)

    def _check_target(self, scope: Scope, heads: Mapping[str, list[str]]) -> None:
        hosts = heads.get("host", [])
        if len(hosts) != 1:
            raise _Out(400, "A request names one host.")
        if not self.doors.knows(hosts[0]):
            raise _Out(421, "This server has another name; open the address that `lamplighter serve` printed.")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise _Out(405, "Pages are read with GET and written with POST.", {"allow": "GET, HEAD, POST"})
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > TARGET:
            raise _Out(414, f"The address is longer than {TARGET} bytes.")
        if scope["query_string"].count(b"&") >= 64:
            raise _Out(400, "The address has too many parts.")
        if "\0" in scope["path"]:
            raise _Out(400, "The address has a NUL in it.")

    def _by_cookie(self, heads: Mapping[str, list[str]]) -> str | None:
        for part in ";".join(heads.get("cookie", [])).split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.doors.cookie:
                try:
                    return self.doors.read(value)
                except ValueError:       # no cookie of ours reads so
                    return None
        return None

    async def _whole_body(self, heads: Mapping[str, list[str]], receive: Receive) -> Message:
        told = heads.get("content-length", ["0"])[0]
        if told.isdigit() and int(told) > self.body:
            raise _Out(413, f"The request has {int(told):,} bytes; {self.body:,} are the most that is taken.")
        body = b""
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Out(400, "The request ended on the way.")
                    body += message.get("body", b"")
                    if len(body) > self.body:
                        raise _Out(413, f"The request is longer than {self.body:,} bytes.")
                    if not message.get("more_body"):
                        return {"type": "http.request", "body": body, "more_body": False}
        except TimeoutError:
            raise _Out(408, f"The request was not here after {self.seconds:g} s.", {"connection": "close"}) from None


def _bearer(heads: Mapping[str, list[str]]) -> str | None:
    scheme, _, token = heads.get("authorization", [""])[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _check_site(method: str, heads: Mapping[str, list[str]], bearer: bool) -> None:
    """A write must come from our own page; so must a read that is no navigation, where the browser says whence it is.

    A program with a token of its own sends neither, and no other page can make a browser send it.
    """
    site = heads.get("sec-fetch-site", [""])[0].lower()
    foreign = site not in ("", "none", "same-origin")
    if method != "POST":
        if foreign and heads.get("sec-fetch-mode", [""])[0].lower() != "navigate":
            raise _Out(403, "Other pages may not read from this server.")
        return
    origins, host = heads.get("origin", []), heads["host"][0].lower()
    if foreign or any(origin.lower() != f"http://{host}" for origin in origins):
        raise _Out(403, "Other pages may not write to this server.")
    if not origins and site != "same-origin" and not bearer:
        raise _Out(403, "A write says which page it comes from, or carries a token.")


class _Out(Exception):
    """An answer given at the door."""

    def __init__(self, status: int, text: str, heads: Mapping[str, str] | None = None, kind: str = "text/plain"):
        super().__init__(text)
        self.status, self.text, self.heads, self.kind = status, text, dict(heads or {}), kind

    async def tell(self, send: Send) -> None:
        body = f"{self.text}\n".encode()
        heads = {"content-type": f"{self.kind}; charset=utf-8", "content-length": str(len(body)), **self.heads}
        raw = [(name.encode(), value.encode()) for name, value in heads.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


class _In(_Out):
    """A cookie for a token.

    The page that follows is asked for by this one, and not by a redirect: a cookie that is Strict is not sent along a
    redirect that began on another page.
    """

    def __init__(self, doors: Doors, who: str) -> None:
        cookie = f"{doors.cookie}={doors.sign(who)}; Path=/; HttpOnly; SameSite=Strict; Max-Age={DAYS * 86_400}"
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/">'
            '<link rel="icon" href="/static/lamp.svg"><title>lamplighter</title></head>'
            '<body><main><h1>lamplighter</h1><p><a href="/">Come in</a></p></main></body></html>'
        )
        super().__init__(200, page, {"set-cookie": cookie}, "text/html")


def _armed(send: Send, headless: bool) -> Send:
    """Adds to every answer what keeps a browser from doing more with it than is meant; HEAD gets no body."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            more = HEADERS | {"cache-control": "no-store"}
            added = [(n.encode(), v.encode()) for n, v in more.items() if n.encode() not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        elif headless and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return tell


__all__ = ["BODY", "HEADERS", "Doors", "Guard", "is_loopback", "open_doors"]
