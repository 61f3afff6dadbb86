"""Which items of the gallery are relevant to which queries, without looking at every pair."""

import torch
from torch import Tensor


class SameLabel:
    """The items of a gallery by their label.

    Args:
        labels: ``[N]`` of the gallery.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels, inverse, self._count = torch.unique(labels, return_inverse=True, return_counts=True)
        self._items = inverse.argsort(stable=True)  # by label, and of one label in order
        self.largest = int(self._count.max()) if len(self._count) else 0
        """How many items the most frequent label has."""
        self._start = self._count.cumsum(0) - self._count

    def pairs(self, labels: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Each query with each item of its label, but itself.

        Args:
            labels: ``[b]`` of the queries.
            own: ``[b]``, the item that is the query itself, -1 if there is none.

        Returns:
            Query and item of each pair ``[M]``, by query, then by item.
        """
        if len(self._labels) == 0:
            return labels.new_empty(0), labels.new_empty(0)
        labels = labels.contiguous()  # of several levels, they are a column
        place = torch.searchsorted(self._labels, labels).clamp(max=len(self._labels) - 1)
        count = self._count[place] * (self._labels[place] == labels)
        query = torch.arange(len(labels), device=labels.device).repeat_interleave(count)
        position = torch.arange(len(query), device=labels.device) - (count.cumsum(0) - count)[query]
        item = self._items[self._start[place][query] + position]
        others = item != own[query]
        return query[others], item[others]
