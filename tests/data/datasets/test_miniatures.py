import pytest

from dml.data.datasets.grocery import GroceryStore
from dml.data.datasets.omniglot import Omniglot
from dml.data.datasets.sop import StanfordOnlineProducts
from tests.data.datasets.miniatures import make_grocery, make_omniglot, make_sop


@pytest.mark.parametrize(
    ("dataset", "make"),
    [(Omniglot, make_omniglot), (GroceryStore, make_grocery), (StanfordOnlineProducts, make_sop)],
)
def test_default_is_enough_to_train_on_and_drawn_the_same_each_time(dataset, make, tmp_path):
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    for split in ("train", "test"):
        classes, num_images = dataset(first, split).labels[:, 0].unique(return_counts=True)
        assert len(classes) >= 8
        assert num_images.min() >= 4
    files = {file.relative_to(first): file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert files == {file.relative_to(second): file.read_bytes() for file in second.rglob("*") if file.is_file()}
    images = [content for file, content in files.items() if file.suffix.lower() in (".jpg", ".png")]
    assert len(set(images)) == len(images)
