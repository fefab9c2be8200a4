"""How good an SAE or a transcoder is: what it leaves out, and what the model loses with it in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Refused
from . import stats
from .features import Coder
from .losses import losses, not_sink
from .measures import CONFIDENCE
from .stats import Floats, Ints
from .subject import Edit, Subject
from .sweep import Read, batches

DENSE = 0.1            # a feature that is on at a larger share of tokens is dense
LOUD = 2.0             # times the median norm, above which a token is left out of `fve_typical`
VARIANTS = ("sae", "zero", "mean")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Tokens:
    """One entry a token, the sink left out; those of losses NaN where a window ends. `on` [m]: tokens a feature is on.

    error ‖y − ŷ‖², spread ‖y − ȳ‖², the same about the mean of typical tokens, norm ‖y‖, size ‖ŷ‖, l0, and CE(clean),
    then CE and KL(clean ‖ ·) of each variant. `loud`: the norm above which a token is not typical.
    """

    columns: dict[str, Floats]
    cluster: Ints
    on: Ints
    loud: float


def sae_eval(
    subject: Subject, site: str, documents: Sequence[Read], *, seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Quality of the SAE or transcoder behind a site, on documents that it was not trained on, the sink left out.

    With y what stands where it writes, ȳ its mean over these tokens, and ŷ what it makes of what it reads: l0 = mean
    number of features on; mse = mean ‖y − ŷ‖²; fve = 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²; fve_typical, the same with all that
    enters it, ȳ too, over tokens with ‖y‖ at most twice the median, since few tokens can carry most of the variance;
    fve_by_token = 1 − mean of ‖y − ŷ‖² / ‖y − ȳ‖². shrinkage = mean ‖ŷ‖ / ‖y‖. ce_recovered = (CE_x − CE_sae) /
    (CE_x − CE_clean) for ŷ in place of y at every token but the sink, x = zero: 0 stands there, x = mean: ȳ;
    kl_recovered = 1 − KL_sae / KL_x, KL from the clean predictions. Nothing is clipped: worse than ablation is
    negative. None where ablation costs nothing.

    Rows {metric, value, low, high}: 95 % percentile bootstrap over clusters of near-copy documents. Besides: tokens,
    documents, dead (share of features never on here), dense (on at more than 10 % of the tokens), features.
    Source of the definitions: measures of SAELens's evaluation, with the mean taken off in fve.
    """
    if not documents:
        raise Refused("there is no text to judge the SAE on; give documents that it was not trained on.")
    coder = subject.coder(site)
    mean, norms = _mean(subject, coder, documents, np.inf, progress)
    loud = LOUD * float(np.median(norms))
    typical, _ = _mean(subject, coder, documents, loud, progress)
    found = _measure(subject, coder, mean, typical, loud, documents, progress)
    shares = _shares(found).items()
    rows = [{"metric": name, **_bounded(top, bottom, found.cluster, seed)} for name, (top, bottom) in shares]
    count = len(found.cluster)
    return {
        "site": site, "architecture": coder.architecture, "features": coder.width, "tokens": count,
        "documents": len(documents), "rows": rows, "dead": float((found.on == 0).mean()),
        "dense": float((found.on > DENSE * count).mean()),
    }  # fmt: skip


def _mean(
    subject: Subject, coder: Coder, documents: Sequence[Read], loud: float, progress: Progress
) -> tuple[Tensor, Floats]:
    """Mean of y [d_out] over the tokens with ‖y‖ at most `loud`, and ‖y‖ of every token."""
    whole = sum(len(d.ids) for d in documents)
    total: Tensor | float = 0.0
    norms: list[Floats] = []
    for rows, _, _ in batches(documents, subject.sink):
        done = subject.run(rows, read=[coder.writes])
        y = done.readings[coder.writes][:, 1:][done.mask[:, 1:]].double()
        norms.append(y.norm(dim=-1).cpu().numpy())
        total = total + y[y.norm(dim=-1) <= loud].sum(dim=0)
        progress("mean", sum(map(len, norms)), whole)
    every = np.concatenate(norms)
    assert isinstance(total, Tensor)
    return total / int((every <= loud).sum()), every


def _measure(
    subject: Subject, coder: Coder, mean: Tensor, typical: Tensor, loud: float, documents: Sequence[Read],
    progress: Progress,
) -> _Tokens:  # fmt: skip
    whole, done = sum(len(d.ids) for d in documents), 0
    parts: list[dict[str, Floats]] = []
    clusters: list[Ints] = []
    on = torch.zeros(coder.width, dtype=torch.int64)
    for rows, _, cluster in batches(documents, subject.sink):
        columns, active = _batch(subject, coder, mean, typical, rows)
        parts.append(columns)
        clusters.append(cluster)
        on += active
        done += len(cluster)
        progress("judge", done, whole)
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _Tokens(together, np.concatenate(clusters), on.numpy(), loud)


