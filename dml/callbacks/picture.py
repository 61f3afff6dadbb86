"""A picture of the worst and of random queries with their nearest neighbours, after each evaluation."""

import textwrap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor
from torchvision.transforms.v2 import functional

from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.per_query import write_whole
from dml.callbacks.retrievals import (
    Retrieval,
    Sections,
    nearest_neighbours,
    parquet_table,
    small_images,
    wandb_table,
)
from dml.data import RetrievalDataset, UnreadableImageError
from dml.metrics import RetrievalMetrics

# Hues of Okabe and Ito, made for the colour-blind; wrong neighbours have a cross as well.
RIGHT, WRONG, QUERY = "#009e73", "#d55e00", "#33475b"
_INK, _FAINT, _GROUND = "#1c2733", "#7b8794", "#eceff2"

# All lengths are pixels: at 72 dpi a point, matplotlib's unit of lines and letters, is one.
_DPI = 72
_TILE = 128  # four times a glyph of 32 px
_FRAME = 6
_HAIR = 2  # of white between an image and its frame
_SIDE = _TILE + 2 * (_FRAME + _HAIR)
_STEP = _SIDE + 10  # from one column to the next
_ROW = _SIDE + 34
_GAP = 30  # between a query and its neighbours
_MARGIN = 36
_TITLE = 108
_HEADING = 60
_BELOW = 18  # a section


class RetrievalPicture(Callback):
    """Draw the worst queries, and the same few random ones, with their nearest neighbours after each evaluation.

    The picture goes to ``pictures/`` in the log folder; after a test, what it shows goes to ``retrievals/test.parquet``
    as well, with the columns of :func:`~dml.callbacks.retrievals.parquet_table`. Both go to W&B, as an image and as a
    table, after each evaluation, if the run has a ``WandbLogger``. The random queries depend on the data, the seed and
    their number only: they are those of any other run on the same data. Needs :class:`LogRetrievalMetrics` among the
    trainer's callbacks.

    Args:
        num_worst: How many of the queries with the lowest AP.
        num_random: How many queries chosen at random; the same ones after each epoch.
        num_neighbours: Neighbours of each query.
        seed: Which queries the random ones are.

    Raises:
        ValueError: If there is nothing to draw.
    """

    def __init__(self, num_worst: int = 5, num_random: int = 5, num_neighbours: int = 8, seed: int = 0) -> None:
        if min(num_worst, num_random) < 0 or num_worst + num_random == 0:
            raise ValueError(f"num_worst is {num_worst} and num_random is {num_random}; there must be a query to draw")
        if num_neighbours < 1:
            raise ValueError(f"num_neighbours is {num_neighbours}; it must be at least 1")
        self.num_worst, self.num_random, self.num_neighbours = num_worst, num_random, num_neighbours
        self.seed = seed
        self.last_path: Path | None = None
        """The last picture drawn."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ``ValueError`` if the trainer has no :class:`LogRetrievalMetrics`."""
        if stage != "predict":
            _evaluation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, "test")

    def _draw(self, trainer: Trainer, stage: str) -> None:
        evaluation = _evaluation(trainer)
        if evaluation.per_query is None or "AP" not in evaluation.per_query[1]:
            return
        index, measures = evaluation.per_query
        found = ~measures["AP"].isnan()  # of several levels, there may be something to retrieve at a coarser one only
        if not found.any():
            return
        index, measures = index[found], {name: value[found] for name, value in measures.items()}
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast: on every process
        # After compute the states of a process are its own again: without this, its share would be the gallery.
        with evaluation.metrics.sync_context(dist_sync_fn=evaluation.metrics.dist_sync_fn):
            sections = self._sections(evaluation.metrics, index, measures)
        if not trainer.is_global_zero:
            return
        epoch, step = trainer.current_epoch, trainer.global_step
        summary = [f"{name} {measures[name].mean():.3f}" for name in ("AP", "R@1") if name in measures]
        dataset = trainer.datamodule.datasets[stage]  # type: ignore[attr-defined]  # untyped in Lightning
        figure = draw_retrievals(
            dataset,
            sections,
            title=f"{stage}, epoch {epoch}, step {step}",
            subtitle=f"mean {', '.join(summary)} of {len(measures['AP'])} queries",
        )
        path = folder / "pictures" / f"{stage}-epoch{epoch:03d}-step{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi="figure")
        self.last_path = path
        _keep(trainer, stage, dataset, sections, path)

    def _sections(
        self, metrics: RetrievalMetrics, index: Tensor, measures: dict[str, Tensor]
    ) -> dict[str, list[Retrieval]]:
        index, order = index.sort()
        average_precision = measures["AP"][order]
        generator = torch.Generator().manual_seed(self.seed)
        random = torch.randperm(len(index), generator=generator)[: self.num_random].to(index.device)
        worst = average_precision.argsort(stable=True)[: self.num_worst]
        chosen = torch.cat([worst, random])
        retrievals = nearest_neighbours(metrics, index[chosen], average_precision[chosen], self.num_neighbours)
        return {"worst queries": retrievals[: len(worst)], "random queries": retrievals[len(worst) :]}


