"""Names that other tools give to places, as sites."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools.hooks import HOOKS, KINDS, site_of
from lamplighter.tools.units import parse_site

PLACES = {
    "5-mlp": ("5-mlp", 1), "5-mlp@negative": ("5-mlp", -1), "8-resid:my-sae": ("8-resid:my-sae", 1),
    "8-resid:my-sae-": ("8-resid:my-sae-", 1), "8-resid:my-sae@negative": ("8-resid:my-sae", -1),
    "5": ("5-mlp", 1), "05": ("5-mlp", 1), "blocks.5.mlp.hook_post": ("5-mlp", 1),
    "blocks.5.hook_resid_post": ("5-resid", 1), "blocks.5.hook_resid_pre": ("4-resid", 1), "layers.8": ("8-resid", 1),
    "model.layers.8": ("8-resid", 1), "transformer.h.3": ("3-resid", 1), "gpt_neox.layers.2": ("2-resid", 1),
    "layer_12/width_16k/average_l0_82": ("12-resid:width_16k-average_l0_82", 1),
    "5-gemmascope-res-16k": ("5-resid:gemmascope-res-16k", 1), "6-res-jb": ("6-resid:res-jb", 1),
    "20-gemmascope-mlp-16k": ("20-mlp:gemmascope-mlp-16k", 1), "3-att_32k-oai": ("3-attn:att_32k-oai", 1),
    "7-gemmascope-transcoder-16k": ("7-mlp:gemmascope-transcoder-16k", 1),
}  # fmt: skip
OF_AN_SAE = {
    "layers.5": "5-resid:x", "layers.5.mlp": "5-mlp:x", "model.layers.5.self_attn": "5-attn:x",
    "blocks.5.hook_mlp_out": "5-mlp:x", "blocks.5.attn.hook_z": "5-attn:x", "blocks.5.ln2.hook_normalized": "5-mlp:x",
    "blocks.5.hook_resid_pre": "4-resid:x", "5-gemmascope-res-16k": "5-resid:x",
    "gpt_neox.layers.5.attention": "5-attn:x",
}  # fmt: skip


@pytest.mark.parametrize(("place", "site"), PLACES.items())
def test_a_place_that_says_all_by_itself(place: str, site: tuple[str, int]) -> None:
    assert site_of(place) == site
    parse_site(site[0])


@pytest.mark.parametrize(("place", "site"), OF_AN_SAE.items())
def test_an_sae_is_called_as_it_is_wished(place: str, site: str) -> None:
    assert site_of(place, "x") == (site, 1)


def test_a_name_of_the_place_goes_before_what_the_files_call_the_sae() -> None:
    assert site_of("5-gemmascope-res-16k", known_as="other") == ("5-resid:gemmascope-res-16k", 1)
    assert site_of("layers.5.mlp", known_as="sae-x") == ("5-mlp:sae-x", 1)
    scope = "layer_5/width_16k/average_l0_9"
    assert site_of(scope, known_as="gemma-scope-2b-pt-mlp")[0] == "5-mlp:width_16k-average_l0_9"


@pytest.mark.parametrize(
    "place",
    ["", "mlp", "embed", "5-", "-5", "5-xyz", "blocks.0.hook_resid_pre", "blocks.5.hook_embed", "layers.x", "../../etc",
     "layers.5.mlp.act", "99999"],
)  # fmt: skip
def test_a_place_that_nobody_knows_is_refused_with_the_way_out(place: str) -> None:
    with pytest.raises(Refused, match="--site"):
        site_of(place)


@pytest.mark.parametrize("place", ["layers.5.mlp", "blocks.5.hook_mlp_out", "blocks.5.attn.hook_z"])
def test_what_comes_out_of_a_module_is_no_unit_without_an_sae(place: str) -> None:
    with pytest.raises(Refused, match="--coder"):
        site_of(place)


def test_a_name_that_no_sae_can_have_is_refused() -> None:
    with pytest.raises(Refused, match="no name for an SAE"):
        site_of("layers.5", "a/b")


@given(st.integers(0, 9999), st.sampled_from(sorted(HOOKS)))
def test_hooks_keep_their_layer_and_kind(layer: int, hook: str) -> None:
    site, sign = site_of(f"blocks.{layer}.{hook}", "c")
    assert (parse_site(site).layer, parse_site(site).kind, sign) == (layer, KINDS[HOOKS[hook]], 1)


@given(st.text(max_size=40))
def test_any_text_is_a_site_or_refused(place: str) -> None:
    try:
        site, _ = site_of(place)
    except Refused:
        return
    parse_site(site)
