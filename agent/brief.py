"""Evidence in few words, for a planner that pays for every token: one line a finding, the same each time.

Corpus text stands in “…” on one line, with the token that was read between « and ». What a text says can never end its
quotation: such marks inside it are replaced.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from ..store.records import Evidence

TAIL = 56          # characters of a text before the token that was read
TEXTS, WORDS, ERRORS = 6, 7, 4
_HOW = {"fires with": ("raises", "keeps"), "weak with": ("unsure",), "silent with": ("kills",)}
_PLAIN = str.maketrans({"“": '"', "”": '"', "«": "<", "»": ">", "\n": "⏎", "\r": " ", "\t": " "})


def brief(evidence: Evidence) -> str:
    """What a tool call found, in a few lines; a refusal with its reason."""
    if not evidence.ok:
        return f"{evidence.tool} was refused: {_said(evidence)}"
    return _BRIEFS.get(evidence.tool, _summary)(evidence)


def quoted(text: str, read: str = "") -> str:
    """The end of `text` in quotation marks; `read` is the token at its end, which is marked."""
    head = text.removesuffix(read)
    shown = ("…" if len(head) > TAIL else "") + plain(head[-TAIL:])
    return f"“{shown}«{plain(read[-TAIL:])}»”" if read else f"“{shown}”"


def plain(text: str) -> str:
    """Corpus text on one line and without the marks of a quotation."""
    return "".join(c if c.isprintable() else "�" for c in text.translate(_PLAIN))


def number(value: float | None) -> str:
    """Two digits behind the point, or that there is no value."""
    return "undefined" if value is None else f"{value:.2f}"


def _summary(evidence: Evidence) -> str:
    return f"{evidence.tool}: {_said(evidence)}"


def _said(evidence: Evidence) -> str:
    """The summary on one line; a unit's name begins with its model's, which may be a folder of this machine."""
    name = f"{evidence.unit}{'-' if evidence.sign == -1 else ''}"
    return " ".join(evidence.summary.replace(name, "the neuron").split())


def _top_examples(evidence: Evidence) -> str:
    """Texts of a band."""
    where = f"{evidence.arguments['band']} texts of the {evidence.arguments['side']} side"
    return "\n".join([f"{where}, with strengths:", *texts(evidence)])


def texts(evidence: Evidence) -> list[str]:
    """The texts of `top_examples` with y/P, those that end in another token first."""
    firsts = {row["token"]: row for row in reversed(evidence.rows)}.values()
    rows = sorted(evidence.rows, key=lambda row: not any(row is first for first in firsts))[:TEXTS]
    return [f"  {number(row['ratio'])} {quoted(row['text'], row['token'])}" for row in rows]


def _minimal_example(evidence: Evidence) -> str:
    row = evidence.rows[0]
    whole, kept = quoted(row["text"]), quoted(row["kept_text"])
    if not row["one_minimal"]:
        return f"minimal example: none of few words was found in {whole}"
    return f"minimal example: of {whole} it needs only {kept} (keeps {row['retention']:.0%})"


def _substitute(evidence: Evidence) -> str:
    """For each word that was swapped, which words fire, are weak, are silent instead."""
    lines = []
    for original, rows in groupby(evidence.rows, key=lambda row: str(row["original"])):
        found = list(rows)
        told = [
            f"{how} {', '.join(words)}"
            for how, effects in _HOW.items()
            if (words := [quoted(r["substitute"])[1:-1] for r in found if r["effect"] in effects][:WORDS])
        ]
        lines.append(f"{quoted(original)} swapped: {'; '.join(told)}")
    return "\n".join(lines)


def _activate(evidence: Evidence) -> str:
    peak, rows = evidence.checks["peak"], evidence.rows
    best = max(rows, key=lambda row: row["activation"])
    head = "".join(row["token"] for row in rows[: best["position"]])
    return f"activate: reads {peak:.3g} at most, at {quoted(head, best['token'])}"


def _try_rule(evidence: Evidence) -> str:
    checks = evidence.checks
    told = ", ".join(f"{name} {number(checks[name])}" for name in ("f1", "precision", "recall"))
    lines = [f"  {told} on the {evidence.arguments['side']} side"]
    lines += errors(evidence.rows)
    return "\n".join(lines)


def disputed(evidence: Evidence, letters: Sequence[str]) -> str:
    """What `separate` read, by who said what: the texts on which the neuron fires there, and those on which not."""
    lines = [f"separate: they disagree on {evidence.checks['differ']} tokens of the {evidence.arguments['side']} side"]
    for says, rows in groupby(sorted(evidence.rows, key=lambda row: row["says"]), key=lambda row: row["says"]):
        found = list(rows)
        who = " and ".join(letter for letter, fires in zip(letters, says, strict=True) if fires)
        told = [
            f"{how} {' '.join(quoted(row['text'][-40:], row['token']) for row in some[:ERRORS])}"
            for how, fires in (("fires", True), ("silent", False))
            if (some := [row for row in found if row["fires"] == fires])
        ]
        lines.append(f"  where only {who} predicts: {'; '.join(told)}")
    lines.append("  right: " + ", ".join(
        f"{letter} {right} of {len(evidence.rows)}"
        for letter, right in zip(letters, evidence.checks["right"], strict=True)
    ))  # fmt: skip
    return "\n".join(lines)


def errors(misses: Sequence[dict[str, Any]]) -> list[str]:
    """Where a rule is wrong, one line of texts a kind."""
    lines = []
    for kind, said in (("false positive", "predicts, but silent"), ("false negative", "misses")):
        rows = [m for m in misses if m["kind"] == kind][:ERRORS]
        if rows:
            lines.append(f"  {said}: " + " ".join(quoted(m["text"][-40:], m["token"]) for m in rows))
    return lines


_BRIEFS: dict[str, Callable[[Evidence], str]] = {
    "top_examples": _top_examples,
    "minimal_example": _minimal_example,
    "substitute": _substitute,
    "activate": _activate,
    "try_rule": _try_rule,
}
