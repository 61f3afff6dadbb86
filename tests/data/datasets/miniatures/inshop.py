"""A miniature of DeepFashion In-Shop."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

CATEGORIES = ("MEN/Denim", "MEN/Pants", "WOMEN/Dresses", "WOMEN/Pants")
VIEWS = ("front", "side", "back", "full", "additional", "flat")


def make_inshop(root: Path, *, items_per_category: int = 3, images_per_item: int = 4) -> Path:
    """Draw so many items of each category for train, and as many others for test, of whose images half are queries.

    The last training item of dresses has its last image among the trousers.
    """
    rows = []
    item = 0
    for split in ("train", "test"):
        for number, category in enumerate(CATEGORIES):
            for which in range(items_per_category):
                item += 1
                astray = split == "train" and category == "WOMEN/Dresses" and which == items_per_category - 1
                for repeat in range(images_per_item):
                    folder = "WOMEN/Pants" if astray and repeat == images_per_item - 1 else category
                    path = f"img/{folder}/id_{item:08}/{1 + repeat // 6:02}_{1 + repeat % 6}_{VIEWS[repeat % 6]}.jpg"
                    save(photo(number, item, repeat), root / "Img" / path)
                    status = "train" if split == "train" else ("query", "gallery")[repeat % 2]
                    rows.append(f"{path:<70} id_{item:08} {status:<10} \n")
    (root / "Eval").mkdir()
    text = f"{len(rows)}\nimage_name item_id evaluation_status\n{''.join(rows)}"
    (root / "Eval" / "list_eval_partition.txt").write_text(text)
    return root
