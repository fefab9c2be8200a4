"""Stored experiments run again: equal, or where the difference lies."""

import shutil
from dataclasses import replace
from typing import Any

import pytest

from lamplighter.agent.config import Home
from lamplighter.agent.replay import replay_evidence
from lamplighter.store.records import Evidence, Refused, uuid7
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import make_sweep


def stored(finished: Any, tool: str, unit: str = "0-mlp/1", ok: bool = True) -> Evidence:
    """The first evidence of a tool on a unit of the finished run."""
    found: list[Evidence] = finished.home.findings.read(Evidence, tool=tool, ok=ok)
    return next(e for e in found if (e.unit or "").endswith(unit))


@pytest.mark.parametrize("tool", ["top_examples", "minimal_example", "ablate", "lens"])
def test_an_experiment_runs_again_to_the_same_numbers(finished: Any, tool: str) -> None:
    evidence = stored(finished, tool)
    found = replay_evidence(finished.home, evidence.id)
    assert found == {
        "evidence": evidence.id, "tool": tool, "unit": evidence.unit, "equal": True, "differences": [], "changed": [],
    }  # fmt: skip


def test_the_negative_side_is_replayed_as_itself(finished: Any) -> None:
    found = replay_evidence(finished.home, stored(finished, "minimal_example", "0-mlp/2").id)
    assert found["unit"].endswith("0-mlp/2-") and found["equal"]


def test_it_really_runs_and_neither_recalls_nor_remembers(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where every forward pass goes through, of whole rows and of what rows share."""
    tokens: list[int] = []
    real = Subject._forward

    def counted(self: Subject, inputs: Any, mask: Any, *args: Any, **options: Any) -> Any:
        tokens.append(mask.numel())
        return real(self, inputs, mask, *args, **options)

    evidence = stored(finished, "minimal_example")
    monkeypatch.setattr(Subject, "_forward", counted)
    monkeypatch.setattr(finished.home.work, "remember", None)
    monkeypatch.setattr(finished.home.work, "recall", None)
    assert replay_evidence(finished.home, evidence.id)["equal"]
    assert sum(tokens) >= evidence.cost["forward_tokens"] > 0


def changed(evidence: Evidence, **row: Any) -> Evidence:
    return replace(evidence, id=uuid7(), rows=[evidence.rows[0] | row, *evidence.rows[1:]])


def test_differences_are_named_by_their_place(copied: Home, finished: Any) -> None:
    """A number beyond 1e-5, a word, a missing row and a missing key; within 1e-5 is equal."""
    good = stored(finished, "minimal_example")
    peak = good.rows[0]["peak"]
    cases = {
        "number": (changed(good, peak=peak * 1.001), ["rows[0].peak: "]),
        "close": (changed(good, peak=peak * (1 + 1e-7)), []),
        "word": (changed(good, kept_text="car"), ["rows[0].kept_text: 'car' → "]),
        "rows": (replace(good, id=uuid7(), rows=good.rows[:1]), ["rows: "]),
        "keys": (changed(good, extra=1), ["rows[0]: "]),
        "check": (replace(good, id=uuid7(), checks=good.checks | {"tracked": 0}), ["checks.tracked: 0 → "]),
    }
    copied.findings.append(evidence for evidence, _ in cases.values())
    for name, (evidence, starts) in cases.items():
        found = replay_evidence(copied, evidence.id)
        assert found["equal"] is (not starts), name
        assert [d.startswith(s) for d, s in zip(found["differences"], starts, strict=True)] == [True] * len(starts)


def test_many_differences_are_cut_at_twenty(copied: Home, finished: Any) -> None:
    good = stored(finished, "top_examples")
    rows = [row | {"activation": 0.0, "ratio": 9.0, "text": "no"} for row in good.rows]
    other = replace(good, id=uuid7(), rows=rows)
    copied.findings.append([other])
    assert len(rows) * 3 > 20 == len(replay_evidence(copied, other.id)["differences"])


def test_what_has_changed_since_is_named(copied: Home, finished: Any) -> None:
    good = stored(finished, "minimal_example")
    older = replace(good, id=uuid7(), provenance=good.provenance | {"code": "0.0.1", "recalled": good.id})
    copied.findings.append([older])
    found = replay_evidence(copied, older.id)
    assert found["equal"] and found["changed"] == ["code"]


def test_evidence_is_replayed_on_its_own_sweep(copied: Home, finished: Any, project: Any) -> None:
    """Not on the newest sweep of the site: another corpus, or a part of one, has other best texts."""
    subject = Subject.load(project.model)
    newer = make_sweep(subject, load_corpus(project.corpus), ["0-mlp"], copied.path, tokens=4000)
    evidence = stored(finished, "top_examples")
    assert newer.digest != evidence.provenance["sweep"]
    found = replay_evidence(copied, evidence.id)
    assert found["equal"] and found["changed"] == []
    shutil.rmtree(copied.path / "sweeps" / evidence.provenance["sweep"])
    with pytest.raises(Refused, match=f"sweep {evidence.provenance['sweep']} .* is gone"):
        replay_evidence(copied, evidence.id)


def test_a_refusal_is_replayed_as_a_refusal(finished: Any, copied: Home) -> None:
    """It is equal while the reason is the same, and different once the experiment is refused for another."""
    refused = stored(finished, "substitute", ok=False)
    found = replay_evidence(finished.home, refused.id)
    assert found["equal"] and found["differences"] == []
    other = replace(refused, id=uuid7(), summary="the moon was full")
    copied.findings.append([other])
    found = replay_evidence(copied, other.id)
    assert not found["equal"] and "the moon was full" in found["differences"][0]


def test_what_cannot_be_replayed_is_refused(finished: Any, copied: Home) -> None:
    with pytest.raises(Refused, match="there is no evidence 'nothing'; `lamplighter show"):
        replay_evidence(finished.home, "nothing")
    good = stored(finished, "top_examples")
    nobody = replace(good, id=uuid7(), unit=None)
    gone = replace(good, id=uuid7(), unit="no-such-model/0-mlp/1")
    now_refused = replace(good, id=uuid7(), arguments={"side": "score"})
    copied.findings.append([nobody, gone, now_refused])
    for evidence, words in ((nobody, "is of no unit"), (gone, "no-such-model"), (now_refused, "side 'score'")):
        with pytest.raises(Refused, match=words):
            replay_evidence(copied, evidence.id)
