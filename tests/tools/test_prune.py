"""minimal_example: units whose minimal sets are known by hand, all subsets as oracle, the naive ways failing."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import prune as module
from lamplighter.tools.activate import activate
from lamplighter.tools.frames import MODES, Frame, filler_pool, kept_text, make_frame, track
from lamplighter.tools.measures import LEAK_RUN, STRETCH
from lamplighter.tools.prune import minimal_example, minimal_examples
from lamplighter.tools.reader import Reader
from lamplighter.tools.units import UnitId

# A planted model: token one-hots, position one-hots, and what four heads write: the token one place back [12], the
# token three places back [12], "A stood before" and "E stood before" [1 each]. No norms, ReLU neurons.
A, B, C, E, F = 1, 2, 3, 4, 5
FILLERS = [6, 7, 8, 9, 10, 11]
TOKENS, PLACES, HEAD = 12, 64, 64
UNITS: dict[str, tuple[dict[Any, float], float]] = {
    "token": ({("token", C): 1.0}, 0.0),
    "bigram": ({("token", C): 1.0, ("back1", B): 1.0}, -1.0),
    "and": ({("token", C): 1.0, "A": 1.0}, -1.2),
    "or": ({("token", C): 2.0, "A": 1.0, "E": 1.0}, -2.0),
    "A, or E and B": ({("token", C): 2.0, "A": 1.0, "E": 0.5, ("back1", B): 0.5}, -2.0),
    "A, or more on E": ({("token", C): 2.0, "A": 1.0, "E": 1.2}, -2.0),
    "gapped": ({("token", C): 1.0, ("back3", B): 1.0}, -1.0),
    "not after B": ({("token", C): 1.0, ("back1", B): -1.0}, 0.0),
    "held down": ({("token", C): 1.0, "A": -0.6}, 0.0),
    "bigram, more after A": ({("token", C): 2.0, ("back1", B): 2.0, "A": 1.0}, -3.0),
}  # fmt: skip


def slot(name: Any) -> int:
    starts = {"token": 0, "back1": TOKENS + PLACES, "back3": 2 * TOKENS + PLACES}
    singles = {"A": 3 * TOKENS + PLACES, "E": 3 * TOKENS + PLACES + 1}
    return singles[name] if isinstance(name, str) else starts[name[0]] + name[1]


@pytest.fixture(scope="module")
def planted() -> Any:
    """A GPT-2 whose weights are set by hand; softmax scores 60 apart make its attention exact to 1e-13."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from lamplighter.tools.subject import Subject

    words = ["<s>", *"ABCEFuvwxyz"]
    spelled = Tokenizer(models.WordLevel(dict(zip([*words, "a"], range(13), strict=True)), unk_token="z"))
    spelled.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=spelled, bos_token="<s>")
    config = GPT2Config(vocab_size=13, n_positions=PLACES, n_embd=4 * HEAD, n_layer=1, n_head=4, n_inner=len(UNITS),
                        activation_function="relu", bos_token_id=0, eos_token_id=0)  # fmt: skip
    model: Any = GPT2LMHeadModel(config).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.zero_()
    body, block = model.transformer, model.transformer.h[0]
    block.ln_1 = block.ln_2 = body.ln_f = torch.nn.Identity()
    body.wte.weight[:TOKENS, :TOKENS].fill_diagonal_(1)
    body.wpe.weight[:, TOKENS : TOKENS + PLACES].fill_diagonal_(1)
    sharp = 120 * HEAD**0.5
    query, key, value = (block.attn.c_attn.weight[:, i : i + 4 * HEAD] for i in range(0, 12 * HEAD, 4 * HEAD))
    out = block.attn.c_proj.weight
    for head, back in enumerate((1, 3)):
        at = head * HEAD
        for place in range(PLACES):
            query[TOKENS + place, at + place] = sharp
            if place + back < PLACES:
                key[TOKENS + place, at + place + back] = 1
        key[0, at : at + HEAD] = 0.5  # the sink is attended to where no token stands so far back
        for token in range(TOKENS):
            value[token, at + token] = 1
            out[at + token, slot((f"back{back}", token))] = 1
    for head, token in ((2, A), (3, E)):
        at = head * HEAD
        query[TOKENS : TOKENS + PLACES, at] = sharp
        key[token, at], key[0, at] = 1, 0.5
        value[token, at] = 1
        out[at, slot("AE"[head - 2])] = 1
    for number, (weights, bias) in enumerate(UNITS.values()):
        block.mlp.c_fc.bias[number] = bias
        for name, weight in weights.items():
            block.mlp.c_fc.weight[slot(name), number] = weight
    return Subject.wrap(model, tokenizer, "planted")


