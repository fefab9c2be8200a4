import math
import random

import pytest

from lamplighter.store.findings import Findings
from lamplighter.store.records import Embedding, Hypothesis, Refused, Score, Verdict
from lamplighter.store.search import search, unembedded, why_none

KEYS = "unit sign explanation rule input_f1 input_f1_low input_f1_high floor_f1 verdict similarity"


def explanation(unit, sentence, vector, *, sign=1, f1=0.5, embedder="tiny", at=0, verdict="accepted"):
    base = {"unit": unit, "sign": sign, "investigation": f"{unit}{sign}{at}"}
    base["created_at"] = f"2026-01-01T00:00:{at:02d}.000000"
    hypothesis = Hypothesis(**base, author="p", sentence=sentence, rule=None, rule_text=None, kept=True)
    rows = [
        hypothesis,
        Score(**base, hypothesis=hypothesis.id, metric="f1", side="score", value=f1, low=0.1, high=0.9,
              floors={"always": 0.05}),
        Verdict(**base, hypothesis=hypothesis.id, verdict=verdict, reason="r"),
    ]
    if vector is not None:
        rows.append(Embedding(**base, hypothesis=hypothesis.id, model=embedder, vector=vector))
    return rows


def towards(*vector):
    return lambda texts: [list(vector) for _ in texts]


@pytest.fixture
def findings(tmp_path):
    return Findings(tmp_path / "findings.duckdb")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    findings = Findings(tmp_path_factory.mktemp("filled") / "findings.duckdb")
    findings.append(
        explanation("smol/5-mlp/1", "digits", [1.0, 0.0], f1=0.9)
        + explanation("smol/5-mlp/1", "not digits", [0.6, 0.8], sign=-1, f1=0.2)
        + explanation("smol/8-mlp/2", "ordinals", [0.8, 0.6], f1=0.4)
        + explanation("org/smol/5-mlp/3", "other model", [0.9, 0.1], f1=None)
    )
    return findings


def test_nearest_first_with_the_columns_of_the_contract(filled):
    rows = search(filled, "numbers", towards(1.0, 0.0), "tiny")
    assert [row["explanation"] for row in rows] == ["digits", "other model", "ordinals", "not digits"]
    assert list(rows[0]) == KEYS.split()
    assert (rows[0]["similarity"], rows[0]["floor_f1"], rows[0]["verdict"]) == (1.0, 0.05, "accepted")
    assert rows[3]["similarity"] == pytest.approx(0.6) and rows[3]["sign"] == -1


def test_the_text_reaches_the_embedder(filled):
    seen = []
    search(filled, " numbers with an ordinal ending", lambda texts: seen.append(texts) or [[1.0, 0.0]], "tiny")
    assert seen == [[" numbers with an ordinal ending"]]


def test_filters(filled):
    def units(**kept):
        return [row["unit"] for row in search(filled, "x", towards(1.0, 0.0), "tiny", **kept)]

    assert units(model="smol") == ["smol/5-mlp/1", "smol/8-mlp/2", "smol/5-mlp/1"]
    assert units(model="org/smol") == ["org/smol/5-mlp/3"]
    assert units(model="org") == []
    assert units(site="5-mlp", model="smol") == ["smol/5-mlp/1", "smol/5-mlp/1"]
    assert units(min_score=0.4) == ["smol/5-mlp/1", "smol/8-mlp/2"]
    assert units(min_score=0.0) == units(model="smol"), "an undefined score is below every bound"
    assert units(top=2) == ["smol/5-mlp/1", "org/smol/5-mlp/3"]


def test_cosine_against_brute_force_whatever_the_length_of_the_vectors(findings):
    rng = random.Random(0)
    vectors = {f"m/0-mlp/{i}": [rng.gauss(0, 2) for _ in range(7)] for i in range(60)}
    findings.append(row for unit, vector in vectors.items() for row in explanation(unit, unit, vector))
    wanted = [rng.gauss(0, 1) for _ in range(7)]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    rows = search(findings, "x", towards(*wanted), "tiny", top=60)
    assert [row["unit"] for row in rows] == sorted(vectors, key=lambda unit: -cosine(vectors[unit], wanted))
    for row in rows:
        assert row["similarity"] == pytest.approx(cosine(vectors[row["unit"]], wanted), abs=1e-6)


def test_only_the_standing_explanation_and_its_newest_vector_are_searched(findings):
    findings.append(explanation("m/0-mlp/1", "old", [1.0, 0.0], at=1))
    new = explanation("m/0-mlp/1", "new", [0.0, 1.0], at=2)
    newer = Embedding(id="0", hypothesis=new[0].id, model="tiny", vector=[0.6, 0.8])     # newer by its time
    findings.append([*new, newer])
    findings.append(explanation("m/0-mlp/2", "failed", [1.0, 0.0], verdict="failed"))
    findings.append(explanation("m/0-mlp/3", "abstained", [1.0, 0.0], verdict="abstained"))
    (row,) = search(findings, "x", towards(1.0, 0.0), "tiny")
    assert (row["explanation"], row["similarity"]) == ("new", pytest.approx(0.6))


def test_explanations_without_a_vector_are_counted(findings):
    findings.append(
        explanation("smol/5-mlp/1", "seen", [1.0, 0.0])
        + explanation("smol/5-mlp/7", "later", None)
        + explanation("smol/9-mlp/8", "else", [1.0], embedder="x")
    )
    assert len(search(findings, "x", towards(1.0, 0.0), "tiny")) == 1
    assert unembedded(findings, "tiny") == 2
    assert unembedded(findings, "tiny", site="5-mlp") == 1
    assert unembedded(findings, "tiny", model="org/smol") == 0
    assert unembedded(findings, "x") == 2


def test_an_embedder_that_no_explanation_knows_is_refused(filled):
    with pytest.raises(Refused, match="None of the 4 explanations has an embedding by huge"):
        search(filled, "x", towards(1.0), "huge")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused_before_anything_is_opened(findings, text):
    with pytest.raises(Refused, match="text is empty"):
        search(findings, text, towards(1.0), "tiny")


def test_bad_requests_are_refused(filled):
    with pytest.raises(Refused, match="0 results"):
        search(filled, "x", towards(1.0, 0.0), "tiny", top=0)
    with pytest.raises(Refused, match="dimensions"):
        search(filled, "x", towards(1.0, 0.0, 0.0), "tiny")


def test_why_nothing_was_found(filled, findings):
    def why(of=filled, **kept):
        return why_none(of, **{"model": None, "site": None, "min_score": None} | kept)

    assert why(model="org") == "no explanation is of the model 'org'; there are some of org/smol, smol."
    assert why(site="6-mlp", model="smol") == "no explanation is of the site '6-mlp'; there are some of 5-mlp, 8-mlp."
    assert why(site="8-mlp", model="org/smol") == (
        "no explanation passes the filters (--model org/smol, --site 8-mlp); leave one out."
    )
    assert why(min_score=0.95) == (
        "no explanation passes the filters (--min-score 0.95); leave one out or lower the score."
    )
    findings.append(explanation("m/0-mlp/3", "s", None, verdict="abstained"))
    assert why(findings, model="m") == "no explanations are recorded yet; lamplighter run makes some."


def test_nothing_recorded_and_nothing_explained(findings):
    with pytest.raises(Refused, match="Nothing is recorded"):
        search(findings, "x", towards(1.0), "tiny")
    findings.append(explanation("m/0-mlp/3", "s", None, verdict="abstained"))
    assert search(findings, "x", towards(1.0), "tiny") == []
