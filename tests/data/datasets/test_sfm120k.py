import os
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from dml.data.datasets.sfm120k import SfM120k
from tests.data.datasets.miniatures import make_sfm120k

PICKLE = "retrieval-SfM-120k.pkl"
MAT = "retrieval-SfM-120k-imagenames-clusterids.mat"
NAME = "0123456789abcdef"


@pytest.fixture
def root(tmp_path):
    return make_sfm120k(tmp_path / "retrieval-SfM-120k", num_clusters=(4, 2), images_per_cluster=3)


def test_pickle_becomes_splits(root):
    train, val = SfM120k(root, "train"), SfM120k(root, "val")
    assert SfM120k.levels == ("cluster",)
    assert train.labels.tolist() == [[row // 3] for row in range(12)]
    assert val.labels.tolist() == [[4 + row // 3] for row in range(6)]
    for dataset in (train, val):
        assert dataset.index["role"].eq("both").all()


def test_all_images_are_train_where_there_is_only_the_mat(root):
    (root / PICKLE).unlink()
    train = SfM120k(root)
    assert train.labels.tolist() == [[row // 3] for row in range(18)]
    assert train.index["role"].eq("both").all()
    with pytest.raises(ValueError, match=r"has splits \['train'\], not 'val'"):
        SfM120k(root, "val")


def test_both_files_name_the_same_images(root):
    of_pickle = SfM120k.read_index(root).reset_index(drop=True)
    (root / PICKLE).unlink()
    of_mat = SfM120k.read_index(root)
    assert of_pickle[["path", "cluster"]].equals(of_mat[["path", "cluster"]])


def test_images_are_where_the_index_says_and_have_no_extension(root):
    dataset = SfM120k(root, "val")
    assert dataset.index["path"].str.fullmatch(r"ims/(..)/(..)/(..)/[0-9a-f]{32}").all()
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


@pytest.mark.parametrize("name", [PICKLE, MAT])
def test_folders_are_the_last_letters_from_the_end(root, name):
    write(root, name, [NAME, NAME[::-1]], [7, 7])
    assert SfM120k.read_index(root)["path"].tolist()[:2] == [f"ims/ef/cd/ab/{NAME}", f"ims/10/32/54/{NAME[::-1]}"]


def write(root, name, names, clusters):
    """Leave only the file ``name``, with those images in train."""
    for file in (root / PICKLE, root / MAT):
        file.unlink()
    if name == PICKLE:
        val = {"cids": ["feedbeefcafe"], "cluster": [9]}
        content = {"train": {"cids": names, "cluster": clusters, "qidxs": [], "pidxs": []}, "val": val}
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    else:
        content = {"cids": np.array([names], dtype=object), "cluster": np.array([clusters])}
        savemat(root / name, content)


@pytest.mark.parametrize("bad", ["short", "ab/cdefgh", "ab cdefgh", "ab\\cdefgh"])
@pytest.mark.parametrize("name", [PICKLE, MAT])
def test_malformed_name_is_named(root, name, bad):
    write(root, name, [NAME, bad], [7, 7])
    with pytest.raises(ValueError, match="is not a name") as error:
        SfM120k(root)
    assert str(error.value) == f"{root / name}, image 2 of train: {bad!r} is not a name of 6 letters or more"


def test_name_that_is_missing_is_named(root):
    write(root, PICKLE, [NAME, None], [7, 7])
    with pytest.raises(ValueError, match=r"retrieval-SfM-120k.pkl, image 2 of train: .* is not a name"):
        SfM120k(root)


@pytest.mark.parametrize("name", [PICKLE, MAT])
@pytest.mark.parametrize(("names", "clusters"), [([NAME, "b" * 8], [1, 2, 3]), ([NAME, "b" * 8], [1, 2.5])])
def test_clusters_that_do_not_fit_are_an_error(root, name, names, clusters):
    write(root, name, names, clusters)
    with pytest.raises(ValueError, match="does not hold the image names and clusters of SfM-120k: Arrow") as error:
        SfM120k(root)
    assert str(error.value).startswith(str(root / name))


@pytest.mark.parametrize(
    "content", [b"", b"text\n", b"\x80\x02}q\x00(X", pickle.dumps({"train": {}}), pickle.dumps([])]
)
@pytest.mark.parametrize("name", [PICKLE, MAT])
def test_file_that_is_another_is_named(root, name, content):
    (root / PICKLE).unlink()
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match="does not hold the image names and clusters of SfM-120k") as error:
        SfM120k(root)
    assert str(error.value).startswith(str(root / name))


class Harmful:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickle_that_would_run_code_is_refused(root):
    (root / PICKLE).write_bytes(pickle.dumps({"train": Harmful(root / "harm"), "val": {}}))
    with pytest.raises(ValueError, match=r"it asks for \w+.mkdir"):
        SfM120k(root)
    assert not (root / "harm").exists()


def test_missing_files_are_named_with_their_origin(root):
    for file in (root / PICKLE, root / MAT):
        file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        SfM120k(root)
    assert str(error.value) == (
        f"root is {str(root)!r}, which must be a folder with {MAT}, but it lacks {MAT}: it holds ['ims']; the data can "
        "be had from http://cmp.felk.cvut.cz/cnnimageretrieval/"
    )
