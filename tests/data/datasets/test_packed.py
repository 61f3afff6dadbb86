"""PackedDataset: the images and labels of the source, from chunks that are here or are fetched."""

import json
import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from dml.data import ClassBalancedSampler, RetrievalDataModule, StreamingSampler, UnreadableImageError
from dml.data.dataset import collate
from dml.data.datasets import GroceryStore, PackedDataset, StanfordOnlineProducts
from dml.data.pack import pack
from tests.data.datasets.miniatures import make_grocery, make_sop


@pytest.fixture(scope="module")
def sop(tmp_path_factory):
    return make_sop(tmp_path_factory.mktemp("sop"), num_categories=4)


@pytest.fixture
def packed(sop, tmp_path):
    """Chunks of about five images."""
    pack(StanfordOnlineProducts, sop, tmp_path / "packed", chunk_bytes="8KB", progress=False)
    return tmp_path / "packed"


@pytest.fixture
def remote(sop, tmp_path, monkeypatch):
    """Chunks that are fetched, and the folder they are fetched into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"local:{tmp_path / 'store'}"
    pack(StanfordOnlineProducts, sop, tmp_path / "packed", chunk_bytes="8KB", url=url, progress=False)
    (tmp_path / "packed" / "chunks").rename(tmp_path / "store")
    return tmp_path / "packed", tmp_path / "cache" / "dml" / "chunks"


def assert_same(ours, theirs):
    row = {path: row for row, path in enumerate(theirs.index["path"])}
    assert len(ours) == len(theirs) > 0
    assert ours.levels == theirs.levels
    for item in map(ours.__getitem__, range(len(ours))):
        other = theirs[row[ours.index["path"][item["index"]]]]
        assert torch.equal(item["image"], other["image"])
        assert torch.equal(item["labels"], other["labels"])
        assert (item["is_query"], item["is_gallery"]) == (other["is_query"], other["is_gallery"])


@pytest.mark.parametrize(
    ("dataset", "make"), [(StanfordOnlineProducts, make_sop), (GroceryStore, make_grocery)], ids=["sop", "grocery"]
)
def test_every_image_and_label_is_that_of_the_source(dataset, make, tmp_path):
    make(tmp_path / "data")
    pack(dataset, tmp_path / "data", tmp_path / "packed", chunk_bytes="16KB", progress=False)
    for split in ("train", "test"):
        assert_same(PackedDataset(tmp_path / "packed", split), dataset(tmp_path / "data", split))
        grey = {"split": split, "channels": 1}
        assert_same(PackedDataset(tmp_path / "packed", **grey), dataset(tmp_path / "data", **grey))


def test_chunks_are_fetched_when_they_are_needed(sop, remote):
    root, cache = remote
    dataset = PackedDataset(root)
    assert not cache.exists()
    dataset.load(0)
    assert len(list(cache.rglob("*.bin"))) == 1
    assert_same(dataset, StanfordOnlineProducts(sop))
    assert len(list(cache.rglob("*.bin"))) == dataset.index["stream_chunk"].nunique()


@pytest.mark.parametrize(("context", "place"), [("fork", "here"), ("fork", "fetched"), ("spawn", "fetched")])
def test_workers_of_a_loader(context, place, request, sop):
    root = request.getfixturevalue("packed") if place == "here" else request.getfixturevalue("remote")[0]
    dataset = PackedDataset(root, transform=FirstRows())
    dataset.load(0)  # what this process has used must not hinder its workers
    loader = DataLoader(dataset, 16, num_workers=2, collate_fn=collate, multiprocessing_context=context)
    batches = list(loader)
    assert not any(batch["unreadable"] for batch in batches)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(96))
    expected = torch.stack([FirstRows()(dataset.load(row)) for row in range(96)])
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), expected)


class FirstRows(torch.nn.Module):
    """Photos of one size."""

    def forward(self, image):
        return image[:, :64, :64]


def test_it_can_be_pickled(packed):
    dataset = PackedDataset(packed)
    expected = dataset.load(5)
    assert pickle.loads(pickle.dumps(dataset)).load(5).equal(expected)


def data_module(dataset, root, **changes):
    options = {"sampler": partial(StreamingSampler, images_per_window=32), "image_size": 24, "num_workers": 2}
    data = RetrievalDataModule(dataset, str(root), 4, 2, val_split="test", **{**options, **changes})
    data.setup("fit")
    return data


def test_batches_of_a_data_module_go_on_in_the_middle_of_an_epoch(remote):
    data = data_module(PackedDataset, remote[0])
    expected = list(data.train_dataloader())
    assert len(expected) == 12  # 24 classes in 2 groups of 2, 4 classes a batch
    for batch in expected:
        assert batch["images"].shape == (8, 3, 24, 24)
        assert batch["labels"][:, 0].unique(return_counts=True)[1].tolist() == [2, 2, 2, 2]
    killed = data.train_dataloader()
    iterator = iter(killed)
    for _ in range(5):
        next(iterator)
    resumed = data_module(PackedDataset, remote[0]).train_dataloader()
    resumed.load_state_dict(killed.state_dict())
    for ours, theirs in zip(resumed, expected[5:], strict=True):
        assert torch.equal(ours["index"], theirs["index"])
        assert torch.equal(ours["images"], theirs["images"])


def test_evaluation_sees_what_it_sees_of_files(sop, packed):
    ours, theirs = (
        {
            dataset.path(row).name: image
            for batch in loader
            for row, image in zip(batch["index"].tolist(), batch["images"], strict=True)
        }
        for data in (data_module(PackedDataset, packed), data_module(StanfordOnlineProducts, sop))
        for dataset, loader in [(data.datasets["val"], data.val_dataloader())]
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_window_needs_few_chunks(packed):
    def most_chunks(sampler):
        dataset = (data := data_module(PackedDataset, packed, sampler=sampler)).datasets["train"]
        place = dataset.index["stream_chunk"].to_numpy()
        assert len(set(place)) > 15
        # A window of 4 classes has 16 images, in two batches.
        return max(len(set(place[rows])) for rows in torch.tensor(list(data.train_sampler(dataset))).split(16))

    # In 4 chunks or 5; in a window that has the end of the stream and its start, in one more.
    assert most_chunks(partial(StreamingSampler, images_per_window=16)) <= 6
    assert most_chunks(ClassBalancedSampler) > 10


def test_chunks_not_used_for_longest_make_room(remote):
    root, cache = remote
    stream = json.loads((root / "stream.json").read_text())
    (root / "stream.json").write_text(json.dumps({**stream, "max_cache_bytes": 25_000}))
    dataset = PackedDataset(root)
    first = dataset.index.groupby("stream_chunk").head(1).index.tolist()
    for row in (*first[:2], first[0], first[2], first[3]):
        dataset.load(row)
        time.sleep(0.02)  # the clock of a file system is coarse
    kept = {file.name for file in cache.rglob("*.bin")}
    assert "chunk-0-1.bin" not in kept
    assert {"chunk-0-2.bin", "chunk-0-3.bin"} <= kept
    for row in range(len(dataset)):
        dataset.load(row)
    assert sum(file.stat().st_size for file in cache.rglob("*.bin")) <= 25_000


def test_many_readers_and_no_room_at_all(remote):
    root, cache = remote
    stream = json.loads((root / "stream.json").read_text())
    (root / "stream.json").write_text(json.dumps({**stream, "max_cache_bytes": 1}))
    dataset = PackedDataset(root)
    expected = [dataset.content(row) for row in range(96)]
    rows = torch.randint(96, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(dataset.content, rows))
    assert found == [expected[row] for row in rows]
    assert len(list(cache.rglob("*.bin"))) <= 16


def damage_bits(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file):
    os.truncate(file, 100)


def another(file):
    file.write_bytes(file.with_name("chunk-0-3.bin").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bits, r"cannot read image .*\.JPG: .*chunk-0-1\.bin is damaged, or is a chunk of another pack"),
        (cut_short, r"chunk-0-1\.bin is damaged"),
        (another, r"chunk-0-1\.bin is damaged"),
        (os.remove, r"No such file or directory: .*chunk-0-1\.bin"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_chunk_stops_the_run_in_one_line(packed, damage, message, num_workers):
    damage(packed / "chunks" / "chunk-0-1.bin")
    data = data_module(PackedDataset, packed, num_workers=num_workers)
    dataset = data.datasets["train"]
    rows = [row for row in range(len(dataset)) if dataset.index["stream_chunk"][row] == 1]
    with pytest.raises(UnreadableImageError, match=message):
        _ = [dataset.load(row) for row in rows]
    batch = next(batch for batch in data.train_dataloader() if batch["unreadable"])
    with pytest.raises(ValueError, match=message):
        data.on_before_batch_transfer(batch, 0)


def test_a_chunk_that_cannot_be_fetched(remote, tmp_path):
    (tmp_path / "store" / "chunk-0-0.bin").unlink()
    with pytest.raises(UnreadableImageError, match=r"cannot fetch local:.*/store/chunk-0-0\.bin: .*doesn't exist"):
        PackedDataset(remote[0]).load(0)


def without_litdata(monkeypatch):
    for name in ["litdata", *(name for name in sys.modules if name.startswith("litdata."))]:
        monkeypatch.setitem(sys.modules, name, None)


def test_chunks_that_are_here_are_read_without_litdata(packed, monkeypatch):
    expected = PackedDataset(packed).load(0)
    without_litdata(monkeypatch)
    assert torch.equal(PackedDataset(packed).load(0), expected)


def test_litdata_that_is_not_installed(remote, monkeypatch):
    without_litdata(monkeypatch)
    with pytest.raises(
        ModuleNotFoundError, match=r"is fetched by litdata; install it by: pip install dml\[streaming\]"
    ):
        PackedDataset(remote[0]).load(0)


def test_levels_can_be_chosen_and_classes_held_out(packed):
    assert PackedDataset(packed, levels=["category"]).levels == ("category",)
    train, val = (PackedDataset(packed, split, val_classes=0.25) for split in ("train", "val"))
    assert (len(train), len(val)) == (72, 24)
    val.load(23)


def test_root_that_is_something_else(packed):
    with pytest.raises(FileNotFoundError, match=r"must be a folder with index\.parquet and stream\.json"):
        PackedDataset(packed / "chunks")
