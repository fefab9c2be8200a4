"""The same facts as JSON, under /api/v1: lists in pages, units whole, search and SQL, and a description of it all."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from .asked import Behind, By, Lamp, Like, Name, Order, Sign, Skip, Text, Top, beside, filters, searched
from .confined import Limits
from .filters import Filters
from .lamps import start_facts, unit_list
from .pages import EACH, FOUND, Pages
from .unit_page import named, newest_facts

if TYPE_CHECKING:
    from .server import Services

SQL = Limits(seconds=20.0, rows=10_000, answer=20)
_AS_OF = Field(description="until when what was recorded is told of, UTC")


class Part(BaseModel):
    """A part of a list."""

    next: str | None = Field(description="the address of the part behind this one, null where there is none")
    previous: str | None = Field(description="and of that before")
    as_of: str | None = _AS_OF


class Listed(Part):
    """Units in order."""

    units: list[dict[str, Any]] = Field(
        description="name, explanation, rule, scores with intervals, verdict, planner, review, P and τ, failures"
    )
    total: int = Field(description="how many there are in all")


class Found(Part):
    """Explanations, best first."""

    rows: list[dict[str, Any]] = Field(
        description="unit, sign, explanation, rule, scores, verdict, planner, review, source (the tool that made it; "
        "null: this one); score (what they are ordered by), similarity (cosine of embeddings), words (those of the "
        "text that it has), ranks, why"
    )
    by: str = Field(description="how it was searched")
    notes: list[str] = Field(description="what was not seen, and why nothing was found")


class Asked(BaseModel):
    """One SELECT."""

    query: str = Field(max_length=20_000, description="DuckDB's SQL")


class Answer(BaseModel):
    """What a SELECT gave."""

    rows: list[dict[str, Any]]
    cut: bool = Field(description="there were more rows")
    behind: bool = Field(description="more was recorded since as_of")
    as_of: str = _AS_OF


def api_routes(given: "Services", pages: Pages, app: FastAPI) -> APIRouter:
    """The routes of the API; `app` is described by them."""
    routes = APIRouter(tags=["v1"])

    @routes.get("/models", summary="Models, and by site how many units are explained and how well")
    def models() -> dict[str, Any]:
        copy = given.mirror.copy
        return start_facts(copy) | {"as_of": copy.as_of}

    @routes.get("/units", summary="Units in order, a part at a time")
    def units(
        request: Request, wanted: Annotated[Filters, Depends(filters)], order: Order = "unit", top: Top = EACH,
        skip: Skip = 0, lamp: Lamp = None,
    ) -> Listed:  # fmt: skip
        copy = given.mirror.copy
        rows, total = unit_list(copy, wanted, order, top, skip, lamp)
        more = beside(request, top, skip, skip + top < total)
        return Listed(units=rows, total=total, as_of=copy.as_of, **more)

    @routes.get("/units/{name:path}", summary="All that is known of one unit; its negative side has a minus behind")
    def unit(name: str, sign: Sign = None, investigation: Name = None) -> dict[str, Any]:
        return {"ok": True} | newest_facts(given.mirror, named(name, sign), investigation)

    @routes.get("/search", summary="Explanations by meaning and by word (q), or units like one (like), with reasons")
    def search(
        request: Request, wanted: Annotated[Filters, Depends(filters)], q: Text = None, like: Like = None,
        by: By = None, top: Top = FOUND, skip: Behind = 0,
    ) -> Found:  # fmt: skip
        found, more = searched(request, given.search, q, like=like, by=by, filters=wanted, top=top, skip=skip)
        return Found(**vars(found), **more)

    @routes.post("/sql", summary="One SELECT over all records; SHOW TABLES and DESCRIBE name what there is")
    def sql(asked: Annotated[Asked, Body()]) -> Answer:
        told = given.mirror.sql(asked.query, SQL)
        answer, snapshot = told.answer, told.snapshot
        return Answer(rows=answer.rows, cut=answer.cut, behind=snapshot.behind, as_of=snapshot.as_of)

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
    own = [s for s in schema.get("anyOf", [schema]) if s.get("type") != "null"]
    kinds = [schema] if "enum" in schema else own
    takes = ", ".join(
        " | ".join(map(str, kind["enum"])) if "enum" in kind else str(kind.get("type", "")) + _limits(kind)
        for kind in kinds
    )
    return {"name": one["name"], "takes": takes, "about": one.get("description", ""),
            "needed": one.get("required", False), "default": schema.get("default")}  # fmt: skip


def _limits(kind: dict[str, Any]) -> str:
    told = [f"{sign} {kind[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in kind]
    return f" ({', '.join(told)})" if told else ""


__all__ = ["api_routes"]
