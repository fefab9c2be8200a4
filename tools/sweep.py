"""One pass over a corpus for every unit of the chosen sites, and the stored result read back.

Documents are cut into disjoint windows of the sink and 63 tokens. The explain side goes first and freezes each unit's
peak P and threshold τ = 0.5 P; only then are tune and score read. What is kept of a site: `collect.py`. A sweep is a
folder `sweeps/<digest>/`: `sweep.json`, `documents.parquet` (with the token ids) and two safetensors files a site,
one of them its token atlas (`atlas.py`), which is read last.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..store.records import Refused
from . import measures
from .atlas import Atlas, load_atlas, make_atlas, unit_atlas, write_atlas
from .collect import BINS, KEPT, LOWEST, PER_OCTAVE, SAMPLED, SIGNS, Site, position_key
from .copies import shingles
from .corpus import Corpus
from .subject import BATCH_TOKENS, Subject
from .units import UnitId, parse_site

STEP = measures.WINDOW - 1       # tokens of text in a window
RANDOM = 64                      # random positions a side, read for every unit
PER_BAND = 12                    # exemplars a band that are handed out
FIRST = 4 * measures.PEAK_DOCUMENTS    # short clusters that a side begins with
FORMAT = 6

Place = tuple[int, int]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SweptDocument:
    """A document as the subject saw it: `length` tokens from `start` in the sweep's flat token array."""

    id: str
    name: str
    side: str
    cluster: int
    start: int
    length: int


@dataclass(frozen=True)
class Exemplar:
    """y = sign × activation at one place of the corpus; `band` is one of measures.BANDS."""

    document: int
    offset: int
    activation: float
    band: str

    @property
    def place(self) -> Place:
        return self.document, self.offset


@dataclass(frozen=True)
class Statistics:
    """One unit and sign over the corpus. Counts are by side; strata run from y/P ≥ .8 down to < .1.

    `firings` and `strata` of the explain side come from a histogram of 8 bins an octave (P was not yet known there);
    those of tune and score are exact from y = τ on, and below it estimated from LOW_TOKENS tokens drawn by hash.
    `clusters` counts near-copy clusters with a firing, for tune and score.
    """

    peak: float
    threshold: float
    mean: float
    std: float
    sink: float
    tokens: dict[str, int]
    firings: dict[str, int]
    clusters: dict[str, int]
    strata: dict[str, list[int]]

    def rate(self, side: str) -> float:
        return self.firings[side] / self.tokens[side] if self.tokens[side] else 0.0


