"""The answer key put to the playbook: are minimal examples as small as can be, and are the planted rules found?

Expected (at full size 210 units of 20 families in 7 models, GPT-2 and Llama in turn, with weights set by hand, and one
in each of 2 Llamas that were trained): minimal sets of the oracle's size in at least 99 % of exemplars of 12 tokens or
fewer; the rule recovered for at least 95 % of the units. The oracle tries every smaller set. Recovered: balanced
accuracy of at least .99 on fresh text that breaks one condition at a time.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..agent.config import MASKED_LM
from ..tools.corpus import load_corpus
from ..tools.frames import filler_pool, make_frame, read_means
from ..tools.masked import MaskedLM
from ..tools.measures import FIRES, KEEP
from ..tools.prune import minimal_example
from ..tools.reader import Reader
from ..tools.subject import Subject
from ..tools.sweep import Sweep, make_sweep
from ..tools.units import UnitId
from . import trained
from .by_planner import playbook_rule
from .plant import SITE, PlantedUnit
from .planted import RECOVERED, AnswerKey, make_key
from .report import Part, Progress, at_least
from .trained import trained_key

MODELS, UNITS, TOKENS = 7, 30, 150_000
TRAINED = 2            # trained models, of one unit each
SHORT, EXEMPLARS = 12, 3                 # tokens of a text that the oracle is asked about; texts a unit


@dataclass
class _Family:
    """Counts of one family: units, rules recovered, the sum of their balanced accuracies, exemplars, minimal ones."""

    units: int = 0
    recovered: int = 0
    accuracy: list[float] = field(default_factory=list)
    exemplars: int = 0
    smallest: int = 0


def planted(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Every unit of every model; the table has a row a family."""
    families: dict[str, _Family] = {}
    masked = MaskedLM.load(MASKED_LM)
    models = itertools.chain(planted_models(folder, seed, size), trained_models(folder, seed, size, progress))
    for key, sweep in models:
        for done, unit in enumerate(key.units):
            progress(f"{key.shape} {key.seed}", done, len(key.units))
            _put(families.setdefault(unit.family, _Family()), key, sweep, masked, unit)
    rows = [
        {
            "family": name, "units": f.units, "recovered": f.recovered,
            "mean balanced accuracy": float(np.mean(f.accuracy)), "short exemplars": f.exemplars,
            "of the oracle's size": f.smallest,
        }
        for name, f in sorted(families.items(), key=lambda item: np.mean(item[1].accuracy))
    ]  # fmt: skip
    units, recovered, exemplars, smallest = (
        sum(getattr(f, name) for f in families.values()) for name in ("units", "recovered", "exemplars", "smallest")
    )
    claims = [
        at_least("minimal sets of the oracle's size", _share(smallest, exemplars), 0.99, exemplars),
        at_least("rules recovered by the playbook", _share(recovered, units), 0.95, units),
    ]
    return {"families": rows}, claims


def planted_models(folder: Path, seed: int, size: float) -> Iterator[tuple[AnswerKey, Sweep]]:
    """The models that planted units are taken from, GPT-2 and Llama in turn, each with a sweep of its corpus."""
    for number in range(max(1, round(size * MODELS))):
        shape = ("gpt2", "llama")[number % 2]
        yield _swept(make_key(seed * MODELS + number, shape, UNITS), SITE, folder)


def trained_models(folder: Path, seed: int, size: float, progress: Progress) -> Iterator[tuple[AnswerKey, Sweep]]:
    """Models that learned their unit's rule, each with a sweep of its corpus; they are trained anew each time."""
    for number in range(max(1, round(size * TRAINED))):
        own = seed * TRAINED + number
        key = trained_key(own, tell=lambda step, steps: progress(f"training {own}", step, steps))  # noqa: B023
        yield _swept(key, trained.SITE, folder)


def _swept(key: AnswerKey, site: str, folder: Path) -> tuple[AnswerKey, Sweep]:
    corpus = load_corpus(str(key.write(folder / f"planted-{key.shape}-{key.seed}", tokens=TOKENS).parent))
    return key, make_sweep(key.subject, corpus, [site], folder)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _put(family: _Family, key: AnswerKey, sweep: Sweep, masked: MaskedLM, unit: PlantedUnit) -> None:
    rule = playbook_rule(key.subject, sweep, masked, unit.id)
    accuracy = key.recovered(rule, unit)
    family.units += 1
    family.accuracy.append(accuracy)
    family.recovered += accuracy >= RECOVERED
    for ids in _short(key.subject, sweep, unit.id):
        family.exemplars += 1
        family.smallest += is_smallest(key.subject, unit.id, ids)


def _short(subject: Subject, sweep: Sweep, unit: UnitId) -> list[list[int]]:
    """Best texts of explain cut to the sink and their last SHORT tokens, those on which the unit still fires."""
    known = sweep.statistics(unit)
    if known.peak <= 0:
        return []
    places = (sweep.window(e.place) for e in sweep.exemplars(unit, "explain", "top"))
    cut = [[ids[0], *ids[1 : position + 1][-SHORT:]] for ids, position in places]
    values = Reader(subject, [unit.site])(cut, unit).tolist() if cut else []
    return [ids for ids, y in zip(cut, values, strict=True) if y >= FIRES * known.peak][:EXEMPLARS]


def is_smallest(subject: Subject, unit: UnitId, ids: Sequence[int]) -> bool:
    """Whether the minimal example keeps half of the reading and no set of fewer tokens does: each is tried."""
    row = minimal_example(subject, unit, ids=ids).rows[0]
    frame = make_frame(row["ids"], "resample", filler_pool(subject), 0)
    last, free = len(frame.ids) - 1, range(1, len(frame.ids) - 1)
    smaller = (s for n in range(len(row["kept"]) - 1) for s in itertools.combinations(free, n))
    groups = [frame.rows(row["kept"]), *(frame.rows({*some, last}) for some in smaller)]
    kept, *values = read_means(Reader(subject, [unit.site]), unit, groups)
    return kept >= KEEP * row["peak"] and all(value < KEEP * row["peak"] for value in values)


__all__ = ["is_smallest", "planted", "planted_models", "trained_models"]
