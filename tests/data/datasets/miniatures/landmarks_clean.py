"""A miniature of Landmarks-clean."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save


def make_landmarks_clean(root: Path, *, num_landmarks: int = 8, train_images: int = 4, val_images: int = 2) -> Path:
    """Draw so many images of each landmark for train and val, which share landmarks."""
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for landmark in range(num_landmarks):
        for number in range(train_images + val_images):
            path = f"landmark_{landmark}/{number:03}.jpg"
            save(photo(landmark % 2, landmark, number), root / path)
            lines["train" if number < train_images else "val"].append(f"{path} {100 + landmark}\n")
    (root / "annotations").mkdir()
    for split, rows in lines.items():
        (root / "annotations" / f"annotation_clean_{split}.txt").write_text("".join(rows))
    return root
