"""Everything that is known of one unit, as its page tells it: explanation, scores, texts, experiments, and the chain.

Tools keep their results as rows and checks; here they are put in the order in which a person asks, and nothing is
computed that was not measured.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .imported import TOOL
from .lamps import card
from .mirror import Copy, Mirror
from .records import Refused, signed

BANDS = ("top", "high", "mid", "boundary", "low", "random")
TEXTS = 6                # exemplars of a band and side on a page; of the rest it is said how many there are
STRATA = ("≥ .8 P", ".5–.8 P", ".3–.5 P", ".1–.3 P", "< .1 P")

_NAME = re.compile(r"(?P<unit>(?P<model>.+)/(?P<site>[^/]+)/(?P<index>\d{1,8}))(?P<sign>-?)", re.DOTALL)
_NO_TURN: dict[str, Any] = {"question": None, "by": None, "predictions": {}, "outcome": [], "killed": []}


@dataclass(frozen=True)
class Named:
    """A unit as it is written, taken apart. unit: without the sign."""

    unit: str
    model: str
    site: str
    index: int
    sign: int

    @property
    def name(self) -> str:
        return self.unit + ("-" if self.sign == -1 else "")


def named(text: str, sign: int | None = None) -> Named:
    """`MODEL/SITE/INDEX`, with a minus behind for the negative side, or `sign` −1. Raises Refused for anything else."""
    found = _NAME.fullmatch(text)
    if found is None or sign not in (None, 1, -1):
        raise Refused(f"{text[:200]!r} is no unit; write MODEL/SITE/INDEX, as in smollm2-135m/5-mlp/511.")
    minus = bool(found["sign"]) or sign == -1
    return Named(found["unit"], found["model"], found["site"], int(found["index"]), -1 if minus else 1)


def unit_facts(copy: Copy, this: Named, investigation: str | None = None) -> dict[str, Any]:
    """All that the findings hold of a unit, by what it is evidence for; see the keys below.

    investigation: one of the unit's own instead of that whose explanation stands. Raises Refused (a `Missing`) where
    nothing is recorded of the unit, or the investigation is not one of its.
    """
    rows = copy.ask(
        'SELECT * FROM pages.units WHERE model = ? AND site = ? AND "index" = ? ORDER BY place',
        [this.model, this.site, this.index],
    )
    own = next((row for row in rows if row["sign"] == this.sign), None)
    others = _by_others(copy, this)
    if own is None and others:
        own = _unknown(copy, this)
    if own is None:
        other = f"; its other side, {signed(rows[0])}, is known" if rows else ""
        raise Missing(f"nothing is recorded of {this.name}{other}; `lamplighter run --units {this.name}` explains it.")
    place = [own["place"]]
    every = copy.ask("SELECT * FROM pages.investigations WHERE place = ? ORDER BY ended DESC NULLS LAST", place)
    by = {row["investigation"]: row for row in every}
    standing, origin = by.get(own["investigation"]), by.get(own["origin"])
    chosen = origin or standing or next(iter(every), None)
    if investigation is not None:
        if investigation not in by:
            raise Missing(
                f"{investigation[:80]!r} is no investigation of {this.name}; its page names those that there are."
            )
        chosen = standing = by[investigation]
    parts = {table: copy.behind(table, chosen) for table in ("evidence", "turns", "scores", "hypotheses", "units")}
    exemplars = copy.behind("exemplars", chosen, "activation DESC, id")
    if standing is not None and standing is not chosen:      # a person's words, scored in an investigation of their own
        parts["hypotheses"] += copy.behind("hypotheses", standing)
        parts["scores"] = copy.behind("scores", standing) + [
            s for s in parts["scores"] if s["metric"] in ("output_auc", "steering_auc")
        ]
    ids = {row["investigation"] for row in (chosen, standing) if row is not None}
    verdicts = copy.ask("SELECT * FROM pages.verdicts WHERE place = ? ORDER BY created_at, id", place)
    failures = copy.ask("SELECT * FROM pages.failures WHERE place = ?", place) if own["failures"] else []
    by_hand = _by_hand(copy, own["place"]) if own["place"] is not None else _texts(copy, this)
    brought = [one for one in by_hand if one["tool"] == TOOL]
    by_hand = [one for one in by_hand if one["tool"] != TOOL]
    evidence = parts["evidence"]
    measured = parts["units"][-1] if parts["units"] else None
    return {
        "card": card(own), "other": next((signed(r) for r in rows if r["sign"] != this.sign), None),
        **_beside(copy, own["place"]), "investigation": chosen, "investigations": every,
        "current": investigation is None or investigation in (own["investigation"], own["origin"]),
        "verdicts": [v for v in verdicts if v["investigation"] in ids],
        "scores": _newest(parts["scores"]), "hypotheses": parts["hypotheses"],
        "measured": measured, "density": _density(measured),
        "exemplars": _banded(exemplars), **_experiments([*evidence, *by_hand]),
        "chain": _chain(parts["turns"], evidence, parts["hypotheses"]), "cost": _cost(chosen, evidence),
        "failures": failures, "by_hand": by_hand, "imported": others,
        "imported_texts": [_brought(one) for one in brought],
        "provenance": (evidence or parts["scores"] or [{"provenance": {}}])[0]["provenance"],
    }  # fmt: skip


def newest_facts(mirror: Mirror, this: Named, investigation: str | None = None) -> dict[str, Any]:
    """`unit_facts` of the newest copy, with its `as_of`; a unit that is missing may have been recorded since."""
    try:
        copy = mirror.copy
        facts = unit_facts(copy, this, investigation)
    except Missing:
        if not mirror.retry():
            raise
        copy = mirror.copy
        facts = unit_facts(copy, this, investigation)
    return facts | {"as_of": copy.as_of}


def _by_others(copy: Copy, this: Named) -> list[dict[str, Any]]:
    """What other tools say of the unit: rows of the view `imported`."""
    sql = "SELECT * FROM imported WHERE unit = ? AND sign = ? ORDER BY source, author, created_at, hypothesis"
    return copy.ask(sql, [this.unit, this.sign], unpack=True)


def _unknown(copy: Copy, this: Named) -> dict[str, Any]:
    """A row of pages.units for a unit of which only other tools say something."""
    (row,) = copy.ask("SELECT u.* FROM (SELECT 1) LEFT JOIN pages.units u ON false")
    own = {"unit": this.unit, "sign": this.sign, "model": this.model, "site": this.site, "index": this.index}
    return row | own


def _texts(copy: Copy, this: Named) -> list[dict[str, Any]]:
    """The evidence that holds imported texts of a unit, read from all evidence."""
    sql = "SELECT * FROM evidence WHERE tool = ? AND unit = ? AND sign = ? ORDER BY created_at, id"
    return copy.ask(sql, [TOOL, this.unit, this.sign], unpack=True)


def _brought(one: Mapping[str, Any]) -> dict[str, Any]:
    """The texts that came with other tools' explanations, as tokens; of those that came as ids, how many there are."""
    texts = [
        heat({"token": token, "activation": value} for token, value in zip(row["tokens"], row["values"], strict=False))
        for row in one["rows"] if row["tokens"] is not None
    ]  # fmt: skip
    return {"summary": one["summary"], "texts": texts, "as_ids": len(one["rows"]) - len(texts)}


