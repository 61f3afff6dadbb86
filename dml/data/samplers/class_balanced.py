"""Batches of equally many images of each class, and epochs that show everything."""

import numpy as np

from dml.data.samplers.base import GlobalBatchSampler
from dml.data.samplers.cursor import Integers, take_next
from dml.data.samplers.quotas import count_batches, cut_or_top_up


class ClassBalancedSampler(GlobalBatchSampler):
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
    batches, or the last batch would not be full.

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

    def draw(self, generator: np.random.Generator) -> Integers:
        groups = -(-self.sizes // self.samples_per_class)
        batches = count_batches(groups, np.ones_like(groups), self.classes_per_batch)
        drawn = draw_classes(groups, batches, self.classes_per_batch, generator)
        images = take_next(self.classes, drawn.flatten(), self.samples_per_class, generator)
        return images.reshape(len(drawn), -1)


def draw_classes(groups: Integers, batches: int, size: int, generator: np.random.Generator) -> Integers:
    """Classes of each batch ``[batches, size]``, distinct within a batch, every class in some batch.

    Args:
        groups: ``[K]``, how often each class is to be shown; as far as that fills the batches.
        batches: How many, such that every class can appear, ``batches * size >= K``.
        size: Classes in a batch.
        generator: Of all draws.
    """
    left = cut_or_top_up(groups, np.full_like(groups, batches), size * batches, generator)
    drawn = np.empty((batches, size), dtype=np.int64)
    for batch in range(batches):
        # Gumbel noise makes the largest keys a draw without replacement, in proportion to what is left.
        with np.errstate(divide="ignore"):
            keys = np.log(left) + generator.gumbel(size=len(left))
        keys[left == batches - batch] = np.inf  # must be in every batch that remains
        drawn[batch] = np.argpartition(keys, -size)[-size:]
        left[drawn[batch]] -= 1
    return drawn
