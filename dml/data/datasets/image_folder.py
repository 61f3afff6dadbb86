"""A user's own images, one folder per class."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

from dml.data.dataset import RetrievalDataset

_SPLITS = ("train", "val", "test")
_ROLES = ("query", "gallery")
_LEVELS = ("class", "parent", "grandparent", "great_grandparent")


class ImageFolderDataset(RetrievalDataset):
    """Images in one folder per class, as torchvision's ImageFolder takes them, with any number of label levels.

    Folders named train, val and test at the top are splits. If there is none, all images are of the split train, of
    which ``val_classes`` can hold out classes as the split val. Below a split, folders named query and gallery say
    which part an image plays; elsewhere it plays both. What follows are labels, the coarsest first, all to the same
    depth::

        root/train/shoes/sneakers_17/front.jpg    class "shoes/sneakers_17" in parent "shoes"
        root/test/query/shoes/boots_3/a.jpg       if they are to retrieve from
        root/test/gallery/shoes/boots_3/b.jpg     other images
        root/sneakers_17/front.jpg                one level and no splits

    The levels are called class, parent, grandparent, and great_grandparent. All files whose suffix Pillow knows are
    images; names that begin with a dot are passed over.
    """

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        if not root.is_dir():
            raise FileNotFoundError(
                f"root is {str(root)!r}, which must be a folder with one folder of images per class, but "
                f"{'it is a file' if root.exists() else 'it does not exist'}"
            )
        rows = [_row(path) for path in sorted(_images(root, ""))]
        if not rows:
            raise ValueError(f"root is {str(root)!r}, which must hold a folder of images per class, but holds no image")
        depths = {len(labels): path for path, _, _, labels in rows}
        if len(depths) > 1 or not 1 <= min(depths) <= len(_LEVELS):
            raise ValueError(
                f"root is {str(root)!r}, whose images must lie in 1 to {len(_LEVELS)} folders of labels, equally many; "
                + ", ".join(f"{path!r} lies in {depth}" for depth, path in sorted(depths.items()))
            )
        (depth,) = depths
        labels = {
            # A name counts with those above it: two parents may each have a class of one name.
            _LEVELS[up]: ["/".join(labels[: depth - up]) for *_, labels in rows]
            for up in range(depth)
        }
        frame = pd.DataFrame({"path": [row[0] for row in rows], "split": [row[1] for row in rows]})
        return frame.assign(role=[row[2] for row in rows], **labels)


def _images(root: Path, folder: str) -> Iterator[str]:
    """Paths below a folder, with one call per folder and none per file."""
    suffixes = Image.registered_extensions()
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from _images(root, path)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                yield path


def _row(path: str) -> tuple[str, str, str, list[str]]:
    """Path, split, role and labels of an image."""
    folders = path.split("/")[:-1]
    split = folders.pop(0) if folders and folders[0] in _SPLITS else "train"
    role = folders.pop(0) if folders and folders[0] in _ROLES else "both"
    return path, split, role, folders
