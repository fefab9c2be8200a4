"""auto:N on hand-made sweeps: each condition alone keeps a unit out, and the rest are taken in turn by strength."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from lamplighter.tools import auto, measures
from lamplighter.tools.auto import pick_units
from lamplighter.tools.collect import BINS, KEPT, SAMPLED
from lamplighter.tools.sweep import FORMAT, STEP, Sweep
from lamplighter.tools.units import UnitId

WIDTH = 40
LENGTH = 200                                     # tokens a document
DOCUMENTS = {"explain": 50, "tune": 25, "score": 50}
TUNE = DOCUMENTS["tune"] * LENGTH
FIRES = 20                                       # of 5,000 tune tokens: a rate of 0.4 %


class Made:
    """A sweep in which every unit qualifies on its positive side alone; units are then changed one by one."""

    def __init__(self, sites: tuple[str, ...] = ("0-mlp",)) -> None:
        self.sites = {site: self._site() for site in sites}

    @staticmethod
    def _site() -> dict[str, torch.Tensor]:
        data = {
            "peak": torch.ones(2, WIDTH),
            "mean": torch.zeros(WIDTH),
            "std": torch.linspace(0.2, 0.1, WIDTH),      # the last unit is the strongest
            "sink": torch.zeros(WIDTH),
        }
        for side in measures.SIDES:
            data[f"{side}.strata"] = torch.zeros(2, WIDTH, len(SAMPLED), dtype=torch.int32)
            data[f"{side}.clusters"] = torch.full((2, WIDTH), 12, dtype=torch.int32)
            data[f"{side}.histogram"] = torch.zeros(2, WIDTH, BINS, dtype=torch.int32)
            data[f"{side}.band_place"] = torch.full((2, WIDTH, len(SAMPLED), KEPT), -1, dtype=torch.int32)
        data["tune.strata"][0, :, 0] = FIRES // 2
        data["tune.strata"][0, :, 1] = FIRES - FIRES // 2
        data["tune.strata"][..., 2:] = 300               # what lies below half the peak is no firing
        places = torch.arange(10, dtype=torch.int32) * LENGTH + 5
        data["explain.best_place"] = places[None, :, None].repeat(2, 1, WIDTH)
        return data

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.sites["0-mlp"][name]

    def sweep(self, folder: Path) -> Sweep:
        sides = [side for side, n in DOCUMENTS.items() for _ in range(n)]
        ids = pa.array([[1] * LENGTH for _ in sides], type=pa.list_(pa.int32()))
        names = [str(i) for i in range(len(sides))]
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": names, "name": names, "side": sides, "cluster": list(range(len(sides))), "ids": ids})
        pq.write_table(table, folder / "documents.parquet")
        facts = {"format": FORMAT, "measures": measures.VERSION, "digest": "made", "model": "made", "corpus": "made",
                 "sites": list(self.sites), "sink": 0,
                 "tokens": {side: n * LENGTH for side, n in DOCUMENTS.items()}}  # fmt: skip
        (folder / "sweep.json").write_text(json.dumps(facts), "utf-8")
        for site, data in self.sites.items():
            save_file({name: tensor.contiguous() for name, tensor in data.items()}, folder / f"{site}.safetensors")
        return Sweep(folder)

    def picked(self, folder: Path, n: int = 2 * WIDTH) -> list[UnitId]:
        return [pick.unit for pick in pick_units(self.sweep(folder), n)]


def unit(index: int, sign: int = 1, site: str = "0-mlp") -> UnitId:
    return UnitId("made", site, index, sign)


def test_all_that_qualify_come_strongest_first(tmp_path: Path) -> None:
    """P over the standard deviation; the negative side never fires here, so that no unit comes twice."""
    picks = pick_units(Made().sweep(tmp_path), 100)
    assert [pick.unit for pick in picks] == [unit(i) for i in reversed(range(WIDTH))]
    assert picks[0].strength == pytest.approx(10)
    assert picks[-1].strength == pytest.approx(5)


PLANT = 17


def rate(made: Made, firings: int) -> None:
    made["tune.strata"][0, PLANT] = torch.tensor([firings - firings // 3, firings // 3, 50, 50])


def starts(made: Made, first: int, offset: int = 0) -> None:
    """`first` of the ten best places at the start of a window of their document."""
    made["explain.best_place"][0, :first, PLANT] = torch.arange(first, dtype=torch.int32) * LENGTH + offset


LEAVES_OUT: dict[str, Any] = {
    "rarer than one in 5,000": lambda made: rate(made, 0),
    "denser than one in 50": lambda made: rate(made, 101),
    "dense by its strong firings alone": lambda made: made["tune.strata"][0, PLANT].copy_(torch.tensor([120, 0, 0, 0])),
    "in too few clusters": lambda made: made["tune.clusters"][0, PLANT].fill_(5),
    "the sink fires it": lambda made: made["sink"][PLANT].fill_(0.51),
    "massive": lambda made: made["peak"][0, PLANT].fill_(30.5),
    "bound to the start of the window": lambda made: starts(made, 5),
    "bound to the start of later windows": lambda made: starts(made, 6, 2 * STEP),
    "dead": lambda made: made["peak"][0, PLANT].fill_(0),
}
LEAVES_IN: dict[str, Any] = {
    "just often enough": lambda made: rate(made, 1),
    "just seldom enough": lambda made: rate(made, 100),
    "just enough clusters for the score side, twice as long": lambda made: made["tune.clusters"][0, PLANT].fill_(6),
    "weak places are no firings": lambda made: made["tune.strata"][0, PLANT, 2:].fill_(4000),
    "the sink just below": lambda made: made["sink"][PLANT].fill_(0.49),
    "the sink strongly negative": lambda made: made["sink"][PLANT].fill_(-50.0),
    "just not massive": lambda made: made["peak"][0, PLANT].fill_(29.5),
    "four of ten at the start": lambda made: starts(made, 4),
    "the second token of the window": lambda made: starts(made, 10, 1),
    "the last token of the window": lambda made: starts(made, 10, STEP - 1),
    "few best documents": lambda made: made["explain.best_place"][0, 4:, PLANT].fill_(-1),
}


@pytest.mark.parametrize("change", LEAVES_OUT)
def test_one_condition_alone_leaves_a_unit_out(tmp_path: Path, change: str) -> None:
    made = Made()
    LEAVES_OUT[change](made)
    assert sorted(u.index for u in made.picked(tmp_path)) == [i for i in range(WIDTH) if i != PLANT]


@pytest.mark.parametrize("change", LEAVES_IN)
def test_a_unit_just_inside_a_condition_stays(tmp_path: Path, change: str) -> None:
    made = Made()
    LEAVES_IN[change](made)
    assert sorted(u.index for u in made.picked(tmp_path)) == list(range(WIDTH))


def test_the_sink_is_read_with_the_sign_of_the_side(tmp_path: Path) -> None:
    made = Made()
    made["tune.strata"][1] = made["tune.strata"][0]      # both sides qualify …
    made["sink"][3], made["sink"][4] = 0.8, -0.8         # … but for the sink
    signs = {u.index: u.sign for u in made.picked(tmp_path)}
    assert (signs[3], signs[4]) == (-1, 1)


def test_massive_is_measured_against_the_units_of_the_same_sign(tmp_path: Path) -> None:
    made = Made()
    made["peak"][1] = 0.01
    made["std"].div_(10)
    made["tune.strata"][1, 5] = made["tune.strata"][0, 5]
    made["tune.strata"][0] = 0
    made["peak"][1, 5] = 0.25
    assert made.picked(tmp_path / "a") == [unit(5, -1)]
    made["peak"][1, 5] = 0.35
    assert made.picked(tmp_path / "b") == []


def test_a_peak_that_noise_reaches_is_no_strong_one(tmp_path: Path) -> None:
    made = Made()
    made["std"][PLANT] = 0.34       # P is 1
    assert PLANT not in [u.index for u in made.picked(tmp_path / "a")]
    made["std"][PLANT] = 0.33
    assert PLANT in [u.index for u in made.picked(tmp_path / "b")]


def test_dead_units_do_not_make_the_living_massive(tmp_path: Path) -> None:
    """Most neurons of a small or pruned site may never fire: their peaks of 0 are no measure of the others."""
    made = Made()
    made["peak"][0, : PLANT] = 0
    made["peak"][0, PLANT + 2 :] = 0
    assert sorted(u.index for u in made.picked(tmp_path)) == [PLANT, PLANT + 1]


def test_only_the_stronger_side_of_a_unit_is_taken(tmp_path: Path) -> None:
    made = Made()
    made["tune.strata"][1] = made["tune.strata"][0]
    made["peak"][1] = 0.9
    made["peak"][1, ::2] = 1.1
    picked = made.picked(tmp_path)
    assert len(picked) == len({u.bare for u in picked}) == WIDTH
    assert all(u.sign == (1 if u.index % 2 else -1) for u in picked)


def test_sites_take_turns_and_an_exhausted_site_leaves_its_turns(tmp_path: Path) -> None:
    made = Made(("0-mlp", "3-mlp", "7-mlp"))
    made.sites["3-mlp"]["tune.strata"][0, : WIDTH - 2] = 0     # two units qualify there
    picked = made.picked(tmp_path, 9)
    sites = ["0-mlp", "3-mlp", "7-mlp", "0-mlp", "3-mlp", "7-mlp", "0-mlp", "7-mlp", "0-mlp"]
    assert [u.site for u in picked] == sites
    for site in made.sites:
        mine = [u.index for u in picked if u.site == site]
        assert mine == sorted(mine, reverse=True)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_n_are_picked(tmp_path: Path, n: int) -> None:
    made = Made(("0-mlp", "3-mlp"))
    picked = made.picked(tmp_path, n)
    assert len(picked) == len(set(picked)) == n
    assert picked == made.picked(tmp_path, 7)[:n]


def test_fewer_than_n_where_fewer_qualify(tmp_path: Path) -> None:
    made = Made()
    made["tune.strata"][0, 3:] = 0
    assert made.picked(tmp_path / "three", 20) == [unit(2), unit(1), unit(0)]
    made["tune.strata"][:] = 0
    assert made.picked(tmp_path / "none", 20) == []


def test_the_score_side_decides_nothing(tmp_path: Path) -> None:
    made = Made()
    before = made.picked(tmp_path / "before")
    for name in ("strata", "clusters"):
        made[f"score.{name}"][:] = torch.randint(0, 500, made[f"score.{name}"].shape)
    assert made.picked(tmp_path / "after") == before


def test_every_unit_dead_is_no_crash(tmp_path: Path) -> None:
    made = Made()
    for name in ("peak", "std", "tune.strata", "tune.clusters"):
        made[name][:] = 0
    made["explain.best_place"][:] = -1
    assert made.picked(tmp_path) == []


def test_the_reason_names_the_numbers(tmp_path: Path) -> None:
    made = Made()
    made["sink"][PLANT] = -0.125
    why = next(pick for pick in pick_units(made.sweep(tmp_path), 100) if pick.unit.index == PLANT).why
    strength = 1 / float(made["std"][PLANT])
    assert why == f"fires on 0.40% of tune tokens in 12 clusters; P 1 is {strength:.0f} sd; the sink reads -0.12"


def test_the_limits_are_those_that_the_tests_assume() -> None:
    assert (auto.RATE, auto.EXPECTED, auto.MASSIVE, auto.SAME_PLACE) == ((2e-4, 2e-2), 12, 30.0, 0.5)
    assert TUNE == 5000
