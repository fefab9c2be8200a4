"""What a pass keeps, fed by hand in random batches, against the same numbers counted with everything in memory."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamplighter.tools import measures
from lamplighter.tools.collect import (
    BINS,
    EVERYWHERE,
    KEPT,
    LOWEST,
    PER_OCTAVE,
    SAMPLED,
    SIGNS,
    Members,
    Reservoir,
    Side,
    Site,
    position_key,
)

CPU = torch.device("cpu")
MASK = 2**64 - 1


# The position hash


def mixed(state: int) -> int:
    """splitmix64's output for a state, in whole numbers."""
    x = (state + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def test_the_key_is_the_published_hash() -> None:
    # The first three outputs of the generator's reference implementation, seeded with 0.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = [i * 0x9E3779B97F4A7C15 & MASK for i in range(3)]
    assert [mixed(state) for state in states] == known
    assert position_key(np.array(states, dtype=np.uint64)).tolist() == [(x >> 11) / 2**53 for x in known]


@given(st.lists(st.integers(0, 2**40), max_size=20))
def test_the_key_of_any_token_number(tokens: list[int]) -> None:
    keys = position_key(np.array(tokens, dtype=np.int64))
    assert keys.tolist() == [(mixed(token) >> 11) / 2**53 for token in tokens]
    assert all(0 <= key < 1 for key in keys)


def test_the_smallest_keys_are_spread_evenly() -> None:
    """300 of 30,000 by key: each tenth of the text holds about 30 (sd 5), and neighbours are not drawn together."""
    drawn = np.sort(np.argsort(position_key(np.arange(30_000)))[:300])
    tenths = np.bincount(drawn // 3000, minlength=10)
    assert ((tenths > 10) & (tenths < 50)).all(), tenths
    assert (np.diff(drawn) == 1).sum() < 15
    first_come = np.bincount(np.arange(300) // 3000, minlength=10)   # what keeping the first 300 would give
    assert first_come.max() == 300


def test_the_key_is_the_same_in_another_process() -> None:
    code = "import numpy as n; from lamplighter.tools.collect import position_key as k; import sys; "
    code += "sys.stdout.write(repr(k(n.arange(5)).tolist()))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == repr(position_key(np.arange(5)).tolist())


# The reservoir


Member = tuple[int, float, int, float]   # group, key, place, value


def offer(reservoir: Reservoir, members: Sequence[Member]) -> None:
    group, key, place, value = zip(*members, strict=True) if members else ((), (), (), ())
    dtypes = (torch.int64, torch.float32, torch.int32, torch.float32)
    columns = (torch.tensor(part, dtype=d) for part, d in zip((group, key, place, value), dtypes, strict=True))
    reservoir.add(Members(*columns), torch.ones(len(group), dtype=torch.bool))
    if reservoir.full:
        reservoir.settle(reservoir.members())


def held(reservoir: Reservoir, group: int) -> list[tuple[float, int, float]]:
    reservoir.settle(reservoir.members())
    rows = zip(*(t[group].tolist() for t in (reservoir.key, reservoir.place, reservoir.value)), strict=True)
    return sorted(row for row in rows if row[1] >= 0)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int, list[list[Member]]]:
    """Batches of members with distinct keys that float32 holds exactly, in a random order."""
    groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    belongs = draw(st.lists(st.integers(0, groups - 1), max_size=60))
    order = draw(st.permutations(range(len(belongs))))
    members = [(g, order[i] / 128, i, i + 0.5) for i, g in enumerate(belongs)]
    cuts = sorted(draw(st.lists(st.integers(0, len(members)), max_size=8)))
    return groups, size, [members[a:b] for a, b in zip([0, *cuts], [*cuts, len(members)], strict=True)]


@given(batches())
@settings(max_examples=200)
def test_a_reservoir_keeps_the_smallest_keys_of_every_group(given_: tuple[int, int, list[list[Member]]]) -> None:
    groups, size, parts = given_
    reservoir = Reservoir(groups, size, CPU)
    for part in parts:
        offer(reservoir, part)
    for group in range(groups):
        wanted = sorted((k, p, v) for part in parts for g, k, p, v in part if g == group)[:size]
        assert held(reservoir, group) == wanted
        assert int((reservoir.place[group] == -1).sum()) == size - len(wanted)
        assert torch.isinf(reservoir.key[group][reservoir.place[group] == -1]).all()


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.25, 0.5])), max_size=12), max_size=6))
def test_equal_keys_neither_lose_nor_repeat_a_member(parts: list[list[tuple[int, float]]]) -> None:
    reservoir, seen = Reservoir(3, 4, CPU), []
    for part in parts:
        members = [(g, k, len(seen) + i, float(i)) for i, (g, k) in enumerate(part)]
        seen += members
        offer(reservoir, members)
    for group in range(3):
        mine = [(k, p, v) for g, k, p, v in seen if g == group]
        kept = held(reservoir, group)
        assert set(kept) <= set(mine)
        assert len(set(kept)) == len(kept)
        assert [k for k, _, _ in kept] == sorted(k for k, _, _ in mine)[:4]


