"""Neuronpedia: explanations as calls of its upload API, and its bulk exports, read.

Out: the payload that its own client sends to /api/feature/upload-batch (neuronpedia 1.2.1 on PyPI,
requests/feature_request.py), one file a call, with the limits of its route. In: the JSON lines of its exports, whose
fields are those of the models Explanation, Activation and Neuron in apps/webapp/prisma/schema.prisma of
github.com/hijohnnylin/neuronpedia.
"""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from . import foreign
from .foreign import Faults, Malformed
from .imported import TEXTS, Claim, Named, Text, explanation, texts
from .records import Record

SOURCE = "neuronpedia"
METHOD = "lamplighter"

# What one call takes.
FEATURES = 128
CHARACTERS = 512
TOKENS = 1024
LOGITS = 20


# Out


Band = tuple[float, float | None, float]     # lowest and highest value, and the share of all tokens in between


@dataclass(frozen=True)
class Shown:
    """A text for upload: tokens and the unit's value at each, and the band it was drawn from, if from one."""

    tokens: Sequence[str]
    values: Sequence[float]
    band: Band | None = None


@dataclass
class Upload:
    """What would be sent: `calls`, and in `notes` what was cut or left out and why, with how often."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    features: int = 0


def uploads(
    rows: Sequence[dict[str, Any]], shown: Callable[[str, int], Sequence[Shown]],
    logits: Callable[[str, int], dict[str, list[dict[str, Any]]]], model_id: str | None, source_set: str | None,
) -> Upload:  # fmt: skip
    """Calls for the explanations `rows` (of the view `explanations`), each of one model and source.

    A source is `LAYER-SET`: SET is the SAE's name, else lamplighter-KIND; a negative side has `-neg` behind it, and its
    values are turned round, so that it fires upwards. model_id, source_set: other names for model and set. `shown`
    gives a unit's texts, `logits` its topLogits and bottomLogits.
    """
    made = Upload()
    placed = sorted(((_source(row, model_id, source_set), row) for row in rows), key=lambda pair: pair[0])
    for (model, source), group in groupby(placed, key=lambda pair: pair[0]):
        found = [_feature(row, shown, logits, made.notes) for _, row in group]
        features = [one for one in found if one is not None]
        made.features += len(features)
        for first in range(0, len(features), FEATURES):
            made.calls.append({"modelId": model, "source": source, "features": features[first : first + FEATURES]})
    return made


def _source(row: dict[str, Any], model_id: str | None, source_set: str | None) -> tuple[str, str]:
    model, site, _ = parts(row["unit"])
    layer, _, kind = site.partition("-")
    kind, _, coder = kind.partition(":")
    name = source_set or coder or f"{METHOD}-{kind}"
    name += "-neg" if row["sign"] == -1 else ""
    return (model_id or model.rstrip("/").rpartition("/")[2]).lower(), f"{layer}-{name}".lower()


def parts(unit: str) -> tuple[str, str, int]:
    """Model, site and index of a unit's bare name."""
    head, _, index = unit.rpartition("/")
    model, _, site = head.rpartition("/")
    return model, site, int(index)


def _feature(
    row: dict[str, Any], shown: Callable[[str, int], Sequence[Shown]],
    logits: Callable[[str, int], dict[str, list[dict[str, Any]]]], notes: Counter[str],
) -> dict[str, Any] | None:  # fmt: skip
    """One feature of a call; None where it has no text, which Neuronpedia does not take."""
    found = [_activation(one, notes) for one in shown(row["unit"], row["sign"])]
    if not found:
        notes["left out: no text with readings"] += 1
        return None
    sentence = row["explanation"]
    if len(sentence) > CHARACTERS:
        notes[f"cut: explanations of more than {CHARACTERS} characters"] += 1
        sentence = sentence[: CHARACTERS - 1] + "…"
    told = logits(row["unit"], row["sign"])
    notes["without logits: no `lens` of the unit is recorded"] += not told
    ends = {side: told.get(side, []) for side in ("topLogits", "bottomLogits")}
    notes[f"cut: lists of more than {LOGITS} logits"] += sum(len(ends[side]) > LOGITS for side in ends)
    planner = row.get("planner") or ""
    model = planner.partition(":")[2].partition("@")[0]
    return {
        "index": parts(row["unit"])[2], "density": None, "activations": found,
        **{side: ends[side][:LOGITS] or None for side in ends},
        "explanations": [{"text": sentence, "methodName": METHOD, "modelName": model.lower() or None}],
    }  # fmt: skip


