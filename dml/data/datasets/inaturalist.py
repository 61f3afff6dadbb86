"""iNaturalist 2018, split for retrieval."""

import json
import re
from pathlib import Path
from typing import ClassVar

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.files import read_list

_LISTS = {split: f"Inat_dataset_splits/Inaturalist_{split}_set1.txt" for split in ("train", "test")}
_CATEGORIES = "train2018.json"
_RANKS = ["genus", "family", "order", "class", "phylum", "kingdom"]


class INaturalist2018(RetrievalDataset):
    """461,939 photos of 8,142 species of plants, animals and other life.

    Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", CVPR 2018, in the split of Brown et
    al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020: train (5,690 species) and test
    (2,452) share no species, and every test image is both query and gallery::

        root/Inat_dataset_splits/Inaturalist_train_set1.txt    one path per line, no header
        root/Inat_dataset_splits/Inaturalist_test_set1.txt
        root/train2018.json                                    if it is there: "categories" hold the taxonomy
        root/train_val2018/Plantae/7291/9f8e5d0c1b2a39485766758493a2b1c0.jpg

    The photos and the JSON are of the competition's site, the lists in a zip that
    https://github.com/Andrew-Brown1/Smooth_AP links.

    Two hierarchies are in use. HAPPIER's "base" is the default: the species and the folder it is in. Its "full" is the
    taxonomy, further columns of the index if train2018.json is there, with seven levels: ``levels=("species", "genus",
    "family", "order", "class", "phylum", "kingdom")``. The folder is no level of the taxonomy. Species are the ids of
    the categories; the names of all other ranks are codes of six letters in the release.

    For non-commercial research and education only.
    """

    levels = ("species", "supercategory")
    files = tuple(_LISTS.values())
    more_files = (_CATEGORIES,)
    origin = "https://github.com/visipedia/inat_comp/tree/master/2018"
    published: ClassVar = {"train": (325_846, 5_690, 13), "test": (136_093, 2_452, None)}

    @staticmethod
    def read_index(root: Path) -> pd.DataFrame:
        row = r"(?P<path>train_val2018/(?P<supercategory>[^/]+)/(?P<species>\d+)/[^/]+\.jpg)"
        form = "train_val2018/supercategory/category_id/name.jpg"
        splits = {split: read_list(root / name, row, form) for split, name in _LISTS.items()}
        index = pd.concat(splits, names=["split"]).reset_index("split").astype({"species": int}).assign(role="both")
        if (root / _CATEGORIES).is_file():
            taxonomy = _read_taxonomy(root / _CATEGORIES)
            unknown = ~index["species"].isin(taxonomy.index)
            if unknown.any():
                first = index[unknown].iloc[0]
                raise ValueError(f"{root / _CATEGORIES} has no category {first['species']}, that of {first['path']!r}")
            index = index.join(taxonomy, on="species")
        return index


def _read_taxonomy(file: Path) -> pd.DataFrame:
    # Only the categories are decoded: the images and annotations around them are half a million objects each.
    text = file.read_text(encoding="utf-8-sig")
    start = re.search(r'"categories"\s*:\s*', text)
    try:
        categories, _ = json.JSONDecoder().raw_decode(text, start.end() if start else len(text))
        return pd.DataFrame(categories).set_index("id")[_RANKS]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} must hold \"categories\" with 'id' and {_RANKS}: {error}") from error
