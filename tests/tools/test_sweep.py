"""The sweep against brute force: every activation of a small corpus in memory, counted and sorted outright."""

import copy
import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lamplighter.store.records import Refused
from lamplighter.tools import measures
from lamplighter.tools import sweep as module
from lamplighter.tools.collect import SAMPLED, position_key
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.examples import top_examples
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import PER_BAND, RANDOM, STEP, Exemplar, Sweep, find_sweep, make_sweep
from lamplighter.tools.units import UnitId

SAID = (
    "It was built in the late 19th century and 21st regiment left 1942. World War II began 1939; I ended 1918. "
    "capital of France is Paris. She said: don't stop red cars. He blue car at 9th street!"
)
WORDS = SAID.split()
SITES = ["0-mlp", "1-resid"]
LONG = 2200   # words of the first document: more than two batches


def document(name: str, words: Sequence[str]) -> Document:
    text = " ".join(words)
    return Document(hashlib.sha256((name + text).encode()).hexdigest(), name, text)


def corpus_of(
    documents: Sequence[Document], clusters: Sequence[int], sides: Sequence[str], name: str = "made"
) -> Corpus:
    facts = json.dumps([[d.id for d in documents], list(clusters), list(sides)])
    digest = hashlib.sha256(facts.encode()).hexdigest()
    return Corpus(name, digest, tuple(documents), tuple(clusters), tuple(sides), {})


def made_corpus(
    documents: int = 180, long: int = LONG, seed: int = 0, score_seed: int = 1, name: str = "made"
) -> Corpus:
    """Short documents of random words, some in clusters of two, after one long document of the explain side."""
    first = np.random.default_rng(seed).choice(WORDS, long).tolist()
    found, clusters, sides = [document("long", first)], [0], ["explain"]
    for number in range(1, documents):
        cluster = number - number % 2 if number % 3 == 0 else number
        side = "explain" if cluster % 20 < 10 else "tune" if cluster % 20 < 13 else "score"
        generator = np.random.default_rng((score_seed if side == "score" else seed, cluster))
        words = generator.choice(WORDS, generator.integers(3, 70)).tolist()
        extra = np.random.default_rng((seed, number, 9)).choice(WORDS, 4).tolist() if cluster != number else []
        found.append(document(str(number), words + extra))
        clusters.append(cluster)
        sides.append(side)
    found.append(document("nothing", []))
    return corpus_of(found, [*clusters, documents + 1], [*sides, "tune"], name)


@dataclass
class Brute:
    """y of every token of a sweep's documents [tokens, units] by site, sink left out, and the sink's own readings."""

    sweep: Sweep
    values: dict[str, np.ndarray]
    sink: dict[str, np.ndarray]

    @classmethod
    def read(cls, subject: Any, sweep: Sweep) -> "Brute":
        values: dict[str, list[torch.Tensor]] = {site: [] for site in sweep.sites}
        for d in sweep.documents:
            ids = sweep.tokens[d.start : d.start + d.length].tolist()
            rows = [[subject.sink, *ids[a : a + 63]] for a in range(0, len(ids), 63)]
            done = subject.run(rows, read=sweep.sites)
            for site in sweep.sites:
                reading = done.readings[site].float()
                values[site] += [reading[line, 1 : len(row)] for line, row in enumerate(rows)]
        alone = subject.run([[subject.sink]], read=sweep.sites).readings
        sink = {site: alone[site][0, 0].float().numpy() for site in sweep.sites}
        return cls(sweep, {site: torch.cat(parts).numpy() for site, parts in values.items()}, sink)

    def y(self, unit: UnitId) -> np.ndarray:
        return np.asarray(unit.sign * self.values[unit.site][:, unit.index])

    def places(self, side: str) -> np.ndarray:
        """Global numbers of a side's tokens."""
        parts = [np.arange(d.start, d.start + d.length) for d in self.sweep.documents if d.side == side]
        return np.concatenate(parts)

    def maxima(self, unit: UnitId, side: str) -> dict[int, float]:
        """Largest y of each document of a side."""
        y, documents = self.y(unit), self.sweep.documents
        return {n: float(y[documents[n].start :][: documents[n].length].max()) for n in self.sweep.side(side)}

    def peak(self, unit: UnitId, *sides: str, floor: float = 0.0) -> float:
        best = sorted((v for side in sides for v in self.maxima(unit, side).values()), reverse=True)[:10]
        return sum(max(v, floor) for v in best) / 10

    def number(self, exemplar: Exemplar) -> int:
        return self.sweep.documents[exemplar.document].start + exemplar.offset


@dataclass
class Case:
    subject: Any
    corpus: Corpus
    sweep: Sweep
    brute: Brute

    @property
    def units(self) -> list[UnitId]:
        return [
            UnitId(self.subject.name, site, index, sign)
            for site in SITES for index in range(self.subject.width(site)) for sign in (1, -1)
        ]  # fmt: skip


