"""OpenAI's neuron-explainer: its explanations and activation records, read.

Shapes: `NeuronSimulationResults` (one JSON object a file, explanations/LAYER/NEURON.jsonl) and `NeuronRecord`
(collated-activations/LAYER/NEURON.json) of github.com/openai/automated-interpretability, in
neuron_explainer/explanations/explanations.py and activations/activations.py.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import foreign
from .foreign import Faults, Malformed
from .imported import Claim, Named, Text, explanation, texts
from .records import Record

SOURCE = "openai"
METRIC = "ev_correlation_score"      # the score that it prefers: Pearson's correlation over all texts
BESIDE = ("rsquared_score", "absolute_dev_explained_score")
SPLITS = ("most_positive_activation_records", "random_sample")


def read_openai(path: Path, named: Named, faults: Faults) -> Iterator[Record]:
    """The records of a file, or of all files .json and .jsonl in a folder. No file says which model it is about."""
    files = foreign.below(path, ".json", ".jsonl") if path.is_dir() else [path]
    for file in files:
        shown = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if file.suffix == ".json":
            yield from foreign.taken(partial(_file, file, shown, named), shown, None, faults) or ()
        else:
            for number, line in foreign.lines(file, shown, faults):
                make = partial(_line, line, f"{shown}:{number}", named)
                yield from foreign.taken(make, shown, number, faults) or ()


def _file(file: Path, origin: str, named: Named) -> list[Record]:
    return _read(foreign.json_file(file), origin, named)


def _line(line: bytes, origin: str, named: Named) -> list[Record]:
    return _read(foreign.parsed(line), origin, named)


def _read(value: Any, origin: str, named: Named) -> list[Record]:
    told = foreign.fields(value)
    where = foreign.fields(told.get("neuron_id"))
    layer, index = (foreign.whole(where.get(part), part) for part in ("layer_index", "neuron_index"))
    unit, sign = named(None, str(layer), index, None)
    if "scored_explanations" in told:
        return _explanations(foreign.items(told["scored_explanations"], "scored_explanations"), unit, sign, origin)
    if any(split in told for split in SPLITS):
        shown = [one for split in SPLITS for one in foreign.items(told.get(split) or [], split)]
        return texts(SOURCE, unit, sign, [_text(one, "activations") for one in shown], origin)
    raise Malformed("it holds neither scored explanations nor activation records")


def _explanations(found: list[Any], unit: str, sign: int, origin: str) -> list[Record]:
    records: list[Record] = []
    shown: list[Text] = []
    for one in map(foreign.fields, found):
        sentence = foreign.text(one.get("explanation"), "explanation")
        scored = foreign.fields(one.get("scored_simulation"))
        sequences = foreign.items(scored.get("scored_sequence_simulations") or [], "scored_sequence_simulations")
        claim = Claim(
            "simulation", METRIC, foreign.number(scored.get(METRIC)), len(sequences),
            details={name: foreign.number(scored.get(name)) for name in BESIDE},
        )  # fmt: skip
        records += explanation(SOURCE, unit, sign, sentence, author=None, origin=origin, claims=[claim])
        for sequence in map(foreign.fields, sequences):
            told = foreign.fields(sequence.get("simulation")) | {"activations": sequence.get("true_activations")}
            shown.append(_text(told, "true_activations"))
    return records + texts(SOURCE, unit, sign, shown, origin)


def _text(value: Any, what: str) -> Text:
    told = foreign.fields(value)
    read = foreign.tokens(told.get("tokens"), "tokens")
    values = foreign.numbers(told.get("activations"), what)
    if len(values) != len(read) or not values:
        raise Malformed(f"{what} has {len(values)} values for {len(read)} tokens")
    return Text(values, tokens=read)
