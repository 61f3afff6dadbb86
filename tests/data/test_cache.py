"""The cache of parsed lists: used while they are the same, and never in the way."""

import os

import pandas as pd
import pytest

from dml.data.cache import cached


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dml"


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "list.txt").write_text("one")
    return [tmp_path / "list.txt", tmp_path / "optional.txt"]


class Reader:
    """Counts how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        frame = pd.DataFrame({"path": pd.Series(["a", "b"], dtype="string[pyarrow]"), "label": [0, self.calls]})
        return frame.assign(split=pd.Categorical(["train", "test"]))


def test_read_once(folder, lists):
    read = Reader()
    first, second = cached("x", lists, read), cached("x", lists, read)
    assert read.calls == 1
    pd.testing.assert_frame_equal(first, second)
    assert len(list(folder.iterdir())) == 1


def test_names_do_not_mix(folder, lists):
    read = Reader()
    cached("x", lists, read)
    assert cached("y", lists, read)["label"].tolist() == [0, 2]
    assert cached("x", lists, read)["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda lists: lists[0].write_text("other"),
        lambda lists: os.utime(lists[0], ns=(0, 1)),
        lambda lists: lists[1].write_text("it is there now"),
        lambda lists: lists[0].unlink(),
    ],
)
def test_read_again_when_a_list_changes(folder, lists, change):
    read = Reader()
    cached("x", lists, read)
    change(lists)
    assert cached("x", lists, read)["label"].tolist() == [0, 2]
    assert cached("x", lists, read)["label"].tolist() == [0, 2]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"not a Parquet file", b"PAR1" * 4])
def test_damaged_cache_is_read_anew(folder, lists, content):
    read = Reader()
    cached("x", lists, read)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert cached("x", lists, read)["label"].tolist() == [0, 2]
    assert cached("x", lists, read)["label"].tolist() == [0, 2]


def test_cache_that_cannot_be_written_is_none(tmp_path, lists, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    read = Reader()
    assert len(cached("x", lists, read)) == len(cached("x", lists, read)) == 2
    assert read.calls == 2


def test_read_again_when_a_folder_changes(folder, lists, tmp_path):
    images, read = tmp_path / "images", Reader()
    cached("x", [*lists, images], read)
    images.mkdir()
    assert [cached("x", [*lists, images], read)["label"][1] for _ in range(2)] == [2, 2]
    (images / "1.jpg").touch()
    os.utime(images, ns=(0, 1))  # a clock may be too coarse to tell
    assert [cached("x", [*lists, images], read)["label"][1] for _ in range(2)] == [3, 3]


def test_error_of_the_reader_is_not_cached(folder, lists):
    def fail():
        raise ValueError("line 3")

    with pytest.raises(ValueError, match="line 3"):
        cached("x", lists, fail)
    assert not folder.exists()
