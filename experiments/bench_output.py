"""The output side beside other libraries (extra `rivals`), on the same model and in turn.

study   an ablation study of one unit at each of three depths: the upper end of the ratio's interval to the faster of
        transformer-lens and nnsight is at most 1.05.
grid    one patch grid of 30 blocks by the positions of a pair: the same.
"""

from .output_speed import grid, study
from .report import Parts

PARTS: Parts = {part.__name__: part for part in (study, grid)}

__all__ = ["PARTS"]
