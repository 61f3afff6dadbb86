"""Images at their own aspect ratio, in batches of one size."""

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Sampler
from torchvision.transforms.v2 import functional

from dml.data.dataset import RetrievalDataset
from dml.data.images import ORIENTATION, SIDEWAYS

Size = tuple[int, int]
"""Height and width in pixels."""

_AT_A_TIME = 256  # images of a thread


class AspectBuckets(nn.Module):
    """Resize an image to nearly its own aspect ratio, so that many images have one size and can share a batch.

    The landmark papers describe an image at its original resolution, or at a longer side of 1,024, one at a time. With
    sides that are multiples of 32, an aspect ratio changes by 3 % at the most at 1,024 pixels, and photos fall into
    some dozens of sizes, of which evaluation makes batches. With ``multiple=1`` no aspect ratio changes.

    Args:
        longer_side: Of the resized image, in pixels; by default that of the image.
        multiple: What both sides are a multiple of.

    Raises:
        ValueError: If an argument is below 1, or ``longer_side`` is below ``multiple``.
    """

    def __init__(self, longer_side: int | None = None, multiple: int = 32) -> None:
        super().__init__()
        if multiple < 1:
            raise ValueError(f"multiple is {multiple}; it is a number of pixels, at least 1")
        if longer_side is not None and longer_side < multiple:
            raise ValueError(f"longer_side is {longer_side}; it must be at least multiple, {multiple}")
        self.longer_side, self.multiple = longer_side, multiple

    def size(self, height: int, width: int) -> Size:
        """What an image of so many pixels is resized to."""
        scale = 1.0 if self.longer_side is None else self.longer_side / max(height, width)
        step = self.multiple
        return max(step, round(height * scale / step) * step), max(step, round(width * scale / step) * step)

    def forward(self, image: Tensor) -> Tensor:
        """From ``[C, H, W]`` to ``[C, *size(H, W)]``."""
        resized: Tensor = functional.resize(image, list(self.size(*image.shape[-2:])), antialias=True)
        return resized


def stored_sizes(dataset: RetrievalDataset) -> list[Size]:
    """Size of each image as :meth:`RetrievalDataset.load` returns it, from its header alone.

    An image that cannot be read is given the size of one before it, and is reported when it is loaded.
    """

    def sizes(first: int) -> list[Size | None]:
        return [_stored_size(dataset, index) for index in range(first, min(first + _AT_A_TIME, len(dataset)))]

    with ThreadPoolExecutor(16) as threads:
        found = [size for part in threads.map(sizes, range(0, len(dataset), _AT_A_TIME)) for size in part]
    # Not a size of its own, or a batch might hold nothing else and nothing to go on with.
    known = next((size for size in found if size is not None), (1, 1))
    filled = []
    for size in found:
        known = known if size is None else size
        filled.append(known)
    return filled


def _stored_size(dataset: RetrievalDataset, index: int) -> Size | None:
    path, box = dataset.path(index), dataset.box(index)
    try:
        # A packed image has no file of its own.
        with Image.open(path if path.is_file() else io.BytesIO(dataset.content(index))) as image:
            width, height = image.size
            # Of TIFF, Pillow says the upright size.
            sideways = image.format != "TIFF" and image.getexif().get(ORIENTATION) in SIDEWAYS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if box is None:
        return (width, height) if sideways else (height, width)
    left, top, right, bottom = (max(0, round(side)) for side in box)
    return max(1, min(bottom, height) - top), max(1, min(right, width) - left)


class OneSizeBatches(Sampler[list[int]]):
    """Every image once, in batches of images of one size, shared between processes.

    Each process gets as many batches as the others: some are given to several, which metrics count once.

    Args:
        sizes: Of each image.
        batch_size: Images in a batch at most.
        num_replicas: Number of processes.
        rank: Which process this is.
    """

    def __init__(self, sizes: Sequence[Size], batch_size: int, *, num_replicas: int = 1, rank: int = 0) -> None:
        alike: dict[Size, list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            alike[size].append(index)
        batches = [
            images[start : start + batch_size]
            # The largest first: what does not fit in memory shows at once.
            for _, images in sorted(alike.items(), key=lambda group: -group[0][0] * group[0][1])
            for start in range(0, len(images), batch_size)
        ]
        missing = -len(batches) % num_replicas
        self.batches = (batches + (batches * missing)[:missing])[rank::num_replicas]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches
