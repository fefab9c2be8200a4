"""The registry: schemas from signatures, refusals as evidence, and finished evidence recalled."""

import copy
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamplighter.store.records import Busy, Evidence, Refused
from lamplighter.tools import measures
from lamplighter.tools import toolbox as module
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.masked import MaskedLM
from lamplighter.tools.subject import NEEDS, Subject
from lamplighter.tools.sweep import Sweep, make_sweep
from lamplighter.tools.toolbox import REGISTRY, TOOL_NAMES, Toolbox, describe
from lamplighter.tools.units import UnitId

TEXT = "World War II began in 1939."
UNIT = UnitId("tiny-llama", "0-mlp", 7)


# Schemas


@pytest.mark.parametrize("name", TOOL_NAMES)
def test_a_schema_is_the_tools_signature(name: str) -> None:
    tool, signature = describe(name), inspect.signature(REGISTRY[name][0])
    options = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    schema = tool.schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == options.keys() != set()
    needed = {option for option, default in options.items() if default is inspect.Parameter.empty}
    assert set(schema.get("required", [])) == needed
    for option in options.keys() - needed:
        assert schema["properties"][option]["default"] == options[option]
    assert all(len(told["description"]) > 10 for told in schema["properties"].values())
    empty = {option: [] if schema["properties"][option]["type"] == "array" else {} for option in needed}
    filled = tool.options(**empty).model_dump()
    assert {option: filled[option] for option in options.keys() - needed} == {
        option: default for option, default in options.items() if option not in needed
    }


@pytest.mark.parametrize("name", TOOL_NAMES)
def test_every_option_is_documented_and_no_other(name: str) -> None:
    doc = inspect.getdoc(REGISTRY[name][0]) or ""
    told = re.findall(r"^ {4}(\w+): \S", doc.partition("\nArgs:\n")[2], flags=re.M)
    assert told == list(describe(name).schema()["properties"])
    first = doc.split("\n\n")[0].replace("\n", " ")
    assert describe(name).description == first
    assert 20 < len(first) <= 300
    assert first.endswith(".")


@pytest.mark.parametrize("name", TOOL_NAMES)
def test_what_a_tool_works_on_is_found_by_type(name: str) -> None:
    tool, signature = describe(name), inspect.signature(REGISTRY[name][0])
    positional = [p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert {*tool.injected, "unit"} == set(positional)
    assert set(tool.injected.values()) <= {Subject, Sweep, MaskedLM}
    assert "subject" in tool.injected
    assert tool.name == name
    assert tool.function is REGISTRY[name][0]
    assert REGISTRY[name][1] in NEEDS


def test_a_description_over_several_lines_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "made", (made, "read"))
    tool = describe("made")
    assert tool.description == "Counts how often it was called, for the tests."
    assert tool.schema()["properties"] == {
        "word": {"default": "a", "description": "any word, of any length.", "title": "Word", "type": "string"},
        "n": {"default": 1, "description": "a number.", "title": "N", "type": "integer"},
    }


def test_an_unknown_tool_has_no_schema() -> None:
    with pytest.raises(Refused, match="'telescope' is no tool; there are top_examples, minimal_example"):
        describe("telescope")


# Calls

CALLS: list[tuple[str, int]] = []


def made(subject: Subject, unit: UnitId, *, word: str = "a", n: int = 1) -> Evidence:
    """Counts how often
    it was called, for the tests.

    Args:
        word: any word,
            of any length.
        n: a number.
    """
    CALLS.append((word, n))
    if n < 0:
        raise Refused(f"n = {n} is negative; give another.")
    return Evidence(tool="made", unit=unit.bare, sign=unit.sign, summary="", rows=[{"call": len(CALLS)}])


class Memory(dict[str, str]):
    """Stands for the evidence cache of a home."""

    def box(self, subject: Any, sweep: Any = None, masked: Any = None) -> Toolbox:
        def unswept(unit: UnitId) -> Any:
            raise Refused("nothing was swept; sweep first.")

        def unpulled() -> Any:
            raise Refused("no masked LM is here; pull it.")

        return Toolbox(subject, sweep or unswept, masked or unpulled, self.get, self.__setitem__)


@pytest.fixture
def box(llama: Any) -> Toolbox:
    return Memory().box(llama)


def corpus(seed: int) -> Corpus:
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(TEXT.split(), 12)) for _ in range(24)]
    documents = tuple(Document(hashlib.sha256(t.encode()).hexdigest(), str(i), t) for i, t in enumerate(texts))
    sides = tuple(("explain", "tune", "score")[i % 3] for i in range(24))
    return Corpus("made", f"made {seed}", documents, tuple(range(24)), sides, {})


