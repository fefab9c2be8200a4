"""Export and import of a home: what the formats of `store/` need of the model, and where imported units are here."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store import exchange, foreign, imported
from ..store.exchange import Wanted
from ..store.exchange_neuronpedia import Band, Shown, parts, read_neuronpedia, uploads
from ..store.exchange_openai import read_openai
from ..store.findings import drain
from ..store.foreign import Faults
from ..store.records import Evidence, Hypothesis, Record, Refused, Score
from ..tools import measures
from ..tools.hooks import NEGATIVE, site_of
from ..tools.units import UnitId, parse_site
from .config import Home

if TYPE_CHECKING:
    import numpy as np

    from ..store.exchange_delphi import Readings
    from ..tools.toolbox import Toolbox

EXPORTS = ("neuronpedia", "delphi", "parquet", "jsonl")
IMPORTS = ("delphi", "neuronpedia", "openai")
BANDS = {"top": 10, "high": 10, "mid": 10, "random": 20}     # texts of each band that are read for an export
SHOWN = ("top", "high", "mid")                               # … and that a page shows
PORTION = 64             # windows read at a time
BATCH = 1_000            # records posted at a time
_COUNTED = {Hypothesis.TABLE: "explanations", Score.TABLE: "claimed_scores", Evidence.TABLE: "units_with_texts"}


# Export


def export(
    home: Home, form: str, place: Path | None, wanted: Wanted, *, no_text: bool = False, dry: bool = False,
    licence: str = "unknown", model_id: str | None = None, source_set: str | None = None, device: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes what a home holds to a new folder (by default in the home); {format, folder, …} says what is in it.

    dry: says the same and writes nothing. Raises Refused where there is nothing to write or no way to.
    """
    _check(home, form, wanted, no_text, licence)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    target = (place or home.path / "exports" / f"{form}-{stamp}").absolute()
    told: dict[str, Any] = {"format": form, "folder": None if dry else str(target), "text": not no_text}
    make = {"neuronpedia": _neuronpedia, "delphi": _delphi}.get(form)
    if make is None:
        records = partial(exchange.write_records, home.findings, wanted)
        write = partial(records, form=form, licence=licence, no_text=no_text)
    else:
        rows, notes = _explained(home, form, wanted, no_text)
        reads = _Reads(home, device, dtype)
        write = partial(make, home, rows, notes, reads, no_text, (model_id, source_set))
    if dry:
        return told | write(None)
    with exchange.new_folder(target) as folder:
        return told | write(folder)


def _check(home: Home, form: str, wanted: Wanted, no_text: bool, licence: str) -> None:
    if form not in EXPORTS:
        raise Refused(f"{form!r} is no format to export; choose one of {', '.join(EXPORTS)}.")
    if wanted.site is not None:
        parse_site(wanted.site)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", licence):
        raise Refused(f"{licence!r} is no name of a licence; write one such as apache-2.0 or cc-by-4.0.")
    if form == "neuronpedia" and no_text:
        raise Refused("Neuronpedia takes no unit without a text; leave --no-text out, or choose another format.")
    home.findings.sql("SELECT 1")      # raises where nothing is recorded


