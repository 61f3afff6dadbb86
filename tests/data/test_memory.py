"""A data set keeps no Python object for any image, so that millions of them, in many workers, fit in memory."""

import gc
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from dml.data.dataset import RetrievalDataset
from dml.data.datasets import DataFrameDataset

ROWS = 200_000


def rows(number):
    row = np.arange(number)
    return pd.DataFrame(
        {
            "path": [f"{name:08}.jpg" for name in row],
            "split": np.where(row % 4, "train", "test"),
            "role": "both",
            "item": [f"item {name}" for name in row // 3],
            "shop": [f"shop {name}" for name in row // 300],
            "colour": [f"colour {name}" for name in row % 50_000],
        }
    )


class Listed(RetrievalDataset):
    """Cached, because it has a list."""

    levels = ("item", "shop")
    files = ("list.txt",)

    @staticmethod
    def read_index(root):
        return rows(int((root / "list.txt").read_text()))


@pytest.fixture(scope="module", params=["listed", "from the cache", "table", "held out"])
def dataset(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    if request.param == "table":
        rows(ROWS).to_parquet(root / "index.parquet")
        return DataFrameDataset(root, levels=["item", "shop"])
    (root / "list.txt").write_text(str(ROWS))
    if request.param == "from the cache":
        Listed(root)
    return Listed(root, val_classes=0.1 if request.param == "held out" else None)


def test_index_is_of_arrow_strings_categories_and_numbers(dataset):
    kinds = dataset.index.dtypes
    assert kinds["path"].storage == kinds["colour"].storage == "pyarrow"
    assert isinstance(kinds["split"], pd.CategoricalDtype)
    assert isinstance(kinds["role"], pd.CategoricalDtype)
    assert kinds["item"] == kinds["shop"] == np.int64


def test_a_worker_is_handed_few_bytes_for_an_image(dataset):
    """Of path, labels, colour: about 50, in the index and as it is served."""
    held = {name: value for name, value in vars(dataset).items() if name not in ("epoch", "index")}
    assert len(pickle.dumps(held)) < 50 * len(dataset)
    assert len(pickle.dumps(dataset.index)) < 70 * len(dataset)


def test_no_object_is_allocated_for_an_image(tmp_path):
    (tmp_path / "list.txt").write_text(str(ROWS))
    Listed(tmp_path)  # what is imported on first use, and the cache
    gc.collect()
    tracemalloc.start()
    try:
        dataset = Listed(tmp_path)
        gc.collect()
        blocks = sum(statistic.count for statistic in tracemalloc.take_snapshot().statistics("filename"))
    finally:
        tracemalloc.stop()
    assert len(dataset) == ROWS * 3 // 4
    assert blocks < ROWS / 20