def refused(evidence: Evidence, words: str) -> None:
    assert not evidence.ok
    assert re.search(words, evidence.summary), evidence.summary
    assert re.fullmatch(r"[^\n]+\.", evidence.summary)
    assert evidence.rows == []
    assert evidence.cost == {}
    Evidence.from_json(evidence.to_json())


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("telescope", {}, "'telescope' is no tool; there are top_examples"),
        ("", {}, "is no tool"),
        ("activate", {"txt": TEXT}, r"activate has no option 'txt'; its options are text, ids\."),
        ("activate", {"text": 7}, "activate: text is 7; it takes a text"),
        ("activate", {"ids": ["a"]}, r"activate: ids\.0 is 'a'; it takes a list of integers"),
        ("activate", {"ids": "0"}, "activate: ids is '0'; it takes a list of integers"),
        ("top_examples", {"n": "many"}, r"n is 'many'; it takes a whole number\. Its options are band, side, n\."),
        ("top_examples", {"n": 1.5}, "top_examples: n is 1.5; it takes a whole number"),
        ("activate", {}, "either text or ids"),
        ("activate", {"text": "   "}, "text is empty"),
        ("activate", {"text": "a " * 500}, "shorten it"),
        ("activate", {"ids": [0, 999]}, "token id 999"),
        ("top_examples", {}, "nothing was swept"),
        ("substitute", {"text": TEXT}, "no masked LM is here"),
    ],
)
def test_what_is_refused_is_evidence_of_it(
    llama: Any, box: Toolbox, name: str, arguments: Mapping[str, Any], words: str
) -> None:
    rows = llama.meter.rows
    evidence = box.call(name, UNIT, arguments, run="r1", investigation="i1")
    refused(evidence, words)
    assert (evidence.tool, evidence.unit, evidence.sign) == (name, UNIT.bare, 1)
    assert (evidence.run, evidence.investigation) == ("r1", "i1")
    assert evidence.arguments == arguments
    assert llama.meter.rows == rows


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("tiny-llama/0-mlp/40", "units 0 to 39"), ("tiny-llama/2-mlp/0", "layers 0 to 1"),
        ("tiny-llama/0-attn/1", "head"), ("another/0-mlp/7", "no unit of tiny-llama"),
    ],
)  # fmt: skip
def test_units_that_are_not_the_models_are_refused(llama: Any, box: Toolbox, unit: str, words: str) -> None:
    rows = llama.meter.rows
    refused(box.call("activate", UnitId.parse(unit), {"text": TEXT}), words)
    assert llama.meter.rows == rows


def test_a_refusal_is_not_remembered(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "made", (made, "read"))
    memory = Memory()
    for _ in range(2):
        CALLS.clear()
        refused(memory.box(llama).call("made", UNIT, {"n": -1}), "n = -1 is negative")
        assert CALLS == [("a", -1)]
    assert memory == {}


def test_only_a_refusal_is_caught(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject, unit: UnitId, *, n: int = 1) -> Evidence:
        raise ValueError("a mistake in the tool")

    monkeypatch.setitem(REGISTRY, "broken", (broken, "read"))
    with pytest.raises(ValueError, match="a mistake"):
        Memory().box(llama).call("broken", UNIT, {})


def test_evidence_names_what_it_rests_on(llama: Any, box: Toolbox) -> None:
    evidence = box.call("activate", UNIT, {"text": TEXT}, run="r1", investigation="i1")
    assert evidence.ok
    assert evidence.arguments == {"text": TEXT, "ids": None}     # defaults are written out
    assert (evidence.run, evidence.investigation) == ("r1", "i1")
    facts = dict(evidence.provenance)
    assert re.fullmatch(re.escape(module.__version__) + r"\+[0-9a-f]{12}", facts.pop("code"))    # and of its sources
    assert facts == {
        "model": llama.digest, "tokenizer": llama.tokenizer_digest, "dtype": "float64", "device": llama.device.type,
        "measures": measures.VERSION,
    }  # fmt: skip


def test_a_sweep_is_asked_for_only_by_tools_that_read_it(llama: Any, tmp_path: Path) -> None:
    asked: list[UnitId] = []
    sweep = make_sweep(llama, corpus(0), ["0-mlp"], tmp_path)

    def wanted(unit: UnitId) -> Sweep:
        asked.append(unit)
        return sweep

    box = Memory().box(llama, wanted)
    assert box.call("activate", UNIT, {"text": TEXT}).ok
    assert asked == []
    evidence = box.call("top_examples", UNIT, {"n": 2})
    assert asked == [UNIT]
    assert len(evidence.rows) == 2
    assert evidence.provenance["sweep"] == sweep.digest
    assert evidence.provenance["corpus"] == "made 0"
    refused(box.call("top_examples", UnitId("tiny-llama", "1-mlp", 0), {}), "--sites 1-mlp")
    refused(box.call("top_examples", UNIT, {"side": "score"}), "choose explain or tune")