class Sweep:
    """A finished sweep, read from its folder. Tensors of a site are loaded when first asked for.

    sites: those of its sites that are of use (default: all). Raises Refused where a file is missing or damaged.
    """

    def __init__(self, folder: Path, sites: Sequence[str] | None = None) -> None:
        self.folder = folder
        with _reading(folder):
            self.facts: dict[str, Any] = json.loads((folder / "sweep.json").read_text("utf-8"))
            table = pq.read_table(folder / "documents.parquet").to_pydict()
        self.digest: str = self.facts["digest"]
        self.model: str = self.facts["model"]
        self.corpus: str = self.facts["corpus"]
        self.sites: list[str] = list(sites or self.facts["sites"])
        self.token_counts: dict[str, int] = self.facts["tokens"]
        lengths = [len(ids) for ids in table["ids"]]
        starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        columns = (table["id"], table["name"], table["side"], table["cluster"], starts, lengths)
        self.documents = [SweptDocument(*row) for row in zip(*columns, strict=False)]
        self.tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in table["ids"]])
        self._starts = np.asarray(starts[:-1])
        self._sites: dict[str, dict[str, Tensor]] = {}
        self._atlases: dict[str, dict[str, Tensor]] = {}

    @cached_property
    def sink(self) -> int:
        return int(self.facts["sink"])

    @cached_property
    def side_digests(self) -> dict[str, str]:
        """sha256 over the documents of each side in order, as ids: equal digests were read as equal text."""
        totals = {side: hashlib.sha256() for side in measures.SIDES}
        for d in self.documents:
            totals[d.side].update(f"{d.length}:".encode() + self.tokens[d.start : d.start + d.length].tobytes())
        return {side: total.hexdigest()[:16] for side, total in totals.items()}

    def side(self, side: str) -> list[int]:
        """Numbers of the documents of a side."""
        return [i for i, document in enumerate(self.documents) if document.side == side]

    def windows(self, side: str) -> Iterator[tuple[int, int, list[int]]]:
        """(document, offset of the first token, ids with the sink first) of every window of a side."""
        for number in self.side(side):
            for offset in range(0, self.documents[number].length, STEP):
                yield number, offset, self.window((number, offset))[0]

    def window(self, place: Place) -> tuple[list[int], int]:
        """The window that holds a place: its ids with the sink first, and the place's position in it (1 to 63)."""
        document, offset = self.documents[place[0]], place[1]
        first = offset - offset % STEP
        end = min(first + STEP, document.length)
        return [self.sink, *self.tokens[document.start + first : document.start + end].tolist()], offset % STEP + 1

    def site(self, site: str) -> dict[str, Tensor]:
        """The stored tensors of a site; raises Refused with the command that would sweep it."""
        if site not in self.sites:
            raise Refused(
                f"site {site} was not swept (this sweep has {', '.join(self.sites)}); "
                f"run `lamplighter sweep --model {self.model} --sites {site}`."
            )
        if site not in self._sites:
            with _reading(self.folder):
                self._sites[site] = load_file(self.folder / f"{site}.safetensors")
        return self._sites[site]

    def mean(self, site: str) -> Tensor:
        """Mean activation [width] over the explain side, sink excluded, no sign applied."""
        return self.site(site)["mean"]

    def require_positive(self, unit: UnitId) -> None:
        """Raises Refused unless the unit is positive, by its sign, somewhere on the explain side."""
        if self.statistics(unit).peak <= 0:
            way = "sweep more text, or choose another" if unit.kind == "feature" else "look at its other sign"
            raise Refused(f"{unit} is never positive on the explain side; {way}.")

    def statistics(self, unit: UnitId) -> Statistics:
        """The sweep's numbers for one unit and sign."""
        data, s, u = self.site(unit.site), SIGNS.index(unit.sign), unit.index
        peak = float(data["peak"][s, u])
        strata = {side: self._strata(data, side, s, u, peak) for side in measures.SIDES}
        return Statistics(
            peak=peak,
            threshold=measures.FIRES * peak,
            mean=unit.sign * float(data["mean"][u]),
            std=float(data["std"][u]),
            sink=unit.sign * float(data["sink"][u]),
            tokens=self.token_counts,
            firings={side: sum(counts[:2]) for side, counts in strata.items()},
            clusters={side: int(data[f"{side}.clusters"][s, u]) for side in ("tune", "score")},
            strata=strata,
        )

    def _strata(self, data: dict[str, Tensor], side: str, s: int, u: int, peak: float) -> list[int]:
        if side == "explain":
            middles = 2.0 ** (LOWEST + (np.arange(BINS) + 0.5) / PER_OCTAVE)
            counts = data["explain.histogram"][s, u].numpy()
            above = [int(counts[middles >= edge * peak].sum()) for edge in measures.STRATA]
            found = np.diff([0, *above]).tolist()
        else:
            found = data[f"{side}.strata"][s, u].tolist()
        return [*found, self.token_counts[side] - sum(found)]

    def exemplars(self, unit: UnitId, side: str, band: str | None = None) -> list[Exemplar]:
        """Kept places of a unit on one side, strongest first; `band` one of measures.BANDS (None = all).

        `top` are the best documents' maxima, the others samples by position hash, re-banded by the final P.
        """
        data, s, u = self.site(unit.site), SIGNS.index(unit.sign), unit.index
        peak = float(data["peak"][s, u])
        found: list[Exemplar] = []
        if band in (None, "top"):
            found += self._places("top", data[f"{side}.best_place"][s, :, u], data[f"{side}.best_value"][s, :, u])
        if band not in ("top", "random"):
            places, values = data[f"{side}.band_place"][s, u].flatten(), data[f"{side}.band_value"][s, u].flatten()
            for name, low, high in zip(SAMPLED, measures.STRATA, (np.inf, *measures.STRATA), strict=False):
                inside = (places >= 0) & (values >= low * peak) & (values < high * peak)
                if band in (None, name):
                    found += self._places(name, places[inside][:PER_BAND], values[inside][:PER_BAND])
        if band in (None, "random") and f"{side}.random_place" in data:
            values = unit.sign * data[f"{side}.random_value"][:, u]
            found += self._places("random", data[f"{side}.random_place"], values)
        return sorted(found, key=lambda e: -e.activation)

    def atlas(self, unit: UnitId) -> Atlas:
        """What the unit reads on single tokens behind the sink. Raises Refused where the stored file is no good."""
        if unit.site not in self._atlases:
            width = len(self.mean(unit.site))
            self._atlases[unit.site] = load_atlas(self.folder, unit.site, width, self.digest)
        return unit_atlas(self._atlases[unit.site], unit)

    def firings(self, unit: UnitId) -> list[Exemplar]:
        """Up to 300 firing places of the score side, a uniform sample by position hash."""
        data, s, u = self.site(unit.site), SIGNS.index(unit.sign), unit.index
        value = data["score.firing_value"][s, u]
        high = float(data["peak"][s, u]) * measures.STRATA[0]
        found = self._places("mid", data["score.firing_place"][s, u], value)
        found = [Exemplar(e.document, e.offset, e.activation, "high" if e.activation >= high else "mid") for e in found]
        return sorted(found, key=lambda e: -e.activation)

    def _places(self, band: str, places: Tensor, values: Tensor) -> list[Exemplar]:
        flat = places[places >= 0].numpy()
        documents = np.searchsorted(self._starts, flat, side="right") - 1
        offsets = flat - self._starts[documents]
        rows = zip(documents.tolist(), offsets.tolist(), values[places >= 0].tolist(), strict=True)
        return [Exemplar(d, o, v, band) for d, o, v in rows]

    def read(self, subject: Subject, unit: UnitId, places: Sequence[Place]) -> np.ndarray:
        """y [N] at places: each distinct window is read once, cut after the last place asked for in it."""
        wanted: dict[Place, list[tuple[int, int]]] = {}
        for number, (document, offset) in enumerate(places):
            wanted.setdefault((document, offset - offset % STEP), []).append((offset % STEP + 1, number))
        windows = list(wanted.items())
        rows = [self.window(first)[0][: max(p for p, _ in inside) + 1] for first, inside in windows]
        result = np.empty(len(places))
        for batch in subject.batches(rows):
            reading = subject.run([rows[i] for i in batch], read=[unit.site]).readings[unit.site][..., unit.index]
            values = unit.sign * reading.double().cpu().numpy()
            for line, i in enumerate(batch):
                for position, number in windows[i][1]:
                    result[number] = values[line, position]
        return result


