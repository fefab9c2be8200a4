"""Readings of units at the last tokens of many rows, which come in portions and begin alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .subject import Ids, Subject
from .tries import Trie
from .units import UnitId

ROOM = 2048    # prefixes remembered: attention takes its new ones × all of them


class Reader:
    """Reads sites of a subject, computing each prefix of the rows once, as long as there is room for it.

    Experiments on one text ask for hundreds of rows that differ in a few late tokens. Where the subject's identity
    `share` does not hold, or a row does not fit, nothing is shared.
    """

    def __init__(self, subject: Subject, sites: Sequence[str]) -> None:
        self.subject, self.sites = subject, list(sites)
        self._forget()

    def _forget(self) -> None:
        self._trie = Trie(ROOM)
        self._known: dict[str, Tensor] = {}

    def __call__(self, rows: Sequence[Ids], unit: UnitId | Sequence[UnitId]) -> Tensor:
        """sign × activation at the last token of each row [N], of one unit or of each row's own.

        Equal to `Subject.readings` within rounding.
        """
        units = [unit] * len(rows) if isinstance(unit, UnitId) else list(unit)
        for one in set(units):
            self.subject.check_readable(one)
        if not self._fits(rows):
            return self._apart(rows, units)
        self.subject.meter.rows += len(rows)
        return self._shared(rows, units)

    def _shared(self, rows: Sequence[Ids], units: Sequence[UnitId]) -> Tensor:
        result = torch.empty(len(rows), dtype=torch.promote_types(self.subject.dtype, torch.float32))
        nodes: dict[int, int] = {}
        for number in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
            if len(self._trie.ids) + self._trie.missing(rows[number]) > ROOM:
                self._fill(result, nodes, units)
                self._forget()
                nodes = {}
            nodes[number] = self._trie.add(rows[number])
        self._fill(result, nodes, units)
        return result

    def along(self, row: Ids, unit: UnitId) -> list[float]:
        """sign × activation at every token of one row."""
        self.subject.check_readable(unit)
        if self._fits([row]):
            self.subject.meter.rows += 1
            values = self._shared([row[: end + 1] for end in range(len(row))], [unit] * len(row))
        else:
            values = unit.sign * self.subject.activations(row, [unit])[0, :, 0]
        return [float(value) for value in values]

    def _fits(self, rows: Sequence[Ids]) -> bool:
        return self.subject.shares and max(map(len, rows), default=0) <= min(ROOM, self.subject.sees)

    def _apart(self, rows: Sequence[Ids], units: Sequence[UnitId]) -> Tensor:
        result = torch.empty(len(rows), dtype=torch.promote_types(self.subject.dtype, torch.float32))
        for unit in dict.fromkeys(units):
            mine = [i for i, one in enumerate(units) if one == unit]
            result[mine] = self.subject.readings([rows[i] for i in mine], unit)
        return result

    def _fill(self, result: Tensor, nodes: dict[int, int], units: Sequence[UnitId]) -> None:
        """Passes the nodes that are new, and writes what is asked for at `nodes` (row: node) into the result."""
        while self._trie.passed < len(self._trie.ids):
            found = self.subject.pass_nodes(self._trie, self.sites)
            for site in self.sites:
                values = found[site]
                self._known[site] = torch.cat([self._known[site], values]) if site in self._known else values
        for site in self.sites:
            mine = [i for i in nodes if units[i].site == site]
            if mine:
                index = [nodes[i] for i in mine], [units[i].index for i in mine]
                signs = torch.tensor([units[i].sign for i in mine])
                result[mine] = signs * self._known[site][index].to(result.dtype).cpu()


__all__ = ["Reader"]
