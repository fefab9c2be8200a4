"""taken_out: each kind of ablation puts what it says, and never a text's own value back."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.tools import taken_out as module
from lamplighter.tools.taken_out import TakenOut, derangement

COLUMNS = [1, 7]


def rows_of(pushers: Any, count: int = 6) -> list[list[int]]:
    """Windows of different lengths."""
    documents = pushers.sweep.side("explain")[:count]
    return [pushers.sweep.window((d, 0))[0][: 20 + 3 * k] for k, d in enumerate(documents)]


def held(pushers: Any, kind: str, seed: int = 0) -> TakenOut:
    return TakenOut(pushers.subject, pushers.sweep, kind, seed)


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_nobody_stays_and_everybody_is_used_once(count: int, seed: int) -> None:
    source = derangement(count, np.random.default_rng(seed))
    assert sorted(source) == list(range(count)) and all(i != k for i, k in enumerate(source))


def test_a_permutation_leaves_some_in_place() -> None:
    """What drawing an order alone would give: one in e texts keeps its own values in some draw."""
    orders = [np.random.default_rng(seed).permutation(6) for seed in range(40)]
    assert any((order == np.arange(6)).any() for order in orders)


def test_constants(pushers: Any) -> None:
    rows = rows_of(pushers)
    mean = held(pushers, "mean").values("1-mlp", COLUMNS, rows)
    assert torch.equal(mean[3, 5], pushers.sweep.mean("1-mlp")[COLUMNS]) and mean.shape == (6, 35, 2)
    assert not held(pushers, "zero").values("1-mlp", COLUMNS, rows).any()


def test_a_resampled_text_has_what_one_other_text_has_at_the_same_positions(pushers: Any) -> None:
    rows = rows_of(pushers)
    found = held(pushers, "resample").values("1-mlp", COLUMNS, rows)
    real = [pushers.subject.run([row], read=["1-mlp"]).readings["1-mlp"][0][:, COLUMNS].float() for row in rows]
    sources = set()
    for line, row in enumerate(rows):
        fits = []
        for other, values in enumerate(real):
            repeated = values[1:].repeat(3, 1)[: len(row) - 1]      # a shorter text begins again
            if torch.allclose(found[line, 1 : len(row)], repeated, atol=1e-5):
                fits.append(other)
        assert len(fits) == 1 and fits[0] != line
        sources.add(fits[0])
    assert len(sources) == len(rows)
    again, another = (held(pushers, "resample").values("1-mlp", COLUMNS, rows, draw) for draw in (0, 1))
    assert torch.equal(found, again) and not torch.equal(found, another)


def test_all_units_come_from_the_same_other_text(pushers: Any) -> None:
    rows = rows_of(pushers)
    one, both = (held(pushers, "resample").values("1-mlp", columns, rows) for columns in ([7], COLUMNS))
    assert torch.equal(one[..., 0], both[..., 1])
    stream = held(pushers, "resample").values("0-resid", [3], rows)
    assert stream.shape == (6, 35, 1)


def test_a_mean_by_role_is_over_the_positions_of_the_same_token(pushers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a loop over the same windows; a token that is too rare has the mean over all."""
    monkeypatch.setattr(module, "REFERENCE", 12)
    by_role = held(pushers, "mean_by_role")
    ids, real = by_role._read_reference("1-mlp")
    rows = rows_of(pushers)
    found = by_role.values("1-mlp", COLUMNS, rows)
    kinds = set()
    for line, row in enumerate(rows):
        for place, token in enumerate(row[1:], start=1):
            own = real[ids == token][:, COLUMNS]
            often = len(own) >= module.SEEN
            wanted = own.mean(dim=0) if often else pushers.sweep.mean("1-mlp")[COLUMNS]
            assert torch.allclose(found[line, place], wanted, atol=1e-5)
            kinds.add(often)
    assert kinds == {True, False}


def test_the_mean_of_a_site_that_was_not_swept_is_that_of_reference_windows(pushers: Any) -> None:
    by_mean = held(pushers, "mean")
    _, real = by_mean._read_reference("1-attn")
    assert torch.allclose(by_mean.mean("1-attn"), real.mean(dim=0))
    assert by_mean.values("1-attn", [0], rows_of(pushers)).shape == (6, 35, 1)
