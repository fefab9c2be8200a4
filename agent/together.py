"""Explained units put back together: the rules of several stand for their units in one running model."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from ..store.records import Evidence, Hypothesis, Refused, Score
from ..tools.corpus import load_corpus
from ..tools.rebuild import fit_scales, rebuild
from ..tools.rules import Rule
from ..tools.sweep import Sweep, find_shared_sweep, make_sweep
from ..tools.toolbox import Toolbox
from ..tools.units import UnitId, parse_spec
from .config import Home


def rebuild_together(
    home: Home, spec: str, second: str | None, device: str | None, dtype: str | None,
    sweeping: Callable[[str, int, int], None],
) -> list[Score]:  # fmt: skip
    """Scores `rebuild` of the units of `spec` all at a time, by the rule that was submitted last for each.

    On the sweep that has them all, and with `second` on that corpus too, which is swept if it was not. What is recorded
    of the same explanations on the same sweep is given again; since these are fixed, another look at the score side
    could not better them. The scores are to be recorded under the first unit, with a name of the set in place of a
    hypothesis; details["units"] lists it. Raises Refused for a unit without a rule, units of several models or swept
    apart, and as `rebuild` does.
    """
    units = parse_spec(spec, None, _name_them)
    if len({unit.model for unit in units}) > 1:
        raise Refused(f"{spec!r} names units of several models; name those of one.")
    known = {unit: _submitted(home, unit) for unit in units}
    rules = {unit: Rule.from_json(kept.rule) for unit, kept in known.items()}
    ids = [kept.id for kept in known.values()]
    name = "set-" + hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:24]
    toolbox = home.toolbox(units[0].model, device, dtype)
    sweep = _shared_sweep(home, toolbox, units)
    wanted = [("", sweep)]
    if second is not None:
        text = load_corpus(second)
        wanted.append(("_second_corpus", make_sweep(toolbox.subject, text, sweep.sites, home.path, None, sweeping)))
    recorded: dict[str | None, list[Score]] = {}
    for score in home.findings.read(Score, hypothesis=name):
        recorded.setdefault(score.provenance.get("sweep"), []).append(score)
    if all(one.digest in recorded for _, one in wanted):
        return [score for _, one in wanted for score in recorded[one.digest]]
    evidence = [e for kept in known.values() for e in home.findings.read(Evidence, investigation=kept.investigation)]
    scales = fit_scales(toolbox.subject, sweep, rules)
    found: list[Score] = []
    for behind, one in wanted:
        found += recorded.get(one.digest) or [
            replace(score, metric=f"{score.metric}{behind}")
            for score in rebuild(
                toolbox.subject, one, rules, scales, hypothesis=name, evidence=evidence, claim=lambda _: True
            )
        ]
    return found


def _name_them(count: int) -> list[UnitId]:
    raise Refused("auto:N picks units to explain; name the explained ones that are to be rebuilt.")


def _submitted(home: Home, unit: UnitId) -> Hypothesis:
    """The explanation of when `unit` fires that was submitted last; raises Refused where it has no rule."""
    found = home.findings.read(Hypothesis, unit=unit.bare, sign=unit.sign, side="input", kept=True)
    if not found or found[-1].rule is None:
        raise Refused(
            f"{unit} has no explanation with a rule in {home.path}; `lamplighter show {unit}` says what is known of it."
        )
    return found[-1]


def _shared_sweep(home: Home, toolbox: Toolbox, units: list[UnitId]) -> Sweep:
    """The largest sweep of the home that has the units' sites together."""
    digests = {unit.site: toolbox.subject.site_digest(unit.site) for unit in units}
    found = find_shared_sweep(home.path, digests)
    if found is None:
        sites = ",".join(sorted(digests))
        raise Refused(f"the units were swept apart; run `lamplighter sweep --model {units[0].model} --sites {sites}`.")
    return found
