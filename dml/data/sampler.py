"""Samplers of large, class-balanced training batches."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Sampler

Integers = npt.NDArray[np.int64]


class ClassBalancedSampler(Sampler[int]):
    r"""Global batches of ``classes_per_batch`` distinct classes with ``samples_per_class`` images each.

    An epoch is one pass over the data, as far as that is possible with distinct classes in each batch. With :math:`C`
    classes a batch, :math:`m` images a class, :math:`n_c` images in class :math:`c`:

    1. The images of each class are shuffled and cut into :math:`g_c = \lceil n_c / m \rceil` groups of :math:`m`. The
       last group is filled up with the first images of the same class, so that an image is repeated within a group only
       if its class has fewer than :math:`m`.
    2. An epoch has :math:`T` batches: the most with which no class is needed twice in one batch,
       :math:`\sum_c \min(g_c, T) \ge C T`, but enough for every class to appear, :math:`C T \ge` number of classes.
    3. Groups are drawn at random, without replacement, from the classes that have most left to show; a class that must
       be in every remaining batch is.

    So every class is seen in every epoch, and every image too unless one class has more groups than the epoch has
    batches, or the last batch would not be full. Everything follows from ``(seed, epoch)``: all processes draw the same
    global batches, and each takes every ``num_replicas``-th image. Use it with ``batch_size=sampler.local_batch_size``.

    Args:
        labels: ``[n]`` or ``[n, L]``, finest level first; the classes are those of the finest level.
        classes_per_batch: :math:`C`, over all processes.
        samples_per_class: :math:`m`.
        seed: Of all draws.
        num_replicas: Number of processes.
        rank: Which process this is.

    Raises:
        ValueError: If there are fewer classes than ``classes_per_batch``, or the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        finest = labels.numpy() if labels.ndim == 1 else labels[:, 0].numpy()
        _, classes, sizes = np.unique(finest, return_inverse=True, return_counts=True)
        if samples_per_class < 1:
            raise ValueError(f"samples_per_class is {samples_per_class}; it must be at least 1")
        if not 1 <= classes_per_batch <= len(sizes):
            raise ValueError(f"classes_per_batch is {classes_per_batch}; the split has {len(sizes)} classes")
        batch_size = classes_per_batch * samples_per_class
        if batch_size % num_replicas:
            raise ValueError(
                f"classes_per_batch * samples_per_class is {batch_size}, which {num_replicas} processes cannot share "
                "evenly; change one of them"
            )
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.local_batch_size = batch_size // num_replicas
        self.epoch = 0
        self.first_batch = 0
        """Where in the epoch to start: how a run that was killed goes on."""
        self._seed, self._num_replicas, self._rank = seed, num_replicas, rank
        self._classes: Integers = classes.astype(np.int64)
        self._sizes: Integers = sizes.astype(np.int64)
        self._groups = -(-self._sizes // samples_per_class)
        self._num_batches = self._count_batches()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration draws. Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Images of one process in an epoch."""
        return self._num_batches * self.local_batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self.epoch])
        batches = self._draw_images(self._draw_classes(generator), generator)  # [T, C * m]
        yield from batches[self.first_batch :, self._rank :: self._num_replicas].flatten().tolist()

    def _count_batches(self) -> int:
        """The most batches of distinct classes, by bisection, but enough to show every class."""
        fewest, most = 1, int(self._groups.sum()) // self.classes_per_batch + 1
        while most - fewest > 1:
            middle = (fewest + most) // 2
            enough = np.minimum(self._groups, middle).sum() >= self.classes_per_batch * middle
            fewest, most = (middle, most) if enough else (fewest, middle)
        return max(fewest, -(-len(self._sizes) // self.classes_per_batch))

    def _draw_classes(self, generator: np.random.Generator) -> Integers:
        """Classes of each batch ``[T, C]``, distinct within a batch, every class in some batch."""
        batches, size = self._num_batches, self.classes_per_batch
        left = np.minimum(self._groups, batches)
        left = _cut_or_top_up(left, size * batches, batches, generator)
        drawn = np.empty((batches, size), dtype=np.int64)
        for batch in range(batches):
            # Gumbel noise makes the largest keys a draw without replacement, in proportion to what is left.
            with np.errstate(divide="ignore"):
                keys = np.log(left) + generator.gumbel(size=len(left))
            keys[left == batches - batch] = np.inf  # must be in every batch that remains
            drawn[batch] = np.argpartition(keys, -size)[-size:]
            left[drawn[batch]] -= 1
        return drawn

    def _draw_images(self, drawn: Integers, generator: np.random.Generator) -> Integers:
        """Images of each batch ``[T, C * m]``: the next group of each class, wrapping around its shuffled images."""
        shuffled = np.lexsort((generator.random(len(self._classes)), self._classes))
        first = self._sizes.cumsum() - self._sizes
        flat = drawn.flatten()
        order = np.argsort(flat, kind="stable")
        counts = np.bincount(flat, minlength=len(self._sizes))
        turn = np.empty_like(flat)  # how often the class was drawn before
        turn[order] = np.arange(len(flat)) - np.repeat(counts.cumsum() - counts, counts)
        position = turn[:, None] * self.samples_per_class + np.arange(self.samples_per_class)
        images = shuffled[first[flat, None] + position % self._sizes[flat, None]]
        return images.reshape(len(drawn), -1)


def _cut_or_top_up(groups: Integers, total: int, most: int, generator: np.random.Generator) -> Integers:
    """Change ``groups`` at random to sum to ``total``, with each between 1 and ``most``."""
    groups = groups.copy()
    sign = 1 if groups.sum() < total else -1
    while groups.sum() != total:
        free = np.flatnonzero(groups < most if sign > 0 else groups > 1)
        missing = abs(total - int(groups.sum()))
        # In proportion to size, so that what is left out is spread evenly over the images.
        keys = np.log(groups[free]) * -sign + generator.gumbel(size=len(free))
        groups[free[np.argsort(-keys)[:missing]]] += sign
    return groups
