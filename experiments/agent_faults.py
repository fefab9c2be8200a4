"""Every fault of a server, thousands of times: what is charged, kept and scored where replies fail?

A scripted server on loopback answers from a seed: well, with refusals, cut, empty, broken or uncounted replies, or by
hanging up. `asked`: so many questions put to the client, each compared with what the server really said and counted.
`run`: a whole run over planted units beside the same server. Expected: nothing made of an error, no row of the ledger
too many or too few, every token that the server counted and no other, each unit ended once.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..agent.config import Home
from ..agent.endpoint import Endpoint
from ..agent.llm import Client, LLMError
from ..agent.night import run_night
from ..agent.request import Outcome, Request
from ..store.records import Evidence, Failure, Hypothesis, Investigation, LLMCall, Score
from ..store.work import Work
from ..testing import CallTool, CutJson, Drop, EmptyChoices, Hang, NoUsage, Raw, Say, ScriptedEndpoint, Status, Step
from .input_planted import TOKENS
from .planted import make_key
from .report import Claim, Part, Progress

QUESTIONS, UNITS = 3000, 24
WELL = 0.4             # of all answers; the others are faults, each as likely
NO_PAUSE = 0.001       # seconds: a Retry-After that holds nobody up
ANSWER = {"type": "object", "properties": {"answer": {"type": "number"}}, "required": ["answer"]}


@dataclass
class _Server:
    """The script: what it answers, by kind."""

    rng: random.Random
    said: Counter[str] = field(default_factory=Counter)

    def fault(self) -> tuple[str, Step]:
        some: list[tuple[str, Step]] = [
            *((f"http {code}", Status(code)) for code in (400, 401, 404, 409, 500, 502, 503)),
            ("http 429", Status(429, retry_after=NO_PAUSE)), ("http 408", Status(408)),
            ("hangs up", Drop()), ("says nothing", Hang(NO_PAUSE)), ("no choices", EmptyChoices()),
            ("cut off", CutJson()), ("no JSON", Raw("<html>")), ("no object", Raw("[1]")),
            ("choices of another form", Raw('{"choices": [{"message": {"content": 7}}]}')),
        ]  # fmt: skip
        return self.rng.choice(some)


def faults(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Questions and a run, each with its own server."""
    asked, of_questions = _questions(max(50, round(size * QUESTIONS)), seed, progress)
    ran, of_run = _run(folder, max(4, round(size * UNITS)), seed, progress)
    return {"answers of the server": asked, "a run beside it": ran}, [*of_questions, *of_run]


# Questions


def _questions(count: int, seed: int, progress: Progress) -> tuple[list[dict[str, Any]], list[Claim]]:
    script, wrong, lost, again = _Server(random.Random(seed)), 0, 0, 0      # counts of what must not be, and of errors
    usable: dict[int, str] = {}

    def answer(body: dict[str, Any]) -> Step:
        if not (asked := body["messages"][-1]["content"]).isdecimal():
            script.said["a plain question, whether it is down"] += 1
            return Say("yes")
        number = int(asked)
        if script.rng.random() < WELL:
            usable[number] = json.dumps({"answer": script.rng.random()})
            counts = script.rng.random() < 0.9
            script.said["well" if counts else "well, but without a count of tokens"] += 1
            return Say(usable[number]) if counts else NoUsage(Say(usable[number]))
        kind, step = script.fault()
        script.said[kind] += 1
        return step

    with TemporaryDirectory() as place, ScriptedEndpoint(answer, probes=False) as server:
        work = Work(Path(place) / "work.sqlite")
        client = Client(Endpoint(server.url, "scripted"), work, sleep=lambda _: None)
        for number in range(count):
            progress("questions", number, count)
            message = [{"role": "user", "content": str(number)}]
            try:
                said = client.ask("bench", message, max_tokens=64, schema=ANSWER).text
            except LLMError:
                lost += 1
                wrong += number in usable
                continue
            wrong += said != usable.get(number)
            before = len(server.requests)
            same = client.ask("bench", message, max_tokens=64, schema=ANSWER).text == said
            again += not same or len(server.requests) > before
        client.close()
        calls = [r for _, r in work.outbox(10**9) if isinstance(r, LLMCall)]
        work.close()
        requests, counted = len(server.requests), server.counted
    exact = sum((c.tokens_in or 0) + (c.tokens_out or 0) for c in calls if not c.estimated)
    rows = [{"answer": kind, "times": n} for kind, n in script.said.most_common()]
    return rows, [
        _none("replies that are not what the server said", wrong, count),
        _none("replies that were asked for again", again, count - lost),
        _none("requests without a row of the ledger, or rows without a request", abs(len(calls) - requests), requests),
        _none("tokens in the ledger less those that the server counted", abs(exact - counted), requests),
    ]


