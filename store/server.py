"""The pages, put together and served: what they read, the routes, and the answers to what cannot be done."""

import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from .. import __version__
from .api import api_routes
from .guard import Doors, Guard
from .index import Index
from .lamps import start_facts
from .mirror import Mirror
from .pages import Pages, page_routes, status_of
from .records import Refused
from .review_pages import MirroredDesk, review_routes
from .search import Searched
from .snapshot import Snapshots

KEEP_ALIVE = 15.0        # seconds for which a connection may say nothing
HEAD_BYTES = 16 * 1024   # of a request's head
CONNECTIONS = 200
STATIC = {
    "base.css": "text/css", "pages.css": "text/css", "pages.js": "text/javascript", "htmx.min.js": "text/javascript",
    "lamp.svg": "image/svg+xml",
}  # fmt: skip


@dataclass(frozen=True)
class Services:
    """What the pages rest on. pictures: the folder of the pictures that evidence names.

    search: see `search.search`, but for the embedder, which it has; warm: has that loaded, for whoever is about to ask.
    read: a unit's readings on a text, where a subject can be loaded.
    """

    mirror: Mirror
    index: Index
    pictures: Path
    search: Callable[..., Searched]
    warm: Callable[[], None]
    read: Callable[[str, str], dict[str, Any]] | None


def services(
    snapshots: Snapshots, index: Index, pictures: Path, search: Callable[..., Searched],
    warm: Callable[[], None] = lambda: None, read: Callable[[str, str], dict[str, Any]] | None = None,
) -> Services:  # fmt: skip
    """Services on a home's snapshots and index, which are opened when they are asked for."""
    return Services(Mirror(snapshots, ready=start_facts), index, pictures, search, warm, read)


def create_app(given: Services, doors: Doors, desk: MirroredDesk | None = None) -> Guard:
    """The application behind its guard; with a desk people can review at it."""

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as beside:
            beside.enter_context(given.mirror.kept_fresh())
            beside.enter_context(given.index.kept_fresh())
            if desk is not None:
                desk.start()
                beside.callback(desk.close)
            yield

    app = FastAPI(
        title="lamplighter", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=alive,
        description="What is known of the units of language models. Everything wants the cookie of the pages, or the "
        "token that lamplighter serve printed, as Authorization: Bearer TOKEN. Of what is refused the answer is {ok: "
        "false, error, hint}.",
    )  # fmt: skip
    pages = Pages(live=given.read is not None, review=desk is not None)
    app.include_router(page_routes(given, pages))
    app.include_router(api_routes(given, pages, app), prefix="/api/v1")
    if desk is not None:
        app.include_router(review_routes(desk, pages))
    _add_static(app)
    _add_answers(app, pages)
    return Guard(app, doors)


def _add_static(app: FastAPI) -> None:
    """A table of files: what is asked for is a key of it and never a path."""
    held = {name: files(__package__).joinpath("web", name).read_bytes() for name in STATIC}
    marks = {name: f'"{hashlib.sha256(body).hexdigest()[:32]}"' for name, body in held.items()}

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str, request: Request) -> Response:
        if name not in held:
            raise HTTPException(404)
        heads = {"etag": marks[name], "cache-control": "public, max-age=3600"}
        if request.headers.get("if-none-match") == marks[name]:
            return Response(status_code=304, headers=heads)
        return Response(held[name], media_type=STATIC[name], headers=heads)


def _add_answers(app: FastAPI, pages: Pages) -> None:
    """A sentence for whatever cannot be done: JSON under /api, else a page."""

    def answer(request: Request, status: int, sentence: str) -> Response:
        if request.url.path.startswith("/api/"):
            error, _, hint = sentence.partition("; ")
            return JSONResponse({"ok": False, "error": error, "hint": hint or None}, status)
        fragment = "hx-request" in request.headers
        return pages.show("problem", request, status=status, sentence=sentence, code=status, fragment=fragment)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(request, status_of(error), str(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        told = {404: "There is no such page; the start page leads to all that there are.",
                405: "That page is not asked for in this way; open it from the start page."}  # fmt: skip
        return answer(request, error.status_code, told.get(error.status_code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return answer(request, 422, f"{where}: {first['msg']}; correct it and ask again.")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        logging.getLogger("lamplighter").error("%s %s", request.method, request.url.path, exc_info=error)
        return answer(request, 500, "This page met an error of its own; the terminal of `lamplighter serve` has it.")


class Prompt(H11Protocol):
    """Connections whose next request does not come whole within KEEP_ALIVE are closed, however slowly they speak."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._seen: object = None
        self.loop.call_later(KEEP_ALIVE, self._watch)

    def _watch(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._seen is self.cycle:
            self.transport.close()
            return
        self._seen = self.cycle
        self.loop.call_later(KEEP_ALIVE, self._watch)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is listened on; port 0 takes a free one. Raises Refused where it cannot be had."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, since asyncio sends at once only where it is: else an answer waits 40 ms for more to send.
    made = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        why = getattr(error, "strerror", None) or error
        raise Refused(f"{host}:{port} cannot be listened on ({why}); choose another --port or --host.") from error
    return made


def run(app: Guard, sock: socket.socket) -> None:
    """Serves until the process is told to stop."""
    config = uvicorn.Config(
        app, http=Prompt, ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        h11_max_incomplete_event_size=HEAD_BYTES, timeout_keep_alive=int(KEEP_ALIVE), limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[sock])


__all__ = ["Services", "create_app", "listen", "run", "services"]
