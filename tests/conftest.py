"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest
import torch

from dml.data.datasets import Glyphs

# The last bits of a sum depend on how many threads share it; runs that are compared must agree, in any process.
os.environ["OMP_NUM_THREADS"] = "2"
torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No index of a user's data set is read or written by a test, and nothing is put with a user's artifacts."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["WANDB_DATA_DIR"] = str(tmp_path_factory.mktemp("wandb"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real lists and images of data sets, where they lie beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def glyphs_root(tmp_path_factory):
    """A tiny Glyphs: 12 training, 6 validation and 6 test characters, 4 images each."""
    root = tmp_path_factory.mktemp("data") / "glyphs"
    Glyphs.draw(root, num_classes=(12, 6, 6), images_per_class=4)
    return root