def _none(name: str, found: int, n: int) -> Claim:
    return Claim(name, float(found), n, "0", found == 0)


# A run


def _run(folder: Path, units: int, seed: int, progress: Progress) -> tuple[list[dict[str, Any]], list[Claim]]:
    """A run over planted units whose model mostly does well, and is as often broken as in the questions."""
    key = make_key(seed, "llama", units)
    corpus = key.write(folder / f"faults-{seed}", tokens=TOKENS // 3).parent
    model = str(key.save(folder / f"faults-{seed}-model"))
    script = _Server(random.Random(seed))

    def answer(body: dict[str, Any]) -> Step:
        if script.rng.random() < 2 * WELL:
            return _acts(body, script.rng)
        return script.fault()[1]

    names = ",".join(str(unit.id).replace(key.subject.name, model) for unit in key.units)
    with TemporaryDirectory() as place, ScriptedEndpoint(answer) as server:
        home = Home(Path(place))
        asked = Request(model=model, corpus=str(corpus), sites=(), units=names, planner="llm", endpoint=server.url)
        outcome = run_night(home, asked, _Told(progress))
        return _checked(home, outcome, server, units)


@dataclass(frozen=True)
class _Told:
    """A run's progress as a bench counts it."""

    tell: Progress

    def sweeping(self, what: str, done: int, total: int) -> None:
        self.tell(what, done, total)

    def begins(self, done: int, total: int) -> None:
        self.tell("units", done, total)

    def ended(self, unit: str, how: str, done: int, total: int) -> None:
        self.tell("units", done, total)

    def picked(self, unit: str, why: str) -> None:
        """Nothing is picked: units are named."""

    def step(self, unit: str, what: str) -> None:
        """The steps of a unit are not counted."""

    def pace(self, line: str) -> None:
        """The bench has a bar of its own."""


def _acts(body: dict[str, Any], rng: random.Random) -> Step:
    """What a model could do: submit the first candidate, try a rule of its own, give nonsense, or abstain."""
    rule = {"clauses": [{"at": {"word": rng.choice(("the", "of", "[A-Z].*", "("))}}]}
    acts: list[tuple[str, dict[str, Any]]] = [
        ("submit", {"candidate": "A", "sentence": "fires on what A says"}),
        ("try_rule", {"sentence": "fires on a word", "rule": rule}),
        ("activate", {"text": "The end of the year."}), ("abstain", {"reason": "nothing is shown"}),
        ("guess", {}),
    ]  # fmt: skip
    tool, arguments = rng.choice(acts)
    return CallTool(tool, {"why": "", **arguments})


def _checked(
    home: Home, outcome: Outcome, server: ScriptedEndpoint, units: int
) -> tuple[list[dict[str, Any]], list[Claim]]:
    def of(kind: Any) -> list[Any]:
        return home.findings.read(kind, run=outcome.run)

    ended, failures, kept = of(Investigation), of(Failure), [h for h in of(Hypothesis) if h.kept and h.side == "input"]
    failed = {f.investigation for f in failures} - {i.id for i in ended}
    doubled = _doubled([(i.unit, i.sign) for i in ended]) + _doubled([h.investigation for h in kept])
    known = {h.id for h in of(Hypothesis)}
    orphans = [s for s in of(Score) if s.hypothesis not in known or s.investigation in failed]
    values = [s for s in of(Score) if s.value is not None and s.reason is not None]
    calls = home.findings.read(LLMCall)
    exact = sum((c.tokens_in or 0) + (c.tokens_out or 0) for c in calls if not c.estimated)
    answered = [c for c in calls if c.purpose != "models"]
    rows = [
        {"what": "units", "n": units}, {"what": "brought to an end", "n": len(ended)},
        {"what": "failed, and recorded as failed", "n": len(failed)}, {"what": "requests", "n": len(server.requests)},
        {"what": "tool calls", "n": len(of(Evidence))}, {"what": "explanations", "n": len(kept)},
    ]  # fmt: skip
    return rows, [
        _none("units lost: neither ended nor failed", units - len(ended) - len(failed), units),
        _none("units or explanations that are there twice", doubled, units),
        _none("scores of failed units, of no hypothesis, or both given and excused", len(orphans + values), units),
        _none("requests of the run less rows of its ledger", abs(len(server.requests) - len(calls)), len(calls)),
        _none("tokens of the run less those that the server counted", abs(exact - server.counted), len(answered)),
    ]


def _doubled(values: Sequence[Any]) -> int:
    return len(values) - len({json.dumps(value) for value in values})


__all__ = ["faults"]
