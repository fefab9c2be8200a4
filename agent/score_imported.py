"""Explanations that other tools made, scored here: by a judge, on the score side, beside our floors, by our rule.

An imported explanation is a sentence without a rule, and is treated as one of ours would be (`nodes.py`,
`tools/judged.py`, `verdict.py`). The texts that came with it count as its evidence: windows of the score side that
share text with them are dropped; whatever else it was made from is not known. Each is recorded when it is through;
verdicts are over all that the same judge has scored, in whichever call.
"""

import fcntl
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from .. import __version__
from ..store.exchange import UNIT
from ..store.findings import drain
from ..store.imported import TOOL, UNKNOWN
from ..store.records import Busy, Evidence, ImportVerdict, Refused, Score, uuid7
from ..tools.corpus import load_corpus
from ..tools.floors import nearest_unit
from ..tools.induce import Induced, induce
from ..tools.judged import NO_ANSWER, Qualification, Unanswered, score_judged
from ..tools.score_input import unscored
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.units import UnitId
from . import verdict
from .budget import Budget
from .config import Home
from .judge import LLMJudge
from .llm import LLMError, Stamps
from .planners import ByLLM, choose, choose_judge
from .qualify import qualify
from .request import Progress

_WAITING = f"""
    SELECT id, unit, sign, author, sentence, regexp_extract(unit, '{UNIT}', 1) AS model FROM hypotheses h
    WHERE json_exists(provenance, '$.imported_from')
      AND ($source IS NULL OR (provenance->>'$.imported_from') = $source)
      AND ($model IS NULL OR regexp_extract(unit, '{UNIT}', 1) = $model)
      AND ($site IS NULL OR regexp_extract(unit, '{UNIT}', 2) = $site)
      AND NOT EXISTS (SELECT 1 FROM scores s WHERE s.hypothesis = h.id AND s.side = 'score' AND s.judge = $judge)
    ORDER BY model, unit, sign DESC, id
"""
_SCORED = """
    SELECT i.*, e.explanation AS ours, e.input_f1 AS ours_f1, e.input_f1_low AS ours_low, e.input_f1_high AS ours_high,
           e.verdict AS ours_verdict
    FROM imported i LEFT JOIN explanations e ON e.unit = i.unit AND e.sign IS NOT DISTINCT FROM i.sign
    WHERE i.hypothesis IN (SELECT unnest($these::VARCHAR[])) ORDER BY i.unit, i.sign DESC, i.hypothesis
"""


@dataclass(frozen=True)
class Asked:
    """Which imported explanations are to be scored, by whom, and for how much."""

    source: str | None = None
    model: str | None = None
    site: str | None = None
    judge: str | None = None
    minutes: float | None = None
    llm_tokens: int | None = None
    usd: float | None = None
    device: str | None = None
    dtype: str | None = None


