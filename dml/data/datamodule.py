"""From a dataset class to the loaders of a run."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler
from torchvision.transforms import v2

from dml.data.buckets import AspectBuckets, OneSizeBatches, stored_sizes
from dml.data.dataset import Batch, RetrievalDataset, collate
from dml.data.loader import TrainLoader
from dml.data.samplers import ClassBalancedSampler, GlobalBatchSampler


class RetrievalDataModule(LightningDataModule):
    """Loaders of any :class:`RetrievalDataset`: class-balanced batches to train, every image once to evaluate.

    Args:
        dataset: Class of the dataset, for example ``dml.data.datasets.StanfordOnlineProducts``.
        root: Folder of the dataset.
        classes_per_batch: Classes in a training batch, over all processes.
        samples_per_class: Images of each class in a training batch.
        sampler: Which images make a training batch: one of :mod:`dml.data.samplers`, with its options.
        levels: Columns of the index that are the labels, finest first; by default those that the dataset names.
        train_split: Split to train on.
        val_split: Split that ``fit`` and ``validate`` evaluate on.
        test_split: Split that ``test`` evaluates on.
        predict_split: Split that ``predict`` embeds.
        val_classes: Fraction of the training classes to hold out as the split ``val``, for datasets that publish none.
        val_seed: Which classes those are.
        train_transforms: torchvision v2 transforms from uint8 to uint8, in order. By default a random resized crop, and
            a horizontal flip for colour images.
        eval_transforms: The same for evaluation. By default the shorter side is resized, and the centre cropped. With
            :class:`~dml.data.buckets.AspectBuckets`, batches are of images of one size.
        eval_batch_size: Images in an evaluation batch of one process.
        num_workers: Processes that load images, for each process that trains; by default its share of the cores, but
            one, and at most 16.
        skip_unreadable: Leave out images that cannot be read and count them in a warning; by default one stops the run.
        image_size: Side of the images in pixels. The command line takes it from the embedder.
        channels: 1 (greyscale) or 3 (RGB). The command line takes it from the embedder.
        seed: Of batches and augmentation. The command line takes it from ``seed_everything``.

    Raises:
        ValueError: If ``val_classes`` would leave the classes it holds out in ``train_split``.
    """

    def __init__(
        self,
        dataset: type[RetrievalDataset],
        root: str,
        classes_per_batch: int = 64,
        samples_per_class: int = 4,
        sampler: Callable[[Tensor, int, int], GlobalBatchSampler] = ClassBalancedSampler,
        levels: Sequence[str] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        predict_split: str = "test",
        val_classes: float | None = None,
        val_seed: int = 0,
        train_transforms: Sequence[nn.Module] | None = None,
        eval_transforms: Sequence[nn.Module] | None = None,
        eval_batch_size: int = 256,
        num_workers: int | None = None,
        skip_unreadable: bool = False,
        image_size: int = 224,
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_hold_out(val_classes, train_split)
        self.dataset, self.root = dataset, root
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.sampler: Callable[..., GlobalBatchSampler] = sampler
        self.levels = levels
        self.splits = {"train": train_split, "val": val_split, "test": test_split, "predict": predict_split}
        self.val_classes, self.val_seed = val_classes, val_seed
        self.train_transforms = _augmentation(image_size, channels) if train_transforms is None else train_transforms
        self.eval_transforms = _resize_and_crop(image_size) if eval_transforms is None else eval_transforms
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.skip_unreadable = skip_unreadable
        self.image_size, self.channels, self.seed = image_size, channels, seed
        self.datasets: dict[str, RetrievalDataset] = {}
        """The datasets set up so far, by stage: train, val, test, predict."""
        self._unreadable: set[str] = set()

    def prepare_data(self) -> None:
        # Once per machine: a dataset that draws itself on first use does it here, and an index is cached, before
        # processes share them.
        self.dataset.whole_index(Path(self.root).expanduser(), self.levels)

    def setup(self, stage: str) -> None:
        if self.skip_unreadable and self._world_size > 1:
            raise ValueError(
                "skip_unreadable is true on several processes, whose batches would differ in size; remove the images "
                "that cannot be read, or run on one device"
            )
        stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for name in stages:
            if name not in self.datasets:
                self.datasets[name] = self._dataset(name)

    def train_dataloader(self) -> TrainLoader:
        dataset = self.datasets["train"]
        sampler = self.train_sampler(dataset, num_replicas=self._world_size, rank=self._rank)
        return TrainLoader(dataset, sampler, num_workers=self._num_workers, pin_memory=torch.cuda.is_available())

    def train_sampler(self, dataset: RetrievalDataset, *, num_replicas: int = 1, rank: int = 0) -> GlobalBatchSampler:
        """What draws the training batches of one process."""
        return self.sampler(
            dataset.labels,
            self.classes_per_batch,
            self.samples_per_class,
            seed=self.seed,
            num_replicas=num_replicas,
            rank=rank,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("predict")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Stop at an image that cannot be read, or count it.

        Raises:
            ValueError: If an image cannot be read and ``skip_unreadable`` is off, or nothing of the batch is left.
        """
        if batch["unreadable"] and not self.skip_unreadable:
            raise ValueError(
                f"{batch['unreadable'][0]}; mend it, or leave such images out by data.skip_unreadable=true"
            )
        if len(batch["index"]) == 0:
            raise ValueError(f"no image of a batch could be read, the first: {batch['unreadable'][0]}")
        before = len(self._unreadable)
        self._unreadable.update(batch["unreadable"])
        if len(self._unreadable) > before:
            rank_zero_warn(
                f"skipped {len(self._unreadable)} unreadable images so far, the last: {batch['unreadable'][-1]}"
            )
        return batch

    def _dataset(self, stage: str) -> RetrievalDataset:
        transforms = self.train_transforms if stage == "train" else self.eval_transforms
        dataset = self.dataset(
            self.root,
            self.splits[stage],
            transform=nn.Sequential(*transforms),
            channels=self.channels,
            levels=self.levels,
            val_classes=self.val_classes,
            val_seed=self.val_seed,
            seed=self.seed,
        )
        if stage == "train":
            # From 0 without gaps, so that a loss with one proxy for each class can take them as they are.
            dataset.labels = torch.stack([level.unique(return_inverse=True)[1] for level in dataset.labels.T], dim=1)
        return dataset

    def _eval_loader(self, stage: str) -> DataLoader[Batch]:
        dataset = self.datasets[stage]
        shared = {"num_replicas": self._world_size, "rank": self._rank}
        buckets = [transform for transform in self.eval_transforms if isinstance(transform, AspectBuckets)]
        batches: Sampler[list[int]]
        if buckets:
            sizes = [buckets[0].size(*size) for size in stored_sizes(dataset)]
            batches = OneSizeBatches(sizes, self.eval_batch_size, **shared)
        else:
            in_order: Any = DistributedSampler(dataset, shuffle=False, **shared)  # type: ignore[arg-type]
            batches = BatchSampler(in_order, self.eval_batch_size, drop_last=False)
        return DataLoader(
            dataset,  # type: ignore[arg-type]  # it holds items; batches are what collate makes of them
            batch_sampler=batches,
            num_workers=self._num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or each loader would draw from the generator of the training run
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _num_workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return min(16, max(1, cores // processes - 1))

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0


def _check_hold_out(val_classes: float | None, train_split: str) -> None:
    if val_classes is not None and train_split != "train":
        raise ValueError(
            f"val_classes is {val_classes}, which holds out classes of the split 'train', but train_split is "
            f"{train_split!r}, which keeps them; leave val_classes out, and set val_split"
        )


def _augmentation(image_size: int, channels: int) -> list[nn.Module]:
    crop = v2.RandomResizedCrop(image_size, scale=(0.2, 1.0), antialias=True)
    return [crop] if channels == 1 else [crop, v2.RandomHorizontalFlip()]


def _resize_and_crop(image_size: int) -> list[nn.Module]:
    # 256 to 224, the ratio of the field, at any size.
    return [v2.Resize(round(image_size * 256 / 224), antialias=True), v2.CenterCrop(image_size)]