def _batch(
    subject: Subject, coder: Coder, mean: Tensor, typical: Tensor, rows: Sequence[Sequence[int]]
) -> tuple[dict[str, Floats], Tensor]:
    """The columns of one batch of windows, in reading order, and at how many tokens each feature is on."""
    read = dict.fromkeys([coder.reads, coder.writes, *subject.before([coder.writes])])
    clean = subject.run(rows, read=list(read), normed=True)
    inner = not_sink(clean.mask)
    x, y = clean.readings[coder.reads], clean.readings[coder.writes]
    z, rebuilt = coder.encode(x[inner]), coder.rebuild(x)
    seen = y[inner].double()
    error = (seen - rebuilt[inner].double()).square().sum(dim=-1)
    columns = {
        "error": error,
        "spread": (seen - mean).square().sum(dim=-1),
        "typical": (seen - typical).square().sum(dim=-1),
        "norm": seen.norm(dim=-1),
        "size": rebuilt[inner].double().norm(dim=-1),
        "l0": (z > 0).sum(dim=-1).double(),
    }
    put = {"sae": rebuilt, "zero": torch.zeros_like(mean), "mean": mean}
    normed = [clean.normed]
    for name in VARIANTS:
        edits = [Edit(coder.writes, put[name], where=inner)]
        normed.append(subject.run(rows, edits=edits, normed=True, start=clean.readings).normed)
    columns |= _losses(subject, [n for n in normed if n is not None], rows, inner)
    return {name: value.cpu().numpy() for name, value in columns.items()}, (z > 0).sum(dim=0).cpu()


def _losses(
    subject: Subject, normed: Sequence[Tensor], rows: Sequence[Sequence[int]], inner: Tensor
) -> dict[str, Tensor]:
    """CE of the clean pass, and CE and KL of each variant, at every token but the sink; NaN at the last of a window."""
    ce, kl, followed = losses(subject, normed, rows, inner)
    names = ["clean", *(f"{kind}_{name}" for kind in ("ce", "kl") for name in VARIANTS)]
    result = torch.full((len(names), *followed.shape), torch.nan, dtype=torch.float64)
    result[:, followed] = torch.cat([ce, kl])
    return dict(zip(names, result[:, inner.cpu()], strict=True))


def _shares(found: _Tokens) -> dict[str, tuple[Floats, Floats]]:
    """Each metric as two values a token, the ratio of whose sums it is."""
    c = found.columns
    one = np.ones(len(found.cluster))
    typical = (c["norm"] <= found.loud).astype(np.float64)
    kept = c["spread"] - c["error"]
    metrics = {
        "l0": (c["l0"], one),
        "mse": (c["error"], one),
        "fve": (kept, c["spread"]),
        "fve_typical": (typical * (c["typical"] - c["error"]), typical * c["typical"]),
        "fve_by_token": (kept / c["spread"], one),
        "shrinkage": (c["size"] / c["norm"], one),
    }
    followed = ~np.isnan(c["clean"])
    here = followed.astype(np.float64)
    loss = {name: np.where(followed, c[name], 0.0) for name in c if name == "clean" or name[:3] in ("ce_", "kl_")}
    metrics["ce_clean"] = (loss["clean"], here)
    metrics |= {f"ce_{name}": (loss[f"ce_{name}"], here) for name in VARIANTS}
    for name in VARIANTS[1:]:
        metrics[f"ce_recovered_{name}"] = (loss[f"ce_{name}"] - loss["ce_sae"], loss[f"ce_{name}"] - loss["clean"])
        metrics[f"kl_recovered_{name}"] = (loss[f"kl_{name}"] - loss["kl_sae"], loss[f"kl_{name}"])
    return metrics


def _bounded(top: Floats, bottom: Floats, cluster: Ints, seed: int) -> dict[str, float | None]:
    """{value, low, high} of Σ top / Σ bottom; None where what is divided by is not above 0."""
    names, number = np.unique(cluster, return_inverse=True)
    totals = np.stack([stats.by_cluster(number, len(names), v) for v in (top, bottom)], axis=1)
    whole = totals.sum(axis=0)
    draws = stats.resampled(totals, seed)
    share = np.where(draws[:, 1] > 0, stats.ratio(draws[:, 0], draws[:, 1]), np.nan)
    low, high = stats.interval(share, len(names))
    if whole[1] <= 0 or np.isnan(share).mean() > 1 - CONFIDENCE:
        return {"value": None, "low": None, "high": None}
    return {"value": float(whole[0] / whole[1]), "low": low, "high": high}


__all__ = ["sae_eval"]
