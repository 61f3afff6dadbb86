"""A miniature of iNaturalist 2018."""

import hashlib
import json
from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

SUPERCATEGORIES = ("Plantae", "Insecta")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def make_inaturalist(root: Path, *, num_species: int = 20, images_per_species: int = 4) -> Path:
    """Draw so many species for train, and as many others for test; two of each genus, the folder no level above it."""
    categories, images = [], []
    lines = {"train": [], "test": []}
    for species in range(2 * num_species):
        folder = SUPERCATEGORIES[species % 3 == 0]
        # From the finest to the coarsest rank, each halves the number of classes.
        ranks = ("genus", "family", "order", "class", "phylum", "kingdom")
        taxonomy = {rank: _code(rank, species >> (level + 1)) for level, rank in enumerate(ranks)}
        categories.append({"id": species, "name": str(species), "supercategory": folder, **taxonomy})
        for number in range(images_per_species):
            name = hashlib.md5(f"{species} {number}".encode(), usedforsecurity=False).hexdigest()
            path = f"train_val2018/{folder}/{species}/{name}.jpg"
            save(photo(species // 2, species, number), root / path)
            lines["train" if species % 4 < 2 else "test"].append(f"{path}\n")
            images.append({"id": len(images), "file_name": path, "rights_holder": 'who calls "categories": ["a"]'})
    (root / "Inat_dataset_splits").mkdir(parents=True, exist_ok=True)
    for split, rows in lines.items():
        (root / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt").write_text("".join(rows))
    annotations = [{"id": image["id"], "image_id": image["id"]} for image in images]
    published = {"info": {}, "images": images, "categories": categories, "annotations": annotations}
    (root / "train2018.json").write_text(json.dumps(published))
    return root


def _code(rank: str, number: int) -> str:
    digest = hashlib.md5(f"{rank} {number}".encode(), usedforsecurity=False).digest()
    return "".join(_LETTERS[byte % 26] for byte in digest[:6])
