"""Class-balanced batches of classes that are stored next to one another."""

import numpy as np
from torch import Tensor

from dml.data.samplers.base import GlobalBatchSampler
from dml.data.samplers.class_balanced import draw_classes
from dml.data.samplers.cursor import Integers, take_next
from dml.data.samplers.quotas import count_batches


class StreamingSampler(GlobalBatchSampler):
    r"""Batches as :class:`ClassBalancedSampler` draws them, each from classes that are neighbours in storage.

    For data that is fetched in chunks, such as :class:`~dml.data.datasets.PackedDataset`: a batch needs the chunks of
    its window, not those of the whole data set. With :math:`C` classes a batch:

    1. The classes, in the order in which they first appear in ``labels``, are a ring. It is cut, at a place that is
       drawn for each epoch, into windows of nearly equally many whole multiples of :math:`C` classes; one window takes
       the classes that are left over. So the neighbours that a class meets change from epoch to epoch.
    2. An epoch has as many batches as the windows of the first cut fill. Each window gets its share, rounded: some
       classes are shown more often where that is up, and less often where it is down.
    3. Windows follow one another at random. The batches of a window are those of a :class:`ClassBalancedSampler`.

    So every class is seen in every epoch. What it costs: only classes of one window meet in a batch, so classes should
    be stored in random order, as :func:`~dml.data.pack.pack` does. And a class is shown at most once in each batch of
    its window, so images of large classes are left out unless a window has many batches.

    Args:
        labels: ``[n]`` or ``[n, L]``, finest level first, in the order in which the images are stored; the classes are
            those of the finest level.
        classes_per_batch: :math:`C`, over all processes.
        samples_per_class: Images of each class in a batch.
        images_per_window: About how many images a window has, and at least :math:`C` classes.
        seed: Of all draws.
        num_replicas: Number of processes.
        rank: Which process this is.

    Raises:
        ValueError: If there are fewer classes than ``classes_per_batch``, ``images_per_window`` is below 1, or the
            processes cannot share a batch evenly.
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        images_per_window: int = 65_536,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(labels, classes_per_batch, samples_per_class, seed=seed, num_replicas=num_replicas, rank=rank)
        if images_per_window < 1:
            raise ValueError(f"images_per_window is {images_per_window}; it must be at least 1")
        self.images_per_window = images_per_window
        self._groups = -(-self.sizes // samples_per_class)
        _, first = np.unique(self.classes, return_index=True)
        self._ring: Integers = np.argsort(first)
        windows = self._windows(start=0)
        self._num_batches = max(self._fewest(windows).sum(), self._filled(windows).sum() // classes_per_batch)

    def draw(self, generator: np.random.Generator) -> Integers:
        windows = self._windows(start=int(generator.integers(len(self._ring))))
        fewest = self._fewest(windows)
        more = np.maximum(self._filled(windows) / self.classes_per_batch - fewest, 1e-9)
        # Rounded as a running total, so that all of them are as many as they should be.
        ends = np.round(more.cumsum() * (self._num_batches - fewest.sum()) / more.sum()).astype(np.int64)
        batches = fewest + np.diff(ends, prepend=0)
        drawn = [
            windows[i][draw_classes(self._groups[windows[i]], batches[i], self.classes_per_batch, generator)]
            for i in generator.permutation(len(windows))
        ]
        images = take_next(self.classes, np.concatenate(drawn).flatten(), self.samples_per_class, generator)
        return images.reshape(self._num_batches, -1)

    def _windows(self, start: int) -> list[Integers]:
        """The classes of each window, if the ring is cut at ``start``."""
        blocks = len(self._ring) // self.classes_per_batch
        count = min(max(len(self.classes) // self.images_per_window, 1), blocks)
        # Whole blocks, so that the batches that it takes to show each class are as many as without windows.
        ends = np.arange(1, count) * blocks // count * self.classes_per_batch
        return np.split(np.roll(self._ring, -start), ends)

    def _fewest(self, windows: list[Integers]) -> Integers:
        """Batches that it takes to show each class of each window; the same for every cut."""
        return np.array([-(-len(window) // self.classes_per_batch) for window in windows])

    def _filled(self, windows: list[Integers]) -> Integers:
        """How often each window can show a class, without repeating an image that its class need not repeat."""
        groups = [self._groups[window] for window in windows]
        whole = [count_batches(some, np.ones_like(some), self.classes_per_batch) for some in groups]
        return np.array([np.minimum(some, most + 1).sum() for some, most in zip(groups, whole, strict=True)])
