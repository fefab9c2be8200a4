"""Which planner a run gets: the endpoint that was named, else the embedded model, else the playbook or a refusal."""

import json
from pathlib import Path

import pytest

from lamplighter.agent import llm, planners
from lamplighter.agent.budget import Budget
from lamplighter.agent.config import EMBEDDED_LLM, Home
from lamplighter.agent.endpoint import Endpoint
from lamplighter.agent.llm import LLMError
from lamplighter.agent.planners import ByLLM, ByPlaybook, choose
from lamplighter.store.records import LLMCall, Refused
from lamplighter.store.work import Spent
from lamplighter.testing import Hang, ScriptedEndpoint
from lamplighter.tools import models


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAMPLIGHTER_LLM_URL", "LAMPLIGHTER_LLM_KEY", "LAMPLIGHTER_LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model is in the cache, as far as anyone can tell without opening it."""
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / EMBEDDED_LLM
    folder.mkdir(parents=True)
    facts = {"pins": models.entry(EMBEDDED_LLM).pins, "wheels": [], "files": {}}
    (folder / "manifest.json").write_text(json.dumps(facts), "utf-8")
    monkeypatch.setattr(planners, "lack", lambda name: None)


def named(server: ScriptedEndpoint) -> str:
    return f"llm:scripted@{server.url}/v1"


@pytest.mark.parametrize("planner", ["auto", "llm"])
def test_a_named_endpoint_goes_before_the_embedded_model(planner: str, home: Home, embedded: None) -> None:
    with ScriptedEndpoint() as server:
        chosen = choose(planner, server.url, home, Budget())
        chosen.close()
        assert isinstance(chosen, ByLLM) and chosen.label == named(server)


def test_an_endpoint_may_be_named_in_the_environment_or_the_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedEndpoint() as server, ScriptedEndpoint() as other:
        home.path.mkdir()
        (home.path / "config.toml").write_text(f'[llm]\nurl = "{other.url}"\n', "utf-8")
        assert choose("auto", None, home, Budget()).label == named(other)
        monkeypatch.setenv("LAMPLIGHTER_LLM_URL", server.url)
        assert choose("auto", None, home, Budget()).label == named(server)


@pytest.mark.parametrize("planner", ["auto", "llm"])
def test_the_embedded_model_goes_before_the_playbook_and_waits_for_its_first_use(
    planner: str, home: Home, embedded: None
) -> None:
    chosen = choose(planner, None, home, Budget())
    assert isinstance(chosen, ByLLM) and chosen.label == f"llm:{EMBEDDED_LLM}@embedded"
    assert chosen._server is not None and chosen._server._child is None
    chosen.close()


def test_with_nothing_at_hand_auto_is_the_playbook_and_llm_is_refused(home: Home) -> None:
    assert isinstance(choose("auto", None, home, Budget()), ByPlaybook)
    ways = f"--endpoint URL, run `lamplighter models pull {EMBEDDED_LLM}`, or choose --planner playbook"
    with pytest.raises(Refused, match=f"no language model is at hand; name one with {ways}"):
        choose("llm", None, home, Budget())


@pytest.mark.parametrize("planner", ["auto", "llm"])
def test_an_embedded_model_that_cannot_be_served_is_told_and_not_passed_over(
    planner: str, home: Home, embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planners, "lack", lambda name: "the system library libgomp.so.1 is missing; install it.")
    with pytest.raises(Refused, match="libgomp.so.1 is missing; install it. Or choose --planner playbook."):
        choose(planner, None, home, Budget())


def test_the_playbook_asks_nobody(home: Home, embedded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedEndpoint() as server:
        monkeypatch.setenv("LAMPLIGHTER_LLM_URL", server.url)
        chosen = choose("playbook", None, home, Budget())
        assert isinstance(chosen, ByPlaybook) and chosen.label == "playbook" and server.requests == []
        with pytest.raises(Refused, match="the playbook asks no language model; leave --endpoint out"):
            choose("playbook", server.url, home, Budget())


@pytest.mark.parametrize("planner", ["auto", "llm", "playbook"])
def test_an_empty_endpoint_is_refused_and_not_taken_for_none(planner: str, home: Home, embedded: None) -> None:
    with pytest.raises(Refused, match="--endpoint is empty; give a URL such as http"):
        choose(planner, " ", home, Budget())


def test_variables_of_openai_choose_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedEndpoint() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
        assert isinstance(choose("auto", None, home, Budget()), ByPlaybook)
        with pytest.raises(Refused, match="no language model is at hand"):
            choose("llm", None, home, Budget())
        assert server.requests == []


def test_an_unknown_planner_is_refused_with_those_there_are(home: Home) -> None:
    with pytest.raises(Refused, match="'oracle' is unknown; choose one of auto, llm, playbook"):
        choose("oracle", None, home, Budget())


def test_what_an_endpoint_can_do_is_asked_once_a_run(home: Home) -> None:
    with ScriptedEndpoint() as server:
        for run, expected in ((None, 4), ("run 1", 0), ("run 2", 4)):
            chosen = choose("llm", server.url, home, Budget())
            before = len(server.requests)
            chosen.ready(run)
            assert len(server.requests) - before == expected, run
            chosen.begin(run or "run 1")
            chosen.close()
    rows = [record for _, record in home.work.outbox(100) if isinstance(record, LLMCall)]
    assert len(rows) == len(server.requests) and {row.purpose for row in rows} == {"models", "probe"}


def test_dollars_that_cannot_be_counted_are_refused_before_a_question(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_LLM_MODEL", "unheard-of-9")
    with pytest.raises(Refused, match="no price is known for unheard-of-9"):
        choose("llm", "http://llm.invalid/v1", home, Budget(usd=1.0)).ready(None)
    assert home.work.pending() == 0
    with ScriptedEndpoint() as server:
        choose("llm", server.url, home, Budget(usd=1.0)).ready(None)


def test_a_limit_that_is_reached_is_asked_before_each_request(home: Home) -> None:
    spent = Budget(llm_tokens=10, spent_on_llm=lambda: Spent(1, 10, 0.0, 0, 10, 0.0))
    with ScriptedEndpoint() as server:
        chosen = ByLLM(Endpoint(server.url, "scripted"), home.work, spent)
        with pytest.raises(LLMError, match="10 tokens of language model are spent"):
            chosen.ready(None)
        assert server.requests == []


def test_replies_that_are_lost_reach_a_limit_in_dollars_as_well(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reply ever comes, so no cost is ever known; the limit holds all the same."""
    monkeypatch.setattr(llm, "TIMEOUT", 0.2)
    monkeypatch.setattr(llm, "BACKOFF", 0.0)
    price = "[llm]\nurl = \"{}\"\nusd_per_million_in = 1000\nusd_per_million_out = 1000\n"
    with ScriptedEndpoint(lambda request: Hang(5)) as server:
        home.path.mkdir(exist_ok=True)
        (home.path / "config.toml").write_text(price.format(server.url), "utf-8")
        budget = Budget(usd=1.0, spent_on_llm=lambda: home.work.spent("r"))
        chosen = choose("llm", None, home, budget)
        assert isinstance(chosen, ByLLM)
        ends = []
        for number in range(4):
            with pytest.raises(LLMError) as error:
                chosen.client.ask("plan", [{"role": "user", "content": str(number)}], max_tokens=500, run="r")
            ends.append(error.value.kind)
        chosen.close()
    spent = home.work.spent("r")
    assert ends[-1] == "budget" and spent.usd == 0.0 and spent.usd_most >= 1.0 and spent.unpriced == spent.calls <= 3
