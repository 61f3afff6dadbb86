"""A miniature of retrieval-SfM-120k."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.datasets.miniatures.drawing import photo, save
from tests.data.datasets.miniatures.matlab import save_mat


def make_sfm120k(root: Path, *, num_clusters: tuple[int, int] = (8, 6), images_per_cluster: int = 6) -> Path:
    """Draw so many clusters for train and for val; both the pickle and the .mat, which knows no splits."""
    splits: dict[str, dict[str, list[Any]]] = {}
    cluster = 0
    for split, size in zip(("train", "val"), num_clusters, strict=True):
        part: dict[str, list[Any]] = {"cids": [], "cluster": [], "qidxs": [], "pidxs": []}
        for _ in range(size):
            cluster += 3  # with gaps
            for repeat in range(images_per_cluster):
                name = hashlib.md5(f"{cluster} {repeat}".encode()).hexdigest()
                save(photo(cluster, cluster, repeat), root / "ims" / name[-2:] / name[-4:-2] / name[-6:-4] / name)
                part["cids"].append(name)
                part["cluster"].append(cluster)
        part["qidxs"], part["pidxs"] = [0, 1], [1, 2]
        splits[split] = part
    (root / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(splits, protocol=2))
    names, clusters = (splits["train"][key] + splits["val"][key] for key in ("cids", "cluster"))
    content = {"cids": np.array([names], dtype=object), "cluster": np.array([clusters], dtype=np.float64)}
    save_mat(root / "retrieval-SfM-120k-imagenames-clusterids.mat", content)
    return root
