"""What the commands of reviewing print for people: cards, what stands behind them, agreement and calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..store.claims import TAGS
from ..store.plain import bounded, clean, number
from ..store.records import signed
from .show import interval, say, table

CONTEXT = 110        # characters of a text before the token that was read

_TEXT = {
    "accept": "accepted", "reject": "rejected", "edit": "edited", "unsure": "left as unsure", "skip": "skipped",
    "undo": "taken back",
}  # fmt: skip


def tags(given: Sequence[str]) -> list[str]:
    """Tags by name or by digit, by name."""
    digits = {str(number): name for number, name in enumerate(TAGS, 1)}
    return [digits.get(one, one) for one in given]


# What waits


def list_table(facts: Mapping[str, Any]) -> None:
    """What waits, and how much of it for which reason."""
    rows = facts["items"]
    if not rows:
        say("nothing waits for review.")
        return
    if facts["reasons"] is None:
        table("", ("unit", "reviews", "in hand", "explanation"), [
            (signed(r), r["reviews"], r["held"], r["item"]) for r in rows
        ])  # fmt: skip
    else:
        table("", ("unit", "waits because", "reviews", "in hand", "by", "explanation"), [
            (signed(r), ", ".join(r["reasons"]), r["reviews"], r["held"], r["author"] or "", r["item"]) for r in rows
        ])  # fmt: skip
        say("; ".join(f"{why}: {count}" for why, count in sorted(facts["reasons"].items())))
    more = facts["waiting"] - len(rows)
    say(f"{facts['waiting']} wait{'' if facts['waiting'] != 1 else 's'}{f', {more} not listed' if more else ''}.")


# A card


def card_page(facts: Mapping[str, Any]) -> None:
    """What a person judges by, and how to answer; or that nothing waits."""
    card, told = facts["card"], facts["progress"]
    if card is None:
        say(f"nothing waits for you: {told['reviewed']} reviewed, {told['skipped']} skipped until tomorrow.")
        return
    strength = "" if card["peak"] is None else f"   P {card['peak']:.3g}, τ {card['threshold']:.3g}"
    say(f"{card['unit']}{strength}")
    say(f"explanation: {clean(card['explanation'])}")
    say(f"rule:        {clean(card['rule'] or 'none')}")
    say(f"output:      {clean(card['output'] or 'none')}")
    if card["examples"]:
        table("texts, up to the token that was read", ("band", "activation", "text"), [
            (e["band"], f"{e['activation']:.3g}", _marked(e["text"], e["token"])) for e in card["examples"]
        ])  # fmt: skip
    if card["minimal"]:
        table("cut down to what it needs", ("kept", "of its reading", "from"), [
            (m["kept_text"], _share(m["retention"]), str(m["text"])[-CONTEXT:]) for m in card["minimal"]
        ])  # fmt: skip
    if card["substitutes"]:
        table("other words in place", ("word", "put in its place", "times its reading", "effect"), [
            (s["original"], s["substitute"], number(s["ratio"]), s["effect"]) for s in card["substitutes"]
        ])  # fmt: skip
    say("`lamplighter review submit` accept (a), reject (r), edit (e) --sentence “…”, unsure (?) or skip (s)")
    say("--tag " + "  ".join(f"{place} {tag}" for place, tag in enumerate(TAGS, 1)))
    pace = "" if told["seconds"] is None else f", {told['seconds']:.0f} s each"
    say(f"{told['for_you']} for you, {told['reviewed']} reviewed{pace}; the card is yours for five minutes.")


def _marked(text: str, token: str) -> str:
    """A text's end with the token that was read between « and »."""
    head = text.removesuffix(token)
    cut = "…" if len(head) > CONTEXT else ""
    return f"{cut}{clean(head[-CONTEXT:])}«{clean(token)}»" if head != text else cut + clean(text[-CONTEXT:])


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.0%}"


# Afterwards


