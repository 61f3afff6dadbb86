"""Miniatures of Revisited Oxford and Paris, in one folder or apart."""

import pickle
from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

NAMES = {
    "roxford5k": (
        ["all_souls_000013", "all_souls_000026", "oxford_002985", "radcliffe_camera_000519", "trinity_1", "jesus_2"],
        ["all_souls_000051", "radcliffe_camera_000031"],
    ),
    "rparis6k": (
        ["paris_defense_000605", "paris_defense_000216", "paris_general_1", "paris_eiffel_3", "paris_louvre_4"],
        ["paris_defense_000204", "paris_eiffel_000128"],
    ),
}
"""Of the gallery and of the queries."""


def make_revisited_oxford(root: Path, *, num_distractors: int = 0) -> Path:
    """Draw 6 images and 2 queries, one of which has no easy image, and so many distractors."""
    return _make(root, "roxford5k", num_distractors)


def make_revisited_paris(root: Path, *, num_distractors: int = 0) -> Path:
    """Draw 5 images and 2 queries, one of which has no easy image, and so many distractors."""
    return _make(root, "rparis6k", num_distractors)


def _make(root: Path, folder: str, num_distractors: int) -> Path:
    gallery, queries = NAMES[folder]
    for number, name in enumerate([*gallery, *queries]):
        save(
            photo(gallery.index(name) if name in gallery else number, number, 0), root / folder / "jpg" / f"{name}.jpg"
        )
    truth = {
        "gnd": [
            {"bbx": [16.5, 8.1, 64.5, 48.7], "easy": [0], "hard": [1, 2], "junk": [3]},
            {"bbx": [0, 0, 40, 32], "easy": [], "hard": [3], "junk": []},
        ],
        "imlist": gallery,
        "qimlist": queries,
    }
    with (root / folder / f"gnd_{folder}.pkl").open("wb") as stream:
        pickle.dump(truth, stream, protocol=3)
    if num_distractors:
        names = [f"{number:02}/distractor_{number}.jpg" for number in range(num_distractors)]
        for number, name in enumerate(names):
            save(photo(100, 100, number), root / "revisitop1m" / "jpg" / name)
        (root / "revisitop1m" / "revisitop1m.txt").write_text("".join(f"{name}\n" for name in names))
    return root
