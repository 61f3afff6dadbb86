"""Miniatures of the data sets: the files and names of the real ones, with drawn images that can be learned."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SOP_CATEGORIES = (
    "bicycle",
    "cabinet",
    "chair",
    "coffee_maker",
    "fan",
    "kettle",
    "lamp",
    "mug",
    "sofa",
    "stapler",
    "table",
    "toaster",
)


def make_omniglot(
    root: Path,
    *,
    num_alphabets: int = 2,
    characters_per_alphabet: int = 5,
    drawings_per_character: int = 6,
) -> Path:
    """Draw so many alphabets for each of the two sets; 1-bit PNGs of 105 x 105, black strokes on white."""
    # Real names hold brackets, which are special to glob.
    alphabets = [f"Alphabet_of_the_({number:02})" for number in range(1, 2 * num_alphabets + 1)]
    character_id = 0
    for number, alphabet in enumerate(alphabets):
        folder = "images_background" if number < num_alphabets else "images_evaluation"
        for character in range(1, characters_per_alphabet + 1):
            character_id += 1
            place = root / folder / alphabet / f"character{character:02}"
            place.mkdir(parents=True)
            for drawer in range(1, drawings_per_character + 1):
                _drawing(character_id, drawer).save(place / f"{character_id:04}_{drawer:02}.png")
    return root


def make_grocery(
    root: Path, *, categories_per_group: int = 8, images_per_product: int = 6, labels: bool = True
) -> Path:
    """Draw three groups of categories of one or two products; half of the categories are train, half test.

    Args:
        root: Folder to fill.
        categories_per_group: A multiple of 4.
        images_per_product: Spread over the three official splits.
        labels: Whether to write ``labels.csv``, which the authors' own folder lacks.
    """
    official = {split: [] for split in ("train", "val", "test")}
    rows = []
    product = 0
    for category in range(3 * categories_per_group):
        group = ("Fruit", "Packages", "Vegetables")[category // categories_per_group]
        name = f"Category-{category}"
        variants = [f"{name}-Red", f"{name}-Green"] if category % 4 < 2 else [name]
        for variant in variants:
            for number in range(1, images_per_product + 1):
                split = ("train", "test", "train", "test", "train", "val")[number % 6]
                # A category of one product has no folder for the product.
                parts = [split, group, name, variant] if len(variants) > 1 else [split, group, name]
                path = "/".join([*parts, f"{variant}_{number:03}.jpg"])
                _save(_photo(category, product, number), root / path)
                official[split].append(f"{path}, {product}, {category}\n")
                rows.append(f"{path},{product},{category},{group},{split},{('train', 'test')[category % 2]}\n")
            product += 1
    for split, lines in official.items():
        (root / f"{split}.txt").write_text("".join(lines))
    if labels:
        header = "path,fine_id,coarse_id,macro,official_split,dml_split\n"
        (root / "labels.csv").write_text(header + "".join(rows))
    return root


def make_sop(
    root: Path, *, num_categories: int = 2, products_per_category: int = 6, images_per_product: int = 4
) -> Path:
    """Draw so many products of each category (at most 12 categories) for train, and as many others for test."""
    image, product = 0, 0
    lines = {"train": ["image_id class_id super_class_id path\n"], "test": ["image_id class_id super_class_id path\n"]}
    for split in ("train", "test"):
        for category in range(1, num_categories + 1):
            for _ in range(products_per_category):
                product += 1
                for number in range(images_per_product):
                    image += 1
                    path = f"{SOP_CATEGORIES[category - 1]}_final/{110000000000 + product}_{number}.JPG"
                    _save(_photo(category, product, number), root / path)
                    lines[split].append(f"{image} {product} {category} {path}\n")
        (root / f"Ebay_{split}.txt").write_text("".join(lines[split]))
    (root / "Ebay_info.txt").write_text("".join(lines["train"] + lines["test"][1:]))
    return root


def _drawing(character: int, drawer: int) -> Image.Image:
    """Strokes through points that belong to the character, moved a little by the drawer."""
    points = np.random.default_rng(character).integers(15, 90, size=(6, 2))
    points = points + np.random.default_rng((character, drawer)).integers(-4, 5, size=points.shape)
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).line([(int(across), int(down)) for across, down in points], fill=0, width=3)
    return image


def _photo(category: int, product: int, number: int) -> Image.Image:
    """Coloured blotches that belong to the category, changed by the product, under the noise of the photo."""
    blotches = np.random.default_rng((1, category)).uniform(0, 255, size=(4, 4, 3))
    blotches = blotches + np.random.default_rng((2, product)).normal(0, 60, size=blotches.shape)
    photo = np.random.default_rng((3, product, number))
    blotches = np.clip(blotches + photo.normal(0, 15, size=blotches.shape), 0, 255).astype(np.uint8)
    # Photos are not square, and not all alike.
    size = (64, 80) if number % 2 else (80, 64)
    return Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=85)
