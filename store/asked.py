"""What an address asks for, on pages and in the API alike: filters, a part of a list, and the parts beside it.

A field that a form leaves empty is not asked.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request
from pydantic import BeforeValidator, Field

from .filters import KINDS, ORDERS, REVIEWED, Filters
from .lamps import BINS
from .records import VERDICTS
from .search import BY, Searched

LONGEST = 1_000          # characters of a text or a name
DEEPEST = 1_000_000      # place in a list that may be asked for,
RANKED = 10_000          # and in a ranking, all of which is made for it
_EMPTY = BeforeValidator(lambda given: None if given == "" else given)


def _one_of(values: tuple[Any, ...], about: str) -> Any:
    return Query(description=about, json_schema_extra={"enum": list(values)})


_Short = Annotated[str, Field(max_length=200)]
_Long = Annotated[str, Field(max_length=LONGEST)]
Name = Annotated[_Long | None, _EMPTY]
Text = Annotated[_Long | None, _EMPTY, Query(description="what units respond to")]
Like = Annotated[_Long | None, _EMPTY, Query(description="units like this one, in place of a text: MODEL/SITE/INDEX")]
Site = Annotated[_Long | None, _EMPTY, Query(description="as in 5-mlp or 8-resid:my-sae")]
Sign = Annotated[int | None, _EMPTY, _one_of((1, -1), "-1: the negative side")]
Score = Annotated[Annotated[float, Field(ge=0, le=1)] | None, _EMPTY, Query(description="of input F1")]
Kind = Annotated[_Short | None, _EMPTY, _one_of(KINDS, "neurons, heads, dimensions of the stream, or features")]
Verdict = Annotated[_Short | None, _EMPTY, _one_of(VERDICTS, "by rule, from the scores")]
Planner = Annotated[
    _Short | None, _EMPTY, Query(description="playbook, llm, person, a source such as delphi, or a whole label")
]
Review = Annotated[_Short | None, _EMPTY, _one_of(REVIEWED, "what people made of the explanation")]
By = Annotated[
    _Short | None, _EMPTY, _one_of(BY, "by default both, or word where there is no embedder; direction goes with like")
]
Order = Annotated[str, _one_of(tuple(ORDERS), "best, worst: by input F1")]
Lamp = Annotated[
    Annotated[int, Field(ge=0, le=BINS - 1)] | None, _EMPTY, Query(description="an F1 in this tenth")
]
Top = Annotated[int, Query(ge=1, le=500, description="how many")]
Skip = Annotated[int, Query(ge=0, le=DEEPEST, description="after so many")]
Behind = Annotated[int, Query(ge=0, le=RANKED, description="after so many")]


def filters(
    model: Name = None, site: Site = None, sign: Sign = None, kind: Kind = None, min_score: Score = None,
    max_score: Score = None, verdict: Verdict = None, planner: Planner = None, review: Review = None,
) -> Filters:  # fmt: skip
    """The filters of a request. Raises Refused for a value that there is not."""
    return Filters(model, site, sign, kind, min_score, max_score, verdict, planner, review)


def searched(
    request: Request, search: Callable[..., Searched], text: str | None, *, top: int, skip: int, **asked: Any
) -> tuple[Searched, dict[str, Any]]:
    """A part of what `search` finds, and the addresses of `beside`."""
    found = search(text, top=top + 1, skip=skip, **asked)
    more = len(found.rows) > top and skip + top <= RANKED
    return replace(found, rows=found.rows[:top]), beside(request, top, skip, more)


def beside(request: Request, top: int, skip: int, more: bool) -> dict[str, Any]:
    """{next, previous}: addresses of the parts of a list beside this one."""

    def at(place: int) -> str:
        asked = {k: v for k, v in request.query_params.items() if v != ""} | {"skip": place}
        return f"{request.url.path}?{urlencode(asked)}"

    return {"next": at(skip + top) if more else None, "previous": at(max(0, skip - top)) if skip else None}


__all__ = [
    "LONGEST", "Behind", "By", "Lamp", "Like", "Name", "Order", "Sign", "Skip", "Text", "Top", "beside", "filters",
    "searched",
]  # fmt: skip
