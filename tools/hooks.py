"""Where other tools say that units are, as sites: names of hooks and modules, layers, sources of Neuronpedia.

    5-mlp, 8-resid:my-sae                   sites are what they are; 5-mlp@negative is the negative side of one
    5                                       neurons of MLP 5
    blocks.5.hook_resid_post                TransformerLens; blocks.5.hook_resid_pre is the stream after block 4
    layers.5, model.layers.5.mlp            modules, as delphi and Sparsify name them: what comes out of them
    layer_5/width_16k/average_l0_82         folders of Gemma Scope
    5-gemmascope-res-16k                    Neuronpedia: the layer and the name of a set of SAEs

What is read at the output of a module or at a hook is a feature of an SAE, whose name is needed as well.
"""

import re
from contextlib import suppress

from ..store.records import Refused
from .units import coder_name, parse_site

# Where the hooks of TransformerLens are (`adapters.PLACES`), and the kind of site that features read there belong to.
HOOKS = {
    "hook_resid_post": "resid", "attn.hook_z": "attn", "hook_attn_out": "attn_out", "ln2.hook_normalized": "mlp_in",
    "mlp.hook_in": "mlp_in", "mlp.hook_post": "mlp", "hook_mlp_out": "mlp_out",
}  # fmt: skip
KINDS = {"resid": "resid", "attn": "attn", "attn_out": "attn", "mlp_in": "mlp", "mlp": "mlp", "mlp_out": "mlp"}
NEGATIVE = "@negative"
OWN = ("resid", "mlp")           # places whose own dimensions are units, with no SAE

_LENS = re.compile(r"blocks\.([0-9]{1,4})\.(.+)")
_MODULE = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.([0-9]{1,4})(?:\.(mlp|self_attn|attn|attention))?")
_SCOPE = re.compile(r"layer_([0-9]{1,4})/width_\w+(?:/\w+)?")
_SOURCE = re.compile(r"([0-9]{1,4})-(.+)")
_WORDS = {
    "resid": {"res", "resid", "residual", "rs"}, "mlp": {"mlp", "mlps", "transcoder", "transcoders", "tc"},
    "attn": {"att", "attn", "attention", "z"},
}  # fmt: skip


def site_of(place: str, coder: str | None = None, known_as: str | None = None) -> tuple[str, int]:
    """(site, sign) of a place as other tools name it.

    coder: what the SAE there is to be called; by default as the place itself says, else `known_as`. Raises Refused for
    a place that no site stands for, and where an SAE's name is needed.
    """
    own = place.removesuffix(NEGATIVE)
    with suppress(Refused):      # most names are no site of ours, and are looked at below
        parse_site(own)
        return own, -1 if own != place else 1
    if re.fullmatch(r"[0-9]{1,4}", place):
        return f"{int(place)}-mlp", 1
    layer, at, named = _read(place, coder or known_as or "")
    name = coder or named or known_as
    if name is not None:
        return f"{layer}-{KINDS[at]}:{coder_name(name)}", 1
    if at not in OWN:
        raise Refused(f"{place!r} holds no units but those of an SAE; name it with --coder.")
    return f"{layer}-{KINDS[at]}", 1


def _read(place: str, coder: str) -> tuple[int, str, str | None]:
    """Layer, place of `adapters.PLACES`, and the SAE's name where the place holds it."""
    if lens := _LENS.fullmatch(place):
        layer, hook = int(lens[1]), lens[2]
        if hook == "hook_resid_pre" and layer:
            return layer - 1, "resid", None          # what enters a block left the one before
        if hook in HOOKS:
            return layer, HOOKS[hook], None
    if module := _MODULE.fullmatch(place):
        return int(module[1]), {None: "resid", "mlp": "mlp_out"}.get(module[2], "attn_out"), None
    if scope := _SCOPE.fullmatch(place):
        return int(scope[1]), _by_words(coder) or "resid", place.partition("/")[2].replace("/", "-")
    source = _SOURCE.fullmatch(place)
    at = source and _by_words(source[2])
    if not source or not at:
        raise Refused(f"{place!r} is no place that is known here; say which site it is with --site, as 5-resid:NAME.")
    return int(source[1]), at, source[2]


def _by_words(name: str) -> str | None:
    """The kind of site that the words of an SAE's name tell of, if they do."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((kind for kind, known in _WORDS.items() if words & known), None)


__all__ = ["HOOKS", "KINDS", "NEGATIVE", "site_of"]
