"""A miniature of the Grocery Store Dataset."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save


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
                save(photo(category, product, number), root / path)
                official[split].append(f"{path}, {product}, {category}\n")
                rows.append(f"{path},{product},{category},{group},{split},{('train', 'test')[category % 2]}\n")
            product += 1
    for split, lines in official.items():
        (root / f"{split}.txt").write_text("".join(lines))
    if labels:
        header = "path,fine_id,coarse_id,macro,official_split,dml_split\n"
        (root / "labels.csv").write_text(header + "".join(rows))
    return root
