"""Search by meaning, by word, by both, by direction; filters; units like one; and why nothing was found."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest

from lamplighter.store import cards, imported
from lamplighter.store.filters import Filters
from lamplighter.store.index import Index
from lamplighter.store.rank import K1, B, fused
from lamplighter.store.records import Embedding, ImportVerdict, Refused, Review
from lamplighter.store.search import any_of, compared, explained, search, to_embed, unembedded, why_none


def towards(*vector):
    """An embedder to which every text means the same."""
    return lambda texts: [list(vector) for _ in texts]


def units(rows):
    return [row["unit"] + ("-" if row["sign"] == -1 else "") for row in rows]


@pytest.fixture(scope="module")
def index(filled):
    made = Index(filled, "tiny")
    made.refresh()
    return made


DIGITS, NONE, ORDINALS, HAIRS = (
    "smol/5-mlp/1", "smol/5-mlp/1-", "smol/8-resid:my-sae/2", "org/smol/5-mlp/3"
)  # fmt: skip


# By meaning


def test_by_meaning_nearest_first_with_the_reason(index):
    rows = search(index, "numbers", towards(1.0, 0.0), by="meaning")
    assert units(rows) == [DIGITS, HAIRS, ORDINALS, NONE]
    assert [row["similarity"] for row in rows] == [1.0, pytest.approx(0.9 / math.hypot(0.9, 0.1), abs=1e-6), 0.8, 0.6]
    assert rows[0]["score"] == 1.0 and rows[0]["ranks"] == {"meaning": 1} and rows[0]["words"] == []
    assert [row["why"] for row in rows[:2]] == ["1st by meaning (cosine 1.00)", "2nd by meaning (cosine 0.99)"]
    facts = {"explanation": "fires on digits", "input_f1": 0.9, "floor_f1": 0.05, "verdict": "accepted"}
    assert {name: rows[0][name] for name in facts} == facts and rows[0]["review"] == "unreviewed"
    assert rows[2]["output_explanation"] == "raises endings such as th"


def test_the_text_reaches_the_embedder_as_it_is(index):
    seen = []
    search(index, " Numbers", lambda texts: seen.append(texts) or [[1.0, 0.0]], by="meaning")
    assert seen == [[" Numbers"]]


def test_cosine_against_brute_force_whatever_the_length_of_the_vectors(findings, explanation):
    rng = random.Random(0)
    vectors = {f"m/0-mlp/{i}": [rng.gauss(0, 2) for _ in range(7)] for i in range(60)}
    findings.append(row for unit, vector in vectors.items() for row in explanation(unit, unit, vector))
    wanted = [rng.gauss(0, 1) for _ in range(7)]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    rows = search(Index(findings, "tiny"), "x", towards(*wanted), by="meaning", top=60)
    assert units(rows) == sorted(vectors, key=lambda unit: -cosine(vectors[unit], wanted))
    for row in rows:
        assert row["similarity"] == pytest.approx(cosine(vectors[row["unit"]], wanted), abs=2e-6)


def test_equal_ones_come_in_the_order_of_the_units(findings, explanation):
    names = [f"m/{i}-mlp/{j}" for i in range(3) for j in range(3)]
    random.Random(1).shuffle(names)
    findings.append(row for name in names for row in explanation(name, "the same words", [0.3, 0.4]))
    index = Index(findings, "tiny")
    for asked in ({"embed": towards(1.0, 0.0), "by": "meaning"}, {"by": "word"}):
        found = [units(search(index, "words", top=top, **asked)) for top in (9, 4)]
        assert found == [sorted(names), sorted(names)[:4]]


def test_only_what_stands_and_its_newest_vector_are_searched(findings, explanation):
    findings.append(explanation("m/0-mlp/1", "old", [1.0, 0.0], at=1))
    new = explanation("m/0-mlp/1", "new", [0.0, 1.0], at=2)
    newer = Embedding(id="0", unit="m/0-mlp/1", hypothesis=new[0].id, model="tiny", vector=[0.6, 0.8])
    findings.append([*new, newer])
    findings.append(explanation("m/0-mlp/2", "failed", [1.0, 0.0], verdict="failed"))
    findings.append(explanation("m/0-mlp/3", None, verdict="abstained"))
    (row,) = search(Index(findings, "tiny"), "x", towards(1.0, 0.0), by="meaning")
    assert (row["explanation"], row["similarity"]) == ("new", pytest.approx(0.6))


def test_vectors_that_are_none_are_like_nothing(findings, explanation):
    for i, vector in enumerate(([0.0, 0.0], [0.5, 0.0], [1.0, 2.0, 3.0])):
        findings.append(explanation(f"m/0-mlp/{i}", "s", vector))
    findings.append(explanation("m/0-mlp/3", "s", [0.0, 1.0]))
    index = Index(findings, "tiny")
    found = {row["unit"][-1]: row["similarity"] for row in search(index, "x", towards(2.0, 0.0), by="meaning")}
    assert found == {"1": 1.0, "0": 0.0, "3": 0.0}, "one of another size than most is left out"
    assert unembedded(index) == 1 and unembedded(index, Filters(site="1-mlp")) == 0
    assert [(row["unit"], row["sentence"]) for row in to_embed(index, 9)] == [("m/0-mlp/2", "s")]
    assert to_embed(index, 0) == []


def test_what_cannot_be_compared_is_refused(index, findings, explanation):
    with pytest.raises(Refused, match="has 3 dimensions and those by tiny have 2"):
        search(index, "x", towards(1.0, 0.0, 0.0), by="meaning")
    with pytest.raises(Refused, match="None of the 4 explanations has an embedding by huge; search by word"):
        search(Index(index.findings, "huge"), "x", towards(1.0), by="meaning")
    with pytest.raises(Refused, match="needs an embedder"):
        search(index, "x", by="meaning")
    assert units(search(Index(index.findings, "huge"), "hairs", towards(1.0), by="both")) == [HAIRS]


# By word


def tokens(text):
    return [cards.stem(word) for word in re.findall(r"[^\W_]+", text.lower())]


def bm25(texts, query):
    """The textbook sum, over Python's own words."""
    documents = {unit: Counter(tokens(text)) for unit, text in texts.items()}
    mean = sum(map(Counter.total, documents.values())) / len(documents)
    found = {}
    for unit, words in documents.items():
        score = 0.0
        for word in set(tokens(query)) & words.keys():
            df = sum(word in other for other in documents.values())
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            n = words[word]
            score += idf * n * (K1 + 1) / (n + K1 * (1 - B + B * words.total() / mean))
        if score:
            found[unit] = score
    return found


