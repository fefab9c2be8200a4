"""The pages that people see, as HTML made here: whole without JavaScript, and nothing in them but text.

What a model, a corpus or a page's address says is printed through `finalize` or the filter `text`, so that characters
that cannot be seen are seen, and is then escaped.
"""

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from .. import __version__
from . import plain
from .asked import LONGEST, Behind, By, Lamp, Like, Name, Order, Sign, Skip, Text, Top, beside, filters, searched
from .confined import Limits
from .filters import KINDS, ORDERS, REVIEWED, Filters
from .lamps import BINS, start_facts, unit_list
from .mirror import Copy
from .records import VERDICTS, Busy, Refused, signed
from .unit_page import Missing, heat, level, named, newest_facts

if TYPE_CHECKING:
    from .server import Services

LONGEST_TEXT = 4000      # characters of a text that is tried
EACH = 50                # units on a page of a list
FOUND = 20               # and of a search
SQL = Limits(seconds=20.0, rows=500, answer=2)

_PICTURE = re.compile(r"[0-9a-f]{64}")
_SEEN = {"\n": "↵", "\t": "⇥", "\r": "␍"}
# English in the pages' own words for what tools call by theirs.
_EFFECTS = {"kills": "kills it", "keeps": "keeps it", "raises": "raises it", "unsure": "unsure"}