def score_imported(home: Home, asked: Asked, progress: Progress) -> dict[str, Any]:
    """Scores what the judge has not scored yet: {run, judge, status, scored, left_out, waiting}.

    scored: rows of the view `imported`, with our own explanation of the unit beside each; status: done or budget;
    left_out: why explanations could not be scored, with how often. What was cut off goes on in the next call. Raises
    Refused where there is no judge or nothing to score, and where the judge gives no answer.
    """
    budget = Budget(asked.minutes, asked.llm_tokens, asked.usd)
    planner = "auto" if asked.judge == "planner" else "playbook"
    with _alone(home), closing(choose(planner, None, home, budget)) as models:
        chosen = choose_judge(asked.judge, models, home, budget)
        if chosen is None:
            raise Refused("a sentence takes a judge to be scored; name one with --judge URL, or --judge planner.")
        try:
            with nullcontext() if chosen is models else closing(chosen):
                chosen.ready(None)
                return _Scoring(home, asked, budget, chosen, progress).run()
        except LLMError as error:
            with suppress(Refused):    # what waits in the outbox is not lost
                drain(home.work, home.findings)
            raise Refused(f"{error}; what was scored is kept, and the same command goes on from there.") from error


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One process at a time scores in a home: so no score side is read twice where one was cut off."""
    if home.path.exists():
        drain(home.work, home.findings)
    if not home.findings.path.exists():
        raise Refused(f"nothing is recorded in {home.path} yet; run `lamplighter import` first.")
    with open(home.path / "scoring.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"another process scores imported explanations in {home.path}; wait until it is done.") from None
        yield


class _Scoring:
    def __init__(self, home: Home, asked: Asked, budget: Budget, by: ByLLM, progress: Progress) -> None:
        self.home, self.asked, self.budget, self.progress = home, asked, budget, progress
        self.id = uuid7()
        self.judge = LLMJudge(by.client, by.can, {"run": self.id})
        self.by = by
        self.left_out: Counter[str] = Counter()
        self.qualified: dict[str, Mapping[str, Qualification]] = {}
        self.others: dict[tuple[str, UnitId], Induced] = {}
        self.held: tuple[str, Toolbox] | None = None
        self.refused: dict[str, str] = {}      # models that cannot be loaded, and why

    def run(self) -> dict[str, Any]:
        home, asked = self.home, self.asked
        self.budget.spent_on_llm = lambda: home.work.spent(self.id)
        which = {"source": asked.source, "model": asked.model, "site": asked.site, "judge": self.judge.name}
        waiting = home.findings.sql(_WAITING, which)
        if not waiting and not self._imported():
            raise Refused(f"nothing was imported into {home.path}; `lamplighter import` brings explanations in.")
        self.progress.begins(0, len(waiting))
        done: list[str] = []
        try:
            for row in waiting:
                if self.budget.reached:
                    break
                if self._scored(row):
                    done.append(row["id"])
                    self.progress.ended(_name(row), row["author"], len(done), len(waiting))
        except LLMError:
            if not self.budget.reached:      # as where no more time was left for an answer
                raise
        drain(home.work, home.findings)
        home.work.post(self._verdicts())
        drain(home.work, home.findings)
        left = len(waiting) - len(done) - sum(self.left_out.values())
        return {
            "run": self.id, "judge": self.judge.name, "status": "budget" if left else "done",
            "scored": home.findings.sql(_SCORED, {"these": done}, unpack=True),
            "left_out": [{"why": why, "count": count} for why, count in self.left_out.items()], "waiting": left,
        }  # fmt: skip

    def _imported(self) -> bool:
        sql = "SELECT 1 FROM hypotheses WHERE json_exists(provenance, '$.imported_from') LIMIT 1"
        return bool(self.home.findings.sql(sql))

    def _scored(self, row: Mapping[str, Any]) -> bool:
        """Scores one explanation and records that; False, with the reason counted, where it cannot be.

        Raises OutOfBudget, and LLMError where the judge gives no answer: nothing is recorded of it then.
        """
        unit = UnitId.parse(_name(row))
        try:
            box = self._box(unit.model)
            box.subject.check(unit)
            sweep = box.sweep(unit)
        except Refused as refusal:
            self.left_out[str(refusal)] += 1
            return False
        tried = self._qualify(sweep.corpus)
        self.progress.step(str(unit), f"asking the judge about an explanation by {row['author']}")
        stamps: Stamps = {"run": self.id, "unit": unit.bare, "sign": unit.sign}
        scores = score_judged(
            box.subject, sweep, unit, row["sentence"], LLMJudge(self.by.client, self.by.can, stamps),
            hypothesis=row["id"], claim=self._claim, evidence=self._shown(box.subject, unit), author=row["author"],
            qualified=tried, other=self._other(box.subject, sweep, unit),
        )  # fmt: skip
        unanswered = next((s.reason for s in scores if str(s.reason).startswith(NO_ANSWER)), None)
        if unanswered is not None:
            raise LLMError("judge", unanswered)
        said = {"explain_text": UNKNOWN, "code": __version__}
        self.home.work.post(replace(s, run=self.id, provenance=s.provenance | said) for s in scores)
        return True

    def _box(self, model: str) -> Toolbox:
        """The tools on a model; the one before it is let go. Raises Refused where it cannot be loaded."""
        if model in self.refused:
            raise Refused(self.refused[model])
        if self.held is None or self.held[0] != model:
            self.held = None
            try:
                self.held = model, self.home.toolbox(model, self.asked.device, self.asked.dtype)
            except Refused as refusal:
                self.refused[model] = str(refusal)
                raise
        return self.held[1]

    def _claim(self, key: str) -> bool:
        """The score side is read for an explanation that has no scores yet: again only where that was cut off before
        anything was recorded, since no two processes are here at a time."""
        self.home.work.claim_once(f"score-side:{key}")
        return True

    def _shown(self, subject: Subject, unit: UnitId) -> list[Evidence]:
        """The texts that came with the explanations, as ids: where they are known only as tokens, read anew."""
        made = []
        for evidence in self.home.findings.read(Evidence, unit=unit.bare, sign=unit.sign, tool=TOOL):
            ids = [row["ids"] or subject.encode("".join(row["tokens"])) for row in evidence.rows]
            made.append(replace(evidence, rows=[{"ids": one} for one in ids]))
        return made

    def _other(self, subject: Subject, sweep: Sweep, unit: UnitId) -> str | None:
        """What is said of the unit that writes most alike, as for our own sentences: a floor."""

        def made(other: UnitId) -> Induced:
            key = (sweep.digest, other)
            if key not in self.others:
                self.others[key] = induce(subject, sweep, other, reads=0)
            return self.others[key]

        beside = nearest_unit(subject, sweep, unit, lambda other: made(other).rule)
        return None if beside is None else made(beside).sentence

    def _qualify(self, corpus: str) -> Mapping[str, Qualification]:
        """How the judge does on planted rules of a corpus; nothing, with the reason told, where it cannot be tried."""
        if corpus not in self.qualified:
            self.qualified[corpus] = {}

            def tell(what: str) -> None:
                self.progress.step("the judge", what)

            try:
                self.qualified[corpus] = qualify(self.judge, load_corpus(corpus), self.home.work, tell=tell)
            except Unanswered as error:
                raise LLMError("judge", f"the judge cannot be tried: {error}") from error
            except Refused as refusal:
                tell(f"not tried, so that its scores enter no verdict: {refusal}")
        return self.qualified[corpus]

    # Verdicts

    def _verdicts(self) -> list[ImportVerdict]:
        """Those that are new or have changed, over every imported explanation that this judge has scored."""
        findings, scores = self.home.findings, defaultdict[str, list[Score]](list)
        known = {row["hypothesis"] for row in findings.sql("SELECT hypothesis FROM imported")}
        for score in findings.read(Score, side="score", judge=self.judge.name):
            if score.hypothesis in known:
                scores[score.hypothesis].append(score)
        before = {v.hypothesis: v for v in findings.read(ImportVerdict) if v.provenance.get("judge") == self.judge.name}
        cases = [[_by_rule(found[0]), *found] for found in scores.values()]
        decided = verdict.conclude([(verdict.SUBMITTED, case) for case in cases])
        made = []
        for case, (word, reason, q) in zip(cases, decided, strict=True):
            head = verdict.headline(case)
            if head.judge is None:
                word, reason = _without_headline(case)
            last = before.get(head.hypothesis)
            if last is None or (last.verdict, last.reason, last.q) != (word, reason, q):
                made.append(ImportVerdict(
                    run=self.id, unit=head.unit, sign=head.sign, hypothesis=head.hypothesis, verdict=word,
                    reason=reason, p=head.details.get("p"), q=q,
                    provenance={"judge": self.judge.name, "sweep": case[1].provenance.get("sweep")},
                ))  # fmt: skip
        return made


def _by_rule(of: Score) -> Score:
    """The F1 by rule that a sentence has not."""
    unit = UnitId.parse(_name({"unit": of.unit, "sign": of.sign}))
    return next(s for s in unscored(unit, of.hypothesis, verdict.NO_RULE) if s.metric == "f1")


def _without_headline(case: Sequence[Score]) -> tuple[str, str]:
    """(verdict, reason) where the judge's detection cannot decide."""
    detection = next(s for s in case if s.metric == "detection")
    if detection.value is None:
        reason = detection.reason or "detection is undefined"
        return ("unclear" if reason.startswith("too few positives") else "undefined"), reason
    if detection.details.get("qualified") is not True:
        tried = "did not qualify for" if detection.details.get("qualified") is False else "was not tried in"
        return "undefined", f"the judge {tried} detection, so that its scores decide nothing"
    return "undefined", "detection has no interval: too few clusters with a firing text"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["unit"]) + ("-" if row["sign"] == -1 else "")


__all__ = ["Asked", "score_imported"]