# Recall


def test_finished_evidence_comes_back_as_a_row_of_its_own(llama: Any) -> None:
    memory = Memory()
    first = memory.box(llama).call("activate", UNIT, {"text": TEXT}, run="r1", investigation="i1")
    rows = llama.meter.rows
    again = memory.box(llama).call("activate", UNIT, {"text": TEXT}, run="r2", investigation="i2")
    third = memory.box(llama).call("activate", UNIT, {"text": TEXT})
    assert llama.meter.rows == rows
    assert len({first.id, again.id, third.id}) == 3
    assert first.created_at < again.created_at
    assert again.provenance == first.provenance | {"recalled": first.id}
    assert third.provenance["recalled"] == first.id
    assert "recalled" not in first.provenance
    assert (again.run, again.investigation) == ("r2", "i2")
    assert (third.run, third.investigation) == (None, None), "it belongs to no run, whoever asked first"
    assert set(third.cost) == set(first.cost) and set(third.cost.values()) == {0}
    same = ("tool", "unit", "sign", "arguments", "ok", "summary", "rows", "checks", "warnings")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
    assert len(memory) == 1


@pytest.mark.parametrize("hook", ["recall", "remember", "masked"])
def test_a_store_that_is_in_use_is_no_evidence(llama: Any, hook: str) -> None:
    """Else a unit would be explained by what happened to the machine."""

    def busy(*_: Any) -> Any:
        raise Busy("work.sqlite is in use; wait.")

    box = Memory().box(llama)
    setattr(box, hook, busy)
    with pytest.raises(Busy):
        box.call("substitute" if hook == "masked" else "activate", UNIT, {"text": TEXT})


def test_what_is_asked_for_decides_what_is_recalled(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "made", (made, "read"))
    box = Memory().box(llama)

    def calls(unit: str, **arguments: Any) -> int:
        CALLS.clear()
        assert box.call("made", UnitId.parse(f"tiny-llama/{unit}"), arguments).ok
        return len(CALLS)

    assert calls("0-mlp/7") == 1
    assert calls("0-mlp/7") == 0
    assert calls("0-mlp/7", word="a", n=1) == 0          # the defaults, spelled out
    assert calls("0-mlp/7", n=1, word="a") == 0
    for other in ({"word": "b"}, {"n": 2}):
        assert calls("0-mlp/7", **other) == 1
    for unit in ("0-mlp/7-", "0-mlp/8", "1-mlp/7"):
        assert calls(unit) == 1
    assert calls("0-mlp/7") == 0


