"""A miniature of Stanford Online Products."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

CATEGORIES = (
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
                    path = f"{CATEGORIES[category - 1]}_final/{110000000000 + product}_{number}.JPG"
                    save(photo(category, product, number), root / path)
                    lines[split].append(f"{image} {product} {category} {path}\n")
        (root / f"Ebay_{split}.txt").write_text("".join(lines[split]))
    (root / "Ebay_info.txt").write_text("".join(lines["train"] + lines["test"][1:]))
    return root
