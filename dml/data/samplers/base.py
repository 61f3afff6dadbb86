"""What every sampler of training batches shares."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from dml.data.samplers.cursor import Integers


class GlobalBatchSampler(Sampler[int], ABC):
    """Batches that all processes draw alike and share. A sampler is :meth:`draw`, nothing else.

    Everything follows from ``(seed, epoch)``: all processes draw the same global batches, and each takes every
    ``num_replicas``-th image. Use it with ``batch_size=sampler.local_batch_size``.

    Args:
        labels: ``[n]`` or ``[n, L]``, finest level first; the classes are those of the finest level.
        classes_per_batch: Classes in a batch, over all processes.
        samples_per_class: Images of each. A batch has ``classes_per_batch * samples_per_class`` images, also where a
            sampler fixes neither number by itself.
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
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"rank is {rank}; with num_replicas={num_replicas} it must be from 0 to {num_replicas - 1}"
            )
        self.batch_size = classes_per_batch * samples_per_class
        """Images in a batch of all processes."""
        if self.batch_size % num_replicas:
            raise ValueError(
                f"classes_per_batch * samples_per_class is {self.batch_size}, which {num_replicas} processes cannot "
                "share evenly; change one of them"
            )
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.local_batch_size = self.batch_size // num_replicas
        self.classes: Integers = classes.astype(np.int64)
        """Class of each image ``[n]``, from 0 without gaps."""
        self.sizes: Integers = sizes.astype(np.int64)
        """Images of each class ``[K]``."""
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0
        """Where in the epoch to start: how a run that was killed goes on."""
        self._num_replicas, self._rank = num_replicas, rank
        self._drawn: tuple[int, Integers] | None = None

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Integers:
        """Draw the batches of an epoch: rows of the dataset ``[T, batch_size]``.

        ``T`` must not depend on the generator. Lightning asks for the length before the first epoch and plans all
        epochs by it: a longer one would lose its last batches, a shorter one its validation.
        """

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration draws. Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Images of one process in the epoch."""
        return len(self._batches()) * self.local_batch_size

    def __iter__(self) -> Iterator[int]:
        yield from self._batches()[self.first_batch :, self._rank :: self._num_replicas].flatten().tolist()

    def _batches(self) -> Integers:
        # Kept, because a loader asks for the length more often than for the batches.
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._drawn = self.epoch, self.draw(np.random.default_rng([self.seed, self.epoch]))
        return self._drawn[1]