def test_bm25_against_brute_force(findings, explanation):
    rng = random.Random(3)
    vocabulary = ["splits", "splitting", "split", "über", "naïve", "x1", "don't", "ordinal", "ordinals", "9th"]
    vocabulary += "abcdefgh"
    texts, records = {}, []
    for i in range(80):
        sentence, rule, pushes = (" ".join(rng.choices(vocabulary, k=rng.randint(1, 12))) for _ in range(3))
        unit = f"m/0-mlp/{i:02}"
        texts[unit] = f"{sentence} {pushes} {rule}"
        records += explanation(unit, sentence, rule=rule, pushes=pushes)
    findings.append(records)
    index = Index(findings, "tiny")
    for query in ("Splits", "ordinal x1", "the NAÏVE über", "9th a", "split splitting splits"):
        wanted = bm25(texts, query)
        rows = search(index, query, by="word", top=80)
        assert {row["unit"]: row["score"] for row in rows} == pytest.approx(wanted, abs=1e-5), query
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)


def test_words_are_found_whatever_their_ending_and_said(index):
    (row,) = search(index, "ordinal, and other things", by="word")
    assert units([row]) == [ORDINALS] and row["words"] == ["ordinal"] and row["similarity"] is None
    assert row["why"] == "1st by word (ordinal)" and row["ranks"] == {"word": 1}
    assert units(search(index, "SPLITS", by="word")) == [HAIRS]


