"""Explanations written by people: each made from the one that it replaces, and queued to be scored like any other.

An edit is a hypothesis whose author is `person:NAME`. It is a unit of a run of its own kind (`edit_key`), which no
process works on before `lamplighter review score` takes it up; what comes of it is an investigation as any other.
"""

import json
from dataclasses import dataclass, replace
from sqlite3 import Connection
from typing import Any

from ..tools import measures
from .findings import Findings
from .records import PERSON, Hypothesis, Refused, signed, uuid7
from .work import Job, Work

LONGEST = 1000           # characters of a sentence

# Of an explanation's provenance, what also holds of one that is put in its place.
_DIGESTS = ("model", "tokenizer", "corpus", "sweep", "measures", "dtype", "device", "seed", "coders")

_UNSCORED = """
    SELECT hypothesis FROM outcomes WHERE edited AND verdict IS NULL AND unit = ? AND sign = ?
    ORDER BY run = ? DESC, created_at, hypothesis LIMIT 1
"""


@dataclass(frozen=True)
class Edit:
    """What a person would have in the place of an explanation: a sentence, and a rule, as JSON and in words.

    Without a rule only a judge can score it.
    """

    sentence: str
    rule: dict[str, Any] | None = None
    rule_text: str | None = None


def replacing(known: Hypothesis, reviewer: str, edit: Edit) -> Hypothesis:
    """The explanation that `reviewer` puts in the place of `known`; its run is given to it when it is queued.

    It rests on the same experiments, on the same sweep. Raises Refused for an empty or endless sentence, and for one
    that says what `known` says.
    """
    sentence = " ".join(edit.sentence.split())
    if not sentence or len(sentence) > LONGEST:
        raise Refused(f"the sentence has {len(sentence)} characters; write one of 1 to {LONGEST:,}.")
    if (sentence, edit.rule) == (known.sentence, known.rule):
        raise Refused(f"the edit says what is there already, {sentence[:80]!r}; change it, or accept the explanation.")
    kept = {name: known.provenance[name] for name in _DIGESTS if name in known.provenance}
    origin = known.provenance.get("origin", known.investigation)
    return Hypothesis(
        author=PERSON + reviewer, sentence=sentence, rule=edit.rule, rule_text=edit.rule_text, kept=True,
        evidence=known.evidence, unit=known.unit, sign=known.sign, investigation=uuid7(),
        provenance=kept | {"edit_of": known.id, "origin": origin},
    )  # fmt: skip


# The queue


def edit_key(model: str) -> str:
    """The key of the runs in which people's explanations of a model's units are scored."""
    return f"edits:{model}"


def queue_edit(con: Connection, edit: Hypothesis) -> str:
    """Queues an explanation to be scored and returns the run: one that is open and has not the unit yet, else new."""
    assert edit.unit is not None
    model, unit = edit.unit.rsplit("/", 2)[0], signed({"unit": edit.unit, "sign": edit.sign})
    found = con.execute(
        """SELECT id FROM runs WHERE key = ? AND status <> 'done'
           AND NOT EXISTS (SELECT 1 FROM jobs WHERE run = runs.id AND unit = ?) ORDER BY rowid LIMIT 1""",
        (edit_key(model), unit),
    ).fetchone()
    run = uuid7() if found is None else str(found["id"])
    if found is None:
        asked = {"model": model, "planner": "people", "edits": True, "measures": measures.VERSION}
        sql = "INSERT INTO runs (id, key, status, asked, units) VALUES (?, ?, 'drained', ?, '[]')"
        con.execute(sql, (run, edit_key(model), json.dumps(asked)))
    con.execute("UPDATE runs SET units = json_insert(units, '$[#]', ?) WHERE id = ?", (unit, run))
    sql = """INSERT INTO jobs (run, unit, position, priority)
             VALUES (?, ?, (SELECT coalesce(max(position) + 1, 0) FROM jobs WHERE run = ?), 0)"""
    con.execute(sql, (run, unit, run))
    return run


def unqueue_edit(con: Connection, run: str, unit: str, token: int = 0) -> None:
    """Takes a unit out of its run: one that nobody has begun to score, or the claimed one of this `token`."""
    sql = "DELETE FROM jobs WHERE run = ? AND unit = ? AND token = ? AND status IN ('queued', 'running')"
    if con.execute(sql, (run, unit, token)).rowcount:
        sql = """UPDATE runs SET units = (SELECT json_group_array(value) FROM json_each(units) WHERE value <> ?)
                 WHERE id = ?"""
        con.execute(sql, (unit, run))


def queue_forgotten(work: Work, findings: Findings) -> int:
    """Queues edits that stand unscored in the findings and of whose run the queue knows nothing; returns how many.

    So it is where the work file was moved away.
    """
    known = {run.id for run in work.runs()}
    sql = "SELECT hypothesis, run FROM outcomes WHERE edited AND verdict IS NULL ORDER BY created_at, hypothesis"
    lost = [row["hypothesis"] for row in findings.sql(sql) if row["run"] not in known]
    queued = 0
    for hypothesis in lost:
        (edit,) = findings.read(Hypothesis, id=hypothesis)
        unit = signed({"unit": edit.unit, "sign": edit.sign})
        with work.change() as con:
            sql = "SELECT 1 FROM jobs JOIN runs ON id = run WHERE unit = ? AND key = ? AND runs.status <> 'done'"
            if con.execute(sql, (unit, edit_key(unit.rsplit("/", 2)[0]))).fetchone() is None:
                queue_edit(con, edit)
                queued += 1
    return queued


def edit_of(findings: Findings, job: Job) -> Hypothesis | None:
    """The explanation that a claimed unit of an edits' run is about; None where its author took it back meanwhile."""
    unit, sign = job.unit.removesuffix("-"), -1 if job.unit.endswith("-") else 1
    found = findings.sql(_UNSCORED, [unit, sign, job.run])
    if not found:
        return None
    (edit,) = findings.read(Hypothesis, id=found[0]["hypothesis"])
    return replace(edit, run=job.run)


__all__ = ["Edit", "edit_key", "edit_of", "queue_edit", "queue_forgotten", "replacing", "unqueue_edit"]
