"""delphi's folder of a run, written and read.

    run_config.json                        the model, the sparse model, the places ("hookpoints")
    explanations/PLACE_latentN.txt         the explanation as a JSON string
    scores/SCORER/PLACE_latentN.txt        what the scorer was shown, and what its model said
    latents/PLACE/config.json              the model, and the text that was read
    latents/PLACE/FIRST_LAST.safetensors   tokens [rows, context]; locations [n, 3] of (row, position, latent − FIRST);
                                           activations [n]: what stands nowhere is 0

Shapes: delphi/__main__.py, latents/cache.py, latents/loader.py, scorers/classifier/sample.py and
scorers/simulator/simulation/types.py of github.com/EleutherAI/delphi and of eai-delphi 0.1.3 on PyPI.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .. import __version__
from . import foreign
from .exchange_neuronpedia import parts
from .foreign import Faults, Malformed
from .imported import TEXTS, Claim, Named, Text, explanation, texts
from .records import Record

SOURCE = "delphi"
FAILED = "Explanation could not be parsed."      # what it stores where its model gave none
NEAR_ZERO = 1e-5                                 # below this it stores no activation
OURS = "lamplighter.jsonl"                       # beside its files: what they have no place for

Array = np.ndarray[Any, np.dtype[Any]]

_NAME = re.compile(r"(?P<place>.+)_latent(?P<index>[0-9]{1,8})\.txt")
_PART = re.compile(r"(?P<first>[0-9]{1,8})_[0-9]{1,8}\.safetensors")


# Out


@dataclass(frozen=True)
class Readings:
    """Texts of a place, and what units of it read there.

    windows: ids, the sink first; values: for one portion of the windows after the other, activations [windows, tokens,
    units] with NaN where a window is shorter; least [units]: what is read below it is not stored; width: units at the
    place; pad: fills up shorter windows.
    """

    windows: Sequence[Sequence[int]]
    values: Iterable[Array]
    least: Array
    width: int
    pad: int


def write_delphi(
    folder: Path, rows: Sequence[Mapping[str, Any]], model: str, negative: str,
    readings: Callable[[Sequence[tuple[str, int]]], Readings] | None,
) -> dict[str, Any]:  # fmt: skip
    """Fills an empty folder with the explanations `rows` (of the view `explanations`), all of one model.

    A place is our site, a negative side has `negative` behind it. What delphi has no place for (rules, scores with
    their intervals, verdicts) is in lamplighter.jsonl; its own scores list what each text was answered, which is not
    kept here. Without `readings` there are no latents. Returns {explanations, places, windows}.
    """
    places = by_place(rows, negative)
    _json(folder / "run_config.json", {
        "model": model, "sparse_model": "", "hookpoints": sorted(places), "scorers": [],
        "explainer_model": ", ".join(sorted({str(row["planner"]) for row in rows})),
        "name": f"lamplighter {__version__}",
    })  # fmt: skip
    (folder / "explanations").mkdir()
    (folder / OURS).write_text("".join(f"{json.dumps(dict(row), ensure_ascii=False)}\n" for row in rows), "utf-8")
    windows = 0
    for place, found in sorted(places.items()):
        for row in found:
            _json(folder / "explanations" / f"{place}_latent{parts(row['unit'])[2]}.txt", row["explanation"])
        if readings is not None:
            windows += _latents(folder / "latents" / place, found, model, readings)
    return {"explanations": len(rows), "places": sorted(places), "windows": windows}


def by_place(rows: Sequence[Mapping[str, Any]], negative: str) -> dict[str, list[Mapping[str, Any]]]:
    """Explanations by the places that they are of."""
    places: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        places[parts(row["unit"])[1] + (negative if row["sign"] == -1 else "")].append(row)
    return dict(places)


def _latents(
    folder: Path, rows: Sequence[Mapping[str, Any]], model: str,
    readings: Callable[[Sequence[tuple[str, int]]], Readings],
) -> int:  # fmt: skip
    """Writes what the units of one place read on the windows of all of them; how many windows."""
    units = [(str(row["unit"]), int(row["sign"])) for row in rows]
    index = np.array([parts(unit)[2] for unit, _ in units])
    read = readings(units)
    context = max(map(len, read.windows))
    tokens = np.full((len(read.windows), context), read.pad, dtype=np.int64)
    for line, ids in enumerate(read.windows):
        tokens[line, : len(ids)] = ids
    locations, activations, first = [], [], 0
    for portion in read.values:
        at = np.argwhere(np.nan_to_num(portion, nan=-np.inf) >= np.maximum(read.least, NEAR_ZERO))
        activations.append(portion[tuple(at.T)].astype(np.float32))
        locations.append(np.stack([at[:, 0] + first, at[:, 1], index[at[:, 2]]], axis=1))
        first += len(portion)
    folder.mkdir(parents=True)
    where = np.concatenate(locations)
    kind = np.uint16 if max(read.width, len(tokens)) <= 2**16 else np.uint32
    save_file(
        {"locations": np.ascontiguousarray(where.astype(kind)), "activations": np.concatenate(activations),
         "tokens": tokens},
        folder / f"0_{read.width - 1}.safetensors",
    )  # fmt: skip
    _json(folder / "config.json", {
        "model_name": model, "dataset_repo": "", "dataset_split": "", "dataset_name": "", "dataset_column": "text",
        "batch_size": 1, "ctx_len": context, "cache_ctx_len": context, "n_tokens": int(tokens.size), "n_splits": 1,
        "least": dict(zip(map(str, index.tolist()), read.least.tolist(), strict=True)),
    })  # fmt: skip
    return len(tokens)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), "utf-8")


# In


def read_delphi(path: Path, named: Named, faults: Faults) -> Iterator[Record]:
    """The records of a run's folder. Raises Refused for more files than any run has."""
    told = foreign.taken(lambda: _config(path), "run_config.json", None, faults) or {}
    config = {key: told.get(key) for key in ("model", "sparse_model", "explainer_model")}
    model, author = (foreign.taken(lambda k=key: foreign.name(config[k], k), "run_config.json", None, faults)  # type: ignore[misc]
                     for key in ("model", "explainer_model"))  # fmt: skip
    sparse = str(config["sparse_model"] or "").rstrip("/").rpartition("/")[2] or None
    scorers = _folders(path / "scores")
    wanted: dict[str, dict[int, tuple[str, int]]] = defaultdict(dict)
    root = path / "explanations"
    for file in foreign.below(root, ".txt"):
        shown = file.relative_to(path).as_posix()
        name = file.relative_to(root).as_posix()

        def make(file: Path = file, name: str = name, shown: str = shown) -> tuple[str, int, str, int, list[Record]]:
            place, index = _placed(name)
            sentence = foreign.text(foreign.json_file(file), "the explanation")
            if sentence.strip() == FAILED:
                raise Malformed("it is no explanation: delphi says that it got none")
            unit, sign = named(model, place, index, sparse)
            claims = _claims(scorers, name, path, author, faults)
            return place, index, unit, sign, explanation(
                SOURCE, unit, sign, sentence, author=author, origin=shown, claims=claims
            )  # fmt: skip

        found = foreign.taken(make, shown, None, faults)
        if found is not None:
            place, index, unit, sign, records = found
            wanted[place][index] = (unit, sign)
            yield from records
    for place, units in wanted.items():
        yield from _texts(path, place, units, faults)


