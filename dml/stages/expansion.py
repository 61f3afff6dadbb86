"""Embeddings averaged with those of their neighbours in the gallery."""

from typing import Literal

import torch
from torch import Tensor, nn

from dml.stages.base import Stage, check
from dml.stages.neighbours import nearest


class QueryExpansion(Stage):
    r"""Search with the sum of the query and what it retrieves.

    .. math:: q' \propto q + \sum_{i \in \text{k nearest}} \max(s_i, 0)^\alpha\, x_i

    With ``alpha`` 0 all count alike: average query expansion, Chum, Philbin, Sivic, Isard & Zisserman: Total Recall,
    ICCV 2007, https://www.robots.ox.ac.uk/~vgg/publications/2007/Chum07b/ . With more, the less alike count less:
    Radenovic, Tolias & Chum, TPAMI 2019, https://arxiv.org/abs/1711.02512 , who take 3 and 50 neighbours. Chum et al.
    expand with items that a spatial check has confirmed; here, as with others who have one vector of an image, nothing
    is checked.

    The image of the query is not among its own neighbours.

    Args:
        k: Neighbours.
        alpha: Power of the similarity.
        rounds: How often; each searches with the queries of the one before, and adds to them.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, k: int = 10, alpha: float = 0.0, rounds: int = 1) -> None:
        _check_options(k, alpha)
        if rounds < 1:
            raise ValueError(f"rounds is {rounds}; it must be at least 1")
        self.k, self.alpha, self.rounds = k, alpha, rounds

    def __call__(self, queries: Tensor, gallery: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The queries change, the gallery does not."""
        check(queries, gallery, own)
        for _ in range(self.rounds):
            similarity, item, _ = nearest(queries, gallery, self.k, own)
            queries = _add(queries, gallery, item, _powers(similarity, self.alpha))
        return queries, gallery


class DatabaseAugmentation(Stage):
    r"""Replace each item of the gallery by the sum of itself and its neighbours there.

    The neighbours may count alike (Arandjelovic & Zisserman: Three things everyone should know to improve object
    retrieval, CVPR 2012), by their similarity to the power ``alpha`` as in :class:`QueryExpansion`, or by their rank:
    the ``r``-th of ``k`` counts :math:`(k - r) / k` and the item itself, of rank 0, counts 1 (Gordo, Almazan, Revaud &
    Larlus: End-to-end Learning of Deep Visual Representations for Image Retrieval, https://arxiv.org/abs/1610.07940).
    The last neighbour then counts nothing.

    Queries stay as they are, those that are in the gallery too. With expansion of queries, this comes first.

    Args:
        k: Neighbours.
        alpha: Power of the similarity.
        weights: What they count by.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, k: int = 10, alpha: float = 0.0, weights: Literal["similarity", "rank"] = "similarity") -> None:
        _check_options(k, alpha)
        if weights not in ("similarity", "rank"):
            raise ValueError(f"weights is {weights!r}; it must be 'similarity' or 'rank'")
        if weights == "rank" and alpha:
            raise ValueError(f"alpha is {alpha} and weights is 'rank', which has no alpha; leave alpha at 0")
        self.k, self.alpha, self.weights = k, alpha, weights

    def __call__(self, queries: Tensor, gallery: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The gallery changes, the queries do not."""
        check(queries, gallery, own)
        similarity, item, _ = nearest(gallery, gallery, self.k, torch.arange(len(gallery), device=gallery.device))
        weight = _powers(similarity, 0.0 if self.weights == "rank" else self.alpha)
        if self.weights == "rank":
            rank = torch.arange(1, item.shape[1] + 1, device=gallery.device)
            weight = weight * (self.k - rank) / self.k
        return queries, _add(gallery, gallery, item, weight)


def _check_options(k: int, alpha: float) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it is a number of neighbours, at least 1")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; it must be at least 0, where all neighbours count alike")


def _powers(similarity: Tensor, alpha: float) -> Tensor:
    """Weights ``[Q, k]``, 0 where there is no neighbour."""
    return similarity.clamp(min=0).pow(alpha).masked_fill(similarity == -torch.inf, 0)


@torch.no_grad()
def _add(embeddings: Tensor, gallery: Tensor, item: Tensor, weight: Tensor) -> Tensor:
    """``[Q, D]`` of unit norm: each embedding and its items ``[Q, k]`` of the gallery."""
    if item.numel() == 0:
        return embeddings
    total = nn.functional.embedding_bag(item, gallery, per_sample_weights=weight, mode="sum") + embeddings
    return nn.functional.normalize(total, dim=1)
