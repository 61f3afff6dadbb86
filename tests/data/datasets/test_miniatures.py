import pytest

from dml.data import datasets
from tests.data.datasets.miniatures import MINIATURES


@pytest.mark.parametrize("name", MINIATURES)
def test_default_is_enough_to_train_on_and_drawn_the_same_each_time(name, tmp_path):
    dataset, make = getattr(datasets, name), MINIATURES[name]
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    if "train" in dataset.published:
        classes, num_images = dataset(first, "train").labels[:, 0].unique(return_counts=True)
        assert len(classes) >= 8
        assert num_images.min() >= 4
    files = {file.relative_to(first): file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert files == {file.relative_to(second): file.read_bytes() for file in second.rglob("*") if file.is_file()}
    images = [content for file, content in files.items() if file.suffix.lower() in (".jpg", ".png", "")]
    assert len(set(images)) == len(images) > 0
