"""The nouns that are remembered: one frozen dataclass a DuckDB table, one field a column.

A record goes to JSON and comes back equal; `SCHEMA` is raised when a field changes meaning. `unit` is
`model/site/index` without the sign, which has its own column. Times are UTC in ISO 8601.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

SCHEMA = 1
VERDICTS = ("accepted", "rejected", "unclear", "abstained", "failed", "undefined")
REVIEWS = ("accept", "reject", "edit", "unsure", "skip")     # what a person may say of an explanation; or `undo`
PERSON = "person:"       # what the author of a hypothesis begins with who is a person


class Refused(ValueError):
    """A request that cannot be carried out as asked; its one sentence says what is wrong and what to do."""


class Busy(Refused):
    """The file cannot be used just now: another process holds it, or its disk is full.

    Nothing was changed, and the same call may be made again.
    """


def uuid7() -> str:
    """A version-7 UUID (RFC 9562): 48 bits of milliseconds, then randomness, so ids sort by time."""
    stamp = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    tail = bytearray(os.urandom(10))
    tail[0] = tail[0] & 0x0F | 0x70
    tail[2] = tail[2] & 0x3F | 0x80
    text = (stamp + tail).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def utc_now() -> str:
    """The time now in UTC, as records carry it: ISO 8601 to the microsecond, without a zone."""
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")


def signed(row: Mapping[str, Any]) -> str:
    """A row's unit with its sign, as the queue names it."""
    return str(row["unit"]) + ("-" if row["sign"] == -1 else "")