def unit_of(name: str) -> UnitId:
    return UnitId("planted", "0-mlp", list(UNITS).index(name))


def means(subject: Any, unit: UnitId, frame: Frame, sets: Iterable[frozenset[int]]) -> list[float]:
    """Readings of sets with nothing shared among their rows: the oracle."""
    groups = [frame.rows(s) for s in sets]
    values = subject.readings([row for rows in groups for row in rows], unit)
    return [part.mean().item() for part in values.split([len(rows) for rows in groups])]


def find(planted: Any, name: str, tokens: list[int], **options: Any) -> dict[str, Any]:
    options = {"fillers": FILLERS, **options}
    return minimal_example(planted, unit_of(name), ids=[0, *tokens], **options).rows[0]


@pytest.mark.parametrize("mode", ["resample", "mask"])
@pytest.mark.parametrize(
    ("name", "tokens", "sets"),
    [
        ("token", [6, A, B, 7, C, 8], [[5]]),
        ("bigram", [A, 6, B, C, 7], [[3, 4]]),
        ("and", [6, A, 7, 8, 9, C, 6], [[2, 6]]),
        ("or", [6, A, 7, 8, 9, E, 10, C], [[2, 8], [6, 8]]),
        ("gapped", [6, 7, B, 8, 9, C, E], [[3, 6]]),
        ("not after B", [B, 6, C, 7], [[3]]),
    ],
)
def test_known_sets_are_found(planted: Any, mode: str, name: str, tokens: list[int], sets: list[list[int]]) -> None:
    row = find(planted, name, tokens, mode=mode)
    assert row["kept"] in sets
    assert row["n_sets"] == len(sets)
    assert row["one_minimal"] is True
    assert row["ids"] == [0, *tokens][: row["kept"][-1] + 1]
    shares = row["shares"]
    assert shares[0] is None
    assert len(shares) == len(row["ids"])
    members = {i for found in sets for i in found}
    assert all((share > 0) == (i in members) for i, share in enumerate(shares[1:], 1))
    assert sum(shares[1:]) == pytest.approx(len(sets[0]))
    assert shares[-1] == 1


def test_an_or_shares_its_sets_among_the_random_orders(planted: Any) -> None:
    shares = find(planted, "or", [6, A, 7, 8, 9, E, 10, C])["shares"]
    assert 0 < shares[2] < 1
    assert shares[2] + shares[6] == 1


def test_the_smallest_set_is_reported_and_of_equals_the_stronger(planted: Any) -> None:
    row = find(planted, "A, or E and B", [A, 6, 7, E, B, C])  # the suffix of four holds E, B and C
    assert (row["kept"], row["n_sets"]) == ([1, 6], 2)
    row = find(planted, "A, or more on E", [6, E, 7, 8, 9, A, 10, C], threshold=0.4)  # the suffix of four holds A
    assert (row["kept"], row["n_sets"]) == ([2, 8], 2)


