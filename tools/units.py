"""Names of the things that are explained: `model/site/index`, with a sign.

The grammar is read from the right, because hub ids hold slashes: index, then site, the rest is the model.
`smollm2-135m/5-mlp/511` is neuron 511 of MLP 5, `…/511-` its negative side, `smollm2-135m/8-resid:my-sae/88` feature 88
of the SAE `my-sae`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..store.records import Refused

# One way to write a number, so that one unit has one name; long numbers are no unit of any model.
_NUMBER = r"(?:0|[1-9][0-9]{0,7})"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
_SITE = re.compile(rf"(?P<layer>{_NUMBER})-(?P<kind>mlp|attn|resid)(?::(?P<coder>{_NAME}))?")
_INDEX = re.compile(rf"(?P<first>{_NUMBER})(?:\.\.(?P<last>{_NUMBER}))?(?P<sign>-?)")
MOST = 100_000   # units in one range
_SHAPE = "MODEL/SITE/INDEX, as in smollm2-135m/5-mlp/511 or smollm2-135m/5-mlp/511-"


class Site(NamedTuple):
    """A place that units are at. coder: the SAE or transcoder whose features they are, "" for the model's own units."""

    layer: int
    kind: str
    coder: str = ""

    @property
    def holds(self) -> str:
        """The kind of its units: mlp (neurons), attn (heads), resid (dimensions of the stream) or feature."""
        return "feature" if self.coder else self.kind


def parse_site(site: str) -> Site:
    """`'5-mlp'` → `Site(5, 'mlp')`, `'5-resid:my-sae'` → `Site(5, 'resid', 'my-sae')`. Raises Refused for others."""
    found = _SITE.fullmatch(site)
    if not found:
        raise Refused(
            f"{site!r} is no site; sites are written LAYER-KIND with kind mlp, attn or resid, as in 5-mlp, and the "
            "features of an SAE with its name behind, as in 5-resid:my-sae."
        )
    return Site(int(found["layer"]), found["kind"], found["coder"] or "")


def coder_name(name: str) -> str:
    """The name of an SAE, if it can stand in a site; raises Refused otherwise."""
    if not re.fullmatch(_NAME, name):
        raise Refused(f"{name!r} is no name for an SAE; use letters, digits, dots, hyphens and underscores.")
    return name


@dataclass(frozen=True, order=True)
class UnitId:
    """One side of one unit: neuron `index` of `site` in `model`; `sign` −1 looks at its negative activations."""

    model: str
    site: str
    index: int
    sign: int = 1

    def __post_init__(self) -> None:
        parse_site(self.site)
        if self.index < 0 or self.sign not in (1, -1):
            raise Refused(f"unit index {self.index} with sign {self.sign} is out of range; index ≥ 0, sign 1 or -1.")

    @classmethod
    def parse(cls, text: str) -> "UnitId":
        """Reads one unit; raises Refused if it is malformed or a range."""
        units = parse_units(text)
        if len(units) != 1:
            raise Refused(f"{text!r} names {len(units)} units where one is wanted; write {_SHAPE}.")
        return units[0]

    @property
    def layer(self) -> int:
        return parse_site(self.site).layer

    @property
    def kind(self) -> str:
        """What the unit is: mlp (a neuron), attn (a head), resid (a dimension of the stream) or feature."""
        return parse_site(self.site).holds

    @property
    def bare(self) -> str:
        """The name without the sign, as records carry it."""
        return f"{self.model}/{self.site}/{self.index}"

    def __str__(self) -> str:
        return self.bare + ("-" if self.sign < 0 else "")


def parse_units(text: str, model: str | None = None) -> list[UnitId]:
    """Reads one item of a unit list; `a..b` is inclusive, and `model` stands in where the item leaves it out."""
    head, _, index = text.strip().rpartition("/")
    name, _, site = head.rpartition("/")
    found = _INDEX.fullmatch(index)
    if not found or not site or not (name or model):
        raise Refused(f"{text!r} is no unit; write {_SHAPE}.")
    first, last = int(found["first"]), int(found["last"] or found["first"])
    if last < first:
        raise Refused(f"{text!r} counts backwards; write the smaller index first.")
    if last - first >= MOST:
        raise Refused(f"{text!r} names {last - first + 1} units; name at most {MOST} in one range.")
    sign = -1 if found["sign"] else 1
    return [UnitId(name or str(model), site, i, sign) for i in range(first, last + 1)]


def parse_spec(spec: str, model: str | None, pick: Callable[[int], list[UnitId]]) -> list[UnitId]:
    """Reads a comma-separated list of units, ranges and `auto:N`, without repeats, in the order written.

    `pick(n)` returns the n most promising units of the sweep. Raises Refused for an empty or malformed list.
    """
    units: list[UnitId] = []
    items = [part.strip() for part in spec.split(",") if part.strip()]
    for item in items:
        count = re.fullmatch(r"auto:([1-9]\d*)", item)
        if item.startswith("auto") and "/" not in item and not count:
            raise Refused(f"{item!r} is no unit choice; write auto:N with N ≥ 1, as in auto:20.")
        units += pick(int(count[1])) if count else parse_units(item, model)
    if not items:
        raise Refused(f"the unit list {spec!r} is empty; name units as {_SHAPE}, or auto:20.")
    return list(dict.fromkeys(units))
