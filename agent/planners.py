"""Which planner a run gets, and one of them for each unit."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from ..store.records import Refused
from ..store.work import Work
from ..tools import models
from .budget import Budget
from .config import EMBEDDED_LLM, Home
from .embedded import EmbeddedServer, lack
from .endpoint import EMBEDDED, Endpoint
from .llm import Capabilities, Client, OutOfBudget, Stamps, probe
from .planner import LLMPlanner
from .playbook import Induce, Playbook
from .state import Planner

if TYPE_CHECKING:
    from ..tools.toolbox import Toolbox

PLANNERS = ("auto", "llm", "playbook")


class Planners(Protocol):
    """Makes the planner of each unit of one run. `label` says which kind, as the run's record tells it."""

    label: str

    def ready(self, run: str | None) -> None:
        """Sees that planners can be made, before anything takes long; `run` is the one that is continued."""

    def begin(self, run: str) -> None:
        """The run is open."""

    def make(self, toolbox: "Toolbox", induce: Induce, stamps: Stamps) -> Planner: ...

    def close(self) -> None: ...


def choose(planner: str, endpoint: str | None, home: Home, budget: Budget) -> Planners:
    """`playbook`; `llm`: the configured endpoint, else the embedded model; `auto`: that if there is one, else playbook.

    Raises Refused if there is none for `llm`, the embedded one is here but cannot be served, or an endpoint was named
    for nothing: an empty one, or one beside the playbook.
    """
    _check(planner, endpoint)
    if planner == "playbook":
        return ByPlaybook()
    chosen = Endpoint.configured(endpoint, home.path)
    if chosen is not None:
        return ByLLM(chosen, home.work, budget)
    if models.installed(EMBEDDED_LLM):
        missing = lack(EMBEDDED_LLM)
        if missing is not None:
            raise Refused(f"{missing} Or choose --planner playbook.")
        server = EmbeddedServer(EMBEDDED_LLM)
        return ByLLM(Endpoint.embedded(EMBEDDED_LLM, server.connect), home.work, budget, server)
    if planner == "auto":
        return ByPlaybook()
    raise _none_at_hand()


def _check(planner: str, endpoint: str | None) -> None:
    """Raises Refused for an unknown planner and for an endpoint that is none or that nobody would ask."""
    if planner not in PLANNERS:
        raise Refused(f"the planner {planner!r} is unknown; choose one of {', '.join(PLANNERS)}.")
    if endpoint is not None and not endpoint.strip():
        raise Refused("--endpoint is empty; give a URL such as http://127.0.0.1:8080/v1, or leave it out.")
    if planner == "playbook" and endpoint is not None:
        raise Refused("the playbook asks no language model; leave --endpoint out, or choose --planner llm.")


def _none_at_hand() -> Refused:
    return Refused(
        f"no language model is at hand; name one with --endpoint URL, run `lamplighter models pull {EMBEDDED_LLM}`, "
        "or choose --planner playbook."
    )


def foresee(planner: str, endpoint: str | None, home: Home) -> tuple[str, str]:
    """(model, address) of the planner that `choose` would give, with nobody asked and nothing started.

    The model is "" where only the server knows it; both are "" for the playbook. Raises Refused as `choose` does.
    """
    _check(planner, endpoint)
    chosen = None if planner == "playbook" else Endpoint.configured(endpoint, home.path)
    if chosen is not None:
        return chosen.model or "", chosen.label
    if planner != "playbook" and models.installed(EMBEDDED_LLM):
        return EMBEDDED_LLM, EMBEDDED
    if planner == "llm":
        raise _none_at_hand()
    return "", ""


def foresee_judge(judge: str | None, planner: tuple[str, str], home: Home) -> tuple[str, str]:
    """The same of the judge that `choose_judge` would give; `planner` as foreseen."""
    _check_judge(judge, planner != ("", ""))
    if judge == "planner":
        return planner
    chosen = Endpoint.configured(judge, home.path, "judge")
    return ("", "") if chosen is None else (chosen.model or "", chosen.label)


