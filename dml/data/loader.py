"""The loader of training batches."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from dml.data.dataset import Batch, Item, RetrievalDataset, check_one_size, collate
from dml.data.samplers import GlobalBatchSampler

_PART = 64  # images: all workers are busy at the end of a batch, and handing parts over costs little


class TrainLoader(DataLoader[Batch]):
    """A loader of training batches whose workers share each batch, and that can go on in the middle of an epoch.

    A worker loads a part of a batch: thousands of images are ready as soon as all workers together have loaded them,
    and no more than about two batches are held at a time, however many workers there are.

    Lightning saves :meth:`state_dict` with each checkpoint. Batches follow from the sampler's seed and epoch, and
    augmentation from the image and the epoch, so the number of batches served is all there is to remember.

    Args:
        dataset: What to load from.
        sampler: What to load.
        num_workers: Processes that load; 0 loads in this one.
        pin_memory: Whether images are put where a GPU copies from fastest.
    """

    def __init__(
        self, dataset: RetrievalDataset, sampler: GlobalBatchSampler, *, num_workers: int, pin_memory: bool
    ) -> None:
        parts = _Parts(sampler, -(-sampler.local_batch_size // _PART) if num_workers else 1)
        prefetch = max(2, -(-parts.per_batch // num_workers)) if num_workers else None
        super().__init__(
            dataset,  # type: ignore[arg-type]  # it holds items; batches are what collate makes of them
            batch_sampler=parts,
            num_workers=num_workers,
            collate_fn=collate if prefetch is None else _CollateIntoRing(prefetch + 2),
            persistent_workers=num_workers > 0,
            prefetch_factor=prefetch,
            generator=torch.Generator(),
        )
        self._balanced, self._images, self._per_batch = sampler, dataset, parts.per_batch
        self._pin_batches = pin_memory
        self._served = self._resume_at = 0
        # Memory that is still mapped when a worker sends it again is not mapped anew.
        self._mapped: deque[Tensor] = deque(maxlen=num_workers * ((prefetch or 0) + 2))

    def __len__(self) -> int:
        return super().__len__() // self._per_batch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Now, and not with the first batch: a run that was stopped after the last one asks this iterator for none.
        first, self._resume_at = self._resume_at, 0
        return self._batches(first)

    def _batches(self, first: int) -> Iterator[Batch]:
        # Only when the first one is asked for does the sampler know the epoch.
        self._images.epoch.fill_(self._balanced.epoch)
        self._balanced.first_batch = self._served = first
        parts = super().__iter__()
        while batch := self._joined(islice(parts, self._per_batch)):
            self._served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"served": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume_at = state["served"]

    def _joined(self, parts: Iterator[Batch]) -> Batch | None:
        """One batch of several parts, each of which is copied before the next is asked for."""
        if self.num_workers == 0 and not self._pin_batches:
            return next(parts, None)
        images: Tensor | None = None
        joined: list[Batch] = []
        filled = 0
        for part in parts:
            joined.append(part)
            loaded = part["images"]
            if len(loaded) == 0:
                continue
            self._mapped.append(loaded)
            if images is None:
                shape = (self._balanced.local_batch_size, *loaded.shape[1:])
                images = torch.empty(shape, dtype=loaded.dtype, pin_memory=self._pin_batches)
            check_one_size([images[0], loaded[0]])
            images[filled : filled + len(loaded)] = loaded
            filled += len(loaded)
        if not joined:
            return None
        rest = [part for part in joined if len(part["index"])] or joined[:1]
        return Batch(
            images=torch.empty(0) if images is None else images[:filled],
            labels=torch.cat([part["labels"] for part in rest]),
            index=torch.cat([part["index"] for part in rest]),
            is_query=torch.cat([part["is_query"] for part in rest]),
            is_gallery=torch.cat([part["is_gallery"] for part in rest]),
            unreadable=[message for part in joined for message in part["unreadable"]],
        )


class _CollateIntoRing:
    """Collates images into shared memory that is used again, which spares the work of mapping new pages for each part.

    A worker is at most ``prefetch_factor`` parts ahead of the one that was taken last, and :class:`TrainLoader` copies
    a part before it takes the next: a ring of two more parts than that is never overwritten while it is read.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._ring: deque[Tensor] = deque()

    def __call__(self, items: Sequence[Item | str]) -> Batch:
        return collate(items, self._stack)

    def _stack(self, images: list[Tensor]) -> Tensor:
        first = images[0]
        room = self._ring.popleft() if len(self._ring) == self.length else None
        if room is None or len(room) < len(images) or room.shape[1:] != first.shape or room.dtype != first.dtype:
            room = torch.empty((max(_PART, len(images)), *first.shape), dtype=first.dtype)
            room.share_memory_()  # type: ignore[no-untyped-call]
        self._ring.append(room)
        return torch.stack(images, out=room[: len(images)])


class _Parts(Sampler[list[int]]):
    """Each batch of a sampler, cut into ``per_batch`` parts of nearly equal size.

    Lightning finds the sampler, to tell it the epoch, as the attribute of this name.
    """

    def __init__(self, sampler: GlobalBatchSampler, per_batch: int) -> None:
        self.sampler = sampler
        self.per_batch = per_batch

    def __len__(self) -> int:
        return len(self.sampler) // self.sampler.local_batch_size * self.per_batch

    def __iter__(self) -> Iterator[list[int]]:
        images, size = iter(self.sampler), self.sampler.local_batch_size
        while batch := list(islice(images, size)):
            yield from (part.tolist() for part in np.array_split(batch, self.per_batch))
