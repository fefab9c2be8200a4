"""The input side beside planted truth and beside the published loop. Expected numbers stand with each part.

planted   rules known by construction: minimal sets of the oracle's size in at least 99 % of short exemplars, and the
          rule recovered for at least 95 % of 210 units.
real      60 units drawn by the seed over six depths, five exemplars each: every minimal example certified; kept tokens
          at most half of the loop's 6; cost of a distinct substitute whose label two other exemplars confirm at most a
          fifth of the loop's.
split     near copies injected into the corpus land on one side, and no run of 13 tokens is on two.
"""

from .input_planted import planted
from .input_real import real
from .input_sides import split
from .report import Parts

PARTS: Parts = {"planted": planted, "real": real, "split": split}

__all__ = ["PARTS"]
