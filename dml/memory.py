"""Embeddings of earlier batches, as a larger gallery."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Remembered(NamedTuple):
    """What a memory holds of images that are not in the batch."""

    embeddings: Tensor  # [K, D], without gradient
    labels: Tensor  # [K, L]


class CrossBatchMemory(nn.Module):
    """The last ``size`` embeddings of training, for a loss to rank together with those of the batch.

    Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020, https://arxiv.org/abs/1912.06798. Embeddings
    drift slowly once training has settled, so those of earlier batches are nearly what they would be now. Queries are
    those of the batch; each ranks the batch and the memory. Images of the batch are taken out of the memory by their
    index, or they would be their own neighbours.

    On several processes each one holds the same memory of the global batches. It is saved with the model.

    Args:
        size: Embeddings to keep. With that of the training split, a query ranks the whole of it.
        start_after: Batches before the memory is used; it is filled from the first.

    Raises:
        ValueError: If ``size`` is below 1 or ``start_after`` below 0.
    """

    def __init__(self, size: int, start_after: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}; it is a number of embeddings, at least 1")
        if start_after < 0:
            raise ValueError(f"start_after is {start_after}; it is a number of batches, at least 0")
        self.size = size
        self.start_after = start_after
        self.steps = 0
        """Batches remembered so far."""
        self._next = 0
        # Not buffers, which would be sent to every process before each step. Allocated by the first batch, which shows
        # how wide embeddings and labels are.
        self._rows: tuple[Tensor, Tensor, Tensor] | None = None

    def recall(self, index: Tensor) -> Remembered | None:
        """What is remembered of other images than ``index [B]``; None before there is anything to use."""
        if self._rows is None or self.steps < self.start_after:
            return None
        embeddings, labels, images = (rows.to(index.device) for rows in self._rows)
        others = ~torch.isin(images, index) & (images >= 0)
        # A copy: the batch will be written into the memory before the gradient of what was recalled is taken.
        return Remembered(embeddings[others], labels[others])

    @torch.no_grad()
    def remember(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> None:
        """Keep a batch, in the place of the oldest.

        Args:
            embeddings: ``[B, D]``; of a batch larger than the memory, the last ones are kept.
            labels: ``[B, L]``.
            index: ``[B]``, which images these are.
        """
        batch = embeddings[-self.size :].float(), labels[-self.size :], index[-self.size :]
        if self._rows is None:
            empty = [new.new_zeros((self.size, *new.shape[1:])) for new in batch]
            self._rows = empty[0], empty[1], empty[2] - 1
        all_embeddings, all_labels, images = (rows.to(embeddings.device) for rows in self._rows)
        self._rows = all_embeddings, all_labels, images
        places = (self._next + torch.arange(len(batch[0]), device=embeddings.device)) % self.size
        for rows, new in zip(self._rows, batch, strict=True):
            rows[places] = new
        self._next = (self._next + len(batch[0])) % self.size
        self.steps += 1

    def get_extra_state(self) -> dict[str, Any]:
        rows = [] if self._rows is None else list(self._rows)
        return {"rows": rows, "next": self._next, "steps": self.steps, "size": self.size}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["size"] != self.size:
            raise ValueError(f"size is {self.size}; the checkpoint has a memory of {state['size']}")
        rows = [saved.clone() for saved in state["rows"]]
        self._rows = (rows[0], rows[1], rows[2]) if rows else None
        self._next, self.steps = state["next"], state["steps"]