def _config(path: Path) -> dict[str, Any]:
    file = path / "run_config.json"
    return foreign.fields(foreign.json_file(file)) if foreign.regular(file) else {}


def _folders(path: Path) -> list[Path]:
    if not path.is_dir() or path.is_symlink():
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.is_symlink())


def _placed(name: str) -> tuple[str, int]:
    """Place and index of the latent that a file is about."""
    found = _NAME.fullmatch(name)
    if not found or ".." in name.split("/"):
        raise Malformed("its name is not PLACE_latentN.txt")
    return found["place"], int(found["index"])


# Scores


def _claims(scorers: Sequence[Path], name: str, path: Path, judge: str | None, faults: Faults) -> list[Claim]:
    """What each scorer's file of the same latent comes to, as delphi itself sums it up."""
    found = []
    for folder in scorers:
        file = folder / name.replace("/", "--")
        if foreign.regular(file):
            shown = file.relative_to(path).as_posix()
            claim = foreign.taken(lambda f=file: _claim(f, judge), shown, None, faults)  # type: ignore[misc]
            found += [] if claim is None else [claim]
    return found


def _claim(file: Path, judge: str | None) -> Claim:
    scorer = foreign.text(file.parent.name, "the scorer", foreign.NAME)
    shown = [foreign.fields(one) for one in foreign.items(foreign.json_file(file), "the score")]
    if shown and all("activating" in one and "prediction" in one for one in shown):
        return _classified(scorer, shown, judge)
    whole = [one for one in shown if one.get("distance") == -1 and "ev_correlation_score" in one]
    if whole:
        sequences = foreign.items(whole[0].get("scored_sequence_simulations"), "scored_sequence_simulations")
        value = foreign.number(whole[0]["ev_correlation_score"])
        return Claim(scorer, "ev_correlation_score", value, len(sequences), judge)
    raise Malformed("it holds no score of a kind that is known here: detection, fuzz or simulation")


