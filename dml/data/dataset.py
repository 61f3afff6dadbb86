"""The dataset contract: an index of images, and what a batch of them holds."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypedDict

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dml.data.cache import cached
from dml.data.files import PREPARED, require
from dml.data.images import Box, UnreadableImageError, decode_image
from dml.data.index import BOX, check_index, hold_out_classes, label_columns

_CODE = (check_index.__module__, require.__module__)


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


class RetrievalDataset(Dataset[Item], ABC):
    """Images of one split, with their labels. A dataset is :attr:`levels` and :meth:`read_index`, little else.

    Args:
        root: Folder of the dataset; paths are relative to it. (Or a list in that folder, for a dataset that takes one.)
        split: Which rows of the index to serve.
        transform: From a uint8 image ``[C, H, W]`` to a uint8 image; random transforms draw from torch's global
            generator. Normalisation belongs to the embedder.
        channels: 1 (greyscale) or 3 (RGB); images are converted.
        levels: Which columns of the index are the labels, finest first; by default :attr:`levels` of the class.
        val_classes: Fraction of the training classes that is held out as the split ``val``; see
            :func:`~dml.data.index.hold_out_classes`.
        val_seed: Which classes those are.
        seed: Of the transform's random draws. What an image looks like follows from the seed, the epoch and the image,
            on any number of worker processes, and after a resume.

    Raises:
        FileNotFoundError: If ``root`` lacks one of :attr:`files`.
        ValueError: If the index breaks its contract, or has no such split.
    """

    levels: tuple[str, ...] = ()
    """Names of the label columns, finest first, each nested in the next. If empty: all columns of no other use."""

    files: ClassVar[tuple[str, ...]] = ()
    """Lists and folders that the root must hold. From lists, the index is read once, and again when one changes."""

    more_files: ClassVar[tuple[str, ...]] = ()
    """Lists that the root may hold."""

    origin: ClassVar[str] = ""
    """Address of the site that offers the data."""

    published: ClassVar[Mapping[str, tuple[int | None, ...]]] = {}
    """Published number of images of each split, and of its classes at each level; None where none was published."""

    @staticmethod
    @abstractmethod
    def read_index(root: Path) -> pd.DataFrame:
        """Read the dataset's own lists into an index; :func:`~dml.data.index.check_index` says what it holds.

        Raises:
            FileNotFoundError: If a list file or folder is missing; the message says what was expected where.
        """

    @staticmethod
    def read_judgements(root: Path) -> pd.DataFrame | None:
        """What is relevant to a query, for protocols that list it instead of following from labels.

        Returns:
            One row for each query and item that were judged: columns ``query`` and ``item`` (paths of the index) and
            ``judgement`` (a word of the protocol, such as easy, hard or junk). None if relevant means of equal labels.
        """
        return None

    @classmethod
    def whole_index(cls, root: Path, levels: Sequence[str] | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """The index of all splits, checked, and its levels; from the cache if none of the lists has changed.

        Raises:
            FileNotFoundError: If ``root`` lacks one of :attr:`files`.
            ValueError: If the index breaks its contract.
        """
        if cls.files:
            require(root, cls.files, cls.origin)
        wanted = cls.levels if levels is None else tuple(levels)

        def read() -> pd.DataFrame:
            index = cls.read_index(root)
            return check_index(index, wanted or label_columns(index))

        lists = [root / name for name in (*cls.files, *cls.more_files)]
        # The index also follows from the code that reads it. A class of a notebook has no file, and so no cache.
        modules = [base.__module__ for base in cls.__mro__ if issubclass(base, RetrievalDataset)]
        code = [getattr(sys.modules[name], "__file__", None) for name in (*modules, *_CODE)]
        name = f"{cls.__module__}.{cls.__qualname__} {wanted} {root.resolve()}"
        if None not in code and any(file.is_file() for file in lists):
            index = cached(name, [*lists, *(Path(file) for file in code if file)], read)
        else:
            index = read()
        cls._check_boxes(root, index)
        return index, wanted or label_columns(index)

    @classmethod
    def _check_boxes(cls, root: Path, index: pd.DataFrame) -> None:
        """Boxes count pixels, which copies have less of, unless they were made with the boxes in view."""
        record = root / PREPARED
        if set(BOX) <= set(index.columns) and record.is_file():
            prepared_as = json.loads(record.read_text()).get("dataset")
            if prepared_as != cls.__qualname__:
                raise ValueError(
                    f"root is {str(root)!r}, which was prepared as {prepared_as} and may hold smaller images than the "
                    f"boxes of {cls.__qualname__} are for; prepare it as that"
                )

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        channels: int = 3,
        levels: Sequence[str] | None = None,
        val_classes: float | None = None,
        val_seed: int = 0,
        seed: int = 0,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; it must be 1 (greyscale) or 3 (RGB)")
        self.root = Path(root).expanduser()
        self._folder = self.root.parent if self.root.is_file() else self.root
        index, self.levels = self.whole_index(self.root, levels)
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
        self._paths = self.index["path"].array
        self._is_query = (self.index["role"] != "gallery").to_numpy(dtype=bool)
        self._is_gallery = (self.index["role"] != "query").to_numpy(dtype=bool)
        has_box = set(BOX) <= set(self.index.columns)
        self._boxes = self.index[list(BOX)].to_numpy(dtype=np.float32) if has_box else None

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Where the image is."""
        return self._folder / str(self._paths[index])

    def box(self, index: int) -> Box | None:
        """What the image is cropped to, if it is."""
        if self._boxes is None or np.isnan(self._boxes[index]).any():
            return None
        left, top, right, bottom = self._boxes[index].tolist()
        return left, top, right, bottom

    def load(self, index: int) -> Tensor:
        """Decode one image, upright, without :attr:`transform`, to ``[C, H, W]`` uint8.

        Raises:
            UnreadableImageError: If the file is missing or is not a whole image; the message names its path.
        """
        try:
            return decode_image(self.content(index), self.channels, self.box(index))
        except (OSError, UnreadableImageError) as error:
            raise UnreadableImageError(f"cannot read image {self.path(index)}: {error}") from error

    def content(self, index: int) -> bytes:
        """The image as it is stored.

        Raises:
            OSError: If it cannot be read.
        """
        return self.path(index).read_bytes()

    def judgements(self) -> pd.DataFrame | None:
        """:meth:`read_judgements` with rows of this split's index in place of paths, and only those of this split."""
        judged = self.read_judgements(self.root)
        if judged is None:
            return None
        row = pd.Series(np.arange(len(self)), index=pd.Index(self.index["path"]))
        judged = judged.assign(query=judged["query"].map(row), item=judged["item"].map(row))
        return judged.dropna(subset=["query", "item"]).astype({"query": np.int64, "item": np.int64})

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


def collate(items: Sequence[Item | str], stack: Callable[[list[Tensor]], Tensor] = default_collate) -> Batch:
    """Stack items into a batch, the images by ``stack``. They must have one size; messages go to ``unreadable``."""
    readable = [item for item in items if not isinstance(item, str)]
    images = [item["image"] for item in readable]
    check_one_size(images)
    return Batch(
        images=stack(images) if images else torch.empty(0),
        labels=torch.stack([item["labels"] for item in readable]) if readable else torch.empty(0, dtype=torch.long),
        index=torch.tensor([item["index"] for item in readable], dtype=torch.long),
        is_query=torch.tensor([item["is_query"] for item in readable], dtype=torch.bool),
        is_gallery=torch.tensor([item["is_gallery"] for item in readable], dtype=torch.bool),
        unreadable=[item for item in items if isinstance(item, str)],
    )


def check_one_size(images: Sequence[Tensor]) -> None:
    """Check that images can be stacked.

    Raises:
        ValueError: If not; the message has their shapes.
    """
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"images of one batch have shapes {shapes}; the transforms must bring them to one size")