@cache
def _kinds(table: str) -> dict[str, tuple[type, ...]]:
    """Which Python types each field may hold; a whole number is a fine float."""
    hints = get_type_hints(TABLES[table])
    unions = {f.name: hints[f.name] for f in fields(TABLES[table])}
    kinds = {n: get_args(hint) if isinstance(hint, UnionType) else (hint,) for n, hint in unions.items()}
    plain = {name: tuple(get_origin(kind) or kind for kind in hint) for name, hint in kinds.items()}
    return {name: (*hint, int) if float in hint else hint for name, hint in plain.items()}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every row carries: who and when, and the digests that make it reproducible.

    `provenance` holds model, tokenizer, corpus and sweep digests, code and measures versions, seed, dtype,
    device.
    """

    TABLE: ClassVar[str]

    id: str = field(default_factory=uuid7)
    created_at: str = field(default_factory=utc_now)
    run: str | None = None
    investigation: str | None = None
    unit: str | None = None
    sign: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of strict JSON. Raises ValueError for what a store would not give back as it was:

        a number that is not finite (an undefined value is null), a value of another type than its field's, an
        integer over 64 bits, a time of another form than `utc_now()` gives.
        """
        for name, kinds in _kinds(self.TABLE).items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ValueError(f"{name} is {value!r}, which is no {' or '.join(k.__name__ for k in kinds)}")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} is {value}, which is no 64-bit integer")
        when = datetime.fromisoformat(self.created_at).replace(tzinfo=None)
        if when.isoformat(timespec="microseconds") != self.created_at:
            raise ValueError(f"created_at is {self.created_at!r}, which is not of the form {utc_now()}")
        # vars and not asdict, which copies every value of every row: fields hold plain JSON, as checked above
        return json.dumps({"schema": SCHEMA, **vars(self)}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record that `to_json` wrote. Raises ValueError for another schema or unknown fields."""
        values = json.loads(text)
        schema = values.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"a {cls.TABLE} record of schema {schema} cannot be read by schema {SCHEMA}")
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a {cls.TABLE} record has unknown fields {sorted(unknown)}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Model(Record):
    """A subject as it was loaded, with the load-time identities that decide which tools it is offered."""

    TABLE = "models"
    name: str
    architecture: str
    layers: int
    vocabulary: int
    checks: dict[str, float | None]
    tools: list[str]


@dataclass(frozen=True, kw_only=True)
class Sweep(Record):
    """One pass over a corpus; its exemplars and statistics live in files under `sweeps/<digest>/`."""

    TABLE = "sweeps"
    digest: str
    model: str
    corpus: str
    sites: list[str]
    tokens: dict[str, int]
    documents: dict[str, int]
    overlap: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Unit(Record):
    """An investigated unit's statistics from the sweep: peak P, threshold τ, rates and counts by side."""

    TABLE = "units"
    model: str
    site: str
    index: int
    peak: float
    threshold: float
    statistics: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Exemplar(Record):
    """One place in the corpus where an investigated unit was read: `text` ends at the read token."""

    TABLE = "exemplars"
    side: str
    band: str
    document: str
    position: int
    activation: float
    text: str
    token: str


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """What was asked for; `status` is `running`, `done`, `budget` or `drained`, the newest row wins."""

    TABLE = "runs"
    key: str
    asked: dict[str, Any]
    status: str
    units: list[str]
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Investigation(Record):
    """One unit in one run, brought to its end by `planner`; `status` says how it ended."""

    TABLE = "investigations"
    planner: str
    status: str
    steps: int
    cost: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evidence(Record):
    """What one tool call returned. `rows` are plain dicts whose keys the tool's docstring names.

    `cost` holds forward_rows, forward_tokens, backward and seconds; `artifact` is None or the digest of a
    stored file.
    """

    TABLE = "evidence"
    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    ok: bool = True
    summary: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    artifact: str | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """The object that the command line prints and a planner reads."""
        unit = None if self.unit is None else self.unit + ("-" if self.sign == -1 else "")
        keys = ("summary", "rows", "artifact", "checks", "warnings", "cost")
        return {"ok": self.ok, "tool": self.tool, "unit": unit} | {k: getattr(self, k) for k in keys}


@dataclass(frozen=True, kw_only=True)
class Turn(Record):
    """What one experiment was to find out, and what it did to the hypotheses that lived when it was chosen.

    question: why it was chosen, and `by` whom; evidence: what it returned. outcome: for each of its texts whether the
    unit fires there; predictions: what each living hypothesis (by its id) says of the same texts, its rule run on them;
    both are empty for an experiment without such texts. killed: {hypothesis, by, difference, low, high}: those that it
    put out, by another whose F1 is higher by so much, with its interval.
    """

    TABLE = "turns"
    question: str
    by: str
    tool: str
    evidence: str
    ok: bool
    predictions: dict[str, Any] = field(default_factory=dict)
    outcome: list[bool] = field(default_factory=list)
    killed: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Hypothesis(Record):
    """A sentence about a unit and, where possible, a rule; `kept` marks the one submitted.

    side: input (when it fires; a rule is that of tools/rules.py) or output (what it pushes: ids it raises and lowers).
    One that another tool made says so in `provenance["imported_from"]`; it is never `kept`.
    """

    TABLE = "hypotheses"
    author: str
    sentence: str
    rule: dict[str, Any] | None
    rule_text: str | None
    kept: bool
    evidence: list[str] = field(default_factory=list)
    tune_f1: float | None = None
    side: str = "input"


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """One number about one hypothesis. `value` is null when undefined, and `reason` then says why.

    `low`, `high` bound the 95 % interval; `floors` decide the verdict, `references` never do. The metric
    `claimed_score`, of side `source`, is what an imported explanation's source states of it: nothing was measured here.
    """

    TABLE = "scores"
    hypothesis: str
    metric: str
    side: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    floors: dict[str, float | None] = field(default_factory=dict)
    references: dict[str, float | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    judge: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """Decided by rule from the scores; the newest row of an investigation wins (the run's end adds `q`)."""

    TABLE = "verdicts"
    hypothesis: str | None
    verdict: str
    reason: str
    p: float | None = None
    q: float | None = None


@dataclass(frozen=True, kw_only=True)
class Review(Record):
    """What a person said of an explanation: one event. Nothing is changed afterwards; `undo` takes one back.

    hypothesis: the explanation; run, investigation: those that it came from. verdict: one of REVIEWS, or `undo`.
    seconds: spent on the card; card: digest of what was shown; client: by what, with its version. blind: neither scores
    nor what others said had been shown to this person. reasons: why the explanation waited. edit: the hypothesis that
    the person put in its place; undoes: the event that is taken back.
    """

    TABLE = "reviews"
    hypothesis: str
    reviewer: str
    verdict: str
    tags: list[str] = field(default_factory=list)
    seconds: float | None = None
    card: str | None = None
    client: str
    blind: bool = True
    reasons: list[str] = field(default_factory=list)
    edit: str | None = None
    undoes: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImportVerdict(Verdict):
    """The same on an explanation that another tool made; `q` is over all that the same judge has scored.

    Apart from verdicts, since no investigation of ours found it: it is measured here, and stands for no unit.
    """

    TABLE = "import_verdicts"


@dataclass(frozen=True, kw_only=True)
class Embedding(Record):
    """An explanation as a unit vector of `model`."""

    TABLE = "embeddings"
    hypothesis: str
    model: str
    vector: list[float]


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """An attempt that ended in an error: nothing was scored from it.

    request: what the language model was asked when it gave no usable answer, as JSON; null where it was not that.
    """

    TABLE = "failures"
    kind: str
    message: str
    step: str
    attempt: int
    request: str | None = None


@dataclass(frozen=True, kw_only=True)
class LLMCall(Record):
    """One HTTP request to a language model's endpoint, answered or not: what the ledger holds.

    `endpoint` is `scheme://host:port/path`, or `embedded`. `outcome` is `ok`, or what went wrong: `http 429`,
    `timeout`, `connection`, `interrupted`, `unreadable`, `empty`, `cut off`, `unparsed` (the server could not read what
    its model said). Tokens are the server's count, null where no reply came; `estimated`: it gave none, and they are a
    quarter of the UTF-8 bytes of request and reply. `tokens_cached` are among `tokens_in`. `usd` is null where the cost
    is not known: the model has no price, or the reply did not arrive. tokens_most, usd_most: what it can have cost at
    most; for a lost reply as estimated and with all the tokens that it was allowed. `request` is the digest of what was
    asked, the same for each try.
    """

    TABLE = "llm_calls"
    purpose: str
    model: str
    endpoint: str
    outcome: str
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    estimated: bool = False
    usd: float | None = None
    request: str
    seconds: float
    tokens_most: int | None = None
    usd_most: float | None = None


TABLES: dict[str, type[Record]] = {
    kind.TABLE: kind
    for kind in (
        Model, Sweep, Unit, Exemplar, Run, Investigation,
        Evidence, Turn, Hypothesis, Score, Verdict, ImportVerdict, Review, Embedding, Failure, LLMCall,
    )
}
