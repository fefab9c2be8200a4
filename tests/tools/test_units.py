"""Unit names: hub ids with slashes, ranges, signs, lists, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools.units import UnitId, parse_site, parse_spec, parse_units

MODELS = st.from_regex(r"[A-Za-z0-9._-]{1,12}(/[A-Za-z0-9._-]{1,12}){0,2}", fullmatch=True)
CODERS = st.one_of(st.just(""), st.from_regex(r":[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True))
SITES = st.builds("{}-{}{}".format, st.integers(0, 200), st.sampled_from(["mlp", "attn", "resid"]), CODERS)
UNITS = st.builds(UnitId, MODELS, SITES, st.integers(0, 10**6), st.sampled_from([1, -1]))


def no_pick(n: int) -> list[UnitId]:
    raise AssertionError("nothing was to be picked")


@given(UNITS)
def test_a_name_comes_back(unit: UnitId) -> None:
    assert UnitId.parse(str(unit)) == unit
    assert UnitId.parse(f"  {unit}\n") == unit
    assert UnitId.parse(unit.bare) == UnitId(unit.model, unit.site, unit.index)
    site = parse_site(unit.site)
    assert (unit.layer, unit.kind) == (site.layer, "feature" if site.coder else site.kind)
    assert unit.site == f"{site.layer}-{site.kind}{site.coder and ':'}{site.coder}"


@given(st.lists(UNITS, min_size=1, max_size=6))
def test_a_list_comes_back_in_order_without_repeats(units: list[UnitId]) -> None:
    assert parse_spec(" , ".join(map(str, [*units, *units])), None, no_pick) == list(dict.fromkeys(units))


@given(MODELS, SITES, st.integers(0, 1000), st.integers(0, 40), st.sampled_from(["", "-"]))
def test_a_range_is_its_members(model: str, site: str, first: int, more: int, sign: str) -> None:
    one_by_one = [UnitId.parse(f"{model}/{site}/{i}{sign}") for i in range(first, first + more + 1)]
    assert parse_units(f"{model}/{site}/{first}..{first + more}{sign}") == one_by_one


@given(st.text(alphabet="ab0159/.-:, mlp", max_size=24))
def test_any_text_is_read_back_or_refused_in_one_sentence(text: str) -> None:
    try:
        units = parse_units(text)
    except Refused as refusal:
        assert "\n" not in str(refusal)
    else:
        assert units
        assert [parse_units(str(unit)) for unit in units] == [[unit] for unit in units]


def test_features_are_named_by_their_sae() -> None:
    unit = UnitId.parse("openai-community/gpt2/8-resid:my-sae.v2/88")
    assert (unit.model, unit.site) == ("openai-community/gpt2", "8-resid:my-sae.v2")
    assert (unit.index, unit.kind, unit.layer) == (88, "feature", 8)
    for bad in ("8-resid:", "8-resid:a:b", "8-resid:../x", "8:my-sae", "8-resid:-x"):
        with pytest.raises(Refused, match="is no site"):
            parse_site(bad)


def test_hub_ids_keep_their_slashes() -> None:
    unit = UnitId.parse("openai-community/gpt2/11-resid/767-")
    assert (unit.model, unit.site, unit.index, unit.sign) == ("openai-community/gpt2", "11-resid", 767, -1)
    assert (unit.layer, unit.kind) == (11, "resid")
    assert unit.bare == "openai-community/gpt2/11-resid/767"
    assert str(unit) == unit.bare + "-"
    assert UnitId.parse("/data/weights/0-mlp/3").model == "/data/weights"


def test_a_sign_is_part_of_the_unit() -> None:
    up, down = UnitId.parse("m/5-mlp/511"), UnitId.parse("m/5-mlp/511-")
    assert up != down
    assert up.bare == down.bare
    assert len({up, down, UnitId.parse("m/5-mlp/511")}) == 2


def test_the_model_is_filled_in_where_it_is_left_out_and_only_there() -> None:
    assert parse_units("5-mlp/3", "org/name") == [UnitId("org/name", "5-mlp", 3)]
    assert parse_units("other/5-mlp/3", "org/name") == [UnitId("other", "5-mlp", 3)]
    with pytest.raises(Refused, match="no unit"):
        parse_units("5-mlp/3")


def test_a_list_mixes_units_ranges_and_picks() -> None:
    asked: list[int] = []

    def pick(n: int) -> list[UnitId]:
        asked.append(n)
        return [UnitId("m", "0-mlp", 7), UnitId("m", "1-mlp", 2, -1)]

    found = parse_spec("m/1-mlp/1..3,, auto:20 ,0-mlp/7, org/x/2-mlp/0-", "m", pick)
    names = ["m/1-mlp/1", "m/1-mlp/2", "m/1-mlp/3", "m/0-mlp/7", "m/1-mlp/2-", "org/x/2-mlp/0-"]
    assert [str(unit) for unit in found] == names
    assert asked == [20]


def test_a_model_whose_name_begins_like_a_choice_is_a_model() -> None:
    assert parse_spec("automaton/0-mlp/1", None, no_pick) == [UnitId("automaton", "0-mlp", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "m", "m/5-mlp", "m/5-mlp/", "m//3", "/3", "3", "m/5-mlp/x", "m/5-mlp/-3", "m/5-mlp/3+", "m/5-mlp/3--",
        "m/5-mlp/1..", "m/5-mlp/..3", "m/5-mlp/1...3", "m/5-mlp/3..1", "m/5-mlp/1.5", "m/mlp/3", "m/5mlp/3",
        "m/-5-mlp/3", "m/5-head/3", "m/5-MLP/3", "m/5-mlp/3 4", "m/5-mlp/٣", "m/٥-mlp/3", "m/05-mlp/3", "m/5-mlp/03",
        "m/5-mlp/0..99999999999", "m/5-mlp/" + "9" * 5000,
    ],
)  # fmt: skip
def test_malformed_units_are_refused(text: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_units(text)
    assert re.fullmatch(r"[^\n]{10,}\.", str(refusal.value))


def test_a_range_has_a_limit() -> None:
    assert len(parse_units("m/0-mlp/5..1004")) == 1000
    with pytest.raises(Refused, match="names 100001 units; name at most 100000"):
        parse_units("m/0-mlp/5..100005")


@pytest.mark.parametrize(
    "spec", ["", "  ", ",", " , ,", "auto", "auto:", "auto:0", "auto:-2", "auto:2.5", "auto:x", "auto 3"]
)
def test_malformed_lists_are_refused(spec: str) -> None:
    with pytest.raises(Refused, match="auto:"):
        parse_spec(spec, "m", no_pick)


def test_one_malformed_item_refuses_the_whole_list() -> None:
    with pytest.raises(Refused, match="'m/1-mlp/x' is no unit"):
        parse_spec("m/1-mlp/1,m/1-mlp/x", "m", no_pick)


def test_a_range_is_no_single_unit() -> None:
    with pytest.raises(Refused, match="names 3 units"):
        UnitId.parse("m/5-mlp/1..3")


@pytest.mark.parametrize(("index", "sign"), [(-1, 1), (0, 0), (0, 2), (0, -2)])
def test_a_unit_out_of_range_cannot_be_made(index: int, sign: int) -> None:
    with pytest.raises(Refused, match="out of range"):
        UnitId("m", "0-mlp", index, sign)


@pytest.mark.parametrize("site", ["", "mlp", "5-", "5-mlps", "5_mlp", "-1-mlp", "5-mlp ", "٥-mlp", "05-mlp"])
def test_no_site(site: str) -> None:
    with pytest.raises(Refused, match="no site"):
        UnitId("m", site, 0)