def sweep_digest(subject: Subject, corpus: Corpus, sites: Sequence[str], tokens: int | None) -> str:
    """Equal digests hold equal numbers (weights, tokenizer, dtype, text, sites, size, definitions) and equal names.

    Without sites it is the `basis`, in which sweeps agree of which one can stand for another of fewer sites.
    """
    parts = [subject.digest, subject.tokenizer_digest, str(subject.dtype), corpus.digest, sorted(sites), tokens]
    names = [subject.name, corpus.name]   # a sweep is looked for by these
    coders = [subject.coder(site).digest for site in sorted(sites) if parse_site(site).coder]
    return hashlib.sha256(json.dumps([*names, *parts, measures.VERSION, FORMAT, *coders]).encode()).hexdigest()[:16]


def find_sweep(home: Path, digest: str, site: str) -> Sweep | None:
    """The largest finished sweep (of equals the newest) in `home` of a site of this `Subject.site_digest`.

    Heads are not swept: of the model's sweeps any will do, whose text they are studied on.
    """
    heads = parse_site(site).holds == "attn"
    return _largest(
        home, lambda facts: (facts["provenance"]["model"] if heads else _site_digest(facts, site)) == digest
    )


def find_shared_sweep(home: Path, digests: Mapping[str, str]) -> Sweep | None:
    """The same of several sites together, each with its `Subject.site_digest`."""
    return _largest(home, lambda facts: all(_site_digest(facts, site) == d for site, d in digests.items()))


def _largest(home: Path, fits: Callable[[dict[str, Any]], bool]) -> Sweep | None:
    found = [
        (sum(facts["tokens"].values()), folder.stat().st_mtime, folder)
        for folder, facts in _finished(home)
        if fits(facts)
    ]
    return Sweep(max(found)[2]) if found else None


def swept_before(home: Path, digest: str, site: str) -> bool:
    """Whether a sweep of a site of this `Subject.site_digest` is there that this version does not read."""
    return any(_site_digest(facts, site) == digest for _, facts in _sweeps(home) if not _current(facts))


