"""Rows of ids that begin alike, laid out so that what they share is computed once.

In a causal model a token's reading depends on what stands before it and on nothing else. Rows are therefore kept as a
trie: each distinct prefix is one node, which attends to its ancestors only and has its depth as its position. Keys and
values of the nodes stay, so that rows that come later cost no more than their new nodes: seven swaps of the last word
of a 60-token text are 67 nodes in place of 420 tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

PASS = 1024    # nodes in one pass


class Trie:
    """Prefixes seen so far, at most `room` of them, with the model's keys and values for those that were passed."""

    def __init__(self, room: int) -> None:
        self.ids: list[int] = []
        self.depth: list[int] = []
        self.sees = np.zeros((room, room), dtype=np.bool_)   # [i, j]: j is i or one of its ancestors
        self.passed = 0
        self.cache: Any = None
        self._children: dict[tuple[int, int], int] = {}

    def missing(self, row: Sequence[int]) -> int:
        """How many nodes a row would add."""
        node, depth = -1, 0
        for token in row:
            if (node, token) not in self._children:
                break
            node, depth = self._children[node, token], depth + 1
        return len(row) - depth

    def add(self, row: Sequence[int]) -> int:
        """The node of a row's last token; nodes are made where they are missing."""
        node = -1
        for depth, token in enumerate(row):
            made = self._children.setdefault((node, token), len(self.ids))
            if made == len(self.ids):
                self.ids.append(token)
                self.depth.append(depth)
                if node >= 0:
                    self.sees[made] = self.sees[node]
                self.sees[made, made] = True
            node = made
        return node

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What the model is given for the next nodes, at most PASS of them; the pass fills the cache.

        The mask [1, 1, new, all so far] is added to attention scores: 0 where a node sees another, else the lowest.
        """
        if self.cache is None:
            from transformers import DynamicCache

            self.cache = DynamicCache()
        start, end = self.passed, min(self.passed + PASS, len(self.ids))
        unseen = torch.from_numpy(~self.sees[start:end, :end])
        mask = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, torch.finfo(dtype).min)
        self.passed = end
        return {
            "input_ids": torch.tensor([self.ids[start:end]], device=device),
            "position_ids": torch.tensor([self.depth[start:end]], device=device),
            "attention_mask": mask[None, None].to(device),
            "past_key_values": self.cache,
            "use_cache": True,
        }


__all__ = ["Trie"]