def _activation(one: Shown, notes: Counter[str]) -> dict[str, Any]:
    first = 0
    if len(one.tokens) > TOKENS:
        notes[f"cut: texts of more than {TOKENS} tokens"] += 1
        at = max(range(len(one.values)), key=one.values.__getitem__)
        first = max(0, min(at - TOKENS // 2, len(one.tokens) - TOKENS))
    cut = slice(first, first + TOKENS)
    low, high, share = one.band or (None, None, None)
    return {
        "tokens": list(one.tokens[cut]), "values": list(one.values[cut]), "quantileMin": low, "quantileMax": high,
        "quantileFraction": share,
    }  # fmt: skip


# In


def read_neuronpedia(path: Path, named: Named, faults: Faults) -> Iterator[Record]:
    """The records of a file of JSON lines (.jsonl, .jsonl.gz), or of all of them in a folder.

    A file holds explanations, activations or features, by the fields of its first line. Of activations the strongest
    of each unit that has an explanation are kept; what a source's features say of their hook goes before its name.
    """
    files = foreign.below(path, ".jsonl", ".jsonl.gz") if path.is_dir() else [path]
    shown = {file: file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files}
    kinds: dict[str, list[Path]] = defaultdict(list)
    hooks: dict[tuple[Any, Any], str] = {}
    for file in files:
        first = next((told for _, told in _objects(file, shown[file], Faults())), None)
        if first is None:                      # an empty file, or one of faults alone, which are noted
            deque(_objects(file, shown[file], faults), maxlen=0)
            continue
        kinds[_kind(first)].append(file)
        if _kind(first) == "feature" and isinstance(first.get("hookName"), str):
            hooks[first["modelId"], first["layer"]] = first["hookName"]
    explained: set[tuple[str | None, int | None]] = set()
    for file in kinds["explanation"]:
        for number, told in _objects(file, shown[file], faults):
            origin = f"{shown[file]}:{number}"
            make = partial(_explanation, told, origin, named, hooks)
            for record in foreign.taken(make, shown[file], number, faults) or ():
                explained.add((record.unit, record.sign))
                yield record
    yield from _activations({file: shown[file] for file in kinds["activation"]}, named, hooks, explained, faults)


def _kind(told: dict[str, Any]) -> str:
    if "description" in told:
        return "explanation"
    if "tokens" in told and "values" in told:
        return "activation"
    return "feature" if {"modelId", "layer", "index"} <= told.keys() else "other"


def _objects(file: Path, shown: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in foreign.lines(file, shown, faults):
        make = partial(_object, line)
        told = foreign.taken(make, shown, number, faults)
        if told is not None:
            yield number, told


def _object(line: bytes) -> dict[str, Any]:
    return foreign.fields(foreign.parsed(line))


def _unit(told: dict[str, Any], named: Named, hooks: dict[tuple[Any, Any], str]) -> tuple[str, int]:
    model, layer = (foreign.text(told.get(name), name, foreign.NAME) for name in ("modelId", "layer"))
    index = foreign.whole(told.get("index"), "index")
    hook, known_as = hooks.get((model, layer)), layer.partition("-")[2] or None
    return named(model, hook or layer, index, known_as)


def _explanation(
    told: dict[str, Any], origin: str, named: Named, hooks: dict[tuple[Any, Any], str]
) -> list[Record]:
    unit, sign = _unit(told, named, hooks)
    sentence = foreign.text(told.get("description"), "description")
    author = foreign.name(told.get("explanationModelName"), "explanationModelName")
    claims = [_claim(foreign.fields(one)) for one in foreign.items(told.get("scores") or [], "scores")]
    return explanation(
        SOURCE, unit, sign, sentence, author=author, origin=origin, claims=claims,
        method=foreign.name(told.get("typeName"), "typeName"),
    )  # fmt: skip


def _claim(score: dict[str, Any]) -> Claim:
    scorer = foreign.text(score.get("explanationScoreTypeName"), "explanationScoreTypeName", foreign.NAME)
    judge = foreign.name(score.get("explanationScoreModelName"), "explanationScoreModelName")
    return Claim(scorer, "value", foreign.number(score.get("value")), judge=judge)


def _activations(
    files: dict[Path, str], named: Named, hooks: dict[tuple[Any, Any], str],
    explained: set[tuple[str | None, int | None]], faults: Faults,
) -> Iterator[Record]:  # fmt: skip
    strongest: dict[tuple[str, int], list[tuple[float, int, Text]]] = defaultdict(list)
    count = 0
    for file, shown in files.items():
        for number, told in _objects(file, shown, faults):
            unit = foreign.taken(partial(_unit, told, named, hooks), shown, number, faults)
            if unit is None or unit not in explained:
                continue
            text = foreign.taken(partial(_text, told), shown, number, faults)
            if text is not None:
                count += 1
                kept, one = strongest[unit], (max(text.values), count, text)
                (heapq.heappush if len(kept) < TEXTS else heapq.heappushpop)(kept, one)
    origin = ", ".join(sorted({Path(shown).parent.as_posix() for shown in files.values()}))
    for (bare, sign), kept in strongest.items():
        found = [text for _, _, text in sorted(kept, key=lambda one: one[:2])]
        yield from texts(SOURCE, bare, sign, found, origin)


def _text(told: dict[str, Any]) -> Text:
    tokens, values = foreign.tokens(told.get("tokens"), "tokens"), foreign.numbers(told.get("values"), "values")
    if len(tokens) != len(values) or not values:
        raise Malformed(f"it has {len(values)} values for {len(tokens)} tokens")
    return Text(values, tokens=tokens).cut()