def _site_digest(facts: dict[str, Any], site: str) -> str | None:
    """`Subject.site_digest` as it was when the site was swept; None where it was not."""
    if site not in facts["sites"]:
        return None
    name = parse_site(site).coder
    model = str(facts["provenance"]["model"])
    return f"{model} {facts['provenance']['coders'][name]}" if name else model


def _finished(home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders and facts of the sweeps that this version reads."""
    return ((folder, facts) for folder, facts in _sweeps(home) if _current(facts))


def _current(facts: dict[str, Any]) -> bool:
    return (facts["format"], facts["measures"]) == (FORMAT, measures.VERSION)


def _sweeps(home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders and facts of the sweeps of every version; a folder whose facts are damaged is no sweep."""
    for path in sorted((home / "sweeps").glob("[!.]*/sweep.json")):
        try:
            facts = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        if isinstance(facts, dict) and {"format", "measures", "provenance", "sites"} <= facts.keys():
            yield path.parent, facts


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"the sweep in {folder} is damaged ({first}); delete that folder and sweep again.") from error


def make_sweep(
    subject: Subject, corpus: Corpus, sites: Sequence[str], home: Path,
    tokens: int | None = None, progress: Progress = lambda what, done, total: None,
) -> Sweep:  # fmt: skip
    """Sweeps `sites` over `corpus` (its first `tokens` tokens in hash order), or returns a finished sweep with them.

    Writes beside the final folder and renames at the end, so that a killed sweep leaves nothing behind that counts.
    Raises Refused for unknown sites, a corpus with an empty side, or a full disk.
    """
    sites = sorted(set(sites), key=parse_site)
    known = made_before(subject, corpus, sites, home, tokens)
    if known is not None:
        return known
    digest, basis = (sweep_digest(subject, corpus, some, tokens) for some in (sites, ()))
    folder = home / "sweeps" / digest
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    everything = tokenise(subject, corpus, tokens, progress)
    documents = apart(corpus.name, everything)
    kept = _pass(subject, documents, sites, progress)
    atlases = make_atlas(subject, {site: keeper.frozen for site, keeper in kept.items()}, progress)
    facts = _facts(subject, corpus, sites, digest, documents)
    facts["overlap"] |= {f"{side}_left_out": n for side, n in _left_out(everything, documents).items()}
    facts["basis"] = basis
    facts["seconds"] = round(time.perf_counter() - start, 1)
    with _writing(folder.parent), tempfile.TemporaryDirectory(prefix=f".{digest}.", dir=folder.parent) as partial:
        _store(Path(partial), documents, kept, atlases, facts)
        if folder not in (path for path, _ in _finished(home)):    # else another process has made it meanwhile
            shutil.rmtree(folder, ignore_errors=True)               # what is left of one that was damaged
            os.replace(partial, folder)
    return Sweep(folder)


def made_before(
    subject: Subject, corpus: Corpus, sites: Sequence[str], home: Path, tokens: int | None = None
) -> Sweep | None:
    """The finished sweep that `make_sweep` would return without sweeping, or None. Raises Refused for unknown sites."""
    _check(subject, sites)
    basis = sweep_digest(subject, corpus, (), tokens)
    for folder, facts in _finished(home):
        if facts["basis"] == basis and all(_site_digest(facts, s) == subject.site_digest(s) for s in sites):
            return Sweep(folder, sorted(set(sites), key=parse_site))
    return None


def _check(subject: Subject, sites: Sequence[str]) -> None:
    if not sites:
        raise Refused("there is nothing to sweep; name at least one site, as in 5-mlp.")
    for site in sites:
        if parse_site(site).holds == "attn":
            raise Refused(f"{site} holds heads, which have no single activation to sweep; name mlp or resid sites.")
        subject.width(site)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Refused(f"the sweep could not be written to {place} ({reason}); free space and run it again.") from error


@dataclass(frozen=True)
class Read:
    """A document as ids, without the sink, before it is swept."""

    document: Any
    side: str
    cluster: int
    ids: list[int]

    @property
    def windows(self) -> list[list[int]]:
        """Its disjoint windows of STEP tokens."""
        return [self.ids[offset : offset + STEP] for offset in range(0, len(self.ids), STEP)]