def test_outputs_and_rules_are_searched_too(index):
    assert units(search(index, "ending", by="word")) == [ORDINALS]
    assert units(search(index, "tear", by="word")) == [HAIRS]


def test_a_word_of_most_explanations_counts_where_there_is_no_other(index):
    assert units(search(index, "fires on hairs", by="word")) == [HAIRS]
    assert len(search(index, "fires", by="word")) == 4


def test_scripts_without_blanks_are_found_by_their_letters(findings, explanation):
    findings.append(explanation("m/0-mlp/1", "fires on 数字 and кошки"))
    findings.append(explanation("m/0-mlp/2", "fires on dogs"))
    findings.append(explanation("m/0-mlp/3", "fires on cafe\u0301s"))       # an accent of its own
    index = Index(findings, "tiny")
    assert [units(search(index, text, by="word")) for text in ("数", "КОШКИ", "caf\u00e9s", "ко")] == [
        ["m/0-mlp/1"], ["m/0-mlp/1"], ["m/0-mlp/3"], []
    ]  # fmt: skip


def test_a_text_of_no_words_is_refused_by_word_and_means_something_by_both(index):
    with pytest.raises(Refused, match="'…!' has no word; write one, or search by meaning"):
        search(index, "…!", by="word")
    assert units(search(index, "…!", towards(1.0, 0.0)))[0] == DIGITS


# By both


def test_both_rankings_are_put_together_and_each_is_told(index):
    rows = search(index, "the splitting of digits", towards(0.0, 1.0))
    told = {unit: (row["ranks"], row["score"]) for unit, row in zip(units(rows), rows, strict=True)}
    assert told[NONE] == ({"meaning": 1, "word": 3}, pytest.approx(1 / 61 + 1 / 63))
    assert told[ORDINALS] == ({"meaning": 2, "word": None}, pytest.approx(1 / 62))
    by_unit = dict(zip(units(rows), rows, strict=True))
    assert by_unit[HAIRS]["why"].startswith("3rd by meaning (cosine 0.11), 1st by word (the, splitting, of")
    assert units(rows)[0] == max(told, key=lambda unit: told[unit][1])


def test_fusion_is_the_sum_of_reciprocal_ranks():
    assert fused({"a": [(7, 0.9), (8, 0.8)], "b": [(8, 3.0), (9, 2.0)]}) == [
        (8, pytest.approx(1 / 62 + 1 / 61)), (7, 1 / 61), (9, 1 / 62)
    ]  # fmt: skip
    assert fused({"a": [(7, 0.9)], "b": [(8, 3.0)]}) == [(7, 1 / 61), (8, 1 / 61)], "the first ranking decides"


def test_without_an_embedder_a_text_is_searched_by_word(index):
    assert [row["ranks"] for row in search(index, "hairs")] == [{"word": 1}]


# Filters and pages


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"model": "smol"}, {DIGITS, NONE, ORDINALS}),
        ({"model": "org/smol"}, {HAIRS}),
        ({"model": "org"}, set()),
        ({"site": "5-mlp", "model": "smol"}, {DIGITS, NONE}),
        ({"sign": -1}, {NONE}),
        ({"kind": "feature"}, {ORDINALS}),
        ({"kind": "mlp"}, {DIGITS, NONE, HAIRS}),
        ({"kind": "attn"}, set()),
        ({"min_score": 0.4}, {DIGITS, ORDINALS}),
        ({"max_score": 0.4}, {NONE, ORDINALS}),
        ({"min_score": 0.0}, {DIGITS, NONE, ORDINALS}),
        ({"verdict": "rejected"}, {NONE}),
        ({"planner": "llm"}, {DIGITS}),
        ({"planner": "llm:qwen@embedded"}, {DIGITS}),
        ({"planner": "ll"}, set()),
        ({"planner": "playbook", "verdict": "accepted"}, {HAIRS}),
    ],
)
def test_filters_keep_the_same_units_in_every_way_of_searching(index, given, found):
    filters = Filters(**given)
    assert set(units(search(index, "x", towards(1.0, 0.0), by="meaning", filters=filters))) == found
    assert set(units(search(index, "fires", by="word", filters=filters))) == found
    assert set(units(search(index, "fires", towards(1.0, 0.0), filters=filters))) == found
    rows, total = explained(index, filters)
    assert set(units(rows)) == found and total == len(found)


