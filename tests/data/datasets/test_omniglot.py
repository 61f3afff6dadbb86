import zipfile

import pytest
import torch

from dml.data.datasets.omniglot import Omniglot
from tests.data.datasets.miniatures import make_omniglot


@pytest.fixture
def root(tmp_path):
    return make_omniglot(tmp_path / "omniglot", num_alphabets=2, characters_per_alphabet=3, drawings_per_character=4)


def test_folders_become_splits_and_levels(root):
    train, test = Omniglot(root, "train", channels=1), Omniglot(root, "test", channels=1)
    assert Omniglot.levels == ("character", "alphabet")
    assert len(train) == len(test) == 2 * 3 * 4
    assert train.labels.tolist() == [[row // 4, row // 12] for row in range(24)]
    assert test.labels.tolist() == [[6 + row // 4, 2 + row // 12] for row in range(24)]
    assert train.index["role"].eq("both").all()


def test_same_number_in_two_alphabets_is_two_characters(root):
    paths = Omniglot.read_index(root).set_index("path")["character"]
    first = "images_background/Alphabet_of_the_(01)/character01/0001_01.png"
    second = "images_background/Alphabet_of_the_(02)/character01/0004_01.png"
    assert paths[first] != paths[second]


def test_images_are_where_the_index_says(root):
    dataset = Omniglot(root, "test", channels=1)
    for row in range(len(dataset)):
        image = dataset[row]["image"]
        assert image.shape == (1, 105, 105)
        assert image.unique().tolist() == [0, 255]


def test_classes_of_the_miniature_differ_more_than_their_drawings(root):
    dataset = Omniglot(root, channels=1)
    pixels = torch.stack([dataset.load(row) for row in range(24)]).float()
    # Blurred, since a stroke that moved by 4 px need not overlap itself.
    pixels = torch.nn.functional.avg_pool2d(pixels, 15).flatten(1)
    nearest = (torch.cdist(pixels, pixels) + torch.eye(24) * 1e9).argmin(1)
    assert (dataset.labels[nearest, 0] == dataset.labels[:, 0]).float().mean() > 0.8


def test_other_files_are_ignored(root):
    character = root / "images_background" / "Alphabet_of_the_(01)" / "character01"
    for stray in (character / "._0001_01.png", character / "Thumbs.db", root / "images_background" / ".DS_Store"):
        stray.write_bytes(b"")
    (root / "images_background.zip").write_bytes(b"")
    assert len(Omniglot(root)) == 24


def test_missing_folder_is_named_with_what_is_there_and_the_origin(root):
    (root / "images_evaluation").rename(root / "evaluation")
    with pytest.raises(FileNotFoundError) as error:
        Omniglot(root)
    assert str(error.value) == (
        f"root is {str(root)!r}, which must be a folder with images_background and images_evaluation, but it lacks "
        "images_evaluation: it holds ['evaluation', 'images_background']; the data can be had from "
        "https://github.com/brendenlake/omniglot (folder python)"
    )


def test_zips_that_were_not_unpacked(tmp_path):
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"it has images_background.zip and images_evaluation.zip: unzip them there"
    ):
        Omniglot(tmp_path)


def test_root_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere', which must be .*, but it does not exist"):
        Omniglot(tmp_path / "nowhere")


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"images.zip', which must be .*, but it is a file"):
        Omniglot(tmp_path / "images.zip")


def test_root_one_folder_too_low_or_too_high(root):
    for wrong in (root / "images_background", root.parent):
        with pytest.raises(FileNotFoundError) as error:
            Omniglot(wrong)
        assert f"those are in {str(root)!r}: point root there" in str(error.value)


def test_folder_without_drawings(root):
    (root / "images_background").rename(root / "inner")
    (root / "images_background").mkdir()
    (root / "inner").rename(root / "images_background" / "images_background")
    with pytest.raises(FileNotFoundError, match=r"images_background must hold <alphabet>/character01/\*\.png") as error:
        Omniglot(root)
    assert str(root) in str(error.value)


@pytest.fixture(scope="module")
def real_root(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("omniglot")
    for name in ("images_background.zip", "images_evaluation.zip"):
        with zipfile.ZipFile(real_data / "omniglot" / name) as archive:
            archive.extractall(folder)
    return folder


@pytest.mark.parametrize(
    ("split", "num_images", "num_characters", "num_alphabets"), [("train", 19280, 964, 30), ("test", 13180, 659, 20)]
)
def test_real_data(real_root, split, num_images, num_characters, num_alphabets):
    dataset = Omniglot(real_root, split, channels=1)
    assert len(dataset) == num_images
    assert [len(column.unique()) for column in dataset.labels.T] == [num_characters, num_alphabets]
    assert dataset.labels[:, 0].unique(return_counts=True)[1].eq(20).all()
    # The number in the file name is the authors' own id of the character; it must agree with ours one to one.
    ids = dataset.index["path"].str.extract(r"/(\d{4})_\d\d\.png$")[0]
    assert ids.groupby(dataset.index["character"]).nunique().eq(1).all()
    assert ids.nunique() == num_characters
    assert dataset[len(dataset) - 1]["image"].shape == (1, 105, 105)
