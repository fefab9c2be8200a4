"""The input side beside planted truth and beside the published loop. Expected numbers stand with each part.

planted   rules known by construction: minimal sets of the oracle's size in at least 99 % of short exemplars, and the
          rule recovered for at least 95 % of 210 units.
real      60 units drawn by the seed over six depths, five exemplars each: every minimal example certified; kept tokens
          at most half of the loop's; cost of a distinct substitute whose label two other exemplars confirm at most a
          fifth of the loop's; each over all units and for the median unit.
rules     the same units: held-out F1 of the best rule that the playbook finds against the graph of the loop on the same
          exemplars, paired, none found counting 0: the interval lies above 0. Beside it the same with rules that it
          holds back as too weak counting 0, and a token look-up.
corrupted true rules of planted units beside the same with a quarter of their places dropped or added: each headline
          falls, with its paired interval above 0, for at least 90 % of units.
permuted  60 units of the same model with permuted weights through the same pipeline: at most 5 % are accepted.
sweep     best documents and moments within 1.15 of the bare forward pass, everything within 1.35, memory that does not
          grow with the text, and faster than the same through transformer-lens and nnsight.
split     near copies injected into the corpus land on one side, and no run of 13 tokens is on two.
"""

from .input_corrupted import corrupted
from .input_permuted import permuted
from .input_planted import planted
from .input_real import real
from .input_rules import rules
from .input_sides import split
from .input_sweep import sweep
from .report import Parts

PARTS: Parts = {part.__name__: part for part in (planted, real, rules, corrupted, permuted, sweep, split)}

__all__ = ["PARTS"]