def draw_retrievals(dataset: RetrievalDataset, sections: Sections, *, title: str, subtitle: str = "") -> Figure:
    """Draw a row per query: the query, then its neighbours in green frames if right, in red ones with a cross if wrong.

    An image that cannot be read is an empty tile with its name. Each frame has as ``gid`` ``query``, ``right`` or
    ``wrong`` and the index of its image, for example ``wrong 17``.

    Args:
        dataset: Whose images they are.
        sections: Heading and retrievals of each section; empty ones are left out.
        title: First line.
        subtitle: Second line.
    """
    sections = {heading: retrievals for heading, retrievals in sections.items() if retrievals}
    num_columns = max((len(each.neighbours) for rows in sections.values() for each in rows), default=0)
    width = 2 * _MARGIN + max(_GAP + num_columns * _STEP + _SIDE, 5 * _STEP)
    height = _TITLE + sum(_HEADING + len(rows) * _ROW + _BELOW for rows in sections.values())
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = _cover(figure, width, height)
    _text(axes, _MARGIN, 42, title, size=26, bold=True)
    _text(axes, _MARGIN, 78, subtitle, size=18, colour=_FAINT)
    _legend(axes, width - _MARGIN, 54)
    top = _TITLE
    for heading, retrievals in sections.items():
        _heading(axes, top, width, heading, num_columns)
        top += _HEADING
        for retrieval in retrievals:
            _row(axes, top, dataset, retrieval)
            top += _ROW
        top += _BELOW
    return figure


