"""A miniature of VGGFace2."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

NAMES = ('"14th_Dalai_Lama"', '"Sammy_Davis,_Jr."', '"Zoë_Kravitz"')


def make_vggface2(root: Path, *, num_identities: int = 20, images_per_identity: int = 4) -> Path:
    """Draw so many people for train, and half as many others for test, with a box of 32 x 40 in each image."""
    lists, boxes = {"train": [], "test": []}, {"train": [], "test": []}
    people = ["Class_ID, Name, Sample_Num, Flag, Gender\n"]
    for person in range(num_identities + num_identities // 2):
        split = "test" if person % 3 == 0 else "train"
        identity = f"n{person + 1:06}"
        people.append(
            f"{identity}, {NAMES[person % 3]},{images_per_identity},{int(split == 'train')}, {'mf'[person % 2]}\n"
        )
        for number in range(1, images_per_identity + 1):
            name = f"{identity}/{number:04}_01"
            save(photo(person // 5, person, number), root / split / f"{name}.jpg")
            lists[split].append(f"{name}.jpg\n")
            boxes[split].append(f'"{name}",20,{10 + number},32,40\n')
    (root / "bb_landmark").mkdir(exist_ok=True)
    for split in ("train", "test"):
        (root / f"{split}_list.txt").write_text("".join(lists[split]))
        (root / "bb_landmark" / f"loose_bb_{split}.csv").write_text("NAME_ID,X,Y,W,H\n" + "".join(boxes[split]))
    (root / "identity_meta.csv").write_text("".join(people), encoding="utf-8")
    return root
