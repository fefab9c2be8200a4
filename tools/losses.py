"""What next-token predictions lose when something in the model is changed: CE and KL [nats] at each position."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .subject import Subject

CHUNK = 256            # positions whose logits are held at once


def not_sink(mask: Tensor) -> Tensor:
    """The positions of `mask` [B, T] but the first of each row."""
    inner = mask.clone()
    inner[:, 0] = False
    return inner


def inside(rows: Sequence[Sequence[int]]) -> Tensor:
    """The positions [B, T] of right-padded rows but the sink's."""
    lengths = torch.tensor([len(row) for row in rows])
    return not_sink(torch.arange(int(lengths.max())) < lengths[:, None])


def losses(
    subject: Subject, normed: Sequence[Tensor], rows: Sequence[Sequence[int]], inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """CE [1 + K, N] and KL [K, N], float64, at the N positions of `inner` [B, T] that have a next token: these [B, T].

    normed: what the final norm gave [B, T, d] in a clean pass over `rows`, and in K others; KL is from the clean one's
    predictions to each other's.
    """
    followed = inner.clone()
    followed[:, :-1] &= inner[:, 1:]
    followed[:, -1] = False
    targets = torch.tensor([rows[b][p + 1] for b, p in torch.nonzero(followed).tolist()], device=inner.device)
    streams = [stream[followed] for stream in normed]
    ce, kl = [], []
    for part in (slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK)):
        every = [subject.unembed(stream[part]).log_softmax(dim=-1) for stream in streams]
        clean, *others = every
        wanted = targets[part, None]
        ce.append(torch.stack([-q.gather(1, wanted)[:, 0] for q in every]).double().cpu())
        kl.append(torch.stack([(clean.exp() * (clean - q)).sum(dim=-1) for q in others]).double().cpu())
    return torch.cat(ce, dim=1), torch.cat(kl, dim=1), followed.cpu()


__all__ = ["CHUNK", "inside", "losses", "not_sink"]