class Missing(Refused):
    """What is asked for is not there."""


def _by_hand(copy: Copy, place: int) -> list[dict[str, Any]]:
    """What people had done with `tool` and `try`, and the texts that came with an import."""
    numbers = [row["number"] for row in copy.ask("SELECT number FROM pages.by_hand WHERE place = ?", [place])]
    if not numbers:
        return []
    these = ", ".join(map(str, numbers))
    return copy.ask(f"SELECT * FROM evidence WHERE rowid IN ({these}) ORDER BY created_at, id", unpack=True)


def _beside(copy: Copy, place: int | None) -> dict[str, Any]:
    """The units before and after in the order of lists, where the unit is in those."""
    if place is None:
        return {"previous": None, "next": None}
    rows = copy.ask("SELECT place, unit, sign FROM pages.units WHERE place BETWEEN ? AND ?", [place - 1, place + 1])
    by = {row["place"]: signed(row) for row in rows}
    return {"previous": by.get(place - 1), "next": by.get(place + 1)}


def _newest(scores: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest of each metric and judge of a hypothesis, the rule's before the judges', F1 first."""
    kept = {(s["hypothesis"], s["metric"], s["side"], s["judge"]): s for s in scores}
    first = {"f1": 0, "output_auc": 1, "detection": 2}
    rows = sorted(kept.values(), key=lambda s: (s["judge"] is not None, first.get(s["metric"], 9), s["metric"]))
    for score in rows:
        known = [(value, name) for name, value in score["floors"].items() if value is not None]
        score["ranked"] = sorted(known, key=lambda one: -one[0])
        score["highest"] = next(iter(score["ranked"]), None)
    return rows


def _density(measured: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Of each side: its tokens, firings, and how many read in each part of P."""
    facts = measured["statistics"] if measured else {}
    return [
        {"side": side, "tokens": facts["tokens"][side], "firings": facts["firings"][side],
         "strata": [{"of": name, "n": n} for name, n in zip(STRATA, counts, strict=True)]}
        for side, counts in facts.get("strata", {}).items() if len(counts) == len(STRATA)
    ]  # fmt: skip


def _banded(exemplars: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """{band, side, total, texts}: each text once, the strongest first, in the order of bands; plain: see `_plain`."""
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in exemplars:
        groups.setdefault((row["band"], row["side"]), {}).setdefault(row["text"], row)
    order = sorted(groups, key=lambda key: (BANDS.index(key[0]) if key[0] in BANDS else 9, key[1]))
    return [
        {"band": band, "side": side, "total": len(groups[band, side]),
         "texts": [ended(row) | {"plain": _plain(row["text"])} for row in list(groups[band, side].values())[:TEXTS]]}
        for band, side in order
    ]  # fmt: skip


def _plain(text: str) -> bool:
    """Whether a form can hand a text back as it is, with nothing in it that cannot be seen."""
    return text.replace("\n", "").isprintable()


def ended(row: Mapping[str, Any]) -> dict[str, Any]:
    """A text up to the token that fires, and that token, which ends the text.

    A token that holds part of a character reads otherwise by itself than in its text; then the last word is marked.
    """
    text, token = row["text"], row["token"]
    if not token or not text.endswith(token):
        token = text[len(text.rstrip().rpartition(" ")[0]) :]
    facts = {key: row[key] for key in ("activation", "document", "position") if key in row}
    return facts | {"before": text[: len(text) - len(token)], "token": token}


def _experiments(evidence: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the tools returned, by what it shows; each with the id of its evidence."""
    found: dict[str, list[dict[str, Any]]] = {
        name: [] for name in (
            "minimal", "substitutes", "in_place", "shifts", "pairs", "ablations", "lenses", "trials", "readings",
            "pictures", "others",
        )
    }  # fmt: skip
    where = {
        "minimal_example": "minimal", "substitute": "substitutes", "tokens_in_place": "in_place", "shift": "shifts",
        "patch": "pairs", "ablate": "ablations", "lens": "lenses", "try_rule": "trials", "activate": "readings",
    }  # fmt: skip
    for one in evidence:
        if not one["ok"]:
            continue
        if one["artifact"]:
            found["pictures"].append(one)
        found[where.get(one["tool"], "others")].append(one)
    found["minimal"] = [m for one in found["minimal"] for m in _minimal(one)]
    found["pairs"] = [one | {"texts": apart(one["checks"])} for one in found["pairs"]]
    found["readings"] = [one | {"tokens": heat(one["rows"])} for one in found["readings"]]
    return found


def apart(checks: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """The two texts of a pair, each as what they share before, what is their own, and what they share behind."""
    texts = [str(checks.get(key) or "") for key in ("clean_text", "corrupt_text")]
    before = len(os.path.commonprefix(texts))
    behind = len(os.path.commonprefix([text[before:][::-1] for text in texts]))
    parts = [(t[:before], t[before : len(t) - behind], t[len(t) - behind :]) for t in texts]
    return dict(zip(("clean", "corrupt"), parts, strict=True))


def _minimal(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each text that was cut down, as tokens: kept or not, and what each is worth (0 to 10)."""
    made = []
    for row in one["rows"][:1]:
        kept, shares = set(row["kept"]), row.get("shares") or []
        tokens = [
            {"text": token, "kept": i in kept, "share": shares[i] if i < len(shares) else None,
             "level": level(shares[i] if i < len(shares) else None)}
            for i, token in enumerate(row["tokens"]) if i > 0
        ]  # fmt: skip
        facts = {key: row.get(key) for key in ("kept_text", "peak", "retained", "retention", "mode", "one_minimal")}
        modes = [{key: r.get(key) for key in ("mode", "kept_text", "retention")} for r in one["rows"][1:]]
        made.append(facts | {"id": one["id"], "tokens": tokens, "modes": modes})
    return made


def heat(rows: Iterable[Mapping[str, Any]], top: float | None = None) -> list[dict[str, Any]]:
    """Tokens with their readings and a level 0 to 10, of `top` (by default, of the strongest)."""
    rows = list(rows)
    most = top or max((row["activation"] for row in rows), default=0.0)
    return [
        {"text": row["token"], "activation": row["activation"],
         "level": level(row["activation"] / most if most > 0 else 0.0)} for row in rows
    ]  # fmt: skip


def level(share: float | None) -> int:
    """A share of the strongest as one of eleven steps."""
    return 0 if share is None else min(10, max(0, round(10 * share)))


def _chain(
    turns: Iterable[dict[str, Any]], evidence: Iterable[dict[str, Any]], hypotheses: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each step with what was asked, by whom, what came of it, what each living hypothesis said, and what it cost.

    Steps are in the order of their evidence; those without a turn (of older records) have no question.
    """
    asked = {turn["evidence"]: turn for turn in turns}
    sentences = {h["id"]: h["sentence"] for h in hypotheses}
    steps = []
    for number, one in enumerate(evidence, 1):
        turn = asked.get(one["id"], _NO_TURN)
        told = [
            {"sentence": sentences.get(who, who), "of": len(said),
             "right": sum(a == b for a, b in zip(said, turn["outcome"], strict=False))}
            for who, said in turn["predictions"].items() if said
        ]  # fmt: skip
        out = [{"sentence": sentences.get(k["hypothesis"], k["hypothesis"]), "difference": k["difference"]}
               for k in turn["killed"]]  # fmt: skip
        steps.append({
            "number": number, "id": one["id"], "tool": one["tool"], "ok": one["ok"], "summary": one["summary"],
            "warnings": one["warnings"], "cost": one["cost"], "recalled": "recalled" in one["provenance"],
            "question": turn["question"], "by": turn["by"], "told": told, "out": out,
        })  # fmt: skip
    return steps


def _cost(investigation: Mapping[str, Any] | None, evidence: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What an investigation's experiments took of the model under study, and what it asked of language models."""
    paid = [one["cost"] for one in evidence if "recalled" not in one["provenance"]]
    sums = {key: sum(cost.get(key, 0) for cost in paid) for key in ("forward_rows", "forward_tokens", "seconds")}
    llm = {key: investigation[key] if investigation else 0 for key in ("calls", "tokens", "usd", "unpriced")}
    return sums | {"llm": llm}


__all__ = ["Missing", "Named", "heat", "level", "named", "newest_facts"]