def test_groups_that_get_few_members_beside_groups_that_get_many_stay_empty() -> None:
    reservoir = Reservoir(50, 8, CPU)
    many = [(0, i / 128, 100 + i, 1.0) for i in range(40)]
    offer(reservoir, many + [(g, 0.5, 200 + g, 1.0) for g in range(1, 50)])
    assert [held(reservoir, g) for g in range(1, 50)] == [[(0.5, 200 + g, 1.0)] for g in range(1, 50)]


def test_keeping_the_first_that_come_is_not_the_same() -> None:
    members = [(0, (31 * i % 64) / 64, i, 0.0) for i in range(64)]
    reservoir = Reservoir(1, 5, CPU)
    for member in members:
        offer(reservoir, [member])
    assert {p for _, p, _ in held(reservoir, 0)} == {p for _, _, p, _ in sorted(members, key=lambda m: m[1])[:5]}
    assert {p for _, p, _ in held(reservoir, 0)} != {p for _, _, p, _ in members[:5]}


# One sign of one side


@dataclass
class Text:
    """Made-up activations of a few units at every token of some documents."""

    y: Tensor                # [N, U] float32
    document: np.ndarray     # [N]
    cluster: np.ndarray      # [N]

    @classmethod
    def drawn(cls, seed: int, documents: int, longest: int = 40, units: int = 3) -> "Text":
        generator = np.random.default_rng(seed)
        lengths = generator.integers(1, longest, documents)
        document = np.repeat(np.arange(documents), lengths)
        tail = generator.standard_normal((len(document), units)) * generator.lognormal(0, 1, (len(document), units))
        louder = generator.lognormal(0, 0.7, documents)[document, None]   # so that some documents stand out
        y = torch.tensor(tail * louder, dtype=torch.float32)
        return cls(y, document, document // 2)

    def feed(self, side: Side, cuts: Sequence[int] = ()) -> Side:
        place = np.arange(len(self.y))
        key = position_key(place).astype(np.float32)
        for a, b in zip([0, *cuts], [*cuts, len(self.y)], strict=True):
            if a < b:
                arrays = (place[a:b].astype(np.int32), key[a:b], self.document[a:b], self.cluster[a:b])
                where, hashed, document, cluster = (torch.as_tensor(array) for array in arrays)
                y = self.y[a:b]
                side.documents(y, where, document, cluster)
                drawn = (hashed < side.share)[:, None]
                enters = (y >= side.least(EVERYWHERE)) | (drawn & (y >= side.least(measures.STRATA[-1])))
                rows, units = torch.nonzero(enters, as_tuple=True)
                side.keep(units, y[rows, units], hashed[rows], where[rows])
        side.end()
        return side

    def maxima(self, unit: int) -> list[tuple[float, int]]:
        """(largest y, its place) of each document in which the unit is positive, largest first."""
        y = self.y[:, unit].numpy()
        best = [max((float(y[i]), -i) for i in np.flatnonzero(self.document == d)) for d in set(self.document)]
        return sorted(((v, -i) for v, i in best if v > 0), reverse=True)

    def cuts(self, seed: int, n: int) -> list[int]:
        return sorted(np.random.default_rng(seed).integers(0, len(self.y), n).tolist())


SEEDS = st.integers(0, 10**6)


@given(SEEDS, st.integers(1, 40), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_the_ten_best_documents_whatever_the_batches(seed: int, documents: int, n: int) -> None:
    text = Text.drawn(seed, documents)
    side = text.feed(Side(3, CPU, None, 0), text.cuts(seed, n))
    for unit in range(3):
        wanted = text.maxima(unit)[:10]
        places, values = side.best_place[:, unit].tolist(), side.best_value[:, unit].tolist()
        kept = [(v, p) for v, p in zip(values, places, strict=True) if p >= 0]
        assert sorted(kept, reverse=True) == wanted
        assert sum(values) / 10 == pytest.approx(sum(v for v, _ in wanted) / 10)
        assert side.scale()[unit].item() == pytest.approx(sum(v for v, _ in wanted) / 10, rel=1e-6)


def test_the_ten_best_tokens_give_another_peak() -> None:
    text = Text.drawn(3, 30)
    side = text.feed(Side(3, CPU, None, 0))
    tokens = text.y.topk(10, dim=0).values.mean(dim=0)
    assert (tokens > 1.05 * side.scale()).all()


def band(ratio: float) -> str | None:
    return next((name for name, edge in zip(SAMPLED, measures.STRATA, strict=True) if ratio >= edge), None)


@given(SEEDS, st.integers(1, 40), st.integers(0, 12), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_a_side_read_at_a_frozen_peak(seed: int, documents: int, n: int, firings: int) -> None:
    """Strata, bands, firings and clusters are those of all y at once, whatever the batches."""
    text = Text.drawn(seed, documents)
    peak = torch.tensor([2.0, 4.0, 0.5])
    side = text.feed(Side(3, CPU, peak, firings), text.cuts(seed, n))
    keys = position_key(np.arange(len(text.y)))
    for unit, p in enumerate(peak.tolist()):
        y = text.y[:, unit].numpy()
        names = np.array([band(v / p) or "" for v in y])
        assert side.strata[unit].tolist() == [int((names == name).sum()) for name in SAMPLED]
        for number, name in enumerate(SAMPLED):
            inside = np.flatnonzero(names == name)
            wanted = inside[np.argsort(keys[inside])][:KEPT]
            row = unit * len(SAMPLED) + number
            assert held_places(side.bands, row) == set(wanted.tolist())
            kept = side.bands.place[row][side.bands.place[row] >= 0].long()
            assert side.bands.value[row][: len(kept)].tolist() == text.y[kept, unit].tolist()
        fires = np.flatnonzero(y >= 0.5 * p)
        assert side.firings is not None
        assert held_places(side.firings, unit) == set(fires[np.argsort(keys[fires])][:firings].tolist())
        assert int(side.clusters[unit]) == len(set(text.cluster[fires].tolist()))


@given(SEEDS, st.integers(5, 40), st.sampled_from([0.1, 0.3, 0.7]))
@settings(max_examples=30, deadline=None)
def test_firings_are_all_counted_and_what_is_below_is_drawn(seed: int, documents: int, share: float) -> None:
    """At a frozen peak: the counts below 0.5 P are those of the drawn places / share, and only these are kept."""
    text = Text.drawn(seed, documents)
    peak = text.feed(Side(3, CPU, None, 0)).scale()
    every = text.feed(Side(3, CPU, peak, 300))
    drawn = text.feed(Side(3, CPU, peak, 300, share=share), text.cuts(seed, 5))
    key = position_key(np.arange(len(text.y))).astype(np.float32)
    groups = torch.arange(len(every.bands.place)) % len(SAMPLED)
    for band, name in enumerate(SAMPLED):
        full, some = every.bands.place[groups == band], drawn.bands.place[groups == band]
        if name in ("high", "mid"):
            assert torch.equal(every.strata[:, band], drawn.strata[:, band]) and torch.equal(full, some)
            continue
        low, high = measures.STRATA[band] * peak, measures.STRATA[band - 1] * peak
        drawn_ones = torch.as_tensor(key < share)[:, None]
        inside = (text.y >= low) & (text.y < high)
        near = inside & (text.y >= peak * EVERYWHERE)         # the bin below what fires is counted everywhere
        count = near.sum(dim=0) + (inside & ~near & drawn_ones).sum(dim=0).double() / share
        assert torch.allclose(drawn.strata[:, band], count)
        inside = inside & drawn_ones
        for unit in range(3):
            own = torch.nonzero(inside[:, unit])[:, 0].numpy()
            wanted = own[np.argsort(key[own])][:KEPT]
            assert sorted(p for p in some[unit].tolist() if p >= 0) == sorted(wanted.tolist())
    assert torch.equal(every.firings.place, drawn.firings.place)  # type: ignore[union-attr]


def test_what_once_fired_and_no_longer_does_stays_only_if_it_was_drawn() -> None:
    """As the peak grows, members of a firing band move to a low one; its members must be a sample all the same."""
    y = np.concatenate([np.full(400, 1.0), np.full(10, 3.0)])
    documents = np.concatenate([np.repeat(np.arange(10), 40), np.arange(10, 20)])
    side = Text(torch.tensor(y, dtype=torch.float32)[:, None], documents, documents).feed(
        Side(1, CPU, None, 0, share=0.05), [400]
    )
    kept = [p for p in side.bands.place[SAMPLED.index("boundary")].tolist() if p >= 0]
    key = position_key(np.arange(len(y))).astype(np.float32)
    assert kept and all(key[p] < 0.05 for p in kept)
    naive = sorted(range(400), key=lambda p: key[p])[:KEPT]       # what moving all of them would leave
    assert set(kept) < set(naive)


def test_a_value_on_the_edge_belongs_to_the_band_above() -> None:
    y = torch.tensor(measures.STRATA, dtype=torch.float32)[:, None]
    below = torch.nextafter(y, torch.zeros(()))
    for values, wanted in ((y, [1, 1, 1, 1]), (below, [0, 1, 1, 1])):
        text = Text(values, np.arange(4), np.arange(4))
        side = text.feed(Side(1, CPU, torch.ones(1), 5))
        assert side.strata[0].tolist() == wanted
    assert side.firings is not None
    assert held_places(side.firings, 0) == {0}      # the value just below half the peak is no firing


def held_places(reservoir: Reservoir, row: int) -> set[int]:
    return {p for p in reservoir.place[row].tolist() if p >= 0}


def counted(side: Side, unit: int, least: float) -> int:
    """Firings of at least `least` by the histogram: the bins whose middle is."""
    middles = 2.0 ** (LOWEST + (np.arange(BINS) + 0.5) / PER_OCTAVE)
    return int(side.histogram[unit].numpy()[middles >= least].sum())


@given(SEEDS, st.integers(1, 40), st.integers(0, 12), st.sampled_from([5, 300]))
@settings(max_examples=60, deadline=None)
def test_counts_of_the_explain_side_are_within_half_a_bin(seed: int, documents: int, n: int, longest: int) -> None:
    text = Text.drawn(seed, documents, longest)
    side = text.feed(Side(3, CPU, None, 0), text.cuts(seed, n))
    half = 2 ** (1 / 16) * (1 + 1e-5)
    for unit, p in enumerate(side.scale().tolist()):
        y = text.y[:, unit].numpy()
        for edge in measures.STRATA:
            if edge * p > 2.0**LOWEST * half and p > 0:
                found = counted(side, unit, edge * p)
                assert int((y >= edge * p * half).sum()) <= found <= int((y >= edge * p / half).sum()), (edge, p)


def test_a_first_document_longer_than_a_batch_is_counted() -> None:
    """No document is closed while it is read, so the bound on the peak is still zero: all that is positive counts."""
    y = torch.full((500, 1), 4.0)
    text = Text(torch.cat([y, torch.ones(5, 1)]), np.repeat([0, 1], [500, 5]), np.repeat([0, 1], [500, 5]))
    side = text.feed(Side(1, CPU, None, 0), [100, 200, 300, 400])
    assert side.scale().item() == pytest.approx(0.5)
    assert counted(side, 0, 0.5 * 0.5) == 505
    assert len(held_places(side.bands, 0)) == KEPT


@given(SEEDS, st.integers(1, 40), st.integers(0, 12))
@settings(max_examples=20, deadline=None)
def test_what_reached_a_tenth_of_the_peak_was_offered_to_a_band(seed: int, documents: int, n: int) -> None:
    """Every kept place of the explain side has the value it was read with, and a band is empty only if nothing fits."""
    text = Text.drawn(seed, documents)
    side = text.feed(Side(3, CPU, None, 0), text.cuts(seed, n))
    for unit, p in enumerate(side.scale().tolist()):
        rows = slice(unit * len(SAMPLED), (unit + 1) * len(SAMPLED))
        place, value = side.bands.place[rows].flatten(), side.bands.value[rows].flatten()
        kept = place >= 0
        assert value[kept].tolist() == text.y[place[kept].long(), unit].tolist()
        assert len(set(place[kept].tolist())) == int(kept.sum())
        possible = np.flatnonzero(text.y[:, unit].numpy() >= 0.1 * p * (1 + 1e-6))
        if 0 < len(possible) <= KEPT and p > 0:
            assert set(possible.tolist()) <= set(place[kept].tolist()) or int(kept.sum()) > KEPT


def test_what_was_strong_for_a_quiet_beginning_makes_room() -> None:
    """Ten quiet documents, then forty places at 9 and 10 among silence: the band high is full of these in the end."""
    quiet, loud = torch.ones(1000), torch.zeros(2000)
    loud[::100], loud[50::100] = 10.0, 9.0
    text = Text(torch.cat([quiet, loud])[:, None], np.repeat(np.arange(30), 100), np.repeat(np.arange(30), 100))
    side = text.feed(Side(1, CPU, None, 0), list(range(100, 3000, 100)))
    assert side.scale().item() == pytest.approx(10.0)
    strong = 1000 + torch.nonzero(loud)[:, 0].numpy()
    kept = held_places(side.bands, 0)
    assert kept <= set(strong.tolist())
    assert len(kept) == KEPT
    smallest = strong[np.argsort(position_key(strong))][:KEPT]
    assert len(kept & set(smallest.tolist())) >= KEPT - 2    # all but what came before the first loud document closed


def test_a_unit_that_never_fires_has_counts_of_zero() -> None:
    """Dead on the explain side: P = 0, and whatever it does later is no firing."""
    y = torch.stack([-torch.ones(20), torch.zeros(20)], dim=1)
    documents = np.repeat([0, 1], 10)
    dead = Text(y, documents, documents).feed(Side(2, CPU, None, 0))
    assert dead.scale().tolist() == [0.0, 0.0]
    assert int(dead.histogram.sum()) == 0
    later = Text(y + 2, documents, documents).feed(Side(2, CPU, dead.scale(), 5), [7])
    assert later.firings is not None
    for kept in (later.strata, later.clusters):
        assert torch.equal(kept, torch.tensor(0)) or int(kept.sum()) == 0
    assert held_places(later.firings, 0) == held_places(later.firings, 1) == set()
    assert held_places(later.bands, 0) == set()


def test_a_cluster_counts_once_though_both_its_documents_fire() -> None:
    y = torch.tensor([[1.0], [1.0], [0.0], [1.0], [0.0]])
    text = Text(y, np.arange(5), np.array([0, 0, 1, 2, 2]))
    side = text.feed(Side(1, CPU, torch.tensor([1.0]), 5), [1])
    assert int(side.clusters[0]) == 2


# A whole site


def fill(site: Site, text: Text, cut: int, drawn: int = 8) -> Site:
    """Feeds the same text as every side."""
    key = position_key(np.arange(len(text.y))).astype(np.float32)
    chosen = np.isin(np.arange(len(text.y)), np.argsort(key)[:drawn])
    for side in measures.SIDES:
        site.begin(side)
        for a in range(0, len(text.y), cut):
            b = min(a + cut, len(text.y))
            arrays = (np.arange(a, b, dtype=np.int32), key[a:b], text.document[a:b], text.cluster[a:b], chosen[a:b])
            site.add(side, text.y[a:b], *(torch.as_tensor(array) for array in arrays))
        site.end(side)
    return site


def test_both_signs_and_the_moments_of_the_raw_activation() -> None:
    text = Text.drawn(5, 30)
    kept = fill(Site(3, CPU), text, 77).tensors()
    assert torch.allclose(kept["mean"], text.y.mean(dim=0), atol=1e-6)
    assert torch.allclose(kept["std"], text.y.std(dim=0, correction=0), atol=1e-6)
    for number, sign in enumerate(SIGNS):
        alone = Text(sign * text.y, text.document, text.cluster).feed(Side(3, CPU, None, 0))
        assert torch.allclose(kept["peak"][number], alone.scale())
    assert not torch.allclose(kept["peak"][0], kept["peak"][1])
    assert kept["explain.random_place"].shape == (8,)
    assert torch.equal(kept["explain.random_value"], text.y[kept["explain.random_place"].long()])


def test_the_peak_is_frozen_when_the_explain_side_ends() -> None:
    text = Text.drawn(6, 30)
    site = Site(3, CPU)
    for side, factor in zip(measures.SIDES, (1.0, 50.0, 1000.0), strict=True):
        site.begin(side)
        louder = torch.as_tensor(factor * text.y)
        place = torch.arange(len(text.y), dtype=torch.int32)
        key = torch.as_tensor(position_key(place.numpy()).astype(np.float32))
        where = (torch.as_tensor(text.document), torch.as_tensor(text.cluster), torch.zeros(len(text.y)))
        site.add(side, louder, place, key, *where)
        site.end(side)
    frozen = text.feed(Side(3, CPU, None, 0)).scale()
    kept = site.tensors()
    assert torch.allclose(kept["peak"][0], frozen, rtol=1e-6, atol=0)     # sums of six columns and of three
    naive = kept["score.best_value"][0].sum(dim=0) / 10     # a peak that is still learning on the score side
    assert (naive > 100 * frozen).all()
    assert torch.allclose(kept["mean"], text.y.mean(dim=0), atol=1e-6)


def tensor_bytes(thing: object) -> int:
    """Bytes of every tensor below an object."""
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size()
    inside = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else None
    if inside is None:
        inside = vars(thing).values() if hasattr(thing, "__dict__") else ()
    return sum(tensor_bytes(part) for part in inside)


def test_what_is_kept_does_not_grow_with_the_text() -> None:
    small, large = Text.drawn(7, 12), Text.drawn(7, 1200)
    assert len(large.y) > 50 * len(small.y)
    sizes = [tensor_bytes(fill(Site(3, CPU), text, 1000)) for text in (small, large)]
    assert sizes[0] == sizes[1] > 3 * BINS
    assert tensor_bytes(large) > 50 * tensor_bytes(small)   # as keeping the activations would
