"""Scores that look at the neighbours of query and item."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dml.ranking.scores import score_blocks
from dml.stages.base import check
from dml.stages.codes import Codes, averaged, shared
from dml.stages.neighbours import nearest

_ELEMENTS = 2**22  # of what a block of rows needs at a time


class Reranker(ABC):
    """From embeddings to scores other than their inner products."""

    @abstractmethod
    def prepare(self, queries: Tensor, gallery: Tensor, own: Tensor) -> Callable[[slice], Tensor]:
        """Find out once what the scores of all queries need.

        Args:
            queries: ``[Q, D]``, float32 of unit norm.
            gallery: ``[N, D]``, likewise.
            own: ``[Q]``, the row of the gallery that is the image of the query, -1 if there is none.

        Returns:
            From some of the queries to their scores ``[b, N]`` with the gallery, higher for closer. The query's own
            image has one too; who ranks leaves it out.
        """


class KReciprocal(Reranker):
    r"""Images are alike that have the same images for mutual neighbours.

    .. math:: d^* = (1 - \lambda)\, d_{\text{Jaccard}} + \lambda\, d

    Zhong, Zheng, Cao & Li: Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017,
    https://arxiv.org/abs/1701.08398 . Equal to their code, https://github.com/zhunzhong07/person-re-ranking : ``d`` is
    the squared Euclidean distance over the largest that the query has, of which a score is the negative.

    As theirs, it takes all queries and the gallery together for the images that may be neighbours. Each image is there
    once: a query that is in the gallery is no neighbour of the item that it is. It comes first among its own
    neighbours, whatever its duplicates are. Where an earlier stage has changed the query and not the item, or the other
    way round, the query is described by its own neighbours, and to others it is the item.

    Only neighbours are kept, of which an image has some hundreds at the most: the memory is linear in the number of
    images.

    Args:
        k1: Neighbours that are to be mutual; half as many extend them.
        k2: Neighbours, with the image itself, that a description is averaged over; 1 for none.
        weight: :math:`\lambda`, of the distance itself.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, k1: int = 20, k2: int = 6, weight: float = 0.3) -> None:
        if k1 < 1 or k2 < 1:
            raise ValueError(f"k1 is {k1} and k2 is {k2}; they are numbers of neighbours, at least 1")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is {weight}; it must be from 0 to 1, where only the distance counts")
        self.k1, self.k2, self.weight = k1, k2, weight

    @torch.no_grad()
    def prepare(self, queries: Tensor, gallery: Tensor, own: Tensor) -> Callable[[slice], Tensor]:
        """Describe every image by its neighbours."""
        check(queries, gallery, own)
        if len(gallery) == 0:
            return lambda rows: queries[rows] @ gallery.T
        outside = own < 0
        nodes = torch.cat([gallery, queries[outside]]) if outside.any() else gallery
        images = self._images(nodes, nodes, torch.arange(len(nodes), device=own.device))
        moved = torch.zeros_like(outside)
        moved[~outside] = (queries[~outside] != gallery[own[~outside]]).any(dim=1)
        row = own.clone()
        row[outside] = torch.arange(len(gallery), len(nodes), device=own.device)
        row[moved] = torch.arange(len(nodes), len(nodes) + int(moved.sum()), device=own.device)
        parts = [images]
        if moved.any():
            parts.append(self._images(queries[moved], nodes, own[moved]))
        codes = Codes.cat([self._codes(part, images) for part in parts])
        members = torch.cat([part.near[:, : self.k2] for part in parts])
        members[:, 0] = torch.arange(len(members), device=own.device)  # of a query that moved, itself and not the item
        codes = averaged(codes, members, len(nodes))
        farthest = torch.cat([part.farthest for part in parts])[row]
        inverted = codes.transposed(len(gallery), len(nodes))

        def scores(rows: slice) -> Tensor:
            in_common = shared(codes, row[rows], inverted, len(gallery))
            jaccard = 1 - in_common / (2 - in_common)
            distances = _distances(queries[rows], gallery) / farthest[rows].unsqueeze(1)
            return -((1 - self.weight) * jaccard + self.weight * distances)

        return scores

    def _images(self, embeddings: Tensor, nodes: Tensor, node: Tensor) -> "_Images":
        near = nearest(embeddings, nodes, min(max(self.k1, self.k2 - 1), len(nodes) - 1), node)
        # One image alone is at distance 0 of the farthest.
        farthest = (2 - 2 * near.lowest).clamp(min=1e-12)
        return _Images(embeddings, torch.cat([node.unsqueeze(1), near.item], dim=1), farthest)

    def _codes(self, images: "_Images", nodes: "_Images") -> Codes:
        """The mutual neighbours of each image and, of some of those, theirs; the nearer, the more they weigh."""
        num_near, num_half = self.k1 + 1, round(self.k1 / 2) + 1
        mutual_half = _mutual(nodes.near[:, :num_half], nodes.near[:, :num_half])
        num_near = min(num_near, nodes.near.shape[1])
        size = max(1, _ELEMENTS // (num_near * num_near * min(num_half, num_near)))
        parts = []
        for start in range(0, len(images.near), size):
            block = _Images(*(part[start : start + size] for part in images))
            members = _members(block.near, nodes.near, mutual_half, num_near, num_half)
            present = members < len(nodes.near)
            present[:, 1:] &= members.diff(dim=1) > 0
            row, column = present.nonzero()[:, 0], members[present]
            weight = (-_pair_distances(block.embeddings, row, nodes.embeddings, column) / block.farthest[row]).exp()
            total = weight.new_zeros(len(members)).index_add_(0, row, weight)
            parts.append(Codes.of_rows(len(members), row, column, weight / total[row]))
        return Codes.cat(parts)


class _Images(NamedTuple):
    embeddings: Tensor  # [R, D]
    near: Tensor  # [R, k] nodes, that of the image itself first and nearest next
    farthest: Tensor  # [R] squared distance to the node that is farthest away


def _mutual(near: Tensor, node_near: Tensor) -> Tensor:
    """Which of the neighbours ``[R, k]`` have the image, their first, among theirs ``[M, k]``."""
    size = max(1, _ELEMENTS // near.shape[1] ** 2)
    return torch.cat([(node_near[rows] == rows[:, :1, None]).any(dim=2) for rows in torch.split(near, size)])


def _members(near: Tensor, node_near: Tensor, mutual_half: Tensor, num_near: int, num_half: int) -> Tensor:
    """Nodes that describe each image ``[b, K]`` in order; some twice, and padded with the number of nodes."""
    near, half_of_own = near[:, :num_near], near[:, :num_half]
    mutual = _mutual(near, node_near[:, :num_near])
    half, is_half = node_near[near, :num_half], mutual_half[near]  # [b, num_near, num_half]
    # An image is its own first neighbour, with its own neighbours.
    half[:, 0], is_half[:, 0] = half_of_own, _mutual(half_of_own, node_near[:, :num_half])
    missing = len(node_near)
    kept = near.masked_fill(~mutual, missing)
    is_shared = is_half & (half.unsqueeze(3) == kept[:, None, None, :]).any(dim=3)
    joins = mutual & (3 * is_shared.sum(dim=2) > 2 * is_half.sum(dim=2))
    joined = half.masked_fill(~(is_half & joins.unsqueeze(2)), missing)
    return torch.cat([kept, joined.flatten(1)], dim=1).sort(dim=1).values


def _pair_distances(queries: Tensor, query: Tensor, items: Tensor, item: Tensor) -> Tensor:
    """Squared distances of pairs."""
    size = max(1, _ELEMENTS // queries.shape[1])
    products = [
        (queries[left] * items[right]).sum(dim=1)
        for left, right in zip(torch.split(query, size), torch.split(item, size), strict=True)
    ]
    return (2 - 2 * torch.cat(products)).clamp(min=0)


def _distances(queries: Tensor, items: Tensor) -> Tensor:
    """Squared distances ``[Q, N]``."""
    distances = queries.new_empty(len(queries), len(items))
    for rows, scores in score_blocks(queries, [items]):
        distances[rows] = (2 - 2 * scores).clamp(min=0)
    return distances