@pytest.mark.parametrize("given", [{"kind": "neuron"}, {"verdict": "good"}, {"review": "ok"}, {"sign": 0}])
def test_a_value_that_there_is_not_is_refused_with_those_that_there_are(given):
    with pytest.raises(Refused, match=r"is none that there is; write one of "):
        Filters(**given)


def test_pages_follow_each_other(index):
    for asked in ({"by": "meaning", "embed": towards(0.3, 0.7)}, {"by": "word"}, {"embed": towards(0.3, 0.7)}):
        whole = search(index, "fires", top=4, **asked)
        assert [row for skip in range(4) for row in search(index, "fires", top=1, skip=skip, **asked)] == whole
    assert search(index, "fires", by="word", skip=4) == []
    assert units(explained(index, order="best", top=2, skip=1)[0]) == [ORDINALS, NONE]
    assert units(explained(index)[0]) == [HAIRS, DIGITS, NONE, ORDINALS]


def test_reviewer_states_are_those_of_the_explanation_that_stands(findings, explanation):
    records, events = [], []
    said = {"1": ["accept"], "2": ["accept", "reject"], "3": ["unsure"], "4": [], "5": ["reject"]}
    for number, verdicts in said.items():
        (made, *_) = rows = explanation(f"m/0-mlp/{number}", "fires on it")
        records += rows
        events += [
            Review(unit=made.unit, sign=1, hypothesis=made.id, reviewer=f"r{i}", verdict=verdict, client="test")
            for i, verdict in enumerate(verdicts)
        ]
    findings.append(records)
    index = Index(findings, "tiny")
    index.refresh()
    assert {row["review"] for row in explained(index)[0]} == {"unreviewed"}
    findings.append(events)
    index.refresh()
    wanted = {"1": "accepted", "2": "disputed", "3": "unsure", "4": "unreviewed", "5": "rejected"}
    for number, state in wanted.items():
        rows, total = explained(index, Filters(review=state))
        assert units(rows) == [f"m/0-mlp/{number}"] and total == 1 and rows[0]["review"] == state
        assert units(search(index, "it", by="word", filters=Filters(review=state))) == [f"m/0-mlp/{number}"]
    assert explained(index, Filters(review="edited")) == ([], 0)


# Units like one


def test_like_a_unit_by_its_explanation(index):
    assert units(search(index, like=DIGITS, by="meaning")) == [HAIRS, ORDINALS, NONE], "itself is left out"
    assert units(search(index, like=DIGITS, by="word")) == [NONE]
    rows = search(index, like=NONE)
    assert units(rows)[0] == DIGITS and rows[0]["ranks"] == {"meaning": 3, "word": 1}
    assert units(search(index, like=DIGITS, by="meaning", top=1)) == [HAIRS]


def test_like_a_unit_that_has_no_explanation_or_embedding(index, findings, explanation):
    with pytest.raises(Refused, match="No explanation of 'smol/5-mlp/9' is recorded"):
        search(index, like="smol/5-mlp/9")
    findings.append(explanation("m/0-mlp/1", "one thing") + explanation("m/0-mlp/2", "one more thing", [1.0]))
    with pytest.raises(Refused, match="explanation of m/0-mlp/1 has no embedding by tiny; search by word"):
        search(Index(findings, "tiny"), like="m/0-mlp/1", by="meaning")
    assert units(search(Index(findings, "tiny"), like="m/0-mlp/1")) == ["m/0-mlp/2"], "by word, at least"