def test_other_weights_dtype_text_code_or_definitions_are_measured_again(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    sweeps = [make_sweep(llama, corpus(seed), ["0-mlp"], tmp_path) for seed in (0, 1)]

    def keys(subject: Any, sweep: Sweep, name: str = "top_examples", **arguments: Any) -> int:
        """How many entries a call adds."""
        before = len(memory)
        assert memory.box(subject, lambda unit: sweep).call(name, UNIT, arguments).ok
        return len(memory) - before

    other = Subject.wrap(copy.deepcopy(llama.model), llama.tokenizer, llama.name)
    other.model.get_input_embeddings().weight.data[5, 5] += 1e-3
    single = Subject.wrap(copy.deepcopy(llama.model).float(), llama.tokenizer, llama.name)
    for subject in (llama, other, single):
        assert keys(subject, sweeps[0]) == keys(subject, sweeps[0], "activate", text=TEXT) == 1
        assert keys(subject, sweeps[0]) == keys(subject, sweeps[0], "activate", text=TEXT) == 0
    assert keys(llama, sweeps[1]) == 1                               # another sweep …
    assert keys(llama, sweeps[1], "activate", text=TEXT) == 0        # … which activate does not read
    monkeypatch.setattr(module, "__version__", "0.0.0+other")
    assert keys(llama, sweeps[0]) == 1
    monkeypatch.setattr(measures, "VERSION", -1)
    assert keys(llama, sweeps[0]) == 1


def test_ids_that_do_not_begin_with_the_sink_are_read_and_said(llama: Any, box: Toolbox) -> None:
    ids = llama.encode(TEXT)
    assert box.call("activate", UNIT, {"ids": ids}).warnings == []
    (said,) = box.call("activate", UNIT, {"ids": ids[1:]}).warnings
    assert llama.piece(ids[1]) in said and "is read as the sink" in said


def test_every_tool_explains_itself() -> None:
    for name in TOOL_NAMES:
        facts = module.describe(name).facts()
        assert facts["tool"] == name and facts["description"] in re.sub(r"\s+", " ", facts["told"])
        assert "Args:" not in facts["told"] and all(option["told"] for option in facts["options"])
        assert all(option["takes"] != "another value" for option in facts["options"])


# Identities


def spoiled(subject: Any, **checks: float | None) -> Subject:
    changed = Subject.wrap(subject.model, subject.tokenizer, subject.name)
    assert checks.keys() <= changed.checks.keys()
    changed.checks |= checks
    return changed


def test_all_tools_are_offered_where_all_identities_hold(tiny: Any) -> None:
    assert Memory().box(tiny).offered() == list(TOOL_NAMES)


@pytest.mark.parametrize("error", [1.0, 1e-3, None])
@pytest.mark.parametrize("identity", sorted({check for checks in NEEDS.values() for check in checks}))
def test_a_tool_is_not_offered_where_what_it_rests_on_fails(llama: Any, identity: str, error: float | None) -> None:
    box = Memory().box(spoiled(llama, **{identity: error}))
    wanted = [name for name, (_, need) in REGISTRY.items() if identity not in NEEDS[need]]
    assert box.offered() == wanted != list(TOOL_NAMES)
    for name in TOOL_NAMES:
        evidence = box.call(name, UNIT, {})
        assert ("is not offered on tiny-llama" in evidence.summary) == (name not in wanted)
        if name not in wanted:
            refused(evidence, "load-time identities fail")


def test_evidence_is_not_recalled_where_the_identities_fail(llama: Any) -> None:
    memory = Memory()
    assert memory.box(llama).call("activate", UNIT, {"text": TEXT}).ok
    refused(memory.box(spoiled(llama, neurons=0.5)).call("activate", UNIT, {"text": TEXT}), "not offered")


# Every tool, as the planner and the command line call it


@pytest.mark.parametrize("name", ["top_examples", "minimal_example", "activate", "ablate", "lens", "token_atlas"])
def test_a_tool_called_by_name_gives_what_the_function_gives(llama: Any, tmp_path: Path, name: str) -> None:
    sweep = make_sweep(llama, corpus(0), ["0-mlp"], tmp_path)
    unit = next(u for i in range(40) if sweep.statistics(u := UnitId("tiny-llama", "0-mlp", i)).peak > 0.5)
    quick: dict[str, dict[str, Any]] = {
        "minimal_example": {"text": TEXT}, "activate": {"text": TEXT}, "ablate": {"windows": 4, "equivalence": False},
    }  # fmt: skip
    options = quick.get(name, {})
    evidence = Memory().box(llama, lambda unit: sweep).call(name, unit, options)
    assert evidence.ok, evidence.summary
    assert evidence.rows
    assert (evidence.tool, evidence.unit, evidence.sign) == (name, unit.bare, 1)
    assert len(evidence.summary.split()) <= 60
    assert evidence.cost.keys() == {"forward_rows", "forward_tokens", "backward", "seconds"}
    assert Evidence.from_json(evidence.to_json()) == evidence
    provided = {n: {Subject: llama, Sweep: sweep}[t] for n, t in describe(name).injected.items()}
    plain = REGISTRY[name][0](**provided, unit=unit, **options)
    assert (evidence.rows, evidence.checks) == (plain.rows, plain.checks)
    assert evidence.arguments == describe(name).options(**options).model_dump()
    again = Memory().box(llama, lambda unit: sweep).call(name, unit, evidence.arguments)
    assert again.rows == evidence.rows      # what was resolved, given back, is the same experiment


def test_the_masked_model_is_handed_in_and_named(llama: Any, bert_tiny: Any) -> None:
    memory = Memory()
    unit = UnitId("tiny-llama", "0-mlp", 7, -1)
    asked: list[int] = []

    def masked() -> MaskedLM:
        asked.append(1)
        return bert_tiny  # type: ignore[no-any-return]

    box = Toolbox(llama, memory.box(llama).sweep, masked, memory.get, memory.__setitem__)
    assert box.call("activate", unit, {"text": TEXT}).ok
    assert asked == []
    evidence = box.call("substitute", unit, {"text": TEXT})
    assert evidence.ok, evidence.summary
    assert asked == [1]
    assert evidence.provenance["masked"] == bert_tiny.digest
    assert "sweep" not in evidence.provenance