def tokenise(subject: Subject, corpus: Corpus, tokens: int | None, progress: Progress) -> list[Read]:
    """Documents as ids, explain first, clusters together and numbered in reading order.

    A side begins with its FIRST shortest clusters: the bound on P, which is low until ten documents were read, is soon
    near it.
    """
    chosen, total = [], 0
    order = sorted(range(len(corpus.documents)), key=lambda i: corpus.documents[i].id)
    for done, number in enumerate(order):
        if tokens is not None and total >= tokens:
            break
        ids = subject.encode(corpus.documents[number].text)[1:]
        if ids:
            chosen.append((number, ids))
            total += len(ids)
        progress("tokenise", done + 1, len(order))
    numbers: dict[int, int] = {}
    return [
        Read(corpus.documents[n], corpus.sides[n], numbers.setdefault(corpus.clusters[n], len(numbers)), ids)
        for side in measures.SIDES
        for n, ids in _short_first(corpus, [pair for pair in chosen if corpus.sides[pair[0]] == side])
    ]


def _short_first(corpus: Corpus, chosen: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    """Numbers and ids of the documents of one side, cluster by cluster, the FIRST shortest clusters first."""
    length: Counter[int] = Counter()
    for number, ids in chosen:
        length[corpus.clusters[number]] += len(ids)
    soon = set(sorted(length, key=lambda cluster: (length[cluster], cluster))[:FIRST])
    return sorted(chosen, key=lambda pair: ((at := corpus.clusters[pair[0]]) not in soon, at))


def apart(name: str, documents: list[Read]) -> list[Read]:
    """The documents without the windows that share a run of LEAK_RUN tokens with a side read before theirs.

    Boilerplate stands in many documents that are no copies of each other. A window is seen by the model on its own, so
    the others are what they were.
    """
    kept: list[Read] = []
    before = _runs([])
    for side in measures.SIDES:
        mine = [d for d in documents if d.side == side]
        runs = [_runs(w) for d in mine for w in d.windows]
        shared = np.isin(np.concatenate([before[:0], *runs]), before)
        number = np.repeat(np.arange(len(runs)), [len(own) for own in runs])
        own = np.bincount(number[shared], minlength=len(runs)) == 0
        free = iter(own.tolist())
        for document in mine:
            windows = [w for w in document.windows if next(free)]
            if windows:
                kept.append(replace(document, ids=[i for w in windows for i in w]))
        before = np.concatenate([before, *(run for run, is_own in zip(runs, own, strict=True) if is_own)])
        if not any(document.side == side for document in kept):
            raise Refused(
                f"the corpus {name!r} has no {side} text of its own among its {len(documents)} documents; "
                "give more documents, some dozens at least: a text file without headings is one, a row of JSONL is one."
            )
    return kept


def _left_out(before: list[Read], after: list[Read]) -> dict[str, int]:
    """Tokens of a side that stand in windows left out."""
    counts = [{s: sum(len(d.ids) for d in each if d.side == s) for s in ("tune", "score")} for each in (before, after)]
    return {side: counts[0][side] - counts[1][side] for side in counts[0]}


def _runs(ids: Sequence[int]) -> np.ndarray:
    """A hash of every run of LEAK_RUN tokens."""
    if len(ids) < measures.LEAK_RUN:
        return np.zeros(0, dtype=np.uint64)
    return shingles(np.asarray(ids, dtype=np.uint64) + np.uint64(1), measures.LEAK_RUN)


def _pass(subject: Subject, documents: list[Read], sites: Sequence[str], progress: Progress) -> dict[str, Site]:
    kept = {site: Site(subject.width(site), subject.device) for site in sites}
    total, done, first = sum(len(d.ids) for d in documents), 0, 0
    sink = subject.run([[subject.sink]], read=sites).readings
    for site, keeper in kept.items():
        keeper.sink = sink[site][0, 0].float()
    for side in measures.SIDES:
        mine = [d for d in documents if d.side == side]
        length = sum(len(d.ids) for d in mine)
        keys = position_key(np.arange(first, first + length)).astype(np.float32)
        drawn = np.zeros(length, dtype=bool)
        drawn[np.argsort(keys)[:RANDOM]] = True
        for keeper in kept.values():
            keeper.begin(side, length)
        at = 0
        for rows, document, cluster in batches(mine, subject.sink):
            n = len(document)
            across = max(map(len, rows))
            real = np.concatenate([line * across + np.arange(1, len(row)) for line, row in enumerate(rows)])
            arrays = (real, keys[at : at + n], document, cluster, drawn[at : at + n])
            chosen, *labels = (torch.as_tensor(array, device=subject.device) for array in arrays)
            place = torch.arange(first + at, first + at + n, dtype=torch.int32, device=subject.device)
            subject.run(rows, read=sites, take=partial(_keep, kept, side, chosen, place, labels))
            at, done = at + n, done + n
            progress(side, done, total)
        first += length
        for keeper in kept.values():
            keeper.end(side)
    return kept


def _keep(
    kept: dict[str, Site], side: str, chosen: Tensor, place: Tensor, labels: Sequence[Tensor], site: str,
    reading: Tensor,
) -> None:  # fmt: skip
    """Takes the `chosen` of the positions of reading [B, T, width], which stand at `place`s, with their labels."""
    kept[site].add(side, reading.flatten(0, 1).index_select(0, chosen).float(), place, *labels)


def batches(documents: Sequence[Read], sink: int) -> Iterator[tuple[list[list[int]], np.ndarray, np.ndarray]]:
    """Windows in reading order with the document and cluster number of each of their tokens."""
    rows: list[list[int]] = []
    document: list[int] = []
    cluster: list[int] = []
    for number, read in enumerate(documents):
        for ids in read.windows:
            rows.append([sink, *ids])
            document += [number] * len(ids)
            cluster += [read.cluster] * len(ids)
            if len(rows) == BATCH_TOKENS // measures.WINDOW:
                yield rows, np.asarray(document), np.asarray(cluster)
                rows, document, cluster = [], [], []
    if rows:
        yield rows, np.asarray(document), np.asarray(cluster)


def _facts(
    subject: Subject, corpus: Corpus, sites: Sequence[str], digest: str, documents: list[Read]
) -> dict[str, Any]:
    sides = measures.SIDES
    return {
        "format": FORMAT, "measures": measures.VERSION, "digest": digest, "model": subject.name, "corpus": corpus.name,
        "sites": list(sites), "sink": subject.sink,
        "tokens": {s: sum(len(d.ids) for d in documents if d.side == s) for s in sides},
        "documents": {s: sum(d.side == s for d in documents) for s in sides},
        "overlap": _overlap(documents),
        "provenance": {
            "model": subject.digest, "tokenizer": subject.tokenizer_digest, "corpus": corpus.digest, "sweep": digest,
            "measures": measures.VERSION, "dtype": str(subject.dtype).removeprefix("torch."),
            "device": subject.device.type, "seed": 0,
            "coders": {c.name: c.digest for c in map(subject.coder, filter(_of_coder, sites))},
        },
    }  # fmt: skip


def _of_coder(site: str) -> bool:
    return bool(parse_site(site).coder)


def _overlap(documents: list[Read]) -> dict[str, float]:
    """Share of the 13-token runs in a side's windows that also stand in windows of the explain side, and how many
    windows have such a run (`tune_windows`, `score_windows`).

    Both are 0, since such windows are left out; measured on what is kept, by the tokens themselves, and stored.
    """
    n = measures.LEAK_RUN

    def runs(side: str) -> Iterator[set[int]]:
        for window in (w for d in documents if d.side == side for w in d.windows):
            yield {hash(tuple(window[i : i + n])) for i in range(len(window) - n + 1)}

    explain: set[int] = set().union(*runs("explain"))
    found: dict[str, float] = {}
    for side in ("tune", "score"):
        windows = list(runs(side))
        every: set[int] = set().union(*windows)
        found[side] = len(every & explain) / len(every) if every else 0.0
        found[f"{side}_windows"] = sum(not explain.isdisjoint(window) for window in windows)
    return found


def _store(
    folder: Path, documents: list[Read], kept: dict[str, Site], atlases: dict[str, dict[str, Tensor]],
    facts: dict[str, Any],
) -> None:  # fmt: skip
    table = pa.table({
        "id": [d.document.id for d in documents], "name": [d.document.name for d in documents],
        "side": [d.side for d in documents], "cluster": [d.cluster for d in documents],
        "ids": pa.array([d.ids for d in documents], type=pa.list_(pa.int32())),
    })  # fmt: skip
    pq.write_table(table, folder / "documents.parquet", compression="zstd")
    for site, keeper in kept.items():
        (folder / f"{site}.safetensors").write_bytes(save(keeper.tensors()))   # so that a full disk is an OSError
        write_atlas(folder, site, atlases[site], facts["digest"])
    (folder / "sweep.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), "utf-8")


__all__ = [
    "Exemplar", "KEPT", "Place", "Statistics", "Sweep", "SweptDocument", "find_shared_sweep", "find_sweep",
    "made_before", "make_sweep", "swept_before",
]  # fmt: skip
