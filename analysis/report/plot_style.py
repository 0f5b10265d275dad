"""What all figures have in common: size, colours, markers, legends and shortened names.

The input is names of models and matplotlib objects. The output is settings and legends. The plots
themselves are in `report/plots.py`.

The colours are those of Okabe and Ito (2008), which remain distinct for readers with
colour-blindness. Every model also has its own marker, for prints in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from core_hpc.store.paths import TEAM

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH_IN = 3.3
ARROW = " → "
"""Separator between the names of teacher and student."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":")
_STRONG = {"color": "#000000", "marker": "*", "markersize": 5.5, "linewidth": 1.6, "zorder": 3}
CHARACTER_IN = 0.05  # mean width of a character of a legend or tick label
_LEGEND_LINE_IN, _LEGEND_FONT_PT = 0.14, 6.5
# A handle and the space after it, the space between columns, and the one around all.
_LEGEND_HANDLE_EM, _LEGEND_SPACING_EM, _LEGEND_PADDING_EM = 2.6, 1.2, 2.0
LINE_CHARACTERS = int(COLUMN_WIDTH_IN / CHARACTER_IN)
_STYLE = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": _LEGEND_FONT_PT,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.ymargin": 0.1,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.handletextpad": _LEGEND_HANDLE_EM - 1.8,
    "legend.columnspacing": _LEGEND_SPACING_EM,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "core_hpc",
}


def style() -> AbstractContextManager[None]:
    """A context with the settings for making and writing figures."""
    import matplotlib

    context: AbstractContextManager[None] = matplotlib.rc_context(_STYLE)
    return context


def new_figure(height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(COLUMN_WIDTH_IN, height_in))


def arm_look(n: int) -> dict[str, Any]:
    """Colour, marker and fill of arm n. The same pair of colour and marker returns after 36 arms."""
    round_of_six = n // 6
    fill = "none" if round_of_six % 2 else "full"
    return {"color": COLOURS[n % 6], "marker": MARKERS[(n + round_of_six) % 6], "fillstyle": fill, "linestyle": ""}


def looks_of(names: Sequence[str], *, strong: str = TEAM) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each name. The total, `strong`, stands out."""
    others = [name for name in names if name != strong]
    looks = {
        name: {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "linestyle": _LINES[i // 6 % 3]}
        for i, name in enumerate(others)
    }
    return looks | ({strong: _STRONG} if strong in names else {})


def names_of(points: pl.DataFrame) -> list[str]:
    return points["model"].unique(maintain_order=True).to_list()


def legend_above(figure: Figure, grid: Iterable[Axes]) -> None:
    """One legend for all axes, placed above them."""
    found = [pair for axes in grid for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    key_above(figure, {label: handle for handle, label in found})


def key_above(figure: Figure, handles: Mapping[str, Artist], **look: Any) -> None:
    """A legend above the axes.

    The figure becomes higher by each line after the first, so that the axes do not shrink.
    """
    labels = [shortened(label, 48) for label in handles]
    columns = _columns(labels)
    num_lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE_IN * (num_lines - 1))
    figure.legend(handles.values(), labels, loc="outside upper center", ncols=columns, **look)


def _columns(labels: Sequence[str]) -> int:
    """The largest number of columns with which a legend is not wider than the figure."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    size = _LEGEND_FONT_PT
    font = FontProperties(size=size)
    widths = [text_to_path.get_text_width_height_descent(label, font, ismath=False)[0] for label in labels]
    room = 72 * COLUMN_WIDTH_IN - _LEGEND_PADDING_EM * size
    for columns in range(len(labels), 1, -1):
        # As in matplotlib, the first columns have one label more if they do not all have the same number.
        parts = np.array_split(widths, columns)
        spaces = columns * _LEGEND_HANDLE_EM + (columns - 1) * _LEGEND_SPACING_EM
        if sum(part.max() for part in parts) + spaces * size <= room:
            return columns
    return 1


def shortened(name: str, most: int) -> str:
    """The name, shortened in the middle to at most `most` characters."""
    return name if len(name) <= most else f"{name[: most - most // 3 - 1]}…{name[-(most // 3) :]}"


def shortened_pair(names: str, most: int) -> str:
    """Two names with an arrow between them, each shortened to half of the room."""
    parts = names.split(ARROW)
    return names if len(names) <= most else ARROW.join(shortened(name, most // len(parts) - 1) for name in parts)
