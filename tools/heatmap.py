"""A table of numbers, layers down and tokens across, as a picture."""

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from .stats import Floats

CELL = 0.34            # inches
LONGEST = 16           # characters of a label
MARKED = 60            # cells in a row, up to which each cell's number is written in it


def heatmap(values: Floats, rows: Sequence[str], columns: Sequence[str], title: str, unit: str) -> bytes:
    """A PNG of values [rows, columns], white at 0, and both signs alike in depth; `unit` says what is shown.

    Numbers stand in the cells, so that it can be read without colour. Undefined values are grey.
    """
    count, across = values.shape
    figure = Figure(figsize=(2.2 + CELL * max(across, 8), 1.6 + CELL * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    most = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-12)
    colours = colormaps["RdBu_r"].with_extremes(bad="0.8")
    shown = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(across), [visible(text) for text in columns], rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(count), rows, fontsize=8)
    axes.set_title(" ".join(visible(word, 60) for word in title.split()), fontsize=9)
    if across <= MARKED:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value) and abs(value) >= 0.005 * most:
                colour = "white" if abs(value) > 0.6 * most else "black"
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=5, color=colour)
    figure.colorbar(shown, ax=axes, label=unit)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()


def visible(token: str, longest: int = LONGEST) -> str:
    """A token as a label: blanks are seen, nothing in it is markup, what the font lacks is escaped, a long one cut."""
    shown = "".join(c if _plain(c) else c.encode("unicode_escape").decode() for c in token.replace(" ", "·"))
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return shown.replace("$", r"\$") or "∅"


def _plain(c: str) -> bool:
    return c.isprintable() and not c.isspace() and ord(c) in _glyphs()


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


__all__ = ["heatmap"]
