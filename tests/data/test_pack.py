"""pack: byte for byte, classes together, all or nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import litdata
import numpy as np
import pandas as pd
import pytest

from dml.data.datasets import DataFrameDataset, GroceryStore, PackedDataset, StanfordOnlineProducts, VehicleID
from dml.data.pack import PLACE, pack
from tests.data.datasets.miniatures import make_grocery, make_sop, make_vehicleid


@pytest.fixture(scope="module")
def sop(tmp_path_factory):
    return make_sop(tmp_path_factory.mktemp("sop"), num_categories=3)


def packed(dataset, root, out, **options):
    options = {"chunk_bytes": "16KB", "progress": False, **options}
    return pack(dataset, root, out, **options), pd.read_parquet(out / "index.parquet")


def test_the_stream_holds_each_file_byte_for_byte(sop, tmp_path):
    summary, index = packed(StanfordOnlineProducts, sop, tmp_path / "out")
    # As litdata itself reads it: nothing but bytes, so nothing of a chunk is unpickled.
    stream = litdata.StreamingDataset(str(tmp_path / "out" / "chunks"))
    assert len(stream) == len(index) == 144
    assert [bytes(stream[row]) for row in range(144)] == [(sop / path).read_bytes() for path in index["path"]]
    config = json.loads((tmp_path / "out/chunks/index.json").read_text())["config"]
    assert config["data_format"] == ["bytes"]
    assert config["compression"] is None
    assert summary.images == 144
    assert summary.bytes == sum((sop / path).stat().st_size for path in index["path"])
    assert summary.chunks == len(list((tmp_path / "out/chunks").glob("*.bin"))) > 8


def test_place_of_each_image(sop, tmp_path):
    _, index = packed(StanfordOnlineProducts, sop, tmp_path / "out")
    for row in index.itertuples():
        content = (tmp_path / f"out/chunks/chunk-0-{row.stream_chunk}.bin").read_bytes()
        assert content[row.stream_offset :][: row.stream_bytes] == (sop / row.path).read_bytes()


def test_classes_are_whole_and_in_random_order(sop, tmp_path):
    _, index = packed(StanfordOnlineProducts, sop, tmp_path / "out")
    assert index["split"].tolist() == ["train"] * 72 + ["test"] * 72
    runs = index["product"][index["product"].diff() != 0].tolist()
    assert len(runs) == index["product"].nunique() == 36
    assert runs != sorted(runs)
    _, other = packed(StanfordOnlineProducts, sop, tmp_path / "other", seed=1)
    assert other["product"].tolist() != index["product"].tolist()
    _, again = packed(StanfordOnlineProducts, sop, tmp_path / "again")
    pd.testing.assert_frame_equal(again, index)


def test_an_image_of_several_splits_is_stored_once(tmp_path):
    make_vehicleid(tmp_path / "data")
    summary, index = packed(VehicleID, tmp_path / "data", tmp_path / "out")
    assert summary.images == index["path"].nunique() < len(index)
    assert len(index.drop_duplicates(PLACE)) == summary.images
    assert summary.bytes == index.drop_duplicates("path")["stream_bytes"].sum()


def test_splits_can_be_chosen(sop, tmp_path):
    _, index = packed(StanfordOnlineProducts, sop, tmp_path / "out", splits=["test"])
    assert index["split"].tolist() == ["test"] * 72
    dataset = PackedDataset(tmp_path / "out", "test")
    assert dataset.labels[:, 0].unique().tolist() == list(range(18))


def test_all_columns_are_kept(tmp_path):
    root = make_grocery(tmp_path / "data")
    source, levels = GroceryStore.whole_index(root)
    _, index = packed(GroceryStore, root, tmp_path / "out", levels=["category"])
    assert json.loads((tmp_path / "out/stream.json").read_text())["levels"] == ["category"]
    assert set(index.columns) == {*source.columns, *PLACE}
    assert len(levels) > 1


def test_boxes_and_judgements_are_kept(sop, tmp_path):
    class Judged(DataFrameDataset):
        @staticmethod
        def read_judgements(root):
            return pd.DataFrame({"query": [paths[0]], "item": [paths[1]], "judgement": ["junk"]})

    paths = [str(path.relative_to(sop)) for path in sorted(sop.rglob("*.JPG"))[:4]]
    frame = pd.DataFrame({"path": paths, "left": [2.0, np.nan, 1, 1], "top": 3, "right": 40, "bottom": 50})
    frame[["top", "right", "bottom"]] = frame[["top", "right", "bottom"]].astype(float)
    frame.loc[1, ["top", "right", "bottom"]] = np.nan
    frame["product"] = ["a", "b", "a", "b"]
    frame.to_parquet(sop / "index.parquet")
    packed(Judged, sop, tmp_path / "out")
    ours, theirs = PackedDataset(tmp_path / "out"), Judged(sop)
    for row, path in enumerate(ours.index["path"]):
        original = theirs.index["path"].tolist().index(path)
        assert ours.box(row) == theirs.box(original)
        assert ours.load(row).equal(theirs.load(original))
    judged = ours.judgements().iloc[0]
    assert ours.index["path"][[judged["query"], judged["item"]]].tolist() == paths[:2]


def test_a_packed_data_set_can_be_packed_again(sop, tmp_path):
    packed(StanfordOnlineProducts, sop, tmp_path / "out")
    packed(PackedDataset, tmp_path / "out", tmp_path / "again", chunk_bytes="64KB")
    ours, theirs = PackedDataset(tmp_path / "again"), PackedDataset(tmp_path / "out")
    assert sorted(map(ours.content, range(72))) == sorted(map(theirs.content, range(72)))


def test_missing_images_are_named_and_nothing_is_written(tmp_path):
    root = make_sop(tmp_path / "data")
    missing = sorted(root.rglob("*.JPG"))[3:5]
    for path in missing:
        path.unlink()
    with pytest.raises(OSError, match=r"cannot read .*dml data verify lists all") as error:
        pack(StanfordOnlineProducts, root, tmp_path / "out", progress=False)
    assert all(str(path) in str(error.value) for path in missing)
    assert not (tmp_path / "out").exists()


def test_a_killed_pack_leaves_nothing_that_looks_complete(sop, tmp_path):
    command = """
