"""From the file of an image to its pixels."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the image as it is stored."""

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
"""The tag of EXIF for the orientation, and its values for an image that was stored on its side."""

_JPEG_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
_MODES = {1: "L", 3: "RGB"}


class UnreadableImageError(ValueError):
    """An image file is missing or is not a whole image."""


def decode_image(content: bytes, channels: int, box: Box | None = None) -> Tensor:
    """Decode an image, upright, in grey or colour.

    The camera's orientation (EXIF) is undone, unless there is a box: boxes are given in pixels as they are stored. Of
    CMYK, palettes and transparency becomes what Pillow's ``convert`` makes of them (transparency is dropped); 16 bits a
    channel are divided by 257, where Pillow would cut them off at 255.

    Args:
        content: Of a file, in any format that Pillow knows.
        channels: 1 (greyscale) or 3 (RGB).
        box: What to crop to, rounded to whole pixels; by default the whole image.

    Returns:
        ``[C, H, W]`` uint8.

    Raises:
        UnreadableImageError: If it is not a whole image, or the box lies outside of it.
    """
    try:
        pixels = _decoded(content, channels, upright=box is None)
    except UnidentifiedImageError as error:  # whose message is about an object of Python
        raise UnreadableImageError("it is of no known image format") from error
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        # Some decoders say where in their source they gave up; one line is enough to know what is wrong.
        raise UnreadableImageError(str(error).partition("\n")[0]) from error
    return pixels if box is None else _cropped(pixels, box)


def _decoded(content: bytes, channels: int, *, upright: bool) -> Tensor:
    # Opening reads the header only, and refuses one that claims an absurd size.
    with Image.open(io.BytesIO(content)) as stored:
        if stored.format in ("JPEG", "MPO"):
            # torchvision's is the faster decoder: libjpeg-turbo straight into a tensor. Its PNG decoder is not used
            # because a damaged file can bring down the process.
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            pixels: Tensor = decode_jpeg(data, mode=_JPEG_MODES[channels], apply_exif_orientation=upright)
        else:
            image = ImageOps.exif_transpose(stored) if upright else stored
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
            pixels = functional.pil_to_tensor(image.convert(_MODES[channels]))
    return pixels


def _cropped(pixels: Tensor, box: Box) -> Tensor:
    # Boxes of the field overshoot the image by a pixel here and there. What lies outside has no pixels to give.
    left, top, right, bottom = (max(0, round(side)) for side in box)
    cropped = pixels[:, top:bottom, left:right]
    if cropped.numel() == 0:
        raise UnreadableImageError(f"box {box} lies outside of its {pixels.shape[2]} x {pixels.shape[1]} pixels")
    return cropped
