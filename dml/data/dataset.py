"""The dataset contract: an index of images, and what a batch of them holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from dml.data.index import check_index, hold_out_classes


class Item(TypedDict):
    """One image."""

    image: Tensor  # [C, H, W] uint8
    labels: Tensor  # [L] long, finest level first
    index: int  # its row in the dataset's index
    is_query: bool
    is_gallery: bool


class Batch(TypedDict):
    """A batch of images, and the images that could not be read."""

    images: Tensor  # [B, C, H, W] uint8
    labels: Tensor  # [B, L] long, finest level first
    index: Tensor  # [B] long, rows of the dataset's index
    is_query: Tensor  # [B] bool
    is_gallery: Tensor  # [B] bool
    unreadable: list[str]  # one message for each image that was left out because it could not be read


class UnreadableImageError(ValueError):
    """An image file is missing or is not a whole image."""


class RetrievalDataset(Dataset[Item], ABC):
    """Images of one split, with their labels. A dataset is :attr:`levels` and :meth:`read_index`, nothing else.

    Args:
        root: Folder of the dataset.
        split: Which rows of the index to serve.
        transform: From a uint8 image ``[C, H, W]`` to a uint8 image; random transforms draw from torch's global
            generator. Normalisation belongs to the embedder.
        channels: 1 (greyscale) or 3 (RGB); images are converted.
        val_classes: Fraction of the training classes that is held out as the split ``val``; see
            :func:`~dml.data.index.hold_out_classes`.
        val_seed: Which classes those are.
        seed: Of the transform's random draws. What an image looks like follows from the seed, the epoch and the image,
            on any number of worker processes, and after a resume.

    Raises:
        ValueError: If the index breaks its contract, or has no such split.
    """

    levels: ClassVar[tuple[str, ...]]
    """Names of the label columns, finest first, each nested in the next."""

    @staticmethod
    @abstractmethod
    def read_index(root: Path) -> pd.DataFrame:
        """Read the dataset's own lists into an index; :func:`~dml.data.index.check_index` says what it holds.

        Raises:
            FileNotFoundError: If a list file or folder is missing; the message says what was expected where.
        """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        channels: int = 3,
        val_classes: float | None = None,
        val_seed: int = 0,
        seed: int = 0,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; it must be 1 (greyscale) or 3 (RGB)")
        self.root = Path(root).expanduser()
        index = check_index(self.read_index(self.root), self.levels)
        if val_classes is not None:
            index = hold_out_classes(index, self.levels[0], val_classes, val_seed)
        splits = sorted(index["split"].unique())
        if split not in splits:
            hint = "; val_classes holds out training classes as one" if split == "val" else ""
            raise ValueError(f"{type(self).__name__} has splits {splits}, not {split!r}{hint}")
        self.split = split
        self.transform = transform
        self.channels = channels
        self.seed = seed
        # Written by the loader, read by its workers.
        self.epoch: Tensor = torch.zeros((), dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]
        self.index = index[index["split"] == split].reset_index(drop=True)
        # Arrays rather than lists: no Python object per image, so worker processes share them instead of copying.
        self.labels = torch.tensor(self.index[list(self.levels)].to_numpy(dtype=np.int64))
        self._paths = pa.array(self.index["path"].astype(str).tolist())
        self._is_query = (self.index["role"] != "gallery").to_numpy(dtype=bool)
        self._is_gallery = (self.index["role"] != "query").to_numpy(dtype=bool)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Where the image is."""
        path: str = self._paths[index].as_py()
        return self.root / path

    def load(self, index: int) -> Tensor:
        """Decode one image, upright, without :attr:`transform`, to ``[C, H, W]`` uint8.

        Raises:
            UnreadableImageError: If the file is missing or is not a whole image; the message names its path.
        """
        path = self.path(index)
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("L" if self.channels == 1 else "RGB")
                pixels: Tensor = functional.pil_to_tensor(upright)
                return pixels
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableImageError(f"cannot read image {path}: {error}") from error

    def __getitem__(self, index: int) -> Item:
        image = self.load(index)
        return Item(
            image=image if self.transform is None else self._transformed(image, index),
            labels=self.labels[index],
            index=index,
            is_query=bool(self._is_query[index]),
            is_gallery=bool(self._is_gallery[index]),
        )

    def _transformed(self, image: Tensor, index: int) -> Tensor:
        assert self.transform is not None
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(hash((self.seed, int(self.epoch), index)) % 2**63)
        try:
            return self.transform(image)
        finally:
            generator.set_state(state)

    def __getitems__(self, indices: Sequence[int]) -> list[Item | str]:
        """Items of a batch; in place of an image that cannot be read, what is wrong with it.

        An exception in a loader's worker would reach the user as a page of tracebacks; the data module decides in the
        main process whether to stop or to go on.
        """
        return [self._item_or_message(index) for index in indices]

    def _item_or_message(self, index: int) -> Item | str:
        try:
            return self[index]
        except UnreadableImageError as error:
            return str(error)


def collate(items: Sequence[Item | str]) -> Batch:
    """Stack items into a batch. Images must have one size; messages go to ``unreadable``."""
    readable = [item for item in items if not isinstance(item, str)]
    images = [item["image"] for item in readable]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"images of one batch have shapes {shapes}; the transforms must bring them to one size")
    return Batch(
        images=torch.stack(images) if images else torch.empty(0),
        labels=torch.stack([item["labels"] for item in readable]) if readable else torch.empty(0, dtype=torch.long),
        index=torch.tensor([item["index"] for item in readable], dtype=torch.long),
        is_query=torch.tensor([item["is_query"] for item in readable], dtype=torch.bool),
        is_gallery=torch.tensor([item["is_gallery"] for item in readable], dtype=torch.bool),
        unreadable=[item for item in items if isinstance(item, str)],
    )