def test_like_a_unit_by_what_is_written(findings, explanation):
    rng = np.random.default_rng(0)
    written = {"0-mlp": rng.normal(size=(9, 5)), "3-resid": np.eye(5), "1-mlp": rng.normal(size=(9, 4)), "0-attn": None}
    records = explanation("n/0-mlp/2", "of another model")
    for site, number, sign in [("0-mlp", 1, 1), ("0-mlp", 1, -1), ("0-mlp", 2, 1), ("3-resid", 4, -1), ("1-mlp", 0, 1),
                               ("0-attn", 0, 1)]:  # fmt: skip
        records += explanation(f"m/{site}/{number}", f"{site} {number}", sign=sign)
    findings.append(records)
    index = Index(findings, "tiny")
    rows = search(index, like="m/0-mlp/1", by="direction", directions=written.get)

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    this = written["0-mlp"][1]
    wanted = {"m/0-mlp/1-": -1.0, "m/0-mlp/2": cosine(this, written["0-mlp"][2])}
    wanted["m/3-resid/4-"] = cosine(this, -np.eye(5)[4])
    assert {unit: row["score"] for unit, row in zip(units(rows), rows, strict=True)} == pytest.approx(wanted, abs=1e-6)
    assert units(rows) == sorted(wanted, key=wanted.__getitem__, reverse=True)
    assert rows[0]["why"] == f"1st by direction (cosine {rows[0]['score']:.2f})"
    assert units(search(index, like="m/0-mlp/8", by="direction", directions=written.get))[2:], (
        "one that was never explained has a direction too"
    )
    for unit in ("m/0-attn/0", "m/0-mlp/9", "m/0-mlp/x", "m"):
        with pytest.raises(Refused, match="has no write direction"):
            search(index, like=unit, by="direction", directions=written.get)


def test_units_side_by_side(index):
    rows, pairs = compared(index, [DIGITS, NONE, HAIRS])
    assert units(rows) == [DIGITS, NONE, HAIRS]
    assert pairs[0] == {"a": DIGITS, "b": NONE, "similarity": 0.6, "words": 3}
    assert len(pairs) == 3
    with pytest.raises(Refused, match="No explanation of 'x/5-mlp/1'"):
        compared(index, [DIGITS, "x/5-mlp/1"])


# What other tools made


def test_what_other_tools_made_is_found_with_its_source_and_stands_for_no_unit(findings, explanation):
    def made(source, unit, sentence, *vector):
        (found,) = imported.explanation(source, unit, 1, sentence, author="gpt-z", origin="o")
        return [found, Embedding(hypothesis=found.id, unit=unit, sign=1, model="tiny", vector=list(vector))]

    ours, theirs, alone = "m/0-mlp/1", "m/0-mlp/2", "m/0-mlp/3"
    (claim,) = imported.explanation("openai", theirs, 1, "rivers", author=None, origin="o")
    records = explanation(ours, "fires on lakes", [1.0, 0.0]) + made("delphi", ours, "lakes", 0.8, 0.6)
    records += explanation(theirs, None, verdict="abstained") + [claim] + made("neuronpedia", alone, "lakes", 0.0, 1.0)
    decided = ImportVerdict(hypothesis=claim.id, unit=theirs, sign=1, verdict="accepted", reason="r")
    findings.append([*records, decided])
    index = Index(findings, "tiny")

    rows = search(index, "lakes", towards(0.0, 1.0), by="meaning")
    assert [(row["unit"], row["source"], row["planner"]) for row in rows] == [
        (alone, "neuronpedia", "neuronpedia:gpt-z"), (ours, "delphi", "delphi:gpt-z"), (ours, None, "playbook"),
    ]  # fmt: skip
    assert rows[0]["input_f1"] is None and rows[2]["input_f1"] == 0.5
    (found,) = search(index, "river", by="word")
    assert (found["unit"], found["source"], found["verdict"]) == (theirs, "openai", "accepted")
    assert units(search(index, "lakes", by="word", filters=Filters(planner="delphi"))) == [ours]
    assert units(search(index, "lakes", by="word", filters=Filters(min_score=0.0))) == [ours], "ours alone have an F1"

    assert explained(index)[0][0]["source"] is None and explained(index)[1] == 1, "ours alone"
    assert [row["hypothesis"] for row in to_embed(index, 9)] == [claim.id]
    assert units(search(index, like=ours)) == [alone], "no explanation of the unit itself, whoever made it"
    assert search(index, like=theirs, by="word") == [] and compared(index, [ours, alone])[1][0]["similarity"] == 0.0
    assert any_of(index, Filters(verdict="accepted")) and not any_of(index, Filters(model="n"))
    written = {"0-mlp": np.eye(5)[[0, 1, 1, 1]]}
    found = search(index, like=ours, by="direction", directions=written.get)
    assert [(row["unit"], row["source"]) for row in found] == [(theirs, "openai"), (alone, "neuronpedia")]
    found = search(index, like=alone, by="direction", directions=written.get)
    assert [row["source"] for row in found if row["unit"] == ours] == [None], "once, by ours where there is one"


