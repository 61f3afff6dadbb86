"""A picture of queries and what is found for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from dml.callbacks.picture import QUERY, RIGHT, WRONG

UNKNOWN = "#9aa5b1"
"""Frame of a neighbour of which nobody knows whether it is right."""

_INK, _FAINT, _GROUND = "#1c2733", "#7b8794", "#eceff2"

# At 72 dpi a point, matplotlib's unit of lines and letters, is a pixel.
_DPI = 72
_TILE, _FRAME = 128, 6
_STEP, _ROW = 154, 196
_GAP, _MARGIN, _TOP = 30, 36, 70
_LETTERS = 19  # below a tile


@dataclass(frozen=True)
class Shown:
    """An image in the picture.

    Args:
        image: ``[C, H, W]`` uint8, or None if it cannot be read.
        caption: A line in bold below it.
        name: A line below that.
        is_right: Whether it is of the class of the query, if known.
    """

    image: Tensor | None
    caption: str
    name: str = ""
    is_right: bool | None = None


def draw_neighbours(rows: Sequence[tuple[Shown, Sequence[Shown]]], *, title: str) -> Figure:
    """Draw a row per query: the query, then its neighbours, framed green if right and red with a dashed line if wrong.

    Args:
        rows: Queries and their neighbours, most similar first.
        title: First line.
    """
    columns = max((len(neighbours) for _, neighbours in rows), default=0)
    width = 2 * _MARGIN + _GAP + (columns + 1) * _STEP
    height = _TOP + len(rows) * _ROW + _MARGIN // 2
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    axes.set(xlim=(0, width), ylim=(height, 0))
    _text(axes, _MARGIN, 38, title, size=22, bold=True, align="left")
    for number, (query, neighbours) in enumerate(rows):
        top = _TOP + number * _ROW
        _tile(axes, _MARGIN, top, query, QUERY)
        for column, shown in enumerate(neighbours, start=1):
            colour = {True: RIGHT, False: WRONG, None: UNKNOWN}[shown.is_right]
            _tile(axes, _MARGIN + _GAP + column * _STEP, top, shown, colour)
    return figure


def _tile(axes: Axes, left: int, top: int, shown: Shown, colour: str) -> None:
    axes.add_patch(Rectangle((left, top), _TILE, _TILE, facecolor=_GROUND, zorder=-1))
    middle = left + _TILE // 2
    if shown.image is None:
        _text(axes, middle, top + _TILE // 2, "unreadable", size=13, colour=_FAINT)
    else:
        pixels = _fitted(shown.image)
        x, y = middle - pixels.width // 2, top + (_TILE - pixels.height) // 2  # whole pixels, or it would blur
        extent = (x, x + pixels.width, y + pixels.height, y)
        axes.imshow(np.asarray(pixels), extent=extent, interpolation="nearest", aspect="auto")
    # Not by colour alone: the frame of a wrong one is broken.
    corner, side = (left - _FRAME / 2, top - _FRAME / 2), _TILE + _FRAME
    style = (0, (3, 1.5)) if shown.is_right is False else "solid"
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=_FRAME, linestyle=style))
    _text(axes, middle, top + _TILE + 20, shown.caption, size=15, bold=True)
    _text(axes, middle, top + _TILE + 40, _short(shown.name), size=12, colour=_FAINT)


def _fitted(image: Tensor) -> Image.Image:
    """In the size of a tile; small images are enlarged by a whole number, which keeps their pixels sharp."""
    pixels: Image.Image = functional.to_pil_image(image).convert("RGB")
    scale = _TILE / max(pixels.size)
    scale = int(scale) if scale >= 2 else scale
    width, height = (max(1, round(side * scale)) for side in pixels.size)
    return pixels.resize((width, height), Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def _short(text: str) -> str:
    """The end of a text, where paths differ."""
    return text if len(text) <= _LETTERS else f"…{text[1 - _LETTERS :]}"


def _text(
    axes: Axes, x: int, y: int, text: str, *, size: int, colour: str = _INK, bold: bool = False, align: str = "center"
) -> None:
    label = axes.text(x, y, text, fontsize=size, color=colour, ha=align, va="center")
    label.set(weight="bold" if bold else "normal", parse_math=False)  # a file name may hold dollars: no formulas