def _classified(scorer: str, shown: Sequence[Mapping[str, Any]], judge: str | None) -> Claim:
    """Class-balanced accuracy, and F1 beside it, of the texts that were answered; the others are counted."""
    said = [(bool(one["activating"]), bool(one["prediction"])) for one in shown if one["prediction"] is not None]
    hits, false = said.count((True, True)), said.count((False, True))
    fire, silent = sum(true for true, _ in said), sum(not true for true, _ in said)
    accuracy = (hits / fire + 1 - false / silent) / 2 if fire and silent else None
    details = {
        "f1": 2 * hits / (hits + false + fire) if hits + false + fire else None, "unanswered": len(shown) - len(said),
        "firing": fire, "silent": silent,
    }  # fmt: skip
    return Claim(scorer, "balanced_accuracy", accuracy, len(said), judge, details)


# Latents


def _texts(path: Path, place: str, units: Mapping[int, tuple[str, int]], faults: Faults) -> Iterator[Record]:
    """The strongest texts of each latent that has an explanation."""
    inside = path / "latents" / place
    for file in foreign.below(path / "latents", ".safetensors"):
        if file.parent != inside:
            continue
        shown = file.relative_to(path).as_posix()
        for index, found in foreign.taken(lambda f=file: _strongest(f, units), shown, None, faults) or ():  # type: ignore[misc]
            unit, sign = units[index]
            yield from texts(SOURCE, unit, sign, found, shown)


def _strongest(file: Path, units: Mapping[int, Any]) -> list[tuple[int, list[Text]]]:
    named = _PART.fullmatch(file.name)
    if not named:
        raise Malformed("its name is not FIRST_LAST.safetensors")
    where, values, tokens = _tensors(file)
    latent = where[:, 2] + int(named["first"])
    kept = np.isin(latent, list(units))
    if not kept.any():
        return []
    where, values, latent = where[kept], values[kept], latent[kept]
    order = np.argsort(latent, kind="stable")
    chosen, starts = np.unique(latent[order], return_index=True)
    return [
        (int(index), _rows(where[inside], values[inside], tokens))
        for index, inside in zip(chosen, np.split(order, starts[1:]), strict=True)
    ]


def _rows(where: Array, values: Array, tokens: Array) -> list[Text]:
    """The windows with the largest values of one latent."""
    best: dict[int, float] = {}
    for row, value in zip(where[:, 0].tolist(), values.tolist(), strict=True):
        best[row] = max(value, best.get(row, value))
    found = []
    for row in sorted(best, key=lambda one: (-best[one], one))[:TEXTS]:
        dense, inside = np.zeros(tokens.shape[1]), where[:, 0] == row
        dense[where[inside, 1]] = values[inside]
        found.append(Text(dense.tolist(), ids=tokens[row].tolist()))
    return found


def _tensors(file: Path) -> tuple[Array, Array, Array]:
    """locations [n, 3], activations [n] and tokens [rows, context] of one file. Raises Malformed."""
    if file.stat().st_size > foreign.TENSORS:
        raise Malformed(f"it has more than {foreign.TENSORS:,} bytes")
    try:
        with safe_open(file, framework="np") as held:
            lacks = {"locations", "activations", "tokens"} - set(held.keys())
            if lacks:
                raise Malformed(f"it lacks {min(lacks)}")
            where, values, tokens = (held.get_tensor(name) for name in ("locations", "activations", "tokens"))
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"it cannot be read ({str(error)[:100]})") from error
    return _checked(where, values, tokens)


def _checked(where: Array, values: Array, tokens: Array) -> tuple[Array, Array, Array]:
    if where.ndim != 2 or where.shape[1] != 3 or values.shape != where.shape[:1] or tokens.ndim != 2:
        raise Malformed(f"its shapes {where.shape}, {values.shape} and {tokens.shape} do not fit together")
    if where.dtype.kind not in "iu" or tokens.dtype.kind not in "iu" or values.dtype.kind != "f":
        raise Malformed("its tensors are of other kinds than delphi's")
    where, tokens = where.astype(np.int64), tokens.astype(np.int64)
    if len(where) and (where.min() < 0 or (where[:, :2].max(axis=0) >= tokens.shape).any()):
        raise Malformed("a location lies outside of its tokens")
    if not np.isfinite(values).all() or (tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**31):
        raise Malformed("it holds numbers that are no activations or no tokens")
    return where, values.astype(np.float64), tokens