import os, signal, sys
from dml.data import pack as module
from dml.data.datasets import StanfordOnlineProducts
read = StanfordOnlineProducts.content
def content(dataset, index):
    if dataset.split == "test" and any(name.endswith(".bin") for name in os.listdir(sys.argv[2] + ".partial/chunks")):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(dataset, index)
StanfordOnlineProducts.content = content
module._READ_AHEAD = 8
module.pack(StanfordOnlineProducts, sys.argv[1], sys.argv[2], chunk_bytes="2KB", progress=False)
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", command, str(sop), str(tmp_path / "out")], cwd=root, timeout=100, env=os.environ
    )
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "out.partial/chunks").glob("*.bin"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"index\.parquet and stream\.json"):
        PackedDataset(tmp_path / "out.partial")
    packed(StanfordOnlineProducts, sop, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    assert len(PackedDataset(tmp_path / "out")[71]["labels"]) == 2


def test_litdata_that_is_not_installed(sop, tmp_path, monkeypatch):
    for name in ["litdata", *(name for name in sys.modules if name.startswith("litdata."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install dml\[streaming\]"):
        pack(StanfordOnlineProducts, sop, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_bytes": "64"}, "chunk_bytes is '64'; it is a number of B, KB, MB, GB, TB, such as 64MB"),
        ({"chunk_bytes": "0MB"}, "chunk_bytes is '0MB'"),
        ({"chunk_bytes": "2GB"}, "chunk_bytes is '2GB'; a chunk is fetched as a whole, so at most 1GB"),
        ({"max_cache_bytes": "much"}, "max_cache_bytes is 'much'"),
        ({"url": "https://example.org"}, r"url is 'https://example.org'; it must start with one of \['s3://'"),
        ({"splits": ["train", "val"]}, r"splits is \['train', 'val'\]; the data set has \['train', 'test'\]"),
        ({"splits": []}, r"splits is \[\]"),
    ],
)
def test_errors_name_the_argument(sop, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack(StanfordOnlineProducts, sop, tmp_path / "out", **options)


def test_out_that_holds_something(sop, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out is .* which holds other files; choose a new folder"):
        pack(StanfordOnlineProducts, sop, tmp_path)
