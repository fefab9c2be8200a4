"""Search as the command line and MCP clients ask for it: the home's index, its embedder, and what units write."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from ..store.findings import drain
from ..store.records import Embedding, Refused
from ..store.search import Filters, search, to_embed, unembedded, why_none
from ..store.work import Busy
from .config import EMBEDDER, Embed, Home, load_embedder

if TYPE_CHECKING:
    from ..store.index import Index
    from ..store.rank import Directions
    from ..tools.subject import Subject

MEANT = ("meaning", "both")          # ways to search that want embeddings
MOST = 2_000             # sentences that a search embeds
ASKED = 256              # sentences that are embedded at a time
BY_WORD = "found by word alone, as {embedder} is not in the cache; `lamplighter models pull {embedder}` fetches it."


@dataclass(frozen=True)
class Answer:
    """What a search found, and what there is to say about it."""

    rows: list[dict[str, Any]]
    by: str
    notes: list[str] = field(default_factory=list)


def find(
    home: Home, text: str | None, *, like: str | None = None, by: str | None = None, filters: Filters | None = None,
    top: int = 10, skip: int = 0, device: str | None = None,
) -> Answer:  # fmt: skip
    """Searches all that is recorded now. Up to MOST sentences without an embedding get one first, if that is needed.

    by: as `search`; by default both, or word where the embedder was not pulled, which is then said. Raises Refused.
    """
    index = home.index
    index.refresh()
    how, notes = way(text, like, by)
    embed = load_embedder() if how in MEANT and like is None and text and text.strip() else None
    if how in MEANT and (embed or embeds()) and (missing := to_embed(index, MOST)):
        with suppress(Busy):         # they wait in the outbox then, and are found by word
            embed_sentences(home, missing, embed or load_embedder())
            index.refresh()
    directions = directions_like(home, like, device) if how == "direction" and like is not None else None
    filters = filters or Filters()
    rows = search(index, text, embed, by=how, like=like, directions=directions, filters=filters, top=top, skip=skip)
    notes += unseen(index, how, filters)
    if not rows and not skip:
        notes.append(why_none(index, filters, words=how == "word"))
    return Answer(rows, how, notes)


def unseen(index: "Index", how: str, filters: Filters) -> list[str]:
    """What there is to say of explanations that a search by meaning did not see."""
    n = unembedded(index, filters) if how in MEANT else 0
    return [f"{n:,} explanations have no embedding yet and are found by word alone."] if n else []


def embeds() -> bool:
    """Whether there is an embedder on this machine."""
    from ..tools.models import installed

    return installed(EMBEDDER)


def way(text: str | None, like: str | None, by: str | None) -> tuple[str, list[str]]:
    """How to search where `by` leaves it open, and what there is to say about that."""
    if by is not None or text is None or embeds():
        return by or "both", []
    return "word", [BY_WORD.format(embedder=EMBEDDER)]


def directions_like(home: Home, like: str, device: str | None = None) -> "Directions":
    """What units write, by the model of the unit `like`, which is loaded for it."""
    from ..tools.units import UnitId

    return write_directions(home.toolbox(UnitId.parse(like).model, device).subject)


def embed_sentences(home: Home, rows: Sequence[Mapping[str, Any]], embed: Embed) -> None:
    """Records the embeddings of sentences. rows: {sentence, hypothesis, run, investigation, unit, sign}."""
    for first in range(0, len(rows), ASKED):
        batch = rows[first : first + ASKED]
        home.work.post(_embeddings(batch, embed([row["sentence"] for row in batch])))
    drain(home.work, home.findings)


def _embeddings(rows: Iterable[Mapping[str, Any]], vectors: Iterable[Sequence[float]]) -> Iterable[Embedding]:
    for row, vector in zip(rows, vectors, strict=True):
        kept = {name: row[name] for name in ("hypothesis", "run", "investigation", "unit", "sign")}
        yield Embedding(model=EMBEDDER, vector=list(vector), **kept)


def write_directions(subject: "Subject") -> "Directions":
    """What each unit of a site adds to the stream [units, d], but for its length; None where none does so alone.

    Dimensions of the stream are basis vectors. A norm between a block's write and the stream counts.
    """
    import numpy as np

    from ..tools.units import parse_site

    @cache
    def rows(site: str) -> "np.ndarray[Any, Any] | None":
        kind = parse_site(site).holds
        if kind == "resid":
            return np.eye(subject.width(site), dtype=np.float32)
        with suppress(Refused):      # heads; features whose SAE is no longer here
            if kind != "attn" and subject.writes_to_stream(site):
                written = subject.write_rows(site).float()
                if (between := subject.norm_behind(site)) is not None:
                    gain, centres = between
                    written = (written - written.mean(dim=1, keepdim=True) if centres else written) * gain.float()
                made: np.ndarray[Any, Any] = written.detach().cpu().numpy()
                return made
        return None

    return rows
