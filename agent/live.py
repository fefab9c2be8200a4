"""The subject behind the pages: what its units read on a text, and what they write."""

import threading
from typing import TYPE_CHECKING, Any

from ..store.records import Evidence, Refused
from .config import Home

if TYPE_CHECKING:
    from ..store.rank import Directions
    from ..tools.toolbox import Toolbox
    from ..tools.units import UnitId


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


class Live:
    """The subject that was asked for last: it is loaded when it is asked for, and stays until another is."""

    def __init__(self, home: Home, device: str | None = None, dtype: str | None = None) -> None:
        self.home, self.device, self.dtype = home, device, dtype
        self._turn = threading.Lock()
        self._loaded: tuple[str, Toolbox, Directions] | None = None

    def read(self, unit: str, text: str) -> dict[str, Any]:
        """{summary, rows, scale, fires}: every token's reading, as `try` gives them, unrecorded."""
        from ..tools.units import UnitId

        named = UnitId.parse(unit)
        with self._turn:
            toolbox, _ = self._of(named.model)
            evidence = toolbox.call("activate", named, {"text": text})
            if not evidence.ok:
                raise Refused(evidence.summary)
            told = {"scale": None, "fires": None} | strength(toolbox, named, evidence)
        rows = [{"token": row["token"], "activation": row["activation"]} for row in evidence.rows]
        return {"summary": evidence.summary, "rows": rows} | told

    def directions(self, unit: str) -> "Directions":
        """What the units of the model of this unit write."""
        from ..tools.units import UnitId

        with self._turn:
            return self._of(UnitId.parse(unit).model)[1]

    def _of(self, model: str) -> "tuple[Toolbox, Directions]":
        if self._loaded is None or self._loaded[0] != model:
            from .find import write_directions

            self._loaded = None                # one at a time, also while the next is loaded
            toolbox = self.home.toolbox(model, self.device, self.dtype)
            self._loaded = (model, toolbox, write_directions(toolbox.subject))
        return self._loaded[1:]


__all__ = ["Live", "strength"]
