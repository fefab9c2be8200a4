"""shift, tokens_in_place, and substitutes in all places of a repeated word, on neurons whose rules are known."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.experiments.language import language
from lamplighter.experiments.plant import SITE, PlantedUnit, plant
from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import in_place
from lamplighter.tools import shift as module
from lamplighter.tools.atlas import tokens_of_text
from lamplighter.tools.frames import filler_pool, make_frame
from lamplighter.tools.in_place import SHOWN, SILENT, tokens_in_place
from lamplighter.tools.measures import WINDOW
from lamplighter.tools.rules import MAX_IDS, Clause, Matcher, Near, Rule
from lamplighter.tools.shift import DISTANCES, DRAWS, GRID, shift
from lamplighter.tools.subject import Subject
from lamplighter.tools.substitute import substitute
from lamplighter.tools.trials import Trials
from lamplighter.tools.units import UnitId

A, B, C, D, E, F, G, H, K = language().words[:9]


def ids(*tokens: int) -> Matcher:
    return Matcher(ids=tokens)


RULES = {
    "word": Clause(ids(A)),
    "near": Clause(ids(B), need=(Near(ids(C), 2, 4),)),
    "band": Clause(ids(D), position=(21, 37)),
    "silenced": Clause(ids(E), avoid=(Near(ids(F), 1, 3),)),
    "list": Clause(ids(G, H, K), need=(Near(ids(C), 1, 1),)),
    "repeat": Clause(Matcher(cls="any"), "any", avoid=(Near(ids(F), 1, 1),), repeat=True),
}


@pytest.fixture(scope="module", params=("gpt2", "llama"))
def planted(request: pytest.FixtureRequest) -> Subject:
    units = [PlantedUnit(unit(name), name, Rule((clause,))) for name, clause in RULES.items()]
    return Subject.wrap(plant(request.param, units), language().tokenizer, "planted")


def unit(name: str) -> UnitId:
    return UnitId("planted", SITE, list(RULES).index(name), 1)


def text(subject: Subject, position: int, at: int, **before: int) -> list[int]:
    """A row of common words, `at` its last token at a position, and words so many tokens before it (d2=C)."""
    row = [subject.sink, *np.random.default_rng(3).choice(language().common, position - 1).tolist(), at]
    for distance, token in before.items():
        row[-1 - int(distance[1:])] = token
    return row


def spans(evidence: Evidence) -> dict[tuple[str, str], tuple[int, int]]:
    """The range of each thing that was moved, without an end where nothing beyond was tried."""
    return {
        (r["what"], r["moved"]): (1 if r["low_open"] else r["low"], WINDOW if r["high_open"] else r["high"])
        for r in evidence.checks["ranges"]
    }


def word(token: int) -> str:
    return language().spelled[token].strip()


# shift


def test_a_word_is_needed_at_the_distances_of_its_rule(planted: Subject) -> None:
    found = shift(planted, unit("near"), ids=text(planted, 20, B, d3=C))
    assert spans(found)["distance", word(C)] == (2, 4)
    assert spans(found)["position", found.checks["kept_text"]] == (1, WINDOW)


def test_a_band_of_positions_has_its_very_edges(planted: Subject) -> None:
    found = shift(planted, unit("band"), ids=text(planted, 30, D))
    assert spans(found) == {("position", word(D)): (21, 37)}


def test_an_added_word_silences_where_the_rule_forbids_it_and_no_other_does(planted: Subject) -> None:
    found = shift(planted, unit("silenced"), ids=text(planted, 30, E), words=[word(F), word(A)])
    assert spans(found) == {("position", word(E)): (1, WINDOW), ("distance", word(F)): (1, 3)}
    assert {r["moved"] for r in found.rows if r["added"]} == {word(F), word(A)}
    assert [r["added"] for r in found.checks["ranges"]] == [False, True]


def test_without_halving_the_grid_misses_edges(planted: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive way, a fixed grid, says that 24 to 32 is the band."""
    monkeypatch.setattr(module._Tried, "_between", lambda *_: None)
    assert spans(shift(planted, unit("band"), ids=text(planted, 30, D))) == {("position", word(D)): (24, 32)}