# What is refused, and why nothing was found


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": " \n"}, "text is empty"),
        ({}, "give one of the two"),
        ({"text": "x", "like": DIGITS}, "give one of the two"),
        ({"text": "x", "by": "smell"}, "'smell' is no way to search; search by meaning, word, both or direction"),
        ({"text": "x", "top": 0}, "0 results after the first 0"),
        ({"text": "x", "skip": -1}, "after the first -1"),
        ({"text": "x", "by": "direction"}, "Only units like one"),
        ({"like": DIGITS, "by": "direction"}, "with its model at hand"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_read(findings, asked, words):
    with pytest.raises(Refused, match=words):
        search(Index(findings, "tiny"), **asked)


def test_an_order_that_there_is_not(index):
    with pytest.raises(Refused, match="'score' is no order of units; write one of unit, best, worst, newest"):
        explained(index, order="score")


def test_why_nothing_was_found(index, findings, explanation):
    def why(words=False, of=index, **given):
        return why_none(of, Filters(**given), words)

    assert why(model="org") == "no explanation is of the model 'org'; there are some of org/smol, smol."
    assert why(site="6-mlp") == "no explanation is of the site '6-mlp'; there are some of 5-mlp, 8-resid:my-sae."
    assert why(kind="attn") == "no explanation is of the kind 'attn'; there are some of feature, mlp."
    assert why(planner="lll") == (
        "no explanation is of the planner 'lll'; there are some of llm:qwen@embedded, playbook."
    )
    assert why(site="5-mlp", model="smol", verdict="unclear") == (
        "no explanation passes the filters (model smol, site 5-mlp, verdict unclear); leave one out."
    )
    assert why(min_score=0.95) == (
        "no explanation passes the filters (min score 0.95); leave one out or lower the score."
    )
    assert why(words=True).startswith("no explanation that passes the filters has any of these words")
    assert why().startswith("no other explanation that passes the filters shares words with it")
    findings.append(explanation("m/0-mlp/3", None, verdict="abstained"))
    assert why(of=Index(findings, "tiny"), model="m") == "no explanations are recorded yet; lamplighter run makes some."


def test_nothing_recorded(findings):
    with pytest.raises(Refused, match="Nothing is recorded"):
        search(Index(findings, "tiny"), "x")


# From Python


def test_findings_are_searched_by_themselves_and_see_what_was_just_recorded(findings, explanation):
    findings.append(explanation("m/0-mlp/1", "fires on dogs", [1.0, 0.0]))
    assert units(findings.search("dogs")) == ["m/0-mlp/1"]
    findings.append(explanation("m/0-mlp/2", "fires on a dog", [0.0, 1.0], f1=0.7))
    assert units(findings.search("dogs")) == ["m/0-mlp/1", "m/0-mlp/2"]
    assert units(findings.search("x", towards(0.0, 1.0), embedder="tiny", by="meaning")) == ["m/0-mlp/2", "m/0-mlp/1"]
    assert units(findings.search("dogs", min_score=0.6)) == ["m/0-mlp/2"]
    with pytest.raises(Refused, match="a search has no filter 'colour'; its filters are model, site"):
        findings.search("dogs", colour="red")
