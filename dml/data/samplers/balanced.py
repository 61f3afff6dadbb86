"""Batches at random, with the sizes of the classes evened out."""

import numpy as np
from torch import Tensor

from dml.data.samplers.base import GlobalBatchSampler
from dml.data.samplers.cursor import Integers, take_next
from dml.data.samplers.quotas import count_batches, cut_or_top_up


class BalancedSampler(GlobalBatchSampler):
    r"""Random global batches in which a large class is shown less often than it is large, and a small one more often.

    For losses that need no fixed number of images of each class. With :math:`n_c` images in class :math:`c`,
    :math:`K` classes, and batches of :math:`B`:

    1. Class :math:`c` is to be shown :math:`2^{b \log_2 p + (1 - b) \log_2 n_c} = p^b n_c^{1-b}` times in an epoch,
       rounded to :math:`t_c`, with the balance :math:`b` and :math:`p` images a class.
    2. An epoch has :math:`T` batches: the most with which no image is needed twice in one batch,
       :math:`\sum_c \min(t_c, n_c T) \ge B T`, but enough for every class to appear, :math:`B T \ge K`.
    3. Classes drawn at random, in proportion to :math:`t_c`, are shown less often, but at least once, so that whole
       batches remain. Where :math:`B T` is more than all are to be shown, some are shown more often.
    4. The images of each class are shuffled and tiled to the number of times that the class is shown.
    5. All these are dealt into batches at random, but no batch shows an image twice.

    So every class is seen in every epoch. Of the :math:`\sum_c \min(t_c, n_c)` images that balance leaves, fewer than
    :math:`B` are not seen. On the training list of Stanford Online Products (59,551 images of 11,318 classes), with
    batches of 256 and the defaults (:math:`p = 4`), an epoch has 176 batches and shows about 38,980 of the 39,115
    images that balance leaves, in 45,056 draws.

    Revaud et al., "Learning with Average Precision: Training Image Retrieval with a Listwise Loss", ICCV 2019,
    https://arxiv.org/abs/1906.07589. Steps 1 and 4 are those of the authors' code; it shuffles all draws together, so
    that a batch may show an image twice, and the last batch may be short.

    Args:
        labels: ``[n]`` or ``[n, L]``, finest level first; the classes are those of the finest level.
        classes_per_batch: With ``samples_per_class``, only the size of a batch: :math:`B` is their product.
        samples_per_class: See ``classes_per_batch``.
        balance: :math:`b`, from 0 (every image once) to 1 (every class equally often).
        images_per_class: :math:`p`; by default the median of the classes' sizes.
        seed: Of all draws.
        num_replicas: Number of processes.
        rank: Which process this is.

    Raises:
        ValueError: If a batch is larger than the split, ``balance`` or ``images_per_class`` is out of range, or the
            processes cannot share a batch evenly.
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        balance: float = 1.0,
        images_per_class: float | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(labels, classes_per_batch, samples_per_class, seed=seed, num_replicas=num_replicas, rank=rank)
        if self.batch_size > len(self.classes):
            raise ValueError(
                f"classes_per_batch * samples_per_class is {self.batch_size}; the split has {len(self.classes)} "
                "images, and a batch shows none twice"
            )
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is {balance}; it must be from 0 (every image once) to 1 (classes alike)")
        if images_per_class is not None and not images_per_class >= 1:
            raise ValueError(f"images_per_class is {images_per_class}; it must be at least 1")
        self.balance = balance
        self.images_per_class = float(np.median(self.sizes)) if images_per_class is None else images_per_class
        # The published logarithms, but exact at both ends of the balance, where a half must be rounded up.
        targets = self.images_per_class**balance * self.sizes ** (1 - balance)
        self._targets = (targets + 0.5).astype(np.int64)
        self._num_batches = count_batches(self._targets, self.sizes, self.batch_size)

    def draw(self, generator: np.random.Generator) -> Integers:
        most, total = self.sizes * self._num_batches, self.batch_size * self._num_batches
        shown = cut_or_top_up(self._targets, most, total, generator)
        images = take_next(self.classes, np.repeat(np.arange(len(shown)), shown), 1, generator)
        return _deal(np.bincount(images.flatten(), minlength=len(self.classes)), self._num_batches, generator)


def _deal(counts: Integers, num_batches: int, generator: np.random.Generator) -> Integers:
    """Batches ``[T, B]`` that show image ``i`` ``counts[i]`` times, at most ``T``, and never twice in one batch.

    Images are dealt round by round, one to each batch, in random order but with the copies of an image one after the
    other: those in one round get different batches. Copies may run over into the next round, whose order then avoids
    the batches that have the image.
    """
    order = generator.permutation(len(counts))
    rounds = np.repeat(order, counts[order]).reshape(-1, num_batches)
    batch = generator.permuted(np.tile(np.arange(num_batches), (len(rounds), 1)), axis=1)
    for above in np.flatnonzero(rounds[:-1, -1] == rounds[1:, 0]):
        image = rounds[above, -1]
        having = batch[above, rounds[above] == image]
        free = batch[above + 1, ~np.isin(batch[above + 1], having)]
        first = free[: np.count_nonzero(rounds[above + 1] == image)]
        rest = batch[above + 1, ~np.isin(batch[above + 1], first)]
        batch[above + 1] = np.concatenate((first, rest))
    dealt = np.empty_like(rounds)
    np.put_along_axis(dealt, batch, rounds, axis=1)
    return dealt.T