def _keep(trainer: Trainer, stage: str, dataset: RetrievalDataset, sections: Sections, picture: Path) -> None:
    """Write what a test has retrieved, and give picture and table to Weights & Biases."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers and stage != "test":
        return
    images = small_images(dataset, sections)
    if stage == "test":
        write_whole(parquet_table(dataset, sections, images), picture.parents[1] / "retrievals" / "test.parquet")
    for logger in loggers:
        logger.log_image(key=f"{stage}/retrievals", images=[str(picture)], step=trainer.global_step)
        table = {f"{stage}/retrieval_table": wandb_table(dataset, sections, images)}
        logger.log_metrics(table, step=trainer.global_step)


def _row(axes: Axes, top: int, dataset: RetrievalDataset, retrieval: Retrieval) -> None:
    caption = top + _SIDE + 13
    average_precision = f"AP {retrieval.average_precision:.2f}"
    _tile(axes, 0, top, dataset, retrieval.query, "query")
    _text(axes, _middle(0), caption, average_precision, size=16, bold=True, colour=QUERY, align="center")
    neighbours = zip(retrieval.neighbours, retrieval.similarity, retrieval.is_right, strict=True)
    for column, (index, similarity, right) in enumerate(neighbours, start=1):
        _tile(axes, column, top, dataset, index, "right" if right else "wrong")
        _text(axes, _middle(column), caption, f"{similarity:.2f}", size=15, align="center")


def _tile(axes: Axes, column: int, top: int, dataset: RetrievalDataset, index: int, kind: str) -> None:
    """An image in the middle of a square, with a frame around it."""
    x, y = _middle(column), top + _SIDE // 2
    axes.add_patch(Rectangle((x - _TILE // 2, y - _TILE // 2), _TILE, _TILE, facecolor=_GROUND, zorder=-1))
    try:
        pixels = _fitted(dataset.load(index))
        height, width = pixels.shape[:2]
        left, upper = x - width // 2, y - height // 2  # whole pixels, or the image would blur
        extent = (left, left + width, upper + height, upper)
        axes.imshow(pixels, extent=extent, interpolation="nearest", aspect="auto")
    except UnreadableImageError:
        lines = ["unreadable:", *textwrap.wrap(dataset.path(index).name, 16)[:5]]
        _text(axes, x, y, "\n".join(lines), size=13, colour=_FAINT, align="center")
    _frame(axes, x, y, _SIDE, kind, gid=f"{kind} {index}")


def _frame(axes: Axes, x: int, y: int, side: int, kind: str, gid: str = "legend") -> None:
    colour = {"query": QUERY, "right": RIGHT, "wrong": WRONG}[kind]
    line = side - _FRAME  # a line is drawn half to each side of where it is
    corner = (x - line / 2, y - line / 2)
    axes.add_patch(Rectangle(corner, line, line, fill=False, edgecolor=colour, linewidth=_FRAME, gid=gid))
    if kind == "wrong":
        x, y, arm = x + side // 2 - 12, y - side // 2 + 12, 4.5
        axes.add_patch(Circle((x, y), 12, facecolor=colour, edgecolor="white", linewidth=2, zorder=3))
        for sign in (-1, 1):
            ends = [y - sign * arm, y + sign * arm]
            axes.plot([x - arm, x + arm], ends, color="white", linewidth=3.5, solid_capstyle="round", zorder=4)


def _heading(axes: Axes, top: int, width: int, heading: str, num_columns: int) -> None:
    axes.plot([_MARGIN, width - _MARGIN], [top, top], color=_GROUND, linewidth=2)
    _text(axes, _MARGIN, top + 28, heading, size=20, bold=True)
    for column in range(1, num_columns + 1):
        _text(axes, _middle(column), top + 44, str(column), size=14, colour=_FAINT, align="center")


def _legend(axes: Axes, right: int, y: int) -> None:
    for kind, label, offset in (("right", "same class", 282), ("wrong", "other class", 102)):
        _frame(axes, right - offset - 34, y, 42, kind)
        _text(axes, right - offset, y, label, size=17)


def _cover(figure: Figure, width: int, height: int) -> Axes:
    """Axes over a whole figure, whose coordinates are pixels from its upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return axes


def _text(
    axes: Axes, x: float, y: float, text: str, *, size: int, colour: str = _INK, bold: bool = False, align: str = "left"
) -> None:
    label = axes.text(x, y, text, fontsize=size, color=colour, ha=align, va="center")
    label.set(weight="bold" if bold else "normal", parse_math=False)  # a file name may hold dollars: no formulas


def _middle(column: int) -> int:
    return _MARGIN + _SIDE // 2 + column * _STEP + (_GAP if column else 0)


def _fitted(image: Tensor) -> npt.NDArray[np.uint8]:
    """Bring an image to the size of a tile, ``[height, width, 3]``.

    Small images are enlarged by a whole number, which keeps their pixels sharp and square.
    """
    pixels = functional.to_pil_image(image).convert("RGB")
    scale = _TILE / max(pixels.size)
    if scale >= 2:
        scale = int(scale)
    size = [max(1, round(side * scale)) for side in pixels.size]
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return np.asarray(pixels.resize((size[0], size[1]), method))


def _evaluation(trainer: Trainer) -> LogRetrievalMetrics:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # untyped in Lightning
    for callback in callbacks:
        if isinstance(callback, LogRetrievalMetrics):
            return callback
    names = [type(callback).__name__ for callback in callbacks]
    raise ValueError(
        f"RetrievalPicture draws what LogRetrievalMetrics measures: add it to trainer.callbacks, now {names}"
    )
