"""The pages that people see, as HTML made here: whole without JavaScript, and nothing in them but text.

What a model, a corpus or a page's address says is printed through `finalize` or the filter `text`, so that characters
that cannot be seen are seen, and is then escaped.
"""

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from .. import __version__
from . import plain
from .lamps import BINS, ORDERS, Wanted, unit_list
from .records import VERDICTS, Refused, signed
from .unit_page import Missing, heat, level, named, nearest, unit_facts

if TYPE_CHECKING:
    from .server import Services

LONGEST_TEXT = 4000      # characters of a text that is tried
ROWS = 500               # of a query's answer that a page shows

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
            "bounded": plain.bounded, "signed": signed, "version": __version__, "live": live, "bins": BINS,
            "verdicts": VERDICTS, "orders": list(ORDERS), "effects": _EFFECTS, "address": address, "heat": heat,
            "nav": self.nav,
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
        return pages.show("start", request, as_of=copy.as_of, **copy.start)

    @routes.get("/units")
    def units(
        request: Request, unit: str = "", model: str = "", site: str = "", verdict: str = "", low: str = "",
        high: str = "", order: str = "unit", page: int = 1, sign: int | None = None,
    ) -> Response:  # fmt: skip
        if unit:
            return RedirectResponse(unit_url(named(unit.strip(), sign).name), 303) if _has_address(unit) else unit_page(
                request, unit.strip(), sign
            )
        wanted = Wanted(model or None, site or None, verdict or None, _float(low, "low"), _float(high, "high"), order)
        copy = given.mirror.copy
        known = [(m["name"], [s["site"] for s in m["sites"]]) for m in copy.start["models"]]
        return pages.show(
            "units", request, as_of=copy.as_of, wanted=wanted, known=known, **unit_list(copy, wanted, page)
        )

    @routes.get("/units/{name:path}")
    def unit_page(
        request: Request, name: str, sign: int | None = None, investigation: str | None = None
    ) -> Response:
        this, copy = named(name, sign), given.mirror.copy
        try:
            facts = unit_facts(copy, this, investigation)
        except Missing:
            if not (given.mirror.quick and given.mirror.refresh()):       # recorded since the copy was made?
                raise
            copy = given.mirror.copy
            facts = unit_facts(copy, this, investigation)
        return pages.show("unit", request, as_of=copy.as_of, this=this, tried=None, **facts)

    @routes.get("/near/{name:path}")
    def near(request: Request, name: str) -> Response:
        this, copy = named(name), given.mirror.copy
        fragment = "hx-request" in request.headers
        return pages.show("near", request, this=this, found=nearest(copy, this), fragment=fragment, as_of=copy.as_of)

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
        request: Request, q: Annotated[str, Query(max_length=1000)] = "", model: str = "", site: str = "",
        low: str = "", top: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:  # fmt: skip
        asked = {"q": q, "model": model, "site": site, "low": low, "top": top}
        found, problem = None, None
        if q.strip():
            try:
                found = given.search(q, model=model or None, site=site or None, min_score=_float(low, "low"), top=top)
            except Refused as refusal:
                problem = str(refusal)
        return pages.show(
            "search", request, status=400 if problem else 200, asked=asked, found=found, problem=problem
        )

    @routes.get("/sql")
    def sql(request: Request, q: Annotated[str, Query(max_length=6000)] = "") -> Response:
        rows, problem = None, None
        if q.strip():
            try:
                rows = given.sql(q)
            except Refused as refusal:
                problem = str(refusal)
        return pages.show(
            "sql", request, status=400 if problem else 200, q=q, rows=None if rows is None else rows[:ROWS],
            total=len(rows or []), problem=problem,
        )

    return routes


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


def _float(text: str, what: str) -> float | None:
    """A number that a form may leave empty; raises Refused for what is none."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise Refused(f"{what} = {text[:40]!r} is no F1; write a number from 0 to 1.")
    return value


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else plain.clean(value)


@cache
def _source(name: str) -> str:
    return files(__package__).joinpath("web", name).read_text("utf-8")


__all__ = ["Pages", "page_routes", "unit_url", "visible"]