def _explained(
    home: Home, form: str, wanted: Wanted, no_text: bool
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The explanations that are meant, and how many were left out and why.

    Neuronpedia has no place for a verdict: without a filter only what was accepted goes there.
    """
    notes: dict[str, int] = {}
    rows = exchange.explained(home.findings, wanted)
    if form == "neuronpedia" and wanted.verdict is None:
        accepted = [row for row in rows if row["verdict"] == "accepted"]
        notes["left out: not accepted (--verdict chooses others)"] = len(rows) - len(accepted)
        rows = accepted
    if no_text:
        silent = exchange.Silent(home.findings)
        rows = silent.explanations(rows)
        notes["left out: the sentence quotes a text"] = silent.dropped["explanations.explanation"]
    if not rows:
        why = "; ".join(f"{n} {what}" for what, n in notes.items() if n)
        raise Refused(f"no explanation is to be exported{f' ({why})' if why else ''}; choose other filters.")
    return rows, notes


def _neuronpedia(
    home: Home, rows: Sequence[dict[str, Any]], notes: dict[str, int], reads: "_Reads", no_text: bool,
    names: tuple[str | None, str | None], folder: Path | None,
) -> dict[str, Any]:  # fmt: skip
    made = uploads(rows, reads.shown, _logits(home), *names)
    if not made.calls:
        raise Refused(next(iter(reads.lacks), "none of the units has a text to go with it; sweep more of their sites."))
    files = [f"{number:04}.json" for number in range(1, len(made.calls) + 1)]
    for name, call in zip(files, made.calls, strict=True) if folder is not None else ():
        assert folder is not None
        (folder / name).write_text(json.dumps(call, ensure_ascii=False, allow_nan=False), "utf-8")
    calls = [
        {"file": name, "modelId": call["modelId"], "source": call["source"], "features": len(call["features"])}
        for name, call in zip(files, made.calls, strict=True)
    ]
    lacks = {"not carried: scores, rules, intervals, densities and verdicts have no place in it": made.features}
    missing = {f"no readings: {why}": count for why, count in reads.lacks.items()}
    return {"explanations": made.features, "calls": calls, "notes": _said(notes | made.notes | missing | lacks)}


def _delphi(
    home: Home, rows: Sequence[dict[str, Any]], notes: dict[str, int], reads: "_Reads", no_text: bool,
    names: tuple[str | None, str | None], folder: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from ..store.exchange_delphi import by_place, write_delphi

    models = sorted({parts(row["unit"])[0] for row in rows})
    if len(models) > 1:
        raise Refused(f"delphi's folder is of one model, and there are {', '.join(models)}; choose one with --model.")
    if folder is None:
        return {"explanations": len(rows), "places": sorted(by_place(rows, NEGATIVE)), "notes": _said(notes)}
    made = write_delphi(folder, rows, models[0], NEGATIVE, None if no_text else reads.readings)
    return made | {"notes": _said(notes)}


def _said(notes: dict[str, int]) -> list[dict[str, Any]]:
    return [{"what": what, "count": count} for what, count in notes.items() if count]


def _logits(home: Home) -> Callable[[str, int], dict[str, list[dict[str, Any]]]]:
    """The tokens that the newest recorded `lens` of a unit found raised and lowered."""
    sql = "SELECT unit, sign, rows FROM evidence WHERE tool = 'lens' AND ok ORDER BY created_at, id"
    newest = {(row["unit"], row["sign"]): row["rows"] for row in home.findings.sql(sql, unpack=True)}

    def of(unit: str, sign: int) -> dict[str, list[dict[str, Any]]]:
        sides: dict[str, list[dict[str, Any]]] = {"topLogits": [], "bottomLogits": []}
        for row in newest.get((unit, sign), []):
            sides[f"{row['side']}Logits"].append({"token": row["token"], "value": row["score"]})
        return sides if (unit, sign) in newest else {}

    return of


class _Reads:
    """What units read on the texts that their home's sweeps kept of the explain side; models are loaded once.

    `lacks` counts why units could not be read.
    """

    def __init__(self, home: Home, device: str | None, dtype: str | None) -> None:
        self._home, self._how = home, (device, dtype)
        self._boxes: dict[str, Toolbox] = {}
        self.lacks: Counter[str] = Counter()

    def _box(self, model: str) -> "Toolbox":
        if model not in self._boxes:
            self._boxes[model] = self._home.toolbox(model, *self._how)
        return self._boxes[model]

    def shown(self, bare: str, sign: int) -> list[Shown]:
        """A unit's own texts with its reading at each token, the sink left out; none where it cannot be read."""
        unit = _unit(bare, sign)
        try:
            box = self._box(unit.model)
            sweep, subject = box.sweep(unit), box.subject
        except Refused as refusal:
            self.lacks[str(refusal)] += 1
            return []
        known = sweep.statistics(unit)
        windows = self._windows(box, [unit], SHOWN)
        if not windows:
            return []
        values = sign * subject.activations([ids for ids, _ in windows], [unit])[:, :, 0]
        return [
            Shown(subject.pieces(ids[1:]), row[1 : len(ids)].tolist(), _band(band, known.peak, known.strata["explain"]))
            for (ids, band), row in zip(windows, values, strict=True)
        ]

    def readings(self, units: Sequence[tuple[str, int]]) -> "Readings":
        """What units of one place read on the windows of all of them."""
        import torch

        from ..store.exchange_delphi import Readings

        named = [_unit(*one) for one in units]
        box = self._box(named[0].model)
        rows = [ids for ids, _ in self._windows(box, named, tuple(BANDS))]
        if not rows:
            raise Refused(f"the sweep kept no text of {named[0]}; sweep more of it, or export without text.")
        sign = torch.tensor([unit.sign for unit in named])

        def read() -> Iterator["np.ndarray[Any, Any]"]:
            for first in range(0, len(rows), PORTION):
                values = sign * box.subject.activations(rows[first : first + PORTION], named)
                values[:, 0] = torch.nan            # the sink is no text
                yield values.numpy()

        sweep = box.sweep(named[0])
        share = 0.0 if named[0].kind == "feature" else measures.STRATA[-1]    # a neuron reads something nearly always
        least = [share * sweep.statistics(unit).peak for unit in named]
        width = box.subject.count(named[0].site)
        return Readings(rows, read(), torch.tensor(least).numpy(), width, sweep.sink)

    def _windows(self, box: "Toolbox", units: Sequence[UnitId], bands: Sequence[str]) -> list[tuple[list[int], str]]:
        """Windows of the explain side with the band that each was kept for, each once, the strongest first."""
        sweep = box.sweep(units[0])
        found: dict[tuple[int, int], tuple[list[int], str]] = {}
        for unit in units:
            for band in bands:
                for place in sweep.exemplars(unit, "explain", band)[: BANDS[band]]:
                    ids, position = sweep.window(place.place)
                    found.setdefault((place.document, place.offset - position), (ids, band))
        return list(found.values())


def _band(band: str, peak: float, strata: Sequence[int]) -> Band | None:
    """Lowest and highest value of a band, and the share of all tokens in it; None for the best documents."""
    if band not in ("high", "mid"):
        return None
    number = ("high", "mid").index(band)
    high = measures.STRATA[0] * peak if number else None      # nothing bounds the highest
    return measures.STRATA[number] * peak, high, strata[number] / max(1, sum(strata))


def _unit(bare: str, sign: int) -> UnitId:
    return UnitId.parse(bare + ("-" if sign == -1 else ""))


# Import


def bring_in(
    home: Home, form: str, path: Path, *, model: str | None = None, site: str | None = None, coder: str | None = None
) -> dict[str, Any]:
    """Imports explanations of another tool; what is here already is not added again.

    model, site, coder: what the model, the place and the SAE are called here, where that is not what the files say.
    Returns {source, path, explanations, claimed_scores, units_with_texts (all three: new ones), known, left_out, named,
    explain_text}. Raises Refused where there is nothing to import.
    """
    readers: dict[str, Callable[[Path, imported.Named, Faults], Iterable[Record]]] = {
        "delphi": _read_delphi, "neuronpedia": read_neuronpedia, "openai": read_openai,
    }  # fmt: skip
    if form not in readers:
        raise Refused(f"{form!r} is no format to import; choose one of {', '.join(IMPORTS)}.")
    if site is not None:
        parse_site(site)
    root = path.resolve()
    if not root.is_dir() and not foreign.regular(root):
        raise Refused(f"there is no file or folder {str(path)!r} to import; name one.")
    faults, counts = Faults(), {"explanations": 0, "claimed_scores": 0, "units_with_texts": 0, "known": 0}
    records = readers[form](root, _names(home, model, site, coder), faults)
    if home.findings.path.exists():
        drain(home.work, home.findings)
    for batch in _batches(iter(records)):
        _post(home, batch, counts)
    if not any(counts.values()):
        raise Refused(f"{root} holds nothing that could be imported; the first fault was {faults}.")
    told = {"source": form, "path": str(root), **counts, "left_out": faults.count, "named": faults.named}
    return told | {"explain_text": imported.UNKNOWN}


def _read_delphi(path: Path, named: imported.Named, faults: Faults) -> Iterable[Record]:
    from ..store.exchange_delphi import read_delphi  # it loads numpy

    return read_delphi(path, named, faults)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch


def _post(home: Home, batch: Sequence[Record], counts: dict[str, int]) -> None:
    """Posts what is new of a batch, and counts it."""
    by_table: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in batch:
        by_table[record.TABLE][record.id] = record
    for table, found in by_table.items():
        there = _there(home, table, list(found))
        new = [record for record in found.values() if record.id not in there]
        added = home.work.post(new)
        counts[_COUNTED[table]] += added
        if table == Hypothesis.TABLE:
            counts["known"] += sum(table == record.TABLE for record in batch) - added


def _there(home: Home, table: str, ids: list[str]) -> set[str]:
    if not home.findings.path.exists():
        return set()
    sql = f'SELECT id FROM "{table}" WHERE id IN (SELECT unnest(?::VARCHAR[]))'
    return {row["id"] for row in home.findings.sql(sql, [ids])}


def _names(home: Home, model: str | None, site: str | None, coder: str | None) -> imported.Named:
    """Where a unit that a source names is here: as the options say, else as its files do."""
    sites = _known_sites(home)

    def named(theirs: str | None, place: str, index: int, known_as: str | None) -> tuple[str, int]:
        name = model or theirs
        if name is None:
            raise Refused("the files do not say which model they are about; name it with --model.")
        where, sign = (site, 1) if site is not None else site_of(place, coder, known_as)
        at = parse_site(where)
        here = sites.get(at.coder, where)
        if site is None and parse_site(here).layer == at.layer:
            where = here                       # an SAE of this home says by itself what it reads
        unit = UnitId(name, where, index, sign)
        return unit.bare, unit.sign

    return named


def _known_sites(home: Home) -> dict[str, str]:
    """The site of each SAE that was added to a home, by its name."""
    if not home.saes.is_dir():
        return {}
    from ..tools.features import every_coder

    return {made.name: made.site for made in every_coder([home.saes])}


__all__ = ["EXPORTS", "IMPORTS", "bring_in", "export"]