class Pages:
    """The templates, and what all of them know."""

    def __init__(self, live: bool, review: bool = False) -> None:
        self.nav = [("/units", "Units"), ("/search", "Search"), ("/sql", "SQL")]
        if review:
            self.nav += [("/review", "Review"), ("/agreement", "Agreement")]
        self.nav.append(("/api/v1", "API"))
        self._made = Environment(
            autoescape=True, finalize=_finalize, loader=FunctionLoader(_source), undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._made.filters |= {
            "count": plain.count, "cut": plain.cut, "duration": plain.duration, "number": plain.number,
            "when": plain.when, "text": visible, "unit_url": unit_url, "level": level, "short": short,
        }  # fmt: skip
        self._made.globals |= {
            "bounded": plain.bounded, "claimed": plain.claimed, "signed": signed, "version": __version__, "live": live,
            "bins": BINS, "effects": _EFFECTS, "address": address, "heat": heat, "nav": self.nav,
            "choices": {"verdict": VERDICTS, "order": tuple(ORDERS), "kind": KINDS, "review": REVIEWED},
        }  # fmt: skip

    def show(self, name: str, request: Request, status: int = 200, **facts: Any) -> Response:
        """A page by its template."""
        who = getattr(request.state, "reviewer", None)
        text = self._made.get_template(f"{name}.html.jinja").render(path=request.url.path, reviewer=who, **facts)
        return HTMLResponse(text, status)


def page_routes(given: "Services", pages: Pages) -> APIRouter:
    """The explorer: start, lists of units, units, search and SQL."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def start(request: Request) -> Response:
        try:
            copy = given.mirror.copy
        except Refused as why:
            return pages.show("empty", request, sentence=str(why))
        return pages.show("start", request, as_of=copy.as_of, **start_facts(copy))

    @routes.get("/units")
    def units(
        request: Request, wanted: Annotated[Filters, Depends(filters)], unit: Name = None, sign: Sign = None,
        order: Order = "unit", top: Top = EACH, skip: Skip = 0, lamp: Lamp = None,
    ) -> Response:  # fmt: skip
        if unit:
            return RedirectResponse(unit_url(named(unit.strip(), sign).name), 303) if _has_address(unit) else unit_page(
                request, unit.strip(), sign
            )
        copy = given.mirror.copy
        rows, total = unit_list(copy, wanted, order, top, skip, lamp)
        return pages.show(
            "units", request, as_of=copy.as_of, wanted=wanted, order=order, lamp=lamp, known=_known(copy), units=rows,
            total=total, skip=skip, json=_as_json(request), **beside(request, top, skip, skip + top < total),
        )  # fmt: skip

    @routes.get("/units/{name:path}")
    def unit_page(
        request: Request, name: str, sign: int | None = None, investigation: str | None = None
    ) -> Response:
        this = named(name, sign)
        return pages.show("unit", request, this=this, tried=None, **newest_facts(given.mirror, this, investigation))

    @routes.post("/try")
    def try_text(
        request: Request, unit: Annotated[str, Form(max_length=1000)],
        text: Annotated[str, Form(max_length=LONGEST_TEXT)],
    ) -> Response:  # fmt: skip
        if given.read is None:
            raise Refused("No subject is loaded here; `lamplighter serve --live` loads it when a text is tried.")
        if not text.strip():
            raise Refused("The text is empty; write what the unit is to read.")
        this = named(unit)
        if this.model not in _known(given.mirror.copy):      # a visitor has no other model loaded, or fetched
            raise Missing(f"nothing is recorded of the model {this.model[:200]!r}; try a unit that has a page.")
        text = text.replace("\r\n", "\n")     # which is how a form sends the end of a line
        return pages.show(
            "try", request, this=this, tried=given.read(this.name, text) | {"text": text},
            fragment="hx-request" in request.headers,
        )

    @routes.get("/pictures/{name}")
    def picture(name: str) -> Response:
        digest = name.removesuffix(".png")
        path = given.pictures / f"{digest}.png"
        if not _PICTURE.fullmatch(digest) or not path.is_file():
            raise Missing("There is no such picture; the page of its unit names those that there are.")
        return Response(path.read_bytes(), media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @routes.get("/search")
    def search(
        request: Request, wanted: Annotated[Filters, Depends(filters)], q: Text = None, like: Like = None,
        by: By = None, top: Top = FOUND, skip: Behind = 0,
    ) -> Response:  # fmt: skip
        found, problem, status, more = None, None, 200, {"next": None, "previous": None}
        if (q and q.strip()) or like:
            try:
                found, more = searched(request, given.search, q, like=like, by=by, filters=wanted, top=top, skip=skip)
            except Refused as refusal:
                problem, status = str(refusal), status_of(refusal)
        else:
            given.warm()
        return pages.show(
            "search", request, status=status, wanted=wanted, q=q, like=like, by=by, skip=skip, found=found,
            problem=problem, known=_known(given.mirror.copy), longest=LONGEST, json=_as_json(request),
            fragment="hx-request" in request.headers, **more,
        )  # fmt: skip

    @routes.get("/sql")
    def sql(request: Request, q: Annotated[str, Query(max_length=6000)] = "") -> Response:
        told, problem, status = None, None, 200
        if q.strip():
            try:
                told = given.mirror.sql(q, SQL)
            except Refused as refusal:
                problem, status = str(refusal), status_of(refusal)
        return pages.show("sql", request, status=status, q=q, told=told, problem=problem)

    return routes


def status_of(refusal: Refused) -> int:
    """The HTTP status of an answer that is a refusal."""
    return 404 if isinstance(refusal, Missing) else 503 if isinstance(refusal, Busy) else 400


def _known(copy: Copy) -> dict[str, list[str]]:
    """The models that there are, and the sites of each."""
    return {model["name"]: [site["site"] for site in model["sites"]] for model in start_facts(copy)["models"]}


def _as_json(request: Request) -> str:
    """Where the same is in the API."""
    return address(f"/api/v1{request.url.path}", **dict(request.query_params))


def visible(text: Any) -> Markup:
    """Text as it is, in which line ends, tabs and whatever cannot be seen stand as signs of their own."""
    return Markup("").join(map(_sign, re.findall(r"[^\n\t\r\x00-\x1f\x7f-\U0010ffff]+|[\s\S]", str(text or ""))))


def _sign(part: str) -> Markup:
    if len(part) > 1 or part.isprintable():
        return escape(part)
    sign = _SEEN.get(part) or part.encode("unicode_escape").decode()
    return Markup('<span class="odd">{}</span>').format(sign)


def short(value: Any) -> str:
    """A value of any kind in a cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return plain.cut("" if value is None else str(value), 400)


def unit_url(name: str) -> str:
    """Where the page of a unit is. A name with a dot alone between slashes is no part of an address."""
    return f"/units/{quote(name, safe='/:@')}" if _has_address(name) else "/units?" + urlencode({"unit": name})


def _has_address(name: str) -> bool:
    return not any(part in (".", "..") for part in name.split("/"))


def address(path: str, **given: Any) -> str:
    """An address with what is asked."""
    asked = {k: v for k, v in given.items() if v is not None and v != ""}
    return f"{path}?{urlencode(asked)}" if asked else path


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else plain.clean(value)


@cache
def _source(name: str) -> str:
    return files(__package__).joinpath("web", name).read_text("utf-8")


__all__ = ["Pages", "page_routes", "status_of", "unit_url", "visible"]
