"""A miniature of Cars196."""

from pathlib import Path

import numpy as np

from tests.data.datasets.miniatures.drawing import photo, save
from tests.data.datasets.miniatures.matlab import save_mat

FIELDS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
MODELS = (  # the first half is train
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Acura TL Sedan 2012",
    "Acura Integra Type R 2001",
    "Audi A5 Coupe 2012",
    "BMW X5 SUV 2007",
    "BMW Z4 Convertible 2012",
    "Bentley Arnage Sedan 2009",
    "Chevrolet Tahoe Hybrid SUV 2012",
    "Ferrari FF Coupe 2012",
    "Ford GT Coupe 2006",
    "Honda Odyssey Minivan 2012",
    "Jeep Liberty SUV 2012",
    "Tesla Model S Sedan 2012",
    "Volvo 240 Sedan 1993",
    "Volvo C30 Hatchback 2012",
)


def make_cars196(root: Path, *, images_per_model: int = 6) -> Path:
    """Draw 16 of the models; the first half is train."""
    rows = []
    for number in range(len(MODELS)):
        for repeat in range(images_per_model):
            path = f"car_ims/{len(rows) + 1:06}.jpg"
            save(photo(number, number, repeat), root / path)
            rows.append((path, *(np.uint8(value) for value in (5, 5, 60, 60, number + 1, repeat % 2))))
    save_annotations(root / "cars_annos.mat", rows, MODELS)
    return root


def save_annotations(file: Path, rows: list[tuple], names: tuple[str, ...]) -> None:
    """Write ``rows`` of :data:`FIELDS` and the names of the classes, as the authors did."""
    annotations = np.array([rows], dtype=[(field, object) for field in FIELDS])
    save_mat(file, {"annotations": annotations, "class_names": np.array([names], dtype=object)})
