"""What the pages are served with from here: readings of loaded subjects, and search with the embedder."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..store.records import Evidence, Refused
from .config import Home

if TYPE_CHECKING:
    from ..tools.toolbox import Toolbox
    from ..tools.units import UnitId

LOADED = 1               # subjects in memory at a time


def strength(toolbox: "Toolbox", unit: "UnitId", evidence: Evidence) -> dict[str, Any]:
    """{scale, fires}: P and τ of the home's largest sweep of the unit, and whether the text's reading reaches τ.

    Nothing for a tool that reads no one text (checks["peak"]). Both are None where no sweep has the unit; `fires` also
    where the sweep never saw it active, so that τ is 0.
    """
    if "text" not in evidence.arguments or "peak" not in evidence.checks:
        return {}
    try:
        sweep = toolbox.sweep(unit)
        known = sweep.statistics(unit)
    except Refused:
        return {"scale": None, "fires": None}
    scale = {"peak": known.peak, "threshold": known.threshold, "sweep": sweep.digest, "corpus": sweep.corpus}
    return {"scale": scale, "fires": evidence.checks["peak"] >= known.threshold if known.peak > 0 else None}


def reader(home: Home, device: str | None = None, dtype: str | None = None) -> Callable[[str, str], dict[str, Any]]:
    """`read(unit, text)` → {summary, rows, scale, fires}: every token's reading, as `try` gives them, unrecorded.

    The subject is loaded when it is first read, and stays until another is. One text at a time.
    """
    turn = threading.Lock()
    loaded: dict[str, Toolbox] = {}

    def read(unit: str, text: str) -> dict[str, Any]:
        from ..tools.units import UnitId

        named = UnitId.parse(unit)
        with turn:
            if named.model not in loaded:
                while len(loaded) >= LOADED:
                    loaded.pop(next(iter(loaded)))
                loaded[named.model] = home.toolbox(named.model, device, dtype)
            evidence = loaded[named.model].call("activate", named, {"text": text})
            if not evidence.ok:
                raise Refused(evidence.summary)
            told = {"scale": None, "fires": None} | strength(loaded[named.model], named, evidence)
        rows = [{"token": row["token"], "activation": row["activation"]} for row in evidence.rows]
        return {"summary": evidence.summary, "rows": rows} | told

    return read


def searcher(home: Home) -> Callable[..., list[dict[str, Any]]]:
    """`search(text, model=…, site=…, min_score=…, top=…)`, one question at a time."""
    from ..store.search import Filters
    from .find import find

    turn = threading.Lock()

    def ask(text: str, top: int = 20, **asked: Any) -> list[dict[str, Any]]:
        with turn:
            return find(home, text, filters=Filters(**asked), top=top).rows

    return ask


__all__ = ["reader", "searcher", "strength"]
