"""What a browser sends: read up to a limit, and taken for an image only if it is one."""

import io
from collections.abc import AsyncIterator

from PIL import Image
from torch import Tensor

from dml.data.images import UnreadableImageError, decode_image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Of pixels only: those that hold programs or references to other files, such as EPS and SVG, are not among them."""

MAX_PIXELS = 50_000_000
"""Of an upload. A small file can claim to be a picture that fills the memory."""


_DISCARDED = 8  # times the limit


class RefusedUploadError(ValueError):
    """An upload that is not taken, and the status of HTTP that says so."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def read_limited(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Read a body, and keep no more than a limit of it, whatever its header claims.

    A browser that is cut off while it sends shows no answer: some of what is over the limit is read and thrown away.

    Args:
        chunks: As they arrive.
        limit: In bytes.

    Raises:
        RefusedUploadError: If there is more, or nothing.
    """
    content = bytearray()
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes <= limit:
            content += chunk
        elif num_bytes > _DISCARDED * limit:
            break
    if num_bytes > limit:
        raise RefusedUploadError(f"the file is larger than {limit / 2**20:g} MiB, the most that is taken", 413)
    if not content:
        raise RefusedUploadError("the file is empty; send an image", 400)
    return bytes(content)


def decode_upload(content: bytes, channels: int, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image of unknown origin to ``[C, H, W]`` uint8.

    Args:
        content: Of the file.
        channels: 1 (greyscale) or 3 (RGB).
        max_pixels: That it may have.

    Raises:
        RefusedUploadError: If it is no whole image of :data:`FORMATS`, or too large.
    """
    names = ", ".join(FORMATS)
    try:
        # The header only; the size that it claims is known before a pixel is decoded.
        with Image.open(io.BytesIO(content), formats=FORMATS) as stored:
            width, height = stored.size
            if width * height > max_pixels:
                raise RefusedUploadError(
                    f"the image has {width} x {height} pixels; at most {max_pixels:,} are taken", 413
                )
            stored.verify()
    except Image.DecompressionBombError as error:
        raise RefusedUploadError(f"the image has too many pixels; at most {max_pixels:,} are taken", 413) from error
    except RefusedUploadError:
        raise
    except Exception as error:  # a damaged file raises almost anything
        raise RefusedUploadError(f"the file is not a whole image of {names}", 400) from error
    try:
        return decode_image(content, channels)
    except UnreadableImageError as error:
        raise RefusedUploadError(f"the image is damaged or cut off: {error}", 400) from error
