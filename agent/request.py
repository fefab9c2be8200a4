"""What a run is asked to do, who is told how it goes, and how it ended."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ..tools import measures

# Of a request, what does not make it another run.
APART = ("endpoint", "minutes", "llm_tokens", "usd", "unit_llm_tokens", "unit_usd", "fresh", "workers")


@dataclass(frozen=True)
class Request:
    """What a run is asked to do. What it may spend, `fresh` and `workers`, the units at a time, are not its identity.

    `endpoint` is no part of it either: `planner` and `judge` are replaced by labels that name model and endpoint.
    """

    model: str
    corpus: str
    sites: tuple[str, ...]
    units: str
    planner: str = "playbook"
    endpoint: str | None = None
    judge: str | None = None
    tokens: int | None = None
    second: str | None = None
    device: str | None = None
    dtype: str | None = None
    minutes: float | None = None
    llm_tokens: int | None = None
    usd: float | None = None
    unit_llm_tokens: int | None = None
    unit_usd: float | None = None
    fresh: bool = False
    workers: int = 1

    def asked(self) -> dict[str, Any]:
        facts = asdict(self) | {"measures": measures.VERSION}
        return {name: facts[name] for name in facts if name not in APART}

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.asked(), sort_keys=True).encode()).hexdigest()


class Progress(Protocol):
    """Who is told how a run goes."""

    def sweeping(self, what: str, done: int, total: int) -> None: ...
    def picked(self, unit: str, why: str) -> None: ...
    def begins(self, done: int, total: int) -> None: ...
    def step(self, unit: str, what: str) -> None: ...
    def pace(self, line: str) -> None: ...
    def ended(self, unit: str, how: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` done, budget or drained; `left` are the units not reached; `repeated` if it was
    finished before and nothing was done now."""

    run: str
    status: str
    units: list[str]
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    repeated: bool = False


__all__ = ["Outcome", "Progress", "Request"]
