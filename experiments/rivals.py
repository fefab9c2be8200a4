"""Other libraries over the same weights, and how long ways of doing the same work take.

transformer-lens and nnsight are the extra `rivals`. They are given a copy of the model whose head does nothing and
which keeps no keys and values, so that they compute no more than our own passes do.
"""

import gc
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from ..tools.subject import Subject
from .input_real import MODEL
from .report import Progress

RIVALS = {"transformer-lens": "transformer_lens", "nnsight": "nnsight"}


def installed() -> list[str]:
    """Those of RIVALS that are here."""
    return [name for name, module in RIVALS.items() if find_spec(module) is not None]


def headless() -> Subject:
    """A copy of the model that computes no logits and keeps no keys and values."""
    own = Subject.load(MODEL, device="cpu")
    own.model.lm_head.forward = lambda hidden: hidden      # it stays: transformer-lens looks at its weight
    own.model.config.use_cache = False
    return own


def transformer_lens() -> Any:
    """A TransformerBridge; its logits are what the final norm gives."""
    from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]

    own = headless()
    return TransformerBridge.boot_transformers(MODEL, hf_model=own.model, tokenizer=own.tokenizer, device="cpu")


def nnsight() -> Any:
    """An NNsight; its logits are what the final norm gives."""
    from nnsight import NNsight  # type: ignore[import-not-found]

    return NNsight(headless().model)


def in_turn(
    ways: Mapping[str, Callable[[], object]], runs: int, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of each way in each of `runs` rounds, in which all take their turn, and what each gave last.

    One more round, which warms up, is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gave: dict[str, object] = {}
    for run in range(runs + 1):
        for number, (name, way) in enumerate(ways.items()):
            progress("runs", run * len(ways) + number, (runs + 1) * len(ways))
            gc.collect()
            start = time.perf_counter()
            gave[name] = way()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds, gave


__all__ = ["RIVALS", "headless", "in_turn", "installed", "nnsight", "transformer_lens"]
