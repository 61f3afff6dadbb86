"""Batches of a few super-classes, whose classes are hard to tell apart."""

from itertools import combinations

import numpy as np
from torch import Tensor

from dml.data.samplers.base import GlobalBatchSampler
from dml.data.samplers.cursor import Integers, take_next


class HierarchicalSampler(GlobalBatchSampler):
    r"""Global batches from ``super_classes_per_batch`` super-classes, so that most negatives are hard ones.

    With :math:`C` classes a batch and :math:`m` images a class:

    1. Every combination of super-classes gets ``batches_per_tuple`` batches. All batches of an epoch are in random
       order.
    2. The super-classes of a batch share its classes evenly; a remainder goes to members at random. Where one has too
       few classes for its share, the others fill up, so no batch is short.
    3. A super-class gives its next classes, from its shuffled list, and a class its next :math:`m` images, both
       wrapping around at the end. An image is repeated within a batch only if its class has fewer than :math:`m`.

    So an epoch misses classes only of a super-class that has more than it gives in all its batches, and repeats an
    image only after all others of its class. Its length grows with the number of combinations: choose a ``level`` with
    few super-classes. On the training list of Stanford Online Products (59,551 images of 11,318 classes in 12
    categories), with batches of 256, :math:`m = 4`:

    ================================================= ============ =========
    an epoch                                                  here published
    ================================================= ============ =========
    batches                                                    330       330
    draws                                                   84,480    84,480
    classes seen                                            11,318     9,491
    images seen                                       about 51,680    39,482
    repeated draws in a batch                           about 34.6        42
    of them in classes of :math:`m` images or more               0
    ================================================= ============ =========

    Published are the sampler of pytorch-metric-learning, which draws classes anew for each batch, and the idea:
    Cakir et al., "Deep Metric Learning to Rank", CVPR 2019,
    https://openaccess.thecvf.com/content_CVPR_2019/html/Cakir_Deep_Metric_Learning_to_Rank_CVPR_2019_paper.html,
    whose own code keeps a cursor too.

    Args:
        labels: ``[n, L]``, finest level first, at least two levels; the classes are those of the finest.
        classes_per_batch: :math:`C`, over all processes.
        samples_per_class: :math:`m`.
        level: Column of ``labels`` with the super-classes; by default the next coarser than the classes.
        super_classes_per_batch: Super-classes in a batch.
        batches_per_tuple: Batches in an epoch for each combination of super-classes.
        seed: Of all draws.
        num_replicas: Number of processes.
        rank: Which process this is.

    Raises:
        ValueError: If the labels have no such level or do not nest, the super-classes of some batch have fewer classes
            than ``classes_per_batch``, or the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        level: int = 1,
        super_classes_per_batch: int = 2,
        batches_per_tuple: int = 5,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if labels.ndim != 2 or labels.shape[1] < 2:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; super-classes need [n, L] with L at least 2")
        if not 1 <= level < labels.shape[1]:
            raise ValueError(
                f"level is {level}; the super-classes of labels with {labels.shape[1]} levels are at 1 to "
                f"{labels.shape[1] - 1}"
            )
        super().__init__(labels, classes_per_batch, samples_per_class, seed=seed, num_replicas=num_replicas, rank=rank)
        if batches_per_tuple < 1:
            raise ValueError(f"batches_per_tuple is {batches_per_tuple}; it must be at least 1")
        self.super_classes = _nest(labels[:, level].numpy(), self.classes, level)
        """Super-class of each class ``[K]``, from 0 without gaps."""
        self.super_sizes = np.bincount(self.super_classes)
        """Classes of each super-class ``[S]``."""
        self._check_shares(super_classes_per_batch)
        tuples = list(combinations(range(len(self.super_sizes)), super_classes_per_batch))
        self._tuples = np.repeat(np.array(tuples), batches_per_tuple, axis=0)

    def draw(self, generator: np.random.Generator) -> Integers:
        tuples = generator.permutation(self._tuples)
        shares = _share(self.classes_per_batch, self.super_sizes[tuples], generator)
        given = np.repeat(tuples.flatten(), shares.flatten())  # [T * C], the super-class of each class drawn
        drawn = take_next(self.super_classes, given, 1, generator)
        images = take_next(self.classes, drawn.flatten(), self.samples_per_class, generator)
        return images.reshape(len(tuples), -1)

    def _check_shares(self, members: int) -> None:
        if not 1 <= members <= len(self.super_sizes):
            raise ValueError(
                f"super_classes_per_batch is {members}; the split has {len(self.super_sizes)} super-classes"
            )
        if self.classes_per_batch < members:
            raise ValueError(
                f"classes_per_batch is {self.classes_per_batch}; super_classes_per_batch={members} needs at "
                f"least {members}"
            )
        smallest = np.sort(self.super_sizes)[:members]
        if self.classes_per_batch > smallest.sum():
            raise ValueError(
                f"classes_per_batch is {self.classes_per_batch}; the super-classes of some batches have only "
                f"{' + '.join(map(str, smallest))} classes, so it can be at most {smallest.sum()}"
            )


def _nest(coarse: Integers, classes: Integers, level: int) -> Integers:
    """Super-class of each class ``[K]``, from 0 without gaps.

    Raises:
        ValueError: If a class has two.
    """
    _, coarse = np.unique(coarse, return_inverse=True)
    _, first = np.unique(classes, return_index=True)
    super_classes: Integers = coarse[first]
    astray = np.flatnonzero(super_classes[classes] != coarse)
    if len(astray):
        raise ValueError(
            f"labels of level {level} split a class: image {astray[0]} has another one than the first "
            "image of its class; each class must lie in one super-class"
        )
    return super_classes


def _share(total: int, room: Integers, generator: np.random.Generator) -> Integers:
    """Even shares ``[T, members]`` of ``total`` in each row, none above ``room`` ``[T, members]``."""
    shares = np.zeros_like(room)
    while (missing := total - shares.sum(axis=1, keepdims=True)).any():
        free = shares < room
        each, rest = np.divmod(missing, np.maximum(free.sum(axis=1, keepdims=True), 1))
        keys = np.where(free, generator.random(room.shape), np.inf)
        lucky = keys.argsort(axis=1).argsort(axis=1) < rest
        shares = np.minimum(shares + each * free + lucky, room)
    return shares