def said_page(facts: Mapping[str, Any]) -> None:
    """What was recorded; and what stands behind the explanation, once it may be seen."""
    said, behind = facts["said"], facts["behind"]
    again = " before; nothing was added" if said["repeated"] else ""
    say(f"{said['item']} {_TEXT[said['verdict']]} by {said['reviewer']}{again}.")
    if said["edit"] is not None:
        say("your explanation stands now; `lamplighter review score` scores it.")
    if said["verdict"] == "undo":
        say("`lamplighter review next` shows the card again.")
    if behind is None:
        return
    reasons = ", ".join(behind["reasons"]) or "no reason"
    say(f"it waited because: {reasons}; its author is {clean(behind['author'] or 'unknown')}.")
    say(f"verdict by rule: {behind['verdict'] or 'none yet'} ({clean(behind['reason'] or 'not scored')})")
    table("scores on text that was never shown", ("metric", "value [95 %]", "n", "highest floor", "judge"), [
        (s["metric"], bounded(s["value"], s["low"], s["high"]), s["n"], _floor(s["floors"]), s["judge"] or "")
        for s in behind["scores"]
    ])  # fmt: skip
    for other in behind["others"]:
        tagged = f" ({', '.join(other['tags'])})" if other["tags"] else ""
        say(f"{other['reviewer']}: {other['verdict']}{tagged}")


def _floor(floors: Mapping[str, float | None]) -> str:
    best = max(((value, name) for name, value in floors.items() if value is not None), default=None)
    return f"{best[1]} {best[0]:.2f}" if best else ""


def scored_table(facts: Mapping[str, Any]) -> None:
    """Explanations by people with their scores."""
    if facts["scored"]:
        table("", ("unit", "explanation", "rule", "F1 [95 %]", "floor", "verdict", "by"), [
            (signed(r), r["explanation"], r["rule"] or "—", interval(r), number(r["floor_f1"]), r["verdict"],
             r["planner"]) for r in facts["scored"]
        ])  # fmt: skip
    for unit in facts["failed"]:
        say(f"failed: {unit}; `lamplighter show {unit}` says why, and `lamplighter retry` queues it again.")
    say(clean(facts["told"]))


# Agreement and calibration


def agreement_page(facts: Mapping[str, Any]) -> None:
    """alpha and kappa with intervals, or why there is none."""
    say(_of(facts) + f"{facts['reviews']} reviews by {len(facts['reviewers'])} people of {facts['explanations']} "
        f"explanations, {facts['shared']} of them shared.")  # fmt: skip
    rows = [("verdicts, alpha", facts["verdicts"]), ("right or not, alpha", facts["right"])]
    rows += [(f"tag {one['tag']}, alpha", one) for one in facts["tags"]]
    rows += [(f"{one['a']} and {one['b']}, kappa", one) for one in facts["pairs"]]
    table("", ("of", "agreement [95 %]", "explanations", "why undefined"), [
        (name, bounded(one["value"], one["low"], one["high"]), one["n"], one["reason"] or "") for name, one in rows
    ])  # fmt: skip
    _not_blind(facts)


def calibration_page(facts: Mapping[str, Any]) -> None:
    """AUROC of each metric, and the reliability curve of F1."""
    say(_of(facts) + f"{facts['explanations']} explanations, {facts['accepted']} of them accepted by most; "
        f"{facts['ties']} left out for a tie.")  # fmt: skip
    table("is a higher score accepted more?", ("metric", "AUROC [95 %]", "n", "accepted", "why undefined"), [
        (m["metric"], bounded(m["auroc"], m["low"], m["high"]), m["n"], m["accepted"], m["reason"] or "")
        for m in facts["metrics"]
    ])  # fmt: skip
    for metric in facts["metrics"]:
        if metric["metric"] == "f1":
            table("accepted, by F1", ("F1 from", "to", "accepted", "n", "share [95 %]"), [
                (number(b["low"]), number(b["high"]), b["accepted"], b["n"],
                 bounded(b["share"], b["share_low"], b["share_high"]))
                for b in metric["bins"]
            ])  # fmt: skip
    if not facts["audit"]:
        say("most were chosen for being doubtful; --audit has the random share alone.")
    _not_blind(facts)


def _of(facts: Mapping[str, Any]) -> str:
    return "of the random share: " if facts["audit"] else ""


def _not_blind(facts: Mapping[str, Any]) -> None:
    if facts["not_blind"]:
        say(f"left out: {facts['not_blind']} reviews made with scores in sight.")
