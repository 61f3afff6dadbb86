"""Batches in the order that Smooth-AP published."""

import numpy as np
from torch import Tensor

from dml.data.samplers.base import GlobalBatchSampler
from dml.data.samplers.cursor import Integers, take_next


class SmoothAPSampler(GlobalBatchSampler):
    r"""The published order of Smooth-AP, to reproduce results; to train, take :class:`ClassBalancedSampler`.

    With :math:`C` classes a batch and :math:`m` images a class:

    1. The images of each class are shuffled, and the list of classes is shuffled, once an epoch.
    2. A batch walks the list from its start and takes the next :math:`m` unused images of every class that still has
       :math:`m`, until it has :math:`C` classes. The first batch that cannot be filled ends the epoch.
    3. The batches are shuffled.

    What it misses: a class with fewer than :math:`m` images is never seen. Fewer than :math:`C` others are not seen in
    an epoch either, since every walk starts at the same place, and the same classes fill batch after batch. On the
    training list of Stanford Online Products (59,551 images of 11,318 classes), :math:`m = 4`, 4,019 classes are never
    seen, and an epoch has

    ========== ======= =========== ======
    batch size batches classes     images
    ========== ======= =========== ======
    256            163 about 7,280 41,728
    384            108 about 7,245 41,472
    4000            10 about 7,225 40,000
    ========== ======= =========== ======

    On 100 classes of 59 images, as in CUB-200-2011, an epoch has 14 batches of 256, all of the same 64 classes.

    As published, the number of batches depends on how the list is shuffled. Lightning asks once for the length of all
    epochs, so here every epoch has as many as half of all lists give, or more: the median of 15 lists. A list that
    gives fewer is shuffled again, and batches beyond that number are left out.

    Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020,
    https://arxiv.org/abs/2007.12163; the order is that of the authors' code.

    Args:
        labels: ``[n]`` or ``[n, L]``, finest level first; the classes are those of the finest level.
        classes_per_batch: :math:`C`, over all processes.
        samples_per_class: :math:`m`.
        seed: Of all draws.
        num_replicas: Number of processes.
        rank: Which process this is.

    Raises:
        ValueError: If fewer classes than ``classes_per_batch`` have ``samples_per_class`` images, or the processes
            cannot share a batch evenly.
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
        super().__init__(labels, classes_per_batch, samples_per_class, seed=seed, num_replicas=num_replicas, rank=rank)
        self._groups = self.sizes // samples_per_class
        eligible = np.count_nonzero(self._groups)
        if eligible < classes_per_batch:
            raise ValueError(
                f"classes_per_batch is {classes_per_batch}; only {eligible} of the {len(self.sizes)} classes have "
                f"samples_per_class={samples_per_class} images or more"
            )
        generator = np.random.default_rng(seed)
        self._num_batches = int(np.median([len(self._walk(generator)) for _ in range(15)]))

    def draw(self, generator: np.random.Generator) -> Integers:
        drawn = self._walk(generator)
        while len(drawn) < self._num_batches:
            drawn = self._walk(generator)
        images = take_next(self.classes, drawn.flatten(), self.samples_per_class, generator)
        batches = images.reshape(len(drawn), -1)
        return batches[generator.permutation(len(drawn))[: self._num_batches]]

    def _walk(self, generator: np.random.Generator) -> Integers:
        """Classes of each batch ``[T, C]``, in the order of the walk."""
        size = self.classes_per_batch
        classes = generator.permutation(np.flatnonzero(self._groups))
        # The first classes of the list that have images left: what the next batch takes.
        front, entered = classes[:size], size
        left = self._groups[front]
        batches = []
        while len(front) == size:
            repeats = int(left.min())  # they fill one batch after the other until one of them is used up
            batches.append(np.tile(front, (repeats, 1)))
            stays = left > repeats
            entering = classes[entered : entered + size - np.count_nonzero(stays)]
            entered += len(entering)
            front = np.concatenate((front[stays], entering))
            left = np.concatenate((left[stays] - repeats, self._groups[entering]))
        return np.concatenate(batches)
