"""The same facts as JSON, under /api/v1: lists in pages, units whole, search and SQL, and a description of it all."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Body, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from .lamps import Wanted, unit_list
from .pages import Pages
from .unit_page import named, nearest, unit_facts

if TYPE_CHECKING:
    from .server import Services

Verdict = Literal["accepted", "rejected", "unclear", "abstained", "failed", "undefined"]
Order = Literal["unit", "best", "worst", "newest"]
Share = Annotated[float | None, Query(ge=0, le=1)]


class Listed(BaseModel):
    """A page of units. next, previous: addresses of the pages beside it, null where there is none."""

    units: list[dict[str, Any]] = Field(description="cards: unit, sign, explanation, rule, scores, verdict, planner …")
    total: int
    page: int
    pages: int
    next: str | None
    previous: str | None
    as_of: str = Field(description="when the findings that this tells of were written, UTC")


class Found(BaseModel):
    """Rows of an answer."""

    rows: list[dict[str, Any]]


class Asked(BaseModel):
    """One SELECT."""

    query: str = Field(max_length=20_000)


def api_routes(given: "Services", pages: Pages, app: FastAPI) -> APIRouter:
    """The routes of the API; `app` is described by them."""
    routes = APIRouter(tags=["v1"])

    @routes.get("/models", summary="Models, and by site how many units are explained and how well")
    def models() -> dict[str, Any]:
        copy = given.mirror.copy
        return copy.start | {"as_of": copy.as_of}

    @routes.get("/units", summary="Units in order, a page at a time")
    def units(
        request: Request, model: str | None = None, site: str | None = None, verdict: Verdict | None = None,
        low: Share = None, high: Share = None, order: Order = "unit", page: Annotated[int, Query(ge=1)] = 1,
        each: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Listed:  # fmt: skip
        copy = given.mirror.copy
        told = unit_list(copy, Wanted(model, site, verdict, low, high, order), page, each)

        def beside(number: int) -> str | None:
            url = request.url.include_query_params(page=number)
            return f"{url.path}?{url.query}" if 1 <= number <= told["pages"] else None

        return Listed(**told, next=beside(page + 1), previous=beside(page - 1), as_of=copy.as_of)

    @routes.get("/units/{name:path}", summary="All that is known of one unit; its negative side has a minus behind")
    def unit(name: str, sign: int | None = None, investigation: str | None = None) -> dict[str, Any]:
        copy = given.mirror.copy
        return {"ok": True} | unit_facts(copy, named(name, sign), investigation) | {"as_of": copy.as_of}

    @routes.get("/near/{name:path}", summary="Units whose explanations mean most nearly the same")
    def near(name: str, top: Annotated[int, Query(ge=1, le=100)] = 10) -> Found:
        return Found(rows=nearest(given.mirror.copy, named(name), top))

    @routes.get("/search", summary="Explanations by meaning")
    def search(
        q: Annotated[str, Query(min_length=1, max_length=1000)], model: str | None = None, site: str | None = None,
        min_score: Share = None, top: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> Found:  # fmt: skip
        return Found(rows=given.search(q, model=model, site=site, min_score=min_score, top=top))

    @routes.post("/sql", summary="One SELECT over the findings")
    def sql(asked: Annotated[Asked, Body()]) -> Found:
        return Found(rows=given.sql(asked.query))

    @routes.get("/openapi.json", include_in_schema=False)
    def description() -> Response:
        return JSONResponse(app.openapi())

    @routes.get("", include_in_schema=False)
    def page(request: Request) -> Response:
        return pages.show("api", request, told=_told(app.openapi()))

    return routes


def _told(description: dict[str, Any]) -> dict[str, Any]:
    """The routes of an OpenAPI description as a page tells them."""
    routes = [
        {"path": path, "method": method.upper(), "summary": about.get("summary", ""),
         "options": [_option(one) for one in about.get("parameters", [])],
         "body": sorted(about.get("requestBody", {}).get("content", {}))}
        for path, methods in description["paths"].items() for method, about in methods.items()
    ]  # fmt: skip
    return {"routes": routes, "schemas": description.get("components", {}).get("schemas", {}),
            "about": description["info"]["description"]}  # fmt: skip


def _option(one: dict[str, Any]) -> dict[str, Any]:
    schema = one["schema"]
    kinds = [s for s in schema.get("anyOf", [schema]) if s.get("type") != "null"]
    takes = ", ".join(
        " | ".join(map(str, kind["enum"])) if "enum" in kind else str(kind.get("type", "")) + _limits(kind)
        for kind in kinds
    )
    return {"name": one["name"], "takes": takes, "needed": one.get("required", False), "default": schema.get("default")}


def _limits(kind: dict[str, Any]) -> str:
    told = [f"{sign} {kind[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in kind]
    return f" ({', '.join(told)})" if told else ""


__all__ = ["api_routes"]
