"""What several threads ask a subject to pass at a time goes through the model together.

While one pass runs, other threads come and wait for their turn; whoever is next passes for all of them whose nodes fit
beside its own. Nobody waits for company: a thread by itself has its pass at once. Units of different layers share a
pass too, as deep as the deepest of them.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from .tries import PASS, Portion, Trie
from .units import parse_site

if TYPE_CHECKING:
    from .subject import Subject

WASTE = 1.25           # times as many nodes × layers as its parts have may a shared pass take


@dataclass(eq=False)
class _Asked:
    """What one thread waits for: nodes and sites; then their readings, or the error."""

    portion: Portion
    sites: list[str]
    found: dict[str, Tensor] | None = None
    error: Exception | None = None
    layers: int = field(init=False)

    def __post_init__(self) -> None:
        self.layers = 1 + max(parse_site(site).layer for site in self.sites)

    @property
    def done(self) -> bool:
        return self.found is not None or self.error is not None


class Pool:
    """Shared passes on one subject; threads may use it at a time."""

    def __init__(self, subject: "Subject") -> None:
        self._subject = subject
        self._guard = threading.Condition()
        self._passing = False             # a thread passes; who comes now waits, and may find its own done
        self._waiting: list[_Asked] = []
        self.passes = 0                   # made so far

    def read(self, trie: Trie, sites: Sequence[str]) -> dict[str, Tensor]:
        """Passes the next nodes of a trie, alone or beside others', and gives their readings [n, width] at the sites.

        Raises what the pass raises of these nodes; what is wrong with others' is theirs.
        """
        mine = _Asked(trie.portion(), list(sites))
        with self._guard:
            self._waiting.append(mine)
            self._guard.wait_for(lambda: mine.done or not self._passing)
            group = [] if mine.done else self._beside(mine)
            self._passing = self._passing or bool(group)
        if group:
            try:
                self._pass(group)
            finally:
                with self._guard:
                    self._passing = False
                    self._guard.notify_all()
        self._subject.meter.tokens += mine.portion.size
        if mine.error is not None:
            raise mine.error
        assert mine.found is not None
        return mine.found

    def _beside(self, mine: _Asked) -> list[_Asked]:
        """The request and those waiting that cost little more together, taken off the list."""
        group, cost = [mine], _cost([mine])
        for one in sorted(self._waiting, key=lambda other: abs(other.layers - mine.layers)):
            both = [*group, one]
            fits = sum(each.portion.size for each in both) <= PASS
            if one is not mine and fits and _cost(both) <= WASTE * (cost + _cost([one])):
                group, cost = both, cost + _cost([one])
        self._waiting = [one for one in self._waiting if one not in group]
        return group

    def _pass(self, group: Sequence[_Asked]) -> None:
        sites = list(dict.fromkeys(site for one in group for site in one.sites))
        try:
            found = self._subject.run_nodes([one.portion for one in group], sites)
        except Exception as error:  # noqa: BLE001 — kept for the thread whose nodes they are
            if len(group) == 1:
                group[0].error = error
            else:
                for one in group:
                    self._pass([one])
            return
        self.passes += 1
        for one, readings in zip(group, found, strict=True):
            one.found = readings


def _cost(group: Sequence[_Asked]) -> int:
    """Nodes × layers of a pass."""
    return sum(one.portion.size for one in group) * max(one.layers for one in group)


__all__ = ["Pool"]
