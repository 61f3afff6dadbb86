"""A miniature of CUB-200-2011."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

TRAIN = (  # two of each family
    "001.Black_footed_Albatross",
    "002.Laysan_Albatross",
    "005.Crested_Auklet",
    "006.Least_Auklet",
    "009.Brewer_Blackbird",
    "010.Red_winged_Blackbird",
    "023.Brandt_Cormorant",
    "024.Red_faced_Cormorant",
)
TEST = (
    "100.Brown_Pelican",
    "101.White_Pelican",
    "111.Loggerhead_Shrike",
    "112.Great_Grey_Shrike",
    "135.Bank_Swallow",
    "136.Barn_Swallow",
    "185.Bohemian_Waxwing",
    "186.Cedar_Waxwing",
)


def make_cub200(root: Path, *, images_per_species: int = 6) -> Path:
    """Draw 16 of the species; the first half is train."""
    lists: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    image = 0
    for number, species in enumerate((*TRAIN, *TEST)):
        for repeat in range(images_per_species):
            image += 1
            bird = species.partition(".")[2]
            path = f"{species}/{bird}_{repeat:04}_{image}.jpg"
            save(photo(number // 2, number, repeat), root / "images" / path)
            lists["images"].append(f"{image} {path}\n")
            lists["image_class_labels"].append(f"{image} {int(species[:3])}\n")
            lists["train_test_split"].append(f"{image} {repeat % 2}\n")
            lists["bounding_boxes"].append(f"{image} 10.0 10.0 40.0 40.0\n")
    lists["classes"] = [f"{int(species[:3])} {species}\n" for species in (*TRAIN, *TEST)]
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("".join(lines))
    return root
