"""`lamplighter review …`: people judge explanations from a terminal, and what their judgements say."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..store.claims import OVERLAP
from ..store.edits import Edit
from ..store.records import Hypothesis, Refused
from ..store.review import Desk
from . import show_review
from .cli import FAILED, DeviceOption, HomeOption, JsonOption, MinutesOption, _deliver, _emit
from .config import Home
from .progress import progress

LISTED = 20
KEYS = {"a": "accept", "r": "reject", "e": "edit", "?": "unsure", "s": "skip"}
SAME, NONE = "same", "none"

review_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Explanations judged by people, who see scores only afterwards."
)  # fmt: skip

ReviewerOption = Annotated[
    str, typer.Option("--reviewer", envvar="LAMPLIGHTER_REVIEWER", metavar="NAME", help="Who reviews.")
]
MaybeReviewerOption = Annotated[
    str | None, typer.Option("--reviewer", envvar="LAMPLIGHTER_REVIEWER", metavar="NAME", help="Who reviews.")
]
OverlapOption = Annotated[
    int, typer.Option("--overlap", envvar="LAMPLIGHTER_OVERLAP", min=1, help="Reviews wanted of an explanation.")
]
AuditOption = Annotated[bool, typer.Option("--audit", help="Only the random share.")]
ItemOption = Annotated[str | None, typer.Option("--item", help="The explanation (none: the card in hand, the last).")]


@review_app.command("list")
def review_list(
    reviewer: MaybeReviewerOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many to list.")] = LISTED,
    overlap: OverlapOption = OVERLAP, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Lists what waits and why; with --reviewer what waits for them, without the reasons, which tell of scores."""
    desk = _desk(home, overlap)
    rows = desk.waiting(reviewer)
    if reviewer is not None:
        rows = [row for row in rows if row.pop("yours")]
    why = None if reviewer is not None else Counter(reason for row in rows for reason in row["reasons"])
    _emit({"waiting": len(rows), "reasons": why, "items": rows[:top]}, as_json, show_review.list_table)


@review_app.command("next")
def review_next(
    reviewer: ReviewerOption, overlap: OverlapOption = OVERLAP, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Shows the card in hand, else takes the next; it is held for five minutes."""
    desk = _desk(home, overlap)
    card = desk.next(reviewer)
    facts = {"card": None if card is None else card.facts(), "progress": desk.progress(reviewer)}
    _emit(facts, as_json, show_review.card_page)


@review_app.command("submit")
def review_submit(
    verdict: Annotated[str, typer.Argument(help="accept, reject, edit, unsure or skip; or a, r, e, ? and s.")],
    reviewer: ReviewerOption,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A reason, by name or digit; may be repeated.")] = None,
    sentence: Annotated[str | None, typer.Option("--sentence", help="With edit: what it says instead.")] = None,
    rule: Annotated[str, typer.Option("--rule", help="With edit: a rule as JSON, `same` or `none`.")] = NONE,
    item: ItemOption = None, overlap: OverlapOption = OVERLAP, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Says what you think of the card in hand, and then shows scores and what others said."""
    place = _there(home)
    desk = Desk(place.work, place.findings, overlap)
    chosen = item or desk.in_hand(reviewer)
    if chosen is None:
        raise Refused(f"{reviewer} has no card in hand; `lamplighter review next` gives one.")
    word = KEYS.get(verdict, verdict)
    edit = None if word != "edit" and sentence is None else _edit(place, chosen, sentence, rule)
    said = desk.submit(chosen, reviewer, word, tags=show_review.tags(tag or []), edit=edit)
    behind = None if word == "skip" else desk.reveal(chosen, reviewer)
    _emit({"said": asdict(said), "behind": behind}, as_json, show_review.said_page)
    _deliver(place)


def _edit(place: Home, item: str, sentence: str | None, rule: str) -> Edit:
    """What is to stand in the place of an explanation. Raises Refused without a sentence, and for what is no rule."""
    if sentence is None:
        raise Refused("an edit needs a sentence; give one with --sentence.")
    if rule == SAME:
        known = place.findings.read(Hypothesis, id=item)
        return Edit(sentence, known[0].rule, known[0].rule_text) if known else Edit(sentence)
    if rule == NONE:
        return Edit(sentence)
    try:
        return written(sentence, json.loads(rule))
    except json.JSONDecodeError as error:
        raise Refused(f"--rule is no JSON ({error}); write a rule, `same` for the rule as it is, or `none`.") from error


def written(sentence: str, rule: Any) -> Edit:
    """An edit with a rule as people write it. Raises Refused for what is no rule."""
    from ..tools.rules import Rule

    made = Rule.from_json(rule)
    return Edit(sentence, made.to_json(), made.text())


@review_app.command("undo")
def review_undo(
    reviewer: ReviewerOption, item: ItemOption = None, overlap: OverlapOption = OVERLAP, home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Takes your last review back, as long as the explanation is not closed; the card is in your hand again."""
    place = _there(home)
    said = Desk(place.work, place.findings, overlap).undo(reviewer, item)
    _emit({"said": asdict(said), "behind": None}, as_json, show_review.said_page)
    _deliver(place)


@review_app.command("agreement")
def review_agreement(audit: AuditOption = False, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Whether people agree: Krippendorff's alpha, by tag too, and Cohen's kappa of each pair, with intervals."""
    from ..store.agreement import agreement

    _emit(agreement(_delivered(home).findings, audit), as_json, show_review.agreement_page)


@review_app.command("calibration")
def review_calibration(audit: AuditOption = False, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Whether automatic scores tell what people say: AUROC of each metric, and how many were accepted by score."""
    from ..store.calibration import calibration

    _emit(calibration(_delivered(home).findings, audit), as_json, show_review.calibration_page)


@review_app.command("score")
def review_score(
    judge: Annotated[str | None, typer.Option("--judge", help="A URL; scores sentences, also without a rule.")] = None,
    minutes: MinutesOption = None, device: DeviceOption = None, home: HomeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Scores the explanations that people wrote, on text that was never shown, as those of planners are."""
    from .edits import score_edits

    place = Home.resolve(home)
    with progress() as live:
        found = score_edits(place, live, judge, minutes, device)
    _emit(found, as_json, show_review.scored_table)
    if found["failed"]:
        raise typer.Exit(FAILED)


def _desk(home: str | None, overlap: int) -> Desk:
    """A desk that has looked through the findings just now."""
    place = _delivered(home)
    desk = Desk(place.work, place.findings, overlap)
    desk.refresh()
    return desk


def _delivered(home: str | None) -> Home:
    """The home, with what waits in its outbox moved on as far as it can be, and its findings of this version."""
    place = Home.resolve(home)
    if place.path.exists():
        _deliver(place)
    place.findings.bring_up_to_date()
    return _there(home)


def _there(home: str | None) -> Home:
    """The home. Raises Refused where nothing is recorded, so that asking leaves no folder behind."""
    place = Home.resolve(home)
    place.findings.sql("SELECT 1")
    return place


__all__ = ["review_app", "written"]
