"""Miniatures of DyML-Vehicle and -Animal, which have three benchmarks, and of DyML-Product, which has one test."""

from itertools import count
from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

LEVELS = ("fine", "middle", "coarse")


def make_dyml_benchmarks(
    root: Path,
    *,
    num_coarse: int = 2,
    middle_per_coarse: int = 2,
    fine_per_middle: int = 3,
    images_per_fine: int = 4,
    queries_in_gallery: bool = False,
    glued: bool = True,
) -> Path:
    """Draw so many classes for train and so many others for each benchmark, where each class has two queries.

    Args:
        root: Where to.
        num_coarse: Coarse classes.
        middle_per_coarse: Middle classes of each.
        fine_per_middle: Fine classes of each.
        images_per_fine: Images of each fine class; in the benchmarks, images of the gallery of each class.
        queries_in_gallery: Whether the gallery begins with copies of the queries, which have other names there.
        glued: Whether the header lacks its line end, as published.
    """
    classes = _classes(num_coarse, middle_per_coarse, fine_per_middle)
    _labelled(root / "train", classes, images_per_fine, first_product=0, glued=glued)
    for number, level in enumerate(LEVELS, start=1):
        labels = sorted({labels[-1 - LEVELS.index(level)] for labels in classes})
        rows: dict[str, list[str]] = {"query": [], "gallery": []}
        # Labels start again in each list, and in the gallery's come in another order.
        for part, drawn in (
            ("query", range(2)),
            ("gallery", range(0 if queries_in_gallery else 2, images_per_fine + 2)),
        ):
            for label in labels if part == "query" else reversed(labels):
                for image in drawn:
                    name = f"{len(rows[part])}.jpg"
                    save(photo(label, 1000 * number + label, image), root / f"bmk_{level}" / part / name)
                    rows[part].append(f"{name}, {label}")
            _write(root / f"bmk_{level}" / f"{part}.csv", "fname, labels", rows[part], glued)
    return root


def make_dyml_product(
    root: Path,
    *,
    num_coarse: int = 2,
    middle_per_coarse: int = 2,
    fine_per_middle: int = 3,
    images_per_fine: int = 4,
    glued: bool = True,
) -> Path:
    """Draw so many classes for train, and as many others, of the same numbers, for test."""
    classes = _classes(num_coarse, middle_per_coarse, fine_per_middle)
    _labelled(root / "train", classes, images_per_fine, first_product=0, glued=glued)
    # The same number of a fine class is below other numbers than in train.
    classes = [(num_coarse - 1 - coarse, middle, fine) for coarse, middle, fine in classes]
    _labelled(root / "mini-bmk_all_in_one", classes, images_per_fine, first_product=1000, glued=glued)
    return root


def _classes(num_coarse: int, middle_per_coarse: int, fine_per_middle: int) -> list[tuple[int, int, int]]:
    """Coarse, middle and fine number of each fine class."""
    middle, fine = count(), count()
    middles = [(coarse, next(middle)) for coarse in range(num_coarse) for _ in range(middle_per_coarse)]
    return [(*above, next(fine)) for above in middles for _ in range(fine_per_middle)]


def _labelled(
    folder: Path, classes: list[tuple[int, int, int]], images_per_fine: int, *, first_product: int, glued: bool
) -> None:
    rows: list[str] = []
    for coarse, middle, fine in classes:
        for image in range(images_per_fine):
            name = f"{len(rows)}.jpg"
            save(photo(middle, first_product + fine, image), folder / "imgs" / name)
            rows.append(f"{name}, {coarse}, {middle}, {fine}")
    _write(folder / "label.csv", "fname, coarse_id, middle_id, fine_id", rows, glued)


def _write(file: Path, header: str, rows: list[str], glued: bool) -> None:
    file.write_text(header + ("" if glued else "\n") + "\n".join(rows) + "\n")
