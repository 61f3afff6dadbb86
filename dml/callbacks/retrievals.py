"""Queries with their nearest neighbours: found, as a Parquet file, and as a table of Weights & Biases."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from dml.data import RetrievalDataset, UnreadableImageError
from dml.metrics import RetrievalMetrics

_SIDE = 96  # of a small image, the longer one

Sections = Mapping[str, Sequence["Retrieval"]]
"""Retrievals by the heading that they are under."""


class Retrieval(NamedTuple):
    """A query and its nearest neighbours, most similar first. Images are rows of the dataset's index."""

    query: int
    average_precision: float
    neighbours: list[int]
    similarity: list[float]
    is_right: list[bool]


def nearest_neighbours(
    metrics: RetrievalMetrics, queries: Tensor, average_precision: Tensor, num_neighbours: int
) -> list[Retrieval]:
    """Retrieve for a few queries, as the metric searches; distractors, of which there is no picture, are left out.

    Args:
        metrics: Holds the evaluation.
        queries: ``[Q]``, the ``index`` of each query.
        average_precision: ``[Q]``.
        num_neighbours: At most so many; never the query itself, and none twice.
    """
    asked = metrics.images().split()
    rows = torch.searchsorted(asked.query_index, queries)
    index, labels = asked.gallery_index, asked.gallery_labels[:, metrics.level]
    blocks = metrics.search.blocks(
        asked.queries[rows.to(asked.queries.device)], asked.gallery, asked.own[rows], device=index.device
    )
    scores = torch.cat([block[:, : len(index)].clone() for _, block in blocks])
    is_right = asked.query_labels[rows, metrics.level, None] == labels
    # Ties count against the item, as in the metric: the wrong ones first.
    wrong_first = is_right.long().argsort(dim=1, stable=True)
    ranked = scores.gather(1, wrong_first).argsort(dim=1, descending=True, stable=True)[:, :num_neighbours]
    nearest = wrong_first.gather(1, ranked)
    similarity, right = scores.gather(1, nearest), is_right.gather(1, nearest)
    retrievals = []
    for row, query in enumerate(queries.tolist()):
        found = similarity[row] > -torch.inf
        neighbours = index[nearest[row][found]].tolist()
        values = float(average_precision[row]), neighbours, similarity[row][found].tolist(), right[row][found].tolist()
        retrievals.append(Retrieval(query, *values))
    return retrievals


def small_images(dataset: RetrievalDataset, sections: Sections) -> dict[int, bytes | None]:
    """A small PNG of each image that appears, by its index; None for one that cannot be read."""
    appear = {index for rows in sections.values() for each in rows for index in (each.query, *each.neighbours)}
    return {index: _small(dataset, index) for index in sorted(appear)}


def parquet_table(dataset: RetrievalDataset, sections: Sections, images: Mapping[int, bytes | None]) -> pa.Table:
    """A row for each neighbour of each query.

    Args:
        dataset: Whose images they are.
        sections: What was retrieved.
        images: As of :func:`small_images`.

    Returns:
        ``section``; ``query``, an index, its ``query_path``, ``query_image`` and ``average_precision``; of the
        neighbour at ``place``, 0 for the nearest, its ``path``, ``image``, ``similarity`` and whether it ``is_right``.
        Paths are relative to the root of the data set.
    """
    paths = dataset.index["path"]
    rows = []
    for section, retrievals in sections.items():
        for query, average_precision, *found in retrievals:
            asked = (section, query, str(paths.iloc[query]), images[query], average_precision)
            for place, (neighbour, similarity, is_right) in enumerate(zip(*found, strict=True)):
                answer = place, str(paths.iloc[neighbour]), images[neighbour], similarity, is_right
                rows.append(dict(zip(_COLUMNS.names, (*asked, *answer), strict=True)))
    return pa.Table.from_pylist(rows, schema=_COLUMNS)


def wandb_table(dataset: RetrievalDataset, sections: Sections, images: Mapping[int, bytes | None]) -> Any:
    """A ``wandb.Table`` with a row for each query, and its neighbours as images side by side.

    Args:
        dataset: Whose images they are.
        sections: What was retrieved.
        images: As of :func:`small_images`.
    """
    import wandb  # takes a second, which runs without it should not pay

    def image(index: int, caption: str) -> Any:
        content = images[index]
        return None if content is None else wandb.Image(Image.open(io.BytesIO(content)), caption=caption)

    width = max((len(each.neighbours) for rows in sections.values() for each in rows), default=0)
    neighbours = [f"neighbour {place}" for place in range(1, width + 1)]
    table = wandb.Table(columns=["section", "query", "path", "AP", *neighbours, "similarity", "right"])
    for section, retrievals in sections.items():
        for each in retrievals:
            path = str(dataset.index["path"].iloc[each.query])
            captions = [
                f"{similarity:.3f} {'right' if is_right else 'wrong'}"
                for similarity, is_right in zip(each.similarity, each.is_right, strict=True)
            ]
            found = [image(index, caption) for index, caption in zip(each.neighbours, captions, strict=True)]
            found += [None] * (width - len(found))
            asked = image(each.query, f"AP {each.average_precision:.3f}")
            table.add_data(section, asked, path, each.average_precision, *found, each.similarity, each.is_right)
    return table


_COLUMNS = pa.schema(
    [
        ("section", pa.string()),
        ("query", pa.int64()),
        ("query_path", pa.string()),
        ("query_image", pa.binary()),
        ("average_precision", pa.float64()),
        ("place", pa.int64()),
        ("path", pa.string()),
        ("image", pa.binary()),
        ("similarity", pa.float64()),
        ("is_right", pa.bool_()),
    ]
)


def _small(dataset: RetrievalDataset, index: int) -> bytes | None:
    try:
        image = functional.to_pil_image(dataset.load(index))
    except UnreadableImageError:
        return None
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
