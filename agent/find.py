"""Search as the command line and MCP clients ask for it: the home's index, its embedder, and what units write."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from ..store.filters import Filters
from ..store.findings import drain
from ..store.records import Busy, Embedding, Refused
from ..store.search import Searched, any_of, search, to_embed, unembedded, why_none
from .config import EMBEDDER, Embed, Home, load_embedder

if TYPE_CHECKING:
    from ..store.index import Index
    from ..store.rank import Directions
    from ..tools.subject import Subject

MEANT = ("meaning", "both")          # ways to search that want embeddings
MOST = 2_000             # sentences that a search embeds
ASKED = 256              # sentences that are embedded at a time
BY_WORD = "found by word alone, as {embedder} is not in the cache; `lamplighter models pull {embedder}` fetches it."


class Finder:
    """Search of a home for a process that asks again and again; the embedder is loaded by the first who needs it.

    directions: what the units of the model of a unit write (see `Live`). None: no model may be loaded, and what asks
    for one is refused.
    """

    def __init__(self, home: Home, directions: "Callable[[str], Directions] | None" = None) -> None:
        self.home, self.directions = home, directions
        self._embed: Embed | None = None
        self._turn = threading.Lock()

    def find(
        self, text: str | None, *, like: str | None = None, by: str | None = None, filters: Filters | None = None,
        top: int = 10, skip: int = 0,
    ) -> Searched:  # fmt: skip
        """Searches the index of the home as it is. by: as `search`; by default both, or word where the embedder was not
        pulled, which is then said. Raises Refused."""
        index, filters = self.home.index, filters or Filters()
        how, notes = way(text, like, by)
        embed = self.embed if how in MEANT and like is None and text and text.strip() else None
        directions = self._written(like) if how == "direction" and like is not None else None
        rows = search(index, text, embed, by=how, like=like, directions=directions, filters=filters, top=top, skip=skip)
        notes += unseen(index, how, filters)
        if not rows and not skip:
            notes.append(why_none(index, filters, words=how == "word"))
        return Searched(rows, how, notes, index.as_of)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Texts as the embedder has them, one caller at a time. Raises Refused where it was not pulled."""
        with self._turn:
            if self._embed is None:
                self._embed = load_embedder()
            return self._embed(texts)

    def warm(self) -> None:
        """Has the embedder loaded, in a thread, for whoever will search."""
        if self._embed is None and not self._turn.locked() and embeds():
            threading.Thread(target=self.embed, args=(["warm"],), daemon=True, name="embedder").start()

    def _written(self, like: str) -> "Directions":
        from ..tools.units import UnitId

        if self.directions is None:
            raise Refused(
                "What units write is read from their model, and none is loaded here; `lamplighter serve --live` "
                "loads it."
            )
        model = Filters(model=UnitId.parse(like).model)
        if not any_of(self.home.index, model):      # nobody has a model loaded, or fetched, for nothing
            raise Refused(why_none(self.home.index, model))
        return self.directions(like)


def find(
    home: Home, text: str | None, *, like: str | None = None, by: str | None = None, filters: Filters | None = None,
    top: int = 10, skip: int = 0, device: str | None = None,
) -> Searched:  # fmt: skip
    """Searches all that is recorded now, as `Finder.find` does.

    Up to MOST sentences without an embedding get one first, if that is needed.
    """
    from .live import Live

    finder = Finder(home, Live(home, device).directions)
    home.index.refresh()
    asked = like is None and text is not None and bool(text.strip())
    if way(text, like, by)[0] in MEANT and (asked or embeds()) and (missing := to_embed(home.index, MOST)):
        with suppress(Busy):         # they wait in the outbox then, and are found by word
            embed_sentences(home, missing, finder.embed)
            home.index.refresh()
    return finder.find(text, like=like, by=by, filters=filters, top=top, skip=skip)


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
