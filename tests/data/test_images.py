"""From files to pixels: every kind of image that data sets hold, upright and in 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from dml.data.images import UnreadableImageError, decode_image


def picture(mode="RGB", size=(48, 32)):
    """Smooth colours, which JPEG keeps within a few steps."""
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    colours = np.stack([255 * across, 255 * down, 200 * across * (1 - down)], axis=2).astype(np.uint8)
    return Image.fromarray(colours).convert(mode)


def grey16():
    return Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 257)


def written(path, image, **options):
    image.save(path, **options)
    return path


def read_image(path, channels, box=None):
    return decode_image(path.read_bytes(), channels, box)


def pixels_of(image, channels):
    return functional.pil_to_tensor(image.convert("L" if channels == 1 else "RGB")).int()


KINDS = {
    "colour.jpg": (picture(), {"quality": 95}),
    "progressive.jpg": (picture(), {"quality": 95, "progressive": True}),
    "grey.jpg": (picture("L"), {"quality": 95}),
    "cmyk.jpg": (picture("CMYK"), {"quality": 95}),
    "colour.png": (picture(), {}),
    "grey.png": (picture("L"), {}),
    "bits.png": (picture("1"), {}),
    "palette.png": (picture().quantize(64), {}),
    "palette_and_alpha.png": (picture().quantize(64), {"transparency": 3}),
    "alpha.png": (picture("RGBA"), {}),
    "grey_and_alpha.png": (picture("LA"), {}),
    "colour.webp": (picture(), {"lossless": True}),
    "colour.gif": (picture(), {}),
    "colour.bmp": (picture(), {}),
    "colour.tiff": (picture(), {}),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_kinds(tmp_path, name, channels):
    image, options = KINDS[name]
    pixels = read_image(written(tmp_path / name, image, **options), channels)
    assert pixels.dtype == torch.uint8
    with Image.open(tmp_path / name) as stored:
        expected = pixels_of(stored, channels)
    assert pixels.shape == expected.shape == (channels, 32, 48)
    # Grey of a colour JPEG is its own brightness, which it keeps more exactly than its colours.
    assert (pixels.int() - expected).abs().max() <= (3 if channels == 1 and name.endswith("jpg") else 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits(tmp_path, name, channels):
    pixels = read_image(written(tmp_path / name, grey16()), channels)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels.int(), pixels_of(picture("L"), channels))


@pytest.mark.parametrize("alpha", [0, 128])
def test_transparent_pixels_keep_their_colour(tmp_path, alpha):
    image = picture("RGBA")
    image.putalpha(alpha)
    assert torch.equal(read_image(written(tmp_path / "a.png", image), 3).int(), pixels_of(picture(), 3))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_camera_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_image(written(tmp_path / name, picture(), exif=exif, quality=95), 3).int()
    expected = pixels_of(picture().transpose(TURNS[orientation]), 3)
    assert pixels.shape == expected.shape
    assert (pixels - expected).float().abs().mean() < 3
    stored = read_image(tmp_path / name, 3, box=(0, 0, 48, 32)).int()
    assert (stored - pixels_of(picture(), 3)).float().abs().mean() < 3


def test_box(tmp_path):
    path = written(tmp_path / "a.png", picture())
    whole = read_image(path, 3)
    assert torch.equal(read_image(path, 3, box=(3.4, 5.0, 20.6, 9.0)), whole[:, 5:9, 3:21])
    assert torch.equal(read_image(path, 3, box=(-2.0, -1.0, 50.0, 9.0)), whole[:, :9])


@pytest.mark.parametrize("box", [(48.0, 0.0, 60.0, 10.0), (-9.0, -9.0, -1.0, -1.0), (5.0, 5.0, 5.0, 9.0)])
def test_box_without_pixels(tmp_path, box):
    with pytest.raises(UnreadableImageError, match=r"^box .* lies outside of its 48 x 32 pixels"):
        read_image(written(tmp_path / "a.png", picture()), 3, box=box)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_that_lacks_its_pixels(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"\0" * 10))
    return b"\x89PNG\r\n\x1a\n" + header + content + chunk(b"IEND", b"")


def jpeg_that_claims(side):
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    size = content.index(b"\xff\xc0") + 5
    content[size : size + 4] = struct.pack(">HH", side, side)
    return bytes(content)


@pytest.mark.parametrize(
    "content", [png_that_lacks_its_pixels(64), png_that_lacks_its_pixels(60_000), jpeg_that_claims(60_000)]
)
def test_damage_does_not_bring_down_the_process(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r".") as error:
        read_image(tmp_path / "a", 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["colour.jpg", "colour.png"])
def test_random_damage_is_read_or_refused(tmp_path, name):
    image, options = KINDS[name]
    whole = written(tmp_path / name, image, **options).read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        content = bytearray(whole)
        for place in generator.integers(8, len(whole), size=4):
            content[place] = generator.integers(256)
        (tmp_path / name).write_bytes(content[: generator.integers(len(whole) // 2, 2 * len(whole))])
        try:
            outcomes.add(read_image(tmp_path / name, 3).dtype)
        except UnreadableImageError:
            outcomes.add("refused")
    assert outcomes == {torch.uint8, "refused"}
