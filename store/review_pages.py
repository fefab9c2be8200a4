"""The pages on which people judge explanations: a card at a time, blind first, and whether their judgements agree.

All that a person holds and said is kept by `Desk`; a tab that is closed, or a server that is killed, loses nothing.
Cards are read from the copy that all pages read.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from .. import __version__
from .claims import LEASE, OVERLAP, TAGS
from .edits import LONGEST, Edit
from .findings import VERSION, Findings, drain
from .mirror import Mirror
from .pages import Pages
from .records import Busy, Hypothesis, Refused
from .review import Desk
from .unit_page import Missing, ended
from .work import Work

CLIENT = f"lamplighter {__version__} pages"
LOOK_SECONDS = 5.0       # between looks at what is to be delivered and what waits

# What can be said of a card: the verdict, its key, its name on a button.
SAYINGS = (("accept", "a", "Accept"), ("reject", "r", "Reject"), ("unsure", "?", "Unsure"), ("skip", "s", "Skip"))


class Copied(Findings):
    """The findings as of the newest copy, for what reads them by SQL."""

    def __init__(self, findings: Findings, mirror: Mirror) -> None:
        super().__init__(findings.path)
        self.mirror = mirror

    def bring_up_to_date(self) -> None:
        """Nothing: a copy is of this version."""

    def sql(
        self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = (), unpack: bool = False
    ) -> list[dict[str, Any]]:
        """As `Findings.sql`, of the copy; `query` is one of ours."""
        return self.mirror.copy.ask(query, parameters, unpack)


class MirroredDesk(Desk):
    """A desk whose cards are read from the copy, so that nobody waits for a run that writes."""

    def __init__(self, work: Work, findings: Findings, mirror: Mirror, overlap: int = OVERLAP) -> None:
        super().__init__(work, Copied(findings, mirror), overlap)
        self.live, self.mirror = findings, mirror
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._wanted = threading.Event()

    def _look(self) -> str:
        """What names the state that the copy holds, as `Desk` has it for the file."""
        written, size = self.mirror.copy.snapshot.state
        return f"{VERSION} {written} {size}"

    def refresh(self, after: float = 0.0) -> bool:
        """As `Desk.refresh`; who asks while another thread looks has what that one finds."""
        with self._looking:
            return super().refresh(after)

    def start(self) -> None:
        """Delivers what was said, and takes in what waits, in a thread until `close`."""
        threading.Thread(target=self._keep, name="desk", daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._wanted.set()

    def said(self) -> None:
        """Something was said that the findings do not have yet."""
        self._wanted.set()

    def _keep(self) -> None:
        while not self._ended.is_set():
            self._wanted.wait(LOOK_SECONDS)
            try:
                if self._wanted.is_set() and not self._ended.is_set():
                    self._wanted.clear()
                    drain(self.claims.work, self.live)
                self.refresh()
            except Busy:                       # the next look does it
                self._wanted.set()
                self._ended.wait(LOOK_SECONDS)
            except Refused as refusal:
                logging.getLogger("lamplighter").info("%s", refusal)
                self._ended.wait(LOOK_SECONDS)


def review_routes(desk: MirroredDesk, pages: Pages) -> APIRouter:
    """The routes of reviewing, shown by `pages`."""
    routes = APIRouter(include_in_schema=False)
    _add_cards(routes, desk, pages)
    _add_numbers(routes, desk, pages)
    return routes


def _add_cards(routes: APIRouter, desk: MirroredDesk, pages: Pages) -> None:
    def card(request: Request, problem: str | None = None) -> Response:
        """The card in hand, else the next; what was said last stays in sight, to be taken back."""
        name = request.state.reviewer
        if desk.claims.looked() is None:
            desk.refresh()
        given = desk.next(name)
        facts = None if given is None else given.facts() | {"texts": [row | ended(row) for row in given.examples]}
        last = next(iter(desk.recent(name)), None)
        return pages.show(
            "review", request, status=400 if problem else 200, card=facts, last=last, told=desk.progress(name),
            sayings=SAYINGS, tags=TAGS, longest=LONGEST, problem=problem, fragment="hx-request" in request.headers,
            beat=round(LEASE / 5),
        )  # fmt: skip

    @routes.get("/review")
    def show(request: Request) -> Response:
        return card(request)

    @routes.post("/review")
    def say(
        request: Request, item: Annotated[str, Form(max_length=100)], verdict: Annotated[str, Form(max_length=20)],
        digest: Annotated[str, Form(max_length=64)] = "", tag: Annotated[list[str] | None, Form()] = None,
        sentence: Annotated[str, Form(max_length=4 * LONGEST)] = "", rule: Annotated[str, Form(max_length=8)] = "",
    ) -> Response:  # fmt: skip
        name = request.state.reviewer
        edit = _edit(desk, item, sentence, rule == "same") if verdict == "edit" else None
        try:
            desk.submit(item, name, verdict, tags=tag or [], edit=edit, card=digest or None, client=CLIENT)
        except Refused as refusal:
            return card(request, problem=str(refusal))
        desk.said()
        return card(request) if "hx-request" in request.headers else RedirectResponse("/review", 303)

    @routes.post("/review/undo")
    def undo(request: Request) -> Response:
        try:
            desk.undo(request.state.reviewer, client=CLIENT)
        except Refused as refusal:
            return card(request, problem=str(refusal))
        desk.said()
        return card(request) if "hx-request" in request.headers else RedirectResponse("/review", 303)

    @routes.post("/review/beat")
    def beat(request: Request, item: Annotated[str, Form(max_length=100)]) -> Response:
        desk.heartbeat(item, request.state.reviewer)
        return Response(status_code=204)

    @routes.get("/review/behind/{item}")
    def behind(request: Request, item: str) -> Response:
        facts = desk.reveal(item, request.state.reviewer)
        return pages.show("behind", request, behind=facts, fragment="hx-request" in request.headers)


def _edit(desk: MirroredDesk, item: str, sentence: str, same_rule: bool) -> Edit:
    """What a person would have said instead, with the rule as it is or with none."""
    known = desk.live.read(Hypothesis, id=item)
    if not known:
        raise Missing(f"the explanation {item[:80]!r} is on no record; take the next card.")
    return Edit(sentence, known[0].rule, known[0].rule_text) if same_rule else Edit(sentence)


def _add_numbers(routes: APIRouter, desk: MirroredDesk, pages: Pages) -> None:
    @routes.get("/agreement")
    def show(request: Request, audit: bool = False) -> Response:
        from .agreement import agreement
        from .calibration import calibration

        copy = desk.mirror.copy
        agreed, calibrated = copy.once(
            ("agreement", audit), lambda _: (agreement(desk.findings, audit), calibration(desk.findings, audit))
        )
        return pages.show(
            "agreement", request, agreed=agreed, calibrated=calibrated, audit=audit, as_of=copy.as_of
        )


__all__ = ["Copied", "MirroredDesk", "review_routes"]