def test_the_certificate_is_read_and_not_assumed(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(start: frozenset[int], order: list[int], most: int) -> Any:
        yield []
        return start

    monkeypatch.setattr(module, "_shrink", lazy)
    evidence = minimal_example(planted, unit_of("and"), ids=[0, A, 6, 7, 8, C], fillers=FILLERS)
    assert [row["one_minimal"] for row in evidence.rows] == [False, False, False]
    assert "NOT certified" in evidence.summary
    assert evidence.checks["largest_further"] == pytest.approx(1)


def test_a_text_that_needs_more_than_asked_for_is_no_example(planted: Any) -> None:
    ids = [0, 6, 7, A, 8, 9, C]
    whole = minimal_example(planted, unit_of("and"), ids=ids, fillers=FILLERS, most=2)
    assert (whole.rows[0]["kept"], whole.rows[0]["one_minimal"]) == ([3, 6], True)
    short = minimal_example(planted, unit_of("and"), ids=ids, fillers=FILLERS, most=1)
    row = short.rows[0]
    assert (row["one_minimal"], row["n_sets"], row["shares"]) == (False, 0, None)
    assert {3, 6} <= set(row["kept"])
    assert row["retention"] >= 0.5
    assert "no short minimal example" in short.summary
    assert short.checks["sets_read"] < whole.checks["sets_read"]
    with pytest.raises(Refused, match="at least 1"):
        minimal_example(planted, unit_of("and"), ids=ids, fillers=FILLERS, most=0)


def test_deleting_breaks_a_gap_that_replacing_keeps(planted: Any) -> None:
    evidence = minimal_example(planted, unit_of("gapped"), ids=[0, 6, 7, B, 8, 9, C], fillers=FILLERS)
    rows = {row["mode"]: row for row in evidence.rows}
    assert list(rows) == ["resample", "delete", "mask"]
    assert rows["resample"]["kept"] == rows["mask"]["kept"] == [3, 6]
    assert rows["delete"]["kept"] == [3, 4, 5, 6]  # B … C three places apart needs what lies between
    assert all(row["one_minimal"] for row in evidence.rows)
    assert [row["shares"] is None for row in evidence.rows] == [False, True, True]
    first = minimal_example(planted, unit_of("gapped"), ids=[0, 6, 7, B, 8, 9, C], fillers=FILLERS, mode="delete")
    assert [row["mode"] for row in first.rows] == ["delete", "resample", "mask"]
    assert "sink" in first.warnings[0]


def test_an_inhibitor_is_named_and_retention_exceeds_one(planted: Any) -> None:
    evidence = minimal_example(planted, unit_of("held down"), ids=[0, 6, A, 7, C], fillers=FILLERS)
    assert evidence.checks["inhibitors"] == [2]
    assert "A" in evidence.warnings[0]
    assert evidence.rows[0]["retention"] == pytest.approx(2.5)
    assert minimal_example(planted, unit_of("and"), ids=[0, 6, A, 7, C], fillers=FILLERS).checks["inhibitors"] == []


def test_in_a_long_text_inhibitors_are_found_by_halving(planted: Any) -> None:
    tokens = [*([6, 7, 8, 9] * 4), A, *([6, 7, 8, 9] * 4), C]
    evidence = minimal_example(planted, unit_of("held down"), ids=[0, *tokens], fillers=FILLERS)
    assert (evidence.rows[0]["kept"], evidence.checks["inhibitors"]) == ([34], [17])
    assert "held down by ' A'" in evidence.warnings[0]


def test_an_or_shows_its_other_ways_to_fire(planted: Any) -> None:
    evidence = minimal_example(planted, unit_of("or"), ids=[0, 6, A, 7, 8, 9, E, 10, C], fillers=FILLERS)
    (other,) = evidence.checks["disjoint"]
    assert {tuple(evidence.rows[0]["kept"]), tuple(other["kept"])} == {(2, 8), (6, 8)}
    assert other["retention"] >= 0.5 and other["kept_text"] in evidence.warnings[0]
    for name, tokens in (("and", [A, 6, C]), ("token", [A, 6, C]), ("bigram", [B, C, 6, B, C])):
        found = minimal_example(planted, unit_of(name), ids=[0, *tokens], fillers=FILLERS)
        assert found.checks["disjoint"] == [], name


def test_three_sets_that_share_nothing_are_as_many_as_are_shown(planted: Any) -> None:
    evidence = minimal_example(planted, unit_of("or"), ids=[0, A, 6, A, 7, E, 8, A, 9, C], fillers=FILLERS)
    sets = [set(evidence.rows[0]["kept"]), *(set(s["kept"]) for s in evidence.checks["disjoint"])]
    assert [len(s) for s in sets] == [2, 2, 2]
    assert set.intersection(*sets) == {9} and len(set.union(*sets)) == 4


def test_units_and_texts_side_by_side_find_what_each_finds_alone(
    planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [("and", [6, A, 7, 8, C]), ("bigram", [6, 7, B, C]), ("or", [E, 6, 7, C]), ("held down", [A, 6, C])]
    cases = [(unit_of(name), [0, *tokens]) for name, tokens in named]
    passes: Counter[str] = Counter()
    nodes = planted.run_nodes

    def counting(which: str) -> Any:
        def run(*arguments: Any) -> Any:
            passes[which] += 1
            return nodes(*arguments)

        return run

    monkeypatch.setattr(planted, "run_nodes", counting("together"))
    together = minimal_examples(planted, cases, fillers=FILLERS)
    for (unit, ids), found in zip(cases, together, strict=True):
        monkeypatch.setattr(planted, "run_nodes", counting(str(unit)))
        alone = minimal_example(planted, unit, ids=ids, fillers=FILLERS)
        assert found.arguments == alone.arguments and found.warnings == alone.warnings
        for row, own in zip(found.rows, alone.rows, strict=True):
            assert {k: v for k, v in row.items() if k not in ("peak", "retained", "retention")} == {
                k: v for k, v in own.items() if k not in ("peak", "retained", "retention")
            }
            assert row["retained"] == pytest.approx(own["retained"], abs=1e-6)
        assert found.checks["inhibitors"] == alone.checks["inhibitors"]
        assert 0 < found.cost["forward_rows"] <= alone.cost["forward_rows"] * len(cases)
    # After a pass for each text's own readings, the longest of four searches and not their sum.
    together_passes = passes.pop("together") - len(cases)
    assert together_passes == max(passes.values()) - 1 < sum(passes.values()) - len(cases)


def test_naive_suffixes_and_steps_of_five_are_not_minimal(planted: Any) -> None:
    tokens = [A, 6, 7, 8, 9, 10, C]
    frame = make_frame([0, *tokens], "resample", np.array(FILLERS), 0)
    ours = {name: find(planted, name, tokens) for name in ("and", "token")}
    peak = {name: row["peak"] for name, row in ours.items()}

    def shortest(step: int, name: str) -> int:
        sizes = [*range(step, len(tokens), step), len(tokens)]
        sets = [frozenset(range(len(tokens) + 1 - size, len(tokens) + 1)) for size in sizes]
        return next(len(s) for s, y in zip(sets, means(planted, unit_of(name), frame, sets), strict=True)
                    if y >= 0.5 * peak[name])

    assert len(ours["and"]["kept"]) == 2
    assert shortest(1, "and") == 7  # a suffix must reach back to A
    assert shortest(5, "token") == 5  # steps of five never give one token
    assert len(ours["token"]["kept"]) == 1


def test_the_naive_maximum_over_the_sequence_follows_another_token(planted: Any) -> None:
    ids, unit = [0, B, C, A, B, C], unit_of("bigram, more after A")
    cut, peak = track(Reader(planted, [unit.site]), unit, ids)
    assert cut == ids
    assert peak == pytest.approx(2.0)
    wrong = [0, B, C, 6, 7, C]  # keeps the earlier "B C" and breaks the tracked one
    assert max(row["activation"] for row in activate(planted, unit, ids=wrong).rows) >= 0.5 * peak
    assert planted.readings([wrong], unit).item() == 0
    kept = minimal_example(planted, unit, ids=ids, fillers=FILLERS).rows[0]["kept"]
    assert kept == [4, 5]


def test_the_sink_may_not_be_pruned_and_position_counts_from_it(planted: Any) -> None:
    row = find(planted, "gapped", [6, 7, B, 8, 9, C])
    for frame in (make_frame(row["ids"], mode, np.array(FILLERS), 0) for mode in MODES):
        assert all(line[0] == 0 for line in frame.rows(row["kept"]))
        assert all(line[-1] == C for line in frame.rows(row["kept"]))


def test_a_long_text_costs_what_its_suffix_costs(planted: Any) -> None:
    tokens = [*([6, 7, 8, A] * 14), 9, B, C]
    evidence = minimal_example(planted, unit_of("bigram"), ids=[0, *tokens], fillers=FILLERS)
    assert evidence.rows[0]["kept"] == [58, 59]
    assert evidence.checks["window"] == 2
    assert evidence.checks["inhibitors"] == []
    assert evidence.checks["sets_read"] <= 4
    far = minimal_example(planted, unit_of("and"), ids=[0, A, *([6, 7, 8] * 19), C], fillers=FILLERS)
    assert far.rows[0]["kept"] == [1, 59]
    assert far.checks["sets_read"] < 300  # of 2^58 subsets


def test_one_token_alone_and_a_text_that_cannot_shrink(planted: Any) -> None:
    row = find(planted, "token", [C])
    assert (row["kept"], row["retention"], row["one_minimal"], row["shares"]) == ([1], 1.0, True, [None, 1.0])
    evidence = minimal_example(planted, unit_of("bigram"), ids=[0, B, C], fillers=FILLERS)
    assert evidence.rows[0]["kept"] == [1, 2]
    assert evidence.rows[0]["retention"] == 1.0  # nothing was removed: the peak itself, not a second reading
    assert "no token of this text can go" in evidence.warnings


# Oracles


def brute_force(subject: Any, unit: UnitId, frame: Frame, least: float) -> tuple[dict[frozenset[int], bool], int]:
    """Which of all subsets that hold the last token pass, and the smallest passing size."""
    whole = sorted(frame.whole)
    free, last = whole[:-1], whole[-1]
    sets = [frozenset((*some, last)) for n in range(len(whole)) for some in itertools.combinations(free, n)]
    passes = {s: y >= least for s, y in zip(sets, means(subject, unit, frame, sets), strict=True)}
    return passes, min(len(s) for s, ok in passes.items() if ok)


@pytest.mark.parametrize("name", ["and", "or", "bigram", "gapped", "held down"])
def test_the_smallest_of_all_subsets_is_found_in_planted_units(planted: Any, name: str) -> None:
    row = find(planted, name, [A, 6, E, B, 8, B, C])
    frame = make_frame(row["ids"], "resample", np.array(FILLERS), 0)
    passes, smallest = brute_force(planted, unit_of(name), frame, 0.5 * row["peak"])
    assert passes[frozenset(row["kept"])]
    assert len(row["kept"]) == smallest


@pytest.mark.parametrize("mode", MODES)
def test_against_all_subsets_of_random_models(tiny: Any, mode: str) -> None:
    ids = tiny.encode("the late 19th century, and")[:9]
    fillers = tiny.encode("She said: don't stop the red cars in 1942.")[1:]
    tried = 0
    for index, sign in itertools.product((1, 5, 17, 30), (1, -1)):
        unit = UnitId(tiny.name, "1-mlp", index, sign)
        try:
            evidence = minimal_example(tiny, unit, ids=ids, mode=mode, fillers=fillers, seed=3)
        except Refused:
            continue
        tried += 1
        row = evidence.rows[0]
        frame = make_frame(row["ids"], mode, filler_pool(tiny, fillers), 3)
        passes, smallest = brute_force(tiny, unit, frame, 0.5 * row["peak"])
        kept = frozenset(row["kept"])
        assert passes[kept]
        assert row["one_minimal"] is not any(passes[kept - {i}] for i in kept - {row["kept"][-1]})
        assert row["one_minimal"]
        assert row["retained"] == pytest.approx(means(tiny, unit, frame, [kept])[0], rel=1e-5)
        assert smallest <= len(kept)
        assert row["peak"] == pytest.approx(tiny.readings([row["ids"]], unit).item(), rel=1e-5)
        if tried == 3:
            return
    assert tried


def test_what_follows_the_tracked_token_changes_nothing(tiny: Any) -> None:
    unit = UnitId(tiny.name, "1-mlp", 5)
    ids = tiny.encode("World War II began in 1939; World War I ended")
    fillers = tiny.encode("She said: stop the blue car!")[1:]
    whole = minimal_example(tiny, unit, ids=ids, fillers=fillers)
    cut = whole.rows[0]["ids"]
    rng = np.random.default_rng(0)
    before = activate(tiny, unit, ids=ids).rows[: len(cut) - 1]
    equal = 0
    for _ in range(10):
        other = [*cut, *rng.integers(1, 300, size=6).tolist()]
        after = activate(tiny, unit, ids=other)
        got = [row["activation"] for row in after.rows[: len(cut) - 1]]
        assert got == pytest.approx([row["activation"] for row in before], rel=1e-9, abs=1e-12)
        if after.checks["peak_position"] == len(cut) - 1:
            rows = minimal_example(tiny, unit, ids=other, fillers=fillers).rows
            assert [row["kept"] for row in rows] == [row["kept"] for row in whole.rows]
            assert [row["ids"] for row in rows] == [row["ids"] for row in whole.rows]
            equal += 1
            if equal == 2:
                break
    assert equal


# The search alone, on passing rules without a model


def run(search: Any, passes: Callable[[frozenset[int]], bool]) -> tuple[frozenset[int], int]:
    asked, answer = 0, None
    while True:
        try:
            sets = search.send(answer)
        except StopIteration as end:
            return end.value, asked
        asked += len(sets)
        answer = [passes(s) for s in sets]


@given(st.sets(st.frozensets(st.integers(0, 11), max_size=4), min_size=1, max_size=4), st.permutations(range(12)))
def test_halving_ends_where_removal_one_by_one_ends(needs: set[frozenset[int]], order: list[int]) -> None:
    def passes(kept: frozenset[int]) -> bool:
        return any(need <= kept for need in needs)

    one_by_one = frozenset(range(12))
    for i in order:
        if passes(one_by_one - {i}):
            one_by_one -= {i}
    found, asked = run(module._shrink(frozenset(range(12)), order, 13), passes)
    assert found == one_by_one
    assert asked <= 6 * len(found) + 1 + len(found)


@given(
    st.sets(st.frozensets(st.integers(0, 11), max_size=6), min_size=1, max_size=4), st.permutations(range(12)),
    st.integers(1, 8),
)  # fmt: skip
def test_a_search_stops_where_more_is_needed_than_asked_for(
    needs: set[frozenset[int]], order: list[int], most: int
) -> None:
    def passes(kept: frozenset[int]) -> bool:
        return any(need <= kept for need in needs)

    whole = frozenset(range(13))  # 12: the tracked token, which is in no order
    free, _ = run(module._shrink(whole, order, 13), passes)
    found, asked = run(module._shrink(whole, order, most), passes)
    assert passes(found)
    if len(free) <= most:
        assert found == free
    else:
        assert len(found) > most
        assert asked <= 6 * most


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.permutations(range(7)))
def test_any_rule_at_all_ends_one_minimal(seed: int, order: list[int]) -> None:
    table = np.random.default_rng(seed).random(128) < 0.4

    def passes(kept: frozenset[int]) -> bool:
        return len(kept) == 7 or bool(table[sum(1 << i for i in kept)])

    found, _ = run(module._shrink(frozenset(range(7)), order, 7), passes)
    assert passes(found)
    assert not any(passes(found - {i}) for i in found)


@pytest.mark.parametrize("need", range(1, 31))
def test_the_suffix_doubles_until_it_passes(need: int) -> None:
    found, asked = run(module._grow(frozenset(range(1, 31))), lambda kept: 31 - need in kept)
    assert max(found) == 30
    assert need <= len(found) < 2 * need or found == frozenset(range(1, 31))
    assert asked <= 5


# Frames, records, refusals


def test_draws_belong_to_positions_and_never_are_special(llama: Any) -> None:
    ids = llama.encode("World War II began")
    pool = filler_pool(llama, [llama.sink, 40, 41, 41, 42])
    assert pool.tolist() == [40, 41, 41, 42]
    frame = make_frame(ids, "resample", pool, 0)
    few, more = np.array(frame.rows({len(ids) - 1})), np.array(frame.rows({2, 3, len(ids) - 1}))
    assert few.shape == (8, len(ids))
    same = [i for i in range(len(ids)) if i not in (2, 3)]
    assert (few[:, same] == more[:, same]).all()
    assert (more[:, [2, 3]] == np.array(ids)[[2, 3]]).all()
    assert frame.rows(frame.whole) == [ids] * 8
    assert make_frame(ids, "resample", pool, 1).rows({1}) != frame.rows({1})
    assert make_frame(ids, "mask", pool, 0).rows({len(ids) - 1}) == [[llama.sink, *[41] * (len(ids) - 2), ids[-1]]]
    assert make_frame(ids, "delete", pool, 0).rows({1, len(ids) - 1}) == [[llama.sink, ids[1], ids[-1]]]


def test_a_draw_is_made_of_stretches_of_running_text() -> None:
    """Long enough to be text, too short to be a run that counts as seen."""
    pool = np.arange(100, 150)
    draws = make_frame(list(range(40)), "resample", pool, 0).draws
    assert draws is not None and draws.shape == (8, 40) and STRETCH < LEAK_RUN
    follows = np.diff(draws) % len(pool) == 1
    inside = np.arange(1, 40) % STRETCH > 0
    assert follows[:, inside].all() and not follows[:, ~inside].all()
    assert len(set(draws[:, ::STRETCH].ravel().tolist())) > 16


def test_the_committed_text_fills_by_default(llama: Any) -> None:
    pool = filler_pool(llama)
    assert len(pool) > 1000
    assert not llama.special.intersection(pool.tolist())
    assert filler_pool(llama) is pool


def test_gaps_show_as_an_ellipsis() -> None:
    pieces = ["<s>", "the", " late", " ", "1", "9", "th", " World", " War", " II"]
    assert kept_text(pieces, [5, 6]) == "9th"
    assert kept_text(pieces, [7, 8, 9]) == "World War II"
    assert kept_text(pieces, [7, 9]) == "World … II"
    assert kept_text(pieces, [4, 6]) == "1…th"
    assert kept_text(pieces, [1, 9]) == "the … II"


def test_the_record_is_whole_repeats_and_comes_back(llama: Any) -> None:
    unit = UnitId("tiny-llama", "1-mlp", 5)
    text = "World War II began in 1939"
    first, second = (minimal_example(llama, unit, text=text) for _ in range(2))
    assert first.rows == second.rows
    assert first.checks == second.checks
    assert Evidence.from_json(first.to_json()) == first
    assert set(first.rows[0]) == {
        "text", "tokens", "ids", "kept", "kept_text", "peak", "retained", "retention", "mode", "one_minimal", "n_sets",
        "shares",
    }  # fmt: skip
    row = first.rows[0]
    assert text.startswith(row["text"])
    assert "".join(row["tokens"][1:]) == row["text"]
    assert first.checks["fired"] == first.cost["forward_rows"] > 0
    assert len(first.summary.split()) <= 60
    assert first.arguments == {
        "text": text, "ids": None, "threshold": 0.5, "mode": "resample", "most": 16, "seed": 0, "fillers": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": [0, 6, 7]}, "silent"),
        ({"ids": [0, C], "threshold": 0}, "outside"),
        ({"ids": [0, C], "threshold": 1.5}, "outside"),
        ({"ids": [0, C], "threshold": float("nan")}, "outside"),
        ({"ids": [0, C], "mode": "shuffle"}, "resample, delete, mask"),
        ({"ids": [0, C], "fillers": [0]}, "no filler"),
        ({"ids": [0, C], "fillers": [99]}, "outside the vocabulary"),
        ({"ids": [0]}, "empty"),
        ({"text": ""}, "empty"),
        ({"ids": [0, *[C] * 130]}, "shorten"),
        ({"ids": [0, C], "text": "C"}, "not both"),
    ],
)
def test_refusals(planted: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        minimal_example(planted, unit_of("token"), **options)
    assert str(refused.value).count("\n") == 0


def test_a_unit_the_model_lacks_is_refused(planted: Any) -> None:
    with pytest.raises(Refused, match="out of range"):
        minimal_example(planted, UnitId("planted", "0-mlp", 99), ids=[0, C])


# The embedded subject


def test_an_ordinal_keeps_its_digits_and_ending(smollm2: Any) -> None:
    unit = UnitId.parse("smollm2-135m/2-mlp/36")
    evidence = minimal_example(smollm2, unit, text="It was built in the late 19th century")
    for row in evidence.rows:
        assert row["kept_text"].endswith("9th")
        assert row["one_minimal"]
        assert row["retention"] >= 0.5
    assert evidence.rows[0]["kept_text"] == "9th"
    assert evidence.checks["largest_further"] < 0.5


def test_the_numeral_of_a_world_war_needs_its_words(smollm2: Any) -> None:
    unit = UnitId.parse("smollm2-135m/5-mlp/511")
    row = minimal_example(smollm2, unit, text="the country entered World War II").rows[0]
    assert row["kept_text"].endswith("War II")
    assert row["one_minimal"]
    assert row["shares"][row["tokens"].index(" World")] >= 0.5