def _check_judge(judge: str | None, model_plans: bool) -> None:
    """Raises Refused for a judge that is no address, and for the planner's model where no model plans."""
    if judge is not None and not judge.strip():
        raise Refused("--judge is empty; give a URL such as http://127.0.0.1:8080/v1, or leave it out.")
    if judge == "planner" and not model_plans:
        raise Refused("no language model plans here, so none can judge; name one with --judge URL.")


def label_of(model: str, address: str) -> str:
    """How a run's record names a language model."""
    return f"llm:{model}@{address}"


def choose_judge(judge: str | None, planners: Planners, home: Home, budget: Budget) -> "ByLLM | None":
    """Who judges: `planner`, the planner's own language model; a URL; by default the configured judge, if there is one.

    Raises Refused for `planner` where no language model plans, and for what is no address.
    """
    _check_judge(judge, isinstance(planners, ByLLM))
    if judge == "planner" and isinstance(planners, ByLLM):
        return planners
    chosen = Endpoint.configured(judge, home.path, "judge")
    return None if chosen is None else ByLLM(chosen, home.work, budget)


class ByPlaybook:
    """Planners without a language model."""

    label = "playbook"

    def ready(self, run: str | None) -> None: ...
    def begin(self, run: str) -> None: ...
    def close(self) -> None: ...

    def make(self, toolbox: "Toolbox", induce: Induce, stamps: Stamps) -> Planner:
        return Playbook(induce, toolbox.offered())


class ByLLM:
    """Planners on one endpoint. Its capabilities are probed once a run and kept with it.

    The embedded server is the same program and the same weights each time: what it can do is kept for good.
    """

    def __init__(self, endpoint: Endpoint, work: Work, budget: Budget, server: EmbeddedServer | None = None) -> None:
        self._work, self._budget, self._server = work, budget, server
        self.client = Client(endpoint, work, self._check, lambda: budget.seconds_left)
        self._can: Capabilities | None = None
        self.label = label_of(self.client.model, endpoint.label)

    @property
    def can(self) -> Capabilities:
        """What the endpoint can do, once it is `ready`."""
        assert self._can is not None
        return self._can

    def ready(self, run: str | None) -> None:
        dollars = (self._budget.usd, self._budget.unit_usd)
        if dollars != (None, None) and not self.client.priced:
            raise Refused(
                f"no price is known for {self.client.model}, so no limit in dollars can be kept; set "
                "usd_per_million_in and usd_per_million_out in config.toml of the home, or give tokens instead."
            )
        known = self._work.recall(self._key(run)) if self._server or run else None
        self._can = Capabilities.from_json(known) if known else probe(self.client)
        if self._server:
            self.begin("")

    def begin(self, run: str) -> None:
        self._work.remember(self._key(run), self.can.to_json())

    def make(self, toolbox: "Toolbox", induce: Induce, stamps: Stamps) -> Planner:
        from ..tools.toolbox import FOR_PEOPLE

        offered = [name for name in toolbox.offered() if name not in FOR_PEOPLE]
        return LLMPlanner(self.client, self.can, induce, offered, toolbox.subject, stamps)

    def close(self) -> None:
        self.client.close()
        if self._server is not None:
            self._server.close()

    def _key(self, run: str | None) -> str:
        if self._server is not None:
            return f"llm-probe:{self.label}:{version('xllamacpp')}"
        return f"llm-probe:{self.label}:{run}"

    def _check(self, stamps: Stamps) -> None:
        run, unit, sign = stamps.get("run"), stamps.get("unit"), stamps.get("sign")
        reached = self._budget.asked_enough
        if reached is None and run is not None and unit is not None:
            reached = self._budget.unit_asked_enough(lambda: self._work.spent(run, unit, sign))
        if reached is not None:
            raise OutOfBudget("budget", reached)
