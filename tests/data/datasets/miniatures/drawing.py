"""Images of the miniatures: drawn, small, and of classes that can be told apart."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def drawing(character: int, drawer: int) -> Image.Image:
    """Strokes through points that belong to the character, moved a little by the drawer."""
    points = np.random.default_rng(character).integers(15, 90, size=(6, 2))
    points = points + np.random.default_rng((character, drawer)).integers(-4, 5, size=points.shape)
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).line([(int(across), int(down)) for across, down in points], fill=0, width=3)
    return image


def photo(category: int, product: int, number: int) -> Image.Image:
    """Coloured blotches that belong to the category, changed by the product, under the noise of the photo."""
    blotches = np.random.default_rng((1, category)).uniform(0, 255, size=(4, 4, 3))
    blotches = blotches + np.random.default_rng((2, product)).normal(0, 60, size=blotches.shape)
    photo = np.random.default_rng((3, product, number))
    blotches = np.clip(blotches + photo.normal(0, 15, size=blotches.shape), 0, 255).astype(np.uint8)
    # Photos are not square, and not all alike.
    size = (64, 80) if number % 2 else (80, 64)
    return Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=85)
