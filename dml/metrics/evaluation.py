"""What is evaluated: images, as queries and as a gallery."""

from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor


class EvaluatedDataset(Protocol):
    """What a metric may ask of the dataset whose images it gets."""

    root: Path
    index: pd.DataFrame  # row i is the image of index i
    levels: tuple[str, ...]  # which columns of the index are the labels, finest first

    def judgements(self) -> pd.DataFrame | None:
        """Columns query and item (rows of the index) and judgement (a word); None if labels say what is relevant."""


class Images(NamedTuple):
    """What has been embedded, each image once, in order of ``index``."""

    index: Tensor  # type: ignore[assignment]  # [n]; that of tuples is of no use here
    embeddings: Tensor  # [n, D]
    labels: Tensor  # [n, L]
    is_query: Tensor  # [n] bool
    is_gallery: Tensor  # [n] bool

    def split(self) -> "Evaluation":
        """Queries and gallery."""
        queries, gallery = self.is_query.nonzero().squeeze(1), self.is_gallery.nonzero().squeeze(1)
        place = torch.full_like(self.index, -1)
        place[gallery] = torch.arange(len(gallery), device=place.device)
        return Evaluation(
            self.index[queries],
            _rows(self.embeddings, queries),
            self.labels[queries],
            place[queries],
            self.index[gallery],
            _rows(self.embeddings, gallery),
            self.labels[gallery],
        )


class Evaluation(NamedTuple):
    """Queries and the gallery that they are to retrieve from."""

    query_index: Tensor  # [Q] which image each query is
    queries: Tensor  # [Q, D]
    query_labels: Tensor  # [Q, L]
    own: Tensor  # [Q] which item of the gallery is the query itself, -1 if none is
    gallery_index: Tensor  # [N]
    gallery: Tensor  # [N, D]
    gallery_labels: Tensor  # [N, L]

    def only(self, asked: Tensor) -> "Evaluation":
        """Some of the queries, ``[Q]`` bool."""
        return self._replace(
            query_index=self.query_index[asked],
            queries=self.queries[asked.to(self.queries.device)],
            query_labels=self.query_labels[asked],
            own=self.own[asked],
        )


def once(images: Images, order: Tensor, is_first: Tensor) -> Images:
    """Images of which some came repeatedly, each once, with all roles that it came with.

    Args:
        images: As they came.
        order: ``[n]``, that puts the same images together.
        is_first: ``[n]`` bool, in that order, where another image starts.

    Raises:
        ValueError: If the labels of one differ.
    """
    group, first = is_first.cumsum(0) - 1, order[is_first]
    labels = images.labels[order]
    different = (labels != labels[is_first][group]).any(dim=1)
    if different.any():
        raise ValueError(f"image {int(images.index[order][different][0])} came with several labels")
    is_query, is_gallery = (
        torch.zeros_like(order[is_first]).index_add_(0, group, role[order].long()) > 0
        for role in (images.is_query, images.is_gallery)
    )
    embeddings = images.embeddings[first.to(images.embeddings.device)]
    return Images(images.index[first], embeddings, images.labels[first], is_query, is_gallery)


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Rows in ascending order; without a copy if they are all."""
    return values if len(rows) == len(values) else values[rows.to(values.device)]