@pytest.mark.parametrize("case", [("near", 20, B, {"d3": C}), ("band", 30, D, {}), ("word", 9, A, {})])
def test_every_row_reads_as_its_text_does(planted: Subject, monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    """With one draw a row's text is all that was read; the moved word is where the row says."""
    monkeypatch.setattr(module, "DRAWS", 1)
    name, position, at, before = case
    found = shift(planted, unit(name), ids=text(planted, position, at, **before))
    assert found.ok and found.cost["forward_tokens"] > 0
    for row in found.rows:
        (read,) = planted.readings([row["ids"]], unit(name)).tolist()
        assert row["activation"] == pytest.approx(read, rel=1e-5, abs=1e-5)
        assert row["ratio"] == pytest.approx(row["activation"] / found.checks["whole"])
        back = -1 - row["place"] if row["what"] == "distance" else -1
        assert row["ids"][back] == (C if row["what"] == "distance" else at)
        assert row["what"] == "distance" or len(row["ids"]) == row["place"] + 1
    own = [row for row in found.rows if row["place"] == row["from"]]
    assert {row["what"] for row in own} == {row["what"] for row in found.rows}
    assert all(row["ratio"] == pytest.approx(1, abs=0.02) for row in own)


def test_every_place_tried_by_brute_force_is_in_the_range_or_not(planted: Subject) -> None:
    """The oracle reads every distance there is."""
    row = text(planted, 40, B, d3=C)
    found = shift(planted, unit("near"), ids=row)
    low, high = spans(found)["distance", word(C)]
    rest = text(planted, 40, B)
    for distance in range(1, DISTANCES + 1):
        tried = list(rest)
        tried[-1 - distance] = C
        fires = float(planted.readings([tried], unit("near"))[0]) >= 0.5 * found.checks["whole"]
        assert fires == (low <= distance <= high)


def test_ranges_on_random_models_hold_what_their_rows_say(tiny: Any) -> None:
    some = UnitId(tiny.name, "1-mlp", 3)
    given = [tiny.sink, *tiny.encode(" the red cars at 9th street stop")[1:]]
    found = shift(tiny, some, ids=given, words=["car"])
    assert len({(r["what"], r["moved"], r["place"]) for r in found.rows}) == len(found.rows)
    assert Evidence.from_json(found.to_json()) == found
    for r in found.checks["ranges"]:
        mine = [row for row in found.rows if (row["what"], row["moved"]) == (r["what"], r["moved"])]
        inside = [row for row in mine if r["low"] <= row["place"] <= r["high"]]
        assert inside and all((row["ratio"] >= 0.5) != r["added"] for row in inside)
        places = sorted(row["place"] for row in mine)
        assert r["low_open"] == (places[0] == r["low"]) and r["high_open"] == (places[-1] == r["high"])
    assert all(row["place"] in GRID or row["place"] < WINDOW for row in found.rows)
    assert shift(tiny, some, ids=given, words=["car"]).rows == found.rows and DRAWS == 4


# tokens_in_place


def test_the_whole_vocabulary_in_one_place(planted: Subject) -> None:
    """The oracle reads every token in every draw, row by row; the three of the list fire, behind C alone."""
    row = text(planted, 6, G, d1=C)
    found = tokens_in_place(planted, unit("list"), ids=row)
    assert {r["id"] for r in found.rows if r["effect"] != "kills"} == {G, H, K}
    assert (found.checks["fires"], found.checks["candidates"]) == (3, 3)
    assert found.checks["tried"] == len(tokens_of_text(planted))
    assert sum(r["effect"] == "kills" for r in found.rows) == SILENT
    frame = make_frame(row, "resample", filler_pool(planted), 0)
    base = frame.rows(found.checks["kept"])
    for r in found.rows:
        draws = base if r["effect"] != "kills" else base[:1]
        read = planted.readings([[*b[:-1], r["id"]] for b in draws], unit("list")).mean()
        assert r["activation"] == pytest.approx(float(read), rel=1e-5, abs=1e-5)
        assert r["ids"] == [*row[:-1], r["id"]] and r["token"] == planted.piece(r["id"])


def test_behind_the_sink_alone_none_of_them_fires(planted: Subject) -> None:
    """The naive way: the vocabulary without what the unit needs before it."""
    rows = [[planted.sink, token] for token in tokens_of_text(planted)]
    whole = tokens_in_place(planted, unit("list"), ids=text(planted, 6, G, d1=C)).checks["whole"]
    assert float(planted.readings(rows, unit("list")).max()) < 0.25 * whole


def test_a_unit_of_no_token_takes_any(planted: Subject) -> None:
    found = tokens_in_place(planted, unit("word"), ids=text(planted, 6, A))
    assert found.checks["fires"] == 1 and found.rows[0]["id"] == A


@pytest.mark.parametrize("n", [1, 7, 50])
def test_of_many_tokens_the_nearest_to_the_own_one_are_tried(tiny: Any, n: int) -> None:
    some = UnitId(tiny.name, "1-mlp", 3)
    given = [tiny.sink, *tiny.encode(" the red cars at 9th street stop")[1:]]
    found = tokens_in_place(tiny, some, ids=given, n=n)
    row = [r for r in found.rows if r["effect"] != "kills"]
    assert found.checks["tried"] == n and found.checks["fires"] >= len(row)
    table = tiny.model.get_input_embeddings().weight.detach().float()
    centred = table - table.mean(0)
    own = found.rows[0]["ids"][: found.checks["kept"][-1]]
    tracked = shift(tiny, some, ids=given).rows[0]["ids"][-1]
    alike = torch.nn.functional.cosine_similarity(centred, centred[[tracked]], dim=1)
    allowed = sorted(tokens_of_text(tiny), key=lambda i: -float(alike[i]))[:n]
    assert tracked in allowed and {r["id"] for r in found.rows} <= set(allowed)
    assert all(r["ids"][:-1] == own for r in found.rows)
    assert len(row) <= SHOWN and Evidence.from_json(found.to_json()) == found


@pytest.mark.parametrize("tool", [shift, tokens_in_place])
def test_what_is_not_kept_is_refused(planted: Subject, tool: Callable[..., Evidence]) -> None:
    with pytest.raises(Refused, match="must lie in 1 to 5"):
        tool(planted, unit("word"), ids=text(planted, 5, A), kept=[2])


def test_no_tokens_are_no_question(planted: Subject) -> None:
    with pytest.raises(Refused, match="n = 0 tries no tokens"):
        tokens_in_place(planted, unit("word"), ids=text(planted, 5, A), n=0)
    assert in_place.CERTAIN > SHOWN


# substitute


def pair_twice(subject: Subject) -> list[int]:
    """Different words, all but the pair A B, which stands at the end and six words before it."""
    others = [token for token in language().common if token not in (A, B, C, D, F)]
    return [subject.sink, *others[:4], A, B, *others[4:8], A, B]


def repeated(subject: Subject) -> Evidence:
    """Words in the places of the pair A B, which stands twice; all other tokens of the text are held."""
    row = pair_twice(subject)
    words: Any = SimpleNamespace(choose_mode=lambda _: {"mode": "masked"})
    options: dict[str, Any] = {"proposers": [], "words": [word(t) for t in (C, D, F)], "kept": range(1, 13)}
    return substitute(subject, words, unit("repeat"), ids=row, **options)


def test_a_word_put_in_both_places_keeps_a_repeat_that_it_breaks_in_one(planted: Subject) -> None:
    found = repeated(planted)
    pair = [row for row in found.rows if row["original"] in (word(A), word(B))]
    assert {row["effect"] for row in pair if row["places"] == 1} == {"kills"}
    kept = {(row["original"], row["substitute"]) for row in pair if row["places"] == 2 and row["effect"] == "keeps"}
    assert kept == {(word(a), word(b)) for a in (A, B) for b in (C, D, F)} - {(word(A), word(F))}
    assert all(row["places"] == 1 for row in found.rows if row not in pair)


def test_both_places_are_read_as_a_text_with_both_changed(planted: Subject) -> None:
    row = pair_twice(planted)
    token = {word(t): t for t in (A, B, C, D, F)}
    both = [r for r in repeated(planted).rows if r["places"] == 2]
    assert len(both) == 6
    for r in both:
        old, new = token[r["original"]], token[r["substitute"]]
        assert r["ids"] == [new if i == old else i for i in row] and r["ids"][r["position"]] == new
        (read,) = planted.readings([r["ids"]], unit("repeat")).tolist()
        assert r["activation"] == pytest.approx(read, rel=1e-5, abs=1e-5)


def test_what_silences_in_both_places_is_a_condition_and_what_only_breaks_the_pair_is_none(planted: Subject) -> None:
    """The naive way, with single places alone, takes each substitute for a silencer."""
    found = repeated(planted)
    trials = Trials(planted, [found])
    assert trials.breaking == {1: [F]}
    (condition,) = (c for c in trials.conditions(planted.piece) if c.tested)
    assert condition.near == Near(ids(F), 1, 1) and not condition.needed and condition.listed == 0
    single = replace(found, rows=[row for row in found.rows if row["places"] == 1])
    assert set(Trials(planted, [single]).killing[1]) == {word(t) for t in (C, D, F)}
    assert not any(set(c.names) & {word(C), word(D)} for c in trials.conditions(planted.piece) if not c.needed)


def test_of_more_silencers_than_a_list_holds_the_first_are_taken(planted: Subject) -> None:
    row, others = pair_twice(planted), language().common[:MAX_IDS + 8]
    swaps: list[dict[str, Any]] = [
        {"ids": [t if i == A else i for i in row], "position": 11, "places": 2, "effect": "kills", "in_text": 0.0}
        for t in others
    ]
    tool = Evidence(tool="substitute", unit=unit("repeat").bare, sign=1, summary="", rows=swaps)
    trials = Trials(planted, [tool])
    assert trials.breaking == {1: list(others)}
    (condition,) = (c for c in trials.conditions(planted.piece) if c.tested)
    assert set(condition.near.match.ids) == set(others[:MAX_IDS])


def test_what_stands_farther_back_than_a_window_is_no_condition(planted: Subject) -> None:
    """Experiments may be on longer texts than the windows that rules are about."""
    row = text(planted, 90, A, d2=B, d80=C)
    example = {"ids": row, "kept": [len(row) - 81, len(row) - 3, len(row) - 1], "one_minimal": True}
    swap = {"ids": row, "position": len(row) - 81, "places": 2, "effect": "kills", "in_text": 0.0}
    found = Trials(planted, [
        Evidence(tool="minimal_example", unit=unit("word").bare, sign=1, summary="", rows=[example]),
        Evidence(tool="substitute", unit=unit("word").bare, sign=1, summary="", rows=[swap]),
    ])  # fmt: skip
    assert {c.span for c in found.conditions(planted.piece)} == {(2, 2)} and 80 in found.breaking