@pytest.fixture(scope="module")
def case(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    corpus = made_corpus()
    sweep = make_sweep(tiny, corpus, SITES, tmp_path_factory.mktemp("home"))
    return Case(tiny, corpus, sweep, Brute.read(tiny, sweep))


def edge_free(y: np.ndarray, peak: float) -> bool:
    """Whether no y lies so near a band's border that the last bit of P decides."""
    ratios = y[:, None] / (np.array(measures.STRATA) * peak)
    return bool((np.abs(ratios - 1) > 1e-6).all())


# Text


def test_documents_are_those_of_the_corpus_explain_first(case: Case) -> None:
    sweep, by_id = case.sweep, {d.id: i for i, d in enumerate(case.corpus.documents)}
    order = [measures.SIDES.index(d.side) for d in sweep.documents]
    assert order == sorted(order)
    assert len(sweep.documents) == len(case.corpus.documents) - 1   # all but the empty one
    numbers: dict[int, int] = {}
    for swept in sweep.documents:
        known = by_id[swept.id]
        ids = case.subject.encode(case.corpus.documents[known].text)[1:]
        assert sweep.tokens[swept.start : swept.start + swept.length].tolist() == ids
        assert swept.side == case.corpus.sides[known]
        assert swept.name == case.corpus.documents[known].name
        assert numbers.setdefault(swept.cluster, case.corpus.clusters[known]) == case.corpus.clusters[known]
    assert len(set(numbers.values())) == len(numbers) < len(sweep.documents)
    assert sweep.token_counts == {s: len(case.brute.places(s)) for s in measures.SIDES}


def test_windows_are_disjoint_and_hold_every_token_once(case: Case) -> None:
    sweep = case.sweep
    for side in measures.SIDES:
        seen: list[int] = []
        for number, first, ids in sweep.windows(side):
            assert sweep.documents[number].side == side
            assert ids[0] == case.subject.sink
            assert 2 <= len(ids) <= measures.WINDOW
            seen += ids[1:]
            for offset in (first, first + len(ids) - 2):
                assert sweep.window((number, offset)) == (ids, offset - first + 1)
        assert seen == sweep.tokens[case.brute.places(side)].tolist()


def test_a_document_is_longer_than_two_batches(case: Case) -> None:
    long = next(d for d in case.sweep.documents if d.name == "long")
    assert long.length > 2 * module.BATCH_TOKENS
    assert long.length % STEP != 0


def test_a_side_begins_with_its_shortest_clusters(case: Case) -> None:
    """All of the shortest before any other; a cluster stays together."""
    for side in measures.SIDES:
        documents = [d for d in case.sweep.documents if d.side == side]
        length = Counter[int]()
        for document in documents:
            length[document.cluster] += document.length
        order = list(dict.fromkeys(d.cluster for d in documents))
        assert [d.cluster for d in documents] == sorted(d.cluster for d in documents)
        later = [length[cluster] for cluster in order[module.FIRST :]]
        assert max(length[cluster] for cluster in order[: module.FIRST]) <= min(later, default=10**9)
        if side == "explain":
            assert later and len(order) < len(documents)


# Numbers


def test_a_side_has_the_digest_of_its_own_text(case: Case) -> None:
    """Of the documents' ids in order, their ends included; another token on one side changes that side's alone."""
    known, swept = case.sweep.side_digests, Sweep(case.sweep.folder)
    assert swept.side_digests == known and len(set(known.values())) == 3
    for side in measures.SIDES:
        parts = [swept.documents[n] for n in swept.side(side)]
        text = b"".join(f"{d.length}:".encode() + swept.tokens[d.start : d.start + d.length].tobytes() for d in parts)
        assert hashlib.sha256(text).hexdigest().startswith(known[side])
    other = Sweep(case.sweep.folder)
    other.tokens[other.documents[other.side("tune")[0]].start] += 1
    changed = other.side_digests
    assert [side for side in measures.SIDES if changed[side] != known[side]] == ["tune"]


def test_peak_is_the_mean_of_the_ten_best_documents(case: Case) -> None:
    for unit in case.units:
        known = case.sweep.statistics(unit)
        assert known.peak == pytest.approx(case.brute.peak(unit, "explain"), rel=1e-6)
        assert known.threshold == known.peak / 2


def test_the_sink_is_read_once_and_stored(case: Case) -> None:
    for unit in case.units:
        sink = unit.sign * float(case.brute.sink[unit.site][unit.index])
        assert case.sweep.statistics(unit).sink == pytest.approx(sink, abs=1e-6)


def test_the_sink_is_no_part_of_the_peak(tiny: Any, tmp_path: Path) -> None:
    """In documents of one word the peak is that word's reading; with the sink as text it would often be the sink's."""
    words = {"explain": ["the"] * 10, "tune": ["World"], "score": ["Paris"]}
    documents = [document(f"{side}{i}", [word]) for side, some in words.items() for i, word in enumerate(some)]
    sides = [side for side, some in words.items() for _ in some]
    sweep = make_sweep(tiny, corpus_of(documents, range(len(documents)), sides), SITES, tmp_path)
    brute, misled = Brute.read(tiny, sweep), 0
    for site in SITES:
        for unit in (UnitId(tiny.name, site, i, sign) for i in range(tiny.width(site)) for sign in (1, -1)):
            known = sweep.statistics(unit)
            assert known.peak == pytest.approx(brute.peak(unit, "explain"), rel=1e-6)
            misled += brute.peak(unit, "explain", floor=known.sink) > 1.05 * known.peak
    assert misled > 10


def test_counts_of_tune_and_score_are_exact(case: Case) -> None:
    for unit in case.units:
        known, y = case.sweep.statistics(unit), case.brute.y(unit)
        for side in ("tune", "score"):
            mine = y[case.brute.places(side)]
            assert known.firings[side] == int((mine >= known.threshold).sum())
            assert known.rate(side) == known.firings[side] / len(mine)
            above = np.cumsum(known.strata[side])
            for edge, found in zip(measures.STRATA, above, strict=False):
                least, most = (int((mine >= edge * known.peak * (1 + e)).sum()) for e in (1e-6, -1e-6))
                assert least <= found <= most
            assert above[-1] == len(mine) == known.tokens[side]


def test_counts_of_explain_are_within_half_a_bin(case: Case) -> None:
    half = 2 ** (1 / 16) * (1 + 1e-5)
    for unit in case.units:
        known, mine = case.sweep.statistics(unit), case.brute.y(unit)[case.brute.places("explain")]
        above = np.cumsum(known.strata["explain"])
        for edge, found in zip(measures.STRATA, above, strict=False):
            low = edge * known.peak
            # What is below half of the peak is counted in LOW_TOKENS of the tokens, each for several: five sd of that.
            each = max(1.0, len(mine) / measures.LOW_TOKENS) if edge < measures.FIRES else 1.0
            least, most = int((mine >= low * half).sum()), int((mine >= low / half).sum())
            spread = 5 * np.sqrt(most * (each - 1))
            assert least - spread <= found <= most + spread
        assert above[-1] == len(mine)
        assert known.firings["explain"] == above[1]


def test_clusters_are_counted_once(case: Case) -> None:
    shared = 0
    for unit in case.units:
        known = case.sweep.statistics(unit)
        for side in ("tune", "score"):
            best = case.brute.maxima(unit, side)
            firing = [n for n, v in best.items() if v >= known.threshold]
            assert known.clusters[side] == len({case.sweep.documents[n].cluster for n in firing})
            shared += len(firing) - known.clusters[side]
    assert shared > 0   # counting documents would be another number


def test_moments_leave_the_sink_out(case: Case) -> None:
    places = case.brute.places("explain")
    for site in SITES:
        values = case.brute.values[site][places].astype(np.float64)
        assert case.sweep.mean(site).numpy() == pytest.approx(values.mean(axis=0), abs=1e-5)
        unit = UnitId(case.subject.name, site, 2, -1)
        known = case.sweep.statistics(unit)
        assert known.mean == pytest.approx(-values[:, 2].mean(), abs=1e-5)
        assert known.std == pytest.approx(values[:, 2].std(), rel=1e-5)


# Exemplars


def test_the_best_documents_with_their_best_places(case: Case) -> None:
    for unit in case.units:
        y = case.brute.y(unit)
        for side in measures.SIDES:
            maxima = case.brute.maxima(unit, side)
            found = case.sweep.exemplars(unit, side, "top")
            assert [e.activation for e in found] == pytest.approx(
                sorted((v for v in maxima.values() if v > 0), reverse=True)[:10], rel=1e-6
            )
            assert len({e.document for e in found}) == len(found)
            for e in found:
                assert case.sweep.documents[e.document].side == side
                assert y[case.brute.number(e)] == pytest.approx(maxima[e.document], rel=1e-6)


def test_every_exemplar_stands_in_its_band(case: Case) -> None:
    edges = dict(zip(SAMPLED, zip(measures.STRATA, (np.inf, *measures.STRATA), strict=False), strict=True))
    for unit in case.units:
        peak, y = case.sweep.statistics(unit).peak, case.brute.y(unit)
        for side in measures.SIDES:
            for name, (low, high) in edges.items():
                found = case.sweep.exemplars(unit, side, name)
                numbers = [case.brute.number(e) for e in found]
                assert len(set(numbers)) == len(found) <= PER_BAND
                assert all(case.sweep.documents[e.document].side == side and e.band == name for e in found)
                assert [e.activation for e in found] == pytest.approx(y[numbers].tolist(), rel=1e-6)
                assert all(low * (1 - 1e-6) <= e.activation / peak < high * (1 + 1e-6) for e in found)
                assert found == sorted(found, key=lambda e: -e.activation)


def test_bands_of_tune_and_score_are_the_smallest_hashes(case: Case) -> None:
    keys, compared = position_key(np.arange(len(case.sweep.tokens))), 0
    for unit in case.units:
        peak, y = case.sweep.statistics(unit).peak, case.brute.y(unit)
        for side in ("tune", "score"):
            places = case.brute.places(side)
            if not edge_free(y[places], peak):
                continue
            for name, low, high in zip(SAMPLED, measures.STRATA, (np.inf, *measures.STRATA), strict=False):
                inside = places[(y[places] >= low * peak) & (y[places] < high * peak)]
                wanted = inside[np.argsort(keys[inside])][:PER_BAND]
                found = case.sweep.exemplars(unit, side, name)
                assert {case.brute.number(e) for e in found} == set(wanted.tolist())
                compared += 1
    assert compared > 2 * len(case.units)


def test_bands_of_explain_are_not_starved(case: Case) -> None:
    """P is not known while they are collected; they hold at least half of what the text has to offer all the same."""
    for unit in case.units:
        peak, y = case.sweep.statistics(unit).peak, case.brute.y(unit)[case.brute.places("explain")]
        for name, low, high in zip(SAMPLED, measures.STRATA, (np.inf, *measures.STRATA), strict=False):
            there = min(PER_BAND, int(((y >= low * peak) & (y < high * peak)).sum()))
            assert len(case.sweep.exemplars(unit, "explain", name)) >= there // 2


def test_firings_are_a_sample_by_hash_or_all_of_them(case: Case) -> None:
    keys, sizes = position_key(np.arange(len(case.sweep.tokens))), []
    places = case.brute.places("score")
    for unit in case.units:
        known, y = case.sweep.statistics(unit), case.brute.y(unit)
        fires = places[y[places] >= known.threshold]
        wanted = fires[np.argsort(keys[fires])][: measures.SAMPLE]
        found = case.sweep.firings(unit)
        assert {case.brute.number(e) for e in found} == set(wanted.tolist())
        assert len(found) == len(wanted)
        assert [e.activation for e in found] == pytest.approx(
            [y[case.brute.number(e)] for e in found], rel=1e-6
        )
        assert all(e.band == ("high" if e.activation >= 0.8 * known.peak else "mid") for e in found)
        sizes.append(len(fires))
    assert any(0 < size < measures.SAMPLE for size in sizes)
    assert any(size > measures.SAMPLE for size in sizes)


def test_random_places_are_the_same_for_every_unit(case: Case) -> None:
    keys = position_key(np.arange(len(case.sweep.tokens))).astype(np.float32)
    for side in measures.SIDES:
        places = case.brute.places(side)
        wanted = set(places[np.argsort(keys[places])][:RANDOM].tolist())
        for unit in case.units[::7]:
            found = case.sweep.exemplars(unit, side, "random")
            assert {case.brute.number(e) for e in found} == wanted
            y = case.brute.y(unit)[[case.brute.number(e) for e in found]]
            assert [e.activation for e in found] == pytest.approx(y.tolist(), rel=1e-5, abs=1e-6)
            assert min(e.activation for e in found) < case.sweep.statistics(unit).threshold


def test_all_bands_at_once_are_each_band(case: Case) -> None:
    unit = UnitId(case.subject.name, "0-mlp", 4, -1)
    for side in measures.SIDES:
        each = [e for name in measures.BANDS for e in case.sweep.exemplars(unit, side, name)]
        together = case.sweep.exemplars(unit, side)
        assert sorted(map(repr, together)) == sorted(map(repr, each))
        assert [e.activation for e in together] == sorted((e.activation for e in each), reverse=True)


def test_reading_again_gives_what_was_kept(case: Case) -> None:
    for unit in case.units[::25]:
        kept = [e for side in measures.SIDES for e in case.sweep.exemplars(unit, side)] + case.sweep.firings(unit)
        rows = case.subject.meter.rows
        values = case.sweep.read(case.subject, unit, [e.place for e in kept])
        assert values == pytest.approx([e.activation for e in kept], rel=1e-5, abs=1e-6)
        windows = {(e.document, e.offset // STEP) for e in kept}
        assert case.subject.meter.rows - rows == len(windows) < len(kept)
    assert len(case.sweep.read(case.subject, case.units[0], [])) == 0


# Batches, order and memory


def tensors(sweep: Sweep, site: str) -> dict[str, torch.Tensor]:
    return load_file(sweep.folder / f"{site}.safetensors")


def test_where_batches_end_does_not_matter(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three windows a batch most documents cross a border; only the working scale of the explain side differs."""
    corpus = made_corpus(80, 600)
    one = make_sweep(llama, corpus, SITES, tmp_path / "one")
    monkeypatch.setattr(module, "BATCH_TOKENS", 3 * measures.WINDOW)
    other = make_sweep(llama, corpus, SITES, tmp_path / "other")
    for site in SITES:
        old, new = tensors(one, site), tensors(other, site)
        assert old.keys() == new.keys()
        for name in old.keys() - {"explain.histogram", "explain.strata", "explain.band_place", "explain.band_value"}:
            if old[name].is_floating_point():
                assert torch.allclose(old[name], new[name], rtol=1e-5, atol=1e-6), name
            else:
                assert torch.equal(old[name], new[name]), name


def test_score_text_never_changes_the_peak(llama: Any, tmp_path: Path) -> None:
    ones, others = made_corpus(80, 50), made_corpus(80, 50, score_seed=2)
    assert ones.digest != others.digest
    first, second = (make_sweep(llama, corpus, SITES, tmp_path) for corpus in (ones, others))
    assert first.folder != second.folder
    for site in SITES:
        a, b = tensors(first, site), tensors(second, site)
        for name in a:
            if name in ("peak", "mean", "std", "sink") or name.startswith(("explain.", "tune.")):
                assert torch.equal(a[name], b[name]), name
        assert not torch.equal(a["score.best_value"], b["score.best_value"])
    naive = [Brute.read(llama, sweep) for sweep in (first, second)]   # a peak over all sides does change
    unit = UnitId(llama.name, "0-mlp", 0)
    assert naive[0].peak(unit, *measures.SIDES) != pytest.approx(naive[1].peak(unit, *measures.SIDES), rel=1e-4)


def test_what_is_stored_does_not_grow_with_the_text(llama: Any, tmp_path: Path) -> None:
    sweeps = [make_sweep(llama, made_corpus(n, 50), SITES, tmp_path) for n in (40, 140)]
    assert sum(sweeps[1].token_counts.values()) > 3 * sum(sweeps[0].token_counts.values())
    for site in SITES:
        small, large = ({n: t.shape for n, t in tensors(sweep, site).items()} for sweep in sweeps)
        assert small == large


def test_half_precision_is_swept_as_well(llama: Any, tmp_path: Path) -> None:
    half = Subject.wrap(copy.deepcopy(llama.model).to(torch.bfloat16), llama.tokenizer, llama.name)
    corpus = made_corpus(60, 50)
    full, rough = (make_sweep(subject, corpus, ["0-mlp"], tmp_path) for subject in (llama, half))
    assert full.folder != rough.folder
    assert torch.allclose(full.site("0-mlp")["peak"], rough.site("0-mlp")["peak"], rtol=0.1, atol=0.02)
    assert rough.facts["provenance"]["dtype"] == "bfloat16"


def test_the_size_asked_for_is_a_sample_by_digest(llama: Any, tmp_path: Path) -> None:
    corpus = made_corpus(120, 50)
    part = make_sweep(llama, corpus, ["0-mlp"], tmp_path, tokens=2000)
    whole = make_sweep(llama, corpus, ["0-mlp"], tmp_path)
    kept = {d.id for d in part.documents}
    assert kept == set(sorted(d.id for d in whole.documents)[: len(kept)])
    longest = max(d.length for d in whole.documents)
    assert 2000 <= sum(part.token_counts.values()) < 2000 + longest < sum(whole.token_counts.values())


def test_windows_that_share_text_with_an_earlier_side_are_left_out(llama: Any, tmp_path: Path) -> None:
    corpus = made_corpus(80, 50)
    copied = next(d for d, side in zip(corpus.documents, corpus.sides, strict=True) if side == "explain")
    own = [word[::-1] for word in copied.text.split()]
    text = [*own * 3, *copied.text.split(), *own * 3]
    leaky = corpus_of([*corpus.documents, document("copy", text)], [*corpus.clusters, 500],
                      [*corpus.sides, "score"])  # fmt: skip
    clean = make_sweep(llama, corpus, ["0-mlp"], tmp_path)
    swept = make_sweep(llama, leaky, ["0-mlp"], tmp_path)
    names = ("tune", "score", "tune_windows", "score_windows")
    assert [swept.facts["overlap"][name] for name in names] == [0, 0, 0, 0]
    before = module._overlap(module.tokenise(llama, leaky, None, lambda *_: None))
    assert before["score"] > 0 and before["score_windows"] >= 2 and before["tune_windows"] == 0
    gone = swept.facts["overlap"]["score_left_out"] - clean.facts["overlap"]["score_left_out"]
    whole, copy_ = llama.encode(" ".join(text))[1:], llama.encode(copied.text)[1:]
    assert len(copy_) <= gone + 2 * 12 and gone < len(copy_) + 2 * STEP
    (kept,) = [d for d in swept.documents if d.name == "copy"]
    assert kept.length == len(whole) - gone
    windows = [tuple(ids[1:]) for number, _, ids in swept.windows("score") if swept.documents[number] is kept]
    cut = [tuple(whole[i : i + STEP]) for i in range(0, len(whole), STEP)]
    assert windows == [w for w in cut if w in set(windows)] and len(cut) - len(windows) == -(-gone // STEP)
    explain = {tuple(ids[i : i + 13]) for _, _, ids in swept.windows("explain") for i in range(1, len(ids) - 12)}
    score = {tuple(ids[i : i + 13]) for _, _, ids in swept.windows("score") for i in range(1, len(ids) - 12)}
    assert explain.isdisjoint(score) and any(tuple(copy_[i : i + 13]) in explain for i in range(len(copy_) - 12))


def test_a_corpus_of_one_text_said_again_has_no_side_of_its_own(llama: Any, tmp_path: Path) -> None:
    texts = [document(f"row {i}", WORDS) for i in range(6)]
    sides = ["explain", "explain", "tune", "tune", "score", "score"]
    with pytest.raises(Refused, match="no tune text of its own among its 6 documents"):
        make_sweep(llama, corpus_of(texts, list(range(6)), sides), ["0-mlp"], tmp_path)


def test_progress_goes_through_every_token(llama: Any, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    sweep = make_sweep(llama, made_corpus(60, 50), ["0-mlp"], tmp_path, progress=lambda *what: told.append(what))
    total = sum(sweep.token_counts.values())
    read = [t for t in told if t[0] in measures.SIDES]
    assert [t[0] for t in read] == sorted((t[0] for t in read), key=measures.SIDES.index)
    assert {t[0] for t in read} == set(measures.SIDES)
    assert [t[1] for t in read] == sorted(t[1] for t in read)
    assert read[-1][1:] == (total, total)
    atlas = told[told.index(read[-1]) + 1 :]
    assert atlas == [("atlas", 0, 319), ("atlas", 319, 319)]


# Folders: finished, killed, full


def small(name: str = "made", seed: int = 0) -> Corpus:
    return made_corpus(30, 20, seed, name=name)


def held(home: Path) -> list[str]:
    """What lies in a home's sweeps."""
    return sorted(os.listdir(home / "sweeps")) if (home / "sweeps").is_dir() else []


def test_a_finished_sweep_is_not_made_again(llama: Any, tmp_path: Path) -> None:
    first = make_sweep(llama, small(), SITES, tmp_path)
    rows = llama.meter.rows
    again = make_sweep(llama, small(), [*reversed(SITES), SITES[0]], tmp_path)
    assert again.folder == first.folder
    assert llama.meter.rows == rows
    assert held(tmp_path) == [first.digest]


def test_the_same_sweep_elsewhere_is_the_same_to_the_byte(llama: Any, tmp_path: Path) -> None:
    one, two = (make_sweep(llama, small(), SITES, tmp_path / name) for name in "ab")
    assert one.digest == two.digest
    files = [f"{site}{part}.safetensors" for site in SITES for part in ("", ".atlas")]
    assert sorted(os.listdir(one.folder)) == sorted(["sweep.json", "documents.parquet", *files])
    for name in ["documents.parquet", *files]:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert one.facts | {"seconds": 0} == two.facts | {"seconds": 0}


def test_other_text_sites_weights_or_size_is_another_sweep(llama: Any, tmp_path: Path) -> None:
    other = Subject.wrap(copy.deepcopy(llama.model), llama.tokenizer, llama.name)
    other.model.get_input_embeddings().weight.data[5, 5] += 1e-3
    made = [
        make_sweep(llama, small(), ["0-mlp"], tmp_path),
        make_sweep(llama, small(seed=1), ["0-mlp"], tmp_path),
        make_sweep(llama, small(), SITES, tmp_path),
        make_sweep(other, small(), ["0-mlp"], tmp_path),
        make_sweep(llama, small(), ["0-mlp"], tmp_path, tokens=10**6),
    ]
    assert len({sweep.digest for sweep in made}) == len(made)


def test_the_same_weights_or_text_under_another_name_are_swept_under_it(llama: Any, tmp_path: Path) -> None:
    make_sweep(llama, small(), ["0-mlp"], tmp_path)
    renamed = Subject.wrap(llama.model, llama.tokenizer, "another/name")
    assert make_sweep(renamed, small(), ["0-mlp"], tmp_path).model == "another/name"
    assert make_sweep(llama, small("copy.txt"), ["0-mlp"], tmp_path).corpus == "copy.txt"


@pytest.mark.parametrize("stop", ["tokenise", "explain", "tune", "score", "atlas"])
def test_a_stopped_sweep_leaves_nothing_that_counts(llama: Any, tmp_path: Path, stop: str) -> None:
    def told(what: str, done: int, total: int) -> None:
        if what == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sweep(llama, small(), SITES, tmp_path, progress=told)
    assert held(tmp_path) == []
    assert find_sweep(tmp_path, llama.digest, "0-mlp") is None
    assert make_sweep(llama, small(), SITES, tmp_path).statistics(UnitId(llama.name, "0-mlp", 0)).peak > 0


def test_what_a_killed_process_leaves_is_never_found(llama: Any, tmp_path: Path) -> None:
    """Its folder still has the name that a sweep has while it is written, with the last file half there."""
    made = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    whole = (made.folder / "sweep.json").read_text("utf-8")
    made.folder.rename(made.folder.with_name(f".{made.digest}.x1y2z3"))
    half = tmp_path / "sweeps" / f".{made.digest}.a4b5c6"
    half.mkdir()
    (half / "sweep.json").write_text(whole[:40], "utf-8")
    assert find_sweep(tmp_path, llama.digest, "0-mlp") is None
    again = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    found = find_sweep(tmp_path, llama.digest, "0-mlp")
    assert found is not None
    assert found.folder == again.folder


@pytest.mark.parametrize("full_at", ["documents.parquet", "0-mlp.safetensors"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    llama: Any, room_for: Any, tmp_path: Path, full_at: str
) -> None:
    needed = (make_sweep(llama, small(), SITES, tmp_path / "roomy").folder / full_at).stat().st_size
    home = tmp_path / "full"
    with room_for(needed - 1), pytest.raises(Refused, match=r"^the sweep could not be written .*[a-z]\); free space"):
        make_sweep(llama, small(), SITES, home)
    assert held(home) == []
    assert find_sweep(home, llama.digest, "0-mlp") is None
    assert make_sweep(llama, small(), SITES, home).sites == SITES


def test_a_disk_that_is_full_at_the_atlas_leaves_nothing(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched, pytest.raises(Refused, match="^the sweep could not be written"):
        patched.setattr(module, "write_atlas", full)
        make_sweep(llama, small(), SITES, tmp_path)
    assert held(tmp_path) == []
    assert make_sweep(llama, small(), SITES, tmp_path).atlas(UnitId(llama.name, "0-mlp", 0)).n == 319


def test_a_home_that_is_a_file_is_one_sentence(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(Refused, match="could not be written"):
        make_sweep(llama, small(), SITES, tmp_path / "home")


def test_two_processes_that_sweep_the_same_agree(llama: Any, tmp_path: Path) -> None:
    """The other one finishes while this one reads: its folder stands, and this one comes back with it."""
    others: list[Sweep] = []

    def told(what: str, done: int, total: int) -> None:
        if what == "score" and done == total and not others:
            others.append(make_sweep(llama, small(), SITES, tmp_path))

    mine = make_sweep(llama, small(), SITES, tmp_path, progress=told)
    assert mine.folder == others[0].folder
    assert held(tmp_path) == [mine.digest]


def test_the_largest_sweep_that_has_the_site_is_found_and_of_equals_the_newest(llama: Any, tmp_path: Path) -> None:
    """A trial on a few tokens must not change what a unit's peak is."""
    old = make_sweep(llama, small(), SITES, tmp_path)
    trial = make_sweep(llama, small("other", 1), ["0-mlp"], tmp_path, tokens=1500)
    middle = make_sweep(llama, small("again"), ["0-mlp"], tmp_path)
    new = make_sweep(llama, small("third", 2), ["1-mlp"], tmp_path)
    assert sum(trial.token_counts.values()) < sum(old.token_counts.values()) == sum(middle.token_counts.values())
    for age, sweep in enumerate((trial, new, middle, old)):
        os.utime(sweep.folder, (1e9 - age, 1e9 - age))

    def digest(site: str) -> str | None:
        found = find_sweep(tmp_path, llama.digest, site)
        return found.digest if found else None

    assert digest("0-mlp") == middle.digest
    assert digest("1-resid") == old.digest
    assert digest("1-mlp") == new.digest
    assert digest("0-resid") is None
    assert find_sweep(tmp_path, "another digest", "0-mlp") is None
    assert find_sweep(tmp_path / "nowhere", llama.digest, "0-mlp") is None


def test_a_sweep_with_more_sites_stands_for_one_with_fewer(llama: Any, tmp_path: Path) -> None:
    whole = make_sweep(llama, small(), SITES, tmp_path)
    rows = llama.meter.rows
    part = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    assert llama.meter.rows == rows and part.digest == whole.digest and part.sites == ["0-mlp"]
    with pytest.raises(Refused, match="was not swept"):
        part.site("1-mlp")
    assert make_sweep(llama, small("other", 1), ["0-mlp"], tmp_path).digest != whole.digest
    assert make_sweep(llama, small(), ["0-mlp"], tmp_path, tokens=1500).digest != whole.digest


@pytest.mark.parametrize("name", ["documents.parquet", "0-mlp.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_sweep_is_named_with_the_way_out(llama: Any, tmp_path: Path, name: str, damage: str) -> None:
    made = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    path = made.folder / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(Refused, match=f"the sweep in {made.folder} is damaged .*; delete that folder and sweep again"):
        make_sweep(llama, small(), ["0-mlp"], tmp_path).site("0-mlp")


@pytest.mark.parametrize("facts", [None, "{", "[1]", "{}"])
def test_a_folder_without_its_facts_is_no_sweep_and_is_made_again(
    llama: Any, tmp_path: Path, facts: str | None
) -> None:
    made = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    other = make_sweep(llama, small("other", 1), ["1-mlp"], tmp_path)
    (made.folder / "sweep.json").unlink()
    if facts is not None:
        (made.folder / "sweep.json").write_text(facts, "utf-8")
    assert find_sweep(tmp_path, llama.digest, "0-mlp") is None
    found = find_sweep(tmp_path, llama.digest, "1-mlp")
    assert found is not None and found.digest == other.digest
    again = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    assert again.digest == made.digest and len(again.site("0-mlp")) > 0


def test_sweeps_of_other_definitions_are_not_found(llama: Any, tmp_path: Path) -> None:
    made = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    for changed in ({"format": -1}, {"measures": -1}):
        (made.folder / "sweep.json").write_text(json.dumps(made.facts | changed), "utf-8")
        assert find_sweep(tmp_path, llama.digest, "0-mlp") is None


# What is refused


@pytest.mark.parametrize("missing", measures.SIDES)
def test_a_side_without_text_is_refused(llama: Any, tmp_path: Path, missing: str) -> None:
    corpus = small()
    kept = [i for i, side in enumerate(corpus.sides) if side != missing]
    part = corpus_of(*([column[i] for i in kept] for column in (corpus.documents, corpus.clusters, corpus.sides)))
    with pytest.raises(Refused, match=f"'made' has no {missing} text"):
        make_sweep(llama, part, SITES, tmp_path)
    assert held(tmp_path) == []


@pytest.mark.parametrize("side", measures.SIDES)
def test_all_documents_on_one_side_are_refused(llama: Any, tmp_path: Path, side: str) -> None:
    corpus = small()
    with pytest.raises(Refused, match="give more documents"):
        make_sweep(llama, corpus_of(corpus.documents, corpus.clusters, [side] * len(corpus.sides)), SITES, tmp_path)


def test_a_sample_too_small_to_have_every_side_is_refused(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="some dozens at least"):
        make_sweep(llama, small(), SITES, tmp_path, tokens=1)


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (["0-attn"], "holds heads"), (["0-mlp", "1-attn"], "holds heads"), (["2-mlp"], "layers 0 to 1"),
        (["0-mlp", "9-resid"], "out of range"), (["mlp"], "no site"), ([""], "no site"), ([], "name at least one site"),
    ],
)  # fmt: skip
def test_sites_that_cannot_be_swept_are_refused_before_any_pass(
    llama: Any, tmp_path: Path, sites: list[str], words: str
) -> None:
    rows = llama.meter.rows
    with pytest.raises(Refused, match=words):
        make_sweep(llama, small(), sites, tmp_path)
    assert llama.meter.rows == rows
    assert held(tmp_path) == []


def test_a_unit_that_was_not_swept_is_refused_with_the_command(llama: Any, tmp_path: Path) -> None:
    sweep = make_sweep(llama, small(), ["0-mlp"], tmp_path)
    unit = UnitId(llama.name, "1-mlp", 3)
    for ask in (sweep.statistics, sweep.firings, lambda u: sweep.exemplars(u, "explain"), lambda u: sweep.mean(u.site)):
        with pytest.raises(Refused, match="`lamplighter sweep --model tiny-llama --sites 1-mlp`"):
            ask(unit)


# Dead units


def test_a_dead_unit_has_numbers_and_no_examples(tiny: Any, tmp_path: Path) -> None:
    """Its activation is 0 everywhere: every count is 0, every list empty, and nothing is NaN."""
    model = copy.deepcopy(tiny.model)
    name = {"tiny-gpt2": "transformer.h.0.mlp.c_fc", "tiny-gpt_neox": "gpt_neox.layers.0.mlp.dense_h_to_4h"}
    weights = model.get_submodule(name.get(tiny.name, "model.layers.0.mlp.up_proj"))
    if tiny.name == "tiny-gpt2":                       # its linear layers are transposed
        weights.weight.data[:, 3] = 0
    else:
        weights.weight.data[3] = 0
    if getattr(weights, "bias", None) is not None:
        weights.bias.data[3] = 0
    subject = Subject.wrap(model, tiny.tokenizer, tiny.name)
    sweep = make_sweep(subject, small(), ["0-mlp"], tmp_path)
    for sign in (1, -1):
        dead = UnitId(tiny.name, "0-mlp", 3, sign)
        known = sweep.statistics(dead)
        assert (known.peak, known.threshold, known.mean, known.std, known.sink) == (0, 0, 0, 0, 0)
        for side in measures.SIDES:
            assert known.strata[side] == [0, 0, 0, 0, sweep.token_counts[side]]
            assert known.firings[side] == known.rate(side) == 0
            assert {e.band for e in sweep.exemplars(dead, side)} == {"random"}
            assert all(e.activation == 0 for e in sweep.exemplars(dead, side))
        assert known.clusters == {"tune": 0, "score": 0}
        assert sweep.firings(dead) == []
        shown = top_examples(subject, sweep, dead, band="random", n=3)
        assert [row["ratio"] for row in shown.rows] == [None] * 3
        shown.to_json()
    assert all(t.isfinite().all() for t in tensors(sweep, "0-mlp").values())


def test_a_unit_dead_on_the_explain_side_alone_never_fires(llama: Any, tmp_path: Path) -> None:
    """Text of one token a side, so that some unit is negative there and positive elsewhere."""
    texts = {"explain": ["the"] * 3, "tune": ["World", "War"], "score": ["Paris", "built"]}
    documents = [document(f"{side}{i}", [word]) for side, words in texts.items() for i, word in enumerate(words)]
    sides = [side for side, words in texts.items() for _ in words]
    sweep = make_sweep(llama, corpus_of(documents, range(len(documents)), sides), ["0-mlp"], tmp_path)
    data, brute = sweep.site("0-mlp"), Brute.read(llama, sweep)
    late = [
        unit for index in range(llama.width("0-mlp")) for sign in (1, -1)
        if (brute.y(unit := UnitId(llama.name, "0-mlp", index, sign))[brute.places("explain")] <= 0).all()
        and (brute.y(unit)[brute.places("score")] > 0).any()
    ]  # fmt: skip
    assert late
    assert not any(t.isnan().any() for t in data.values() if t.is_floating_point())
    for unit in late:
        known = sweep.statistics(unit)
        assert known.peak == 0
        assert known.firings == {side: 0 for side in measures.SIDES}
        assert known.clusters == {"tune": 0, "score": 0}
        assert sweep.firings(unit) == []
