"""A miniature of Google Landmarks v2."""

from hashlib import sha256
from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

HIERARCHY = "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made\n"


def image_id(name: str) -> str:
    """16 hexadecimal digits, as the ids of the release."""
    return sha256(name.encode()).hexdigest()[:16]


def image_path(split: str, name: str) -> str:
    """Where the release has the image of that name."""
    image = image_id(name)
    return f"{split}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


def make_google_landmarks_v2(
    root: Path,
    *,
    num_landmarks: int = 30,
    images_per_landmark: int = 4,
    hierarchy: bool = True,
) -> Path:
    """Draw so many landmarks, numbered in tens, to train, and three others of three images, numbered alike, as index.

    There are five queries: two of landmark 10 (the first public, the second private), one of 20, one that has no
    answer and one ignored. Of the landmarks of train the last two, of those of index the last has no hierarchy.

    Args:
        root: Where to.
        num_landmarks: Landmarks of train, at least 4.
        images_per_landmark: Images of each.
        hierarchy: Write the lists of the hierarchy.
    """
    train = {
        10 * (place + 1): [f"train {place} {image}" for image in range(images_per_landmark)]
        for place in range(num_landmarks)
    }
    index = {10 * (place + 1): [f"index {place} {image}" for image in range(3)] for place in range(3)}
    drawn = {
        "train": train,
        "index": index,
        "test": {10: ["public", "private"], 20: ["other"], 30: ["none", "ignored"]},
    }
    for number, (split, landmarks) in enumerate(drawn.items()):
        for landmark, names in landmarks.items():
            for image, name in enumerate(names):
                save(photo(landmark % 4, 1000 * number + landmark, image), root / image_path(split, name))
    (root / "train_clean.csv").write_text(
        "landmark_id,images\n"
        + "".join(f"{landmark},{' '.join(map(image_id, names))}\n" for landmark, names in train.items())
    )
    (root / "index_image_to_landmark.csv").write_text(
        "id,landmark_id\n"
        + "".join(f"{image_id(name)},{landmark}\n" for landmark, names in index.items() for name in names)
    )
    (root / "test.csv").write_text(
        "id\n" + "".join(f"{image_id(name)}\n" for names in drawn["test"].values() for name in names)
    )
    of_10, of_20 = [image_id(name) for name in index[10]], [image_id(name) for name in index[20]]
    (root / "retrieval_solution_v2.1.csv").write_text(
        "id,images,Usage\n"
        f"{image_id('public')},{' '.join(of_10)},Public\n"
        f"{image_id('private')},{of_10[1]},Private\n"
        # One landmark under two numbers: the first image decides the label, all of them are relevant.
        f"{image_id('other')},{of_20[2]} {of_10[0]},Private\n"
        f"{image_id('none')},None,Public\n"
        f"{image_id('ignored')},None,Ignored\n"
    )
    if hierarchy:
        rows = [
            f'{landmark},"http://commons.org/Category:A,_{landmark}","house, old",church,human-made\n'
            if place % 2
            else f"{landmark},http://commons.org/Category:{landmark},peak,mountain,natural\n"
            for place, landmark in enumerate(train)
        ]
        # The last landmark is not in the list, the one before has no label in it.
        rows[-2:] = [f"{list(train)[-2]},http://commons.org/Category:x,,,\n"]
        (root / "train_label_to_hierarchical.csv").write_text(HIERARCHY + "".join(rows))
        (root / "index_label_to_hierarchical.csv").write_text(
            HIERARCHY
            + "10,http://commons.org/Category:i,chapel,church,human-made\n"
            + '20,"http://commons.org/Category:j,_k",peak,mountain,natural\n'
        )
    return root
