import resource
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from dml.callbacks import LogRetrievalMetrics
from dml.callbacks.embeddings import WriteEmbeddings
from dml.metrics import RetrievalMetrics, Search

READERS = {".parquet": pd.read_parquet, ".npy": np.load}


class Failing(nn.Module):
    """Fails at the second batch."""

    def __init__(self, embedder, error):
        super().__init__()
        self.embedder, self.error, self.calls = embedder, error, 0

    def forward(self, images):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return self.embedder(images)


@pytest.fixture
def predict(make_trainer, module, datamodule):
    def run(callback):
        return make_trainer(callback).predict(module, datamodule)

    return run


def test_holds_what_was_embedded(predict, datamodule, tmp_path, capsys):
    outputs = predict(WriteEmbeddings())
    path = tmp_path / "run" / "embeddings.parquet"
    embeddings = torch.cat([batch["embeddings"] for batch in outputs])
    index = datamodule.datasets["predict"].index.astype({"path": str, "split": str, "role": str})

    frame = pd.read_parquet(path)
    pd.testing.assert_frame_equal(
        frame[["path", "split", "role", "colour", "half"]], index, check_dtype=False, check_column_type=False
    )
    np.testing.assert_array_equal(np.stack(frame["embedding"]), embeddings.numpy())
    schema = pq.read_schema(path)
    assert schema.names == ["path", "split", "role", "colour", "half", "embedding"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert schema.field("colour").type == pa.int64()
    assert [entry.name for entry in path.parent.iterdir()] == ["embeddings.parquet"]
    assert capsys.readouterr().out == f"{path}: 12 embeddings of dimension 3\n"


def test_writes_batch_by_batch(predict, tmp_path):
    predict(WriteEmbeddings(str(tmp_path / "new" / "file.parquet")))
    metadata = pq.read_metadata(tmp_path / "new" / "file.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [5, 5, 2]


def test_rows_follow_the_index_of_the_batch(make_trainer, module, datamodule, tmp_path):
    order = [7, 0, 11, 3]
    datamodule.setup("predict")
    loader = torch.utils.data.DataLoader(
        datamodule.datasets["predict"],
        batch_size=2,
        sampler=order,
        collate_fn=datamodule.predict_dataloader().collate_fn,
    )
    datamodule.predict_dataloader = lambda: loader
    outputs = make_trainer(WriteEmbeddings(str(tmp_path / "file.parquet"))).predict(module, datamodule)
    frame = pd.read_parquet(tmp_path / "file.parquet")
    assert frame["path"].tolist() == datamodule.datasets["predict"].index["path"].iloc[order].tolist()
    np.testing.assert_array_equal(np.stack(frame["embedding"]), torch.cat([b["embeddings"] for b in outputs]).numpy())


def test_half_precision_is_widened(predict, module, tmp_path):
    module.embedder.register_forward_hook(lambda _module, _images, embeddings: embeddings.bfloat16())
    outputs = predict(WriteEmbeddings(str(tmp_path / "file.parquet")))
    embeddings = torch.cat([batch["embeddings"].float() for batch in outputs])
    np.testing.assert_array_equal(np.stack(pd.read_parquet(tmp_path / "file.parquet")["embedding"]), embeddings.numpy())


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("broken"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
@pytest.mark.parametrize("suffix", READERS)
def test_failed_run_leaves_the_old_file(predict, module, tmp_path, error, raised, suffix):
    path = tmp_path / "out" / f"file{suffix}"
    path.parent.mkdir()
    path.write_text("old")
    callback = WriteEmbeddings(str(path))
    embedder, module.embedder = module.embedder, Failing(module.embedder, error)
    with pytest.raises((raised, type(error))):
        predict(callback)
    assert module.embedder.calls == 2
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]

    module.embedder = embedder
    predict(callback)
    assert len(READERS[suffix](path)) == 12
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("suffix", READERS)
def test_full_disk_leaves_nothing(predict, module, tmp_path, suffix):
    path = tmp_path / "out" / f"file{suffix}"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            predict(WriteEmbeddings(str(path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("suffix", READERS)
def test_new_file_appears_only_when_it_is_whole(predict, module, tmp_path, suffix):
    path = tmp_path / "out" / f"file{suffix}"
    seen = []
    module.embedder.register_forward_hook(lambda *_: seen.append([p.name for p in path.parent.glob("*")]))
    predict(WriteEmbeddings(str(path)))
    assert [len(names) for names in seen] == [0, 1, 1]
    assert not any(path.name in names for names in seen)


def test_array_is_the_embeddings_alone(predict, tmp_path, capsys):
    paths = {suffix: tmp_path / "new" / f"file{suffix}" for suffix in (".parquet", ".npy")}
    for path in paths.values():
        predict(WriteEmbeddings(str(path)))
    assert capsys.readouterr().out.splitlines()[-1] == f"{paths['.npy']}: 12 embeddings of dimension 3"
    mapped = np.load(paths[".npy"], mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == np.float32
    assert mapped.flags.c_contiguous
    np.testing.assert_array_equal(mapped, np.stack(pd.read_parquet(paths[".parquet"])["embedding"]))
    assert sorted(path.parent.iterdir()) == sorted(paths.values())


def test_array_is_laid_out_as_numpy_says(predict, tmp_path):
    predict(WriteEmbeddings(str(tmp_path / "file.npy")))
    content = (tmp_path / "file.npy").read_bytes()
    assert len(content) == 128 + 12 * 3 * 4
    with (tmp_path / "file.npy").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((12, 3), False, np.dtype("<f4"))
        assert file.tell() == 128


def test_array_of_distractors_is_searched(predict, make_trainer, module, datamodule, tmp_path):
    path = str(tmp_path / "distractors.npy")
    predict(WriteEmbeddings(path))
    values = []
    for search in (Search(), Search(distractors=path)):
        callback = LogRetrievalMetrics(RetrievalMetrics(recall_at=[1], search=search))
        make_trainer(callback).test(module, datamodule, verbose=False)
        values.append(callback.per_query[1]["R@1"])
    assert values[0].mean() > 0.5
    assert values[1].tolist() == [0] * 10  # each query is among the distractors, and nothing is nearer than itself


@pytest.mark.parametrize("suffix", READERS)
def test_second_run_starts_afresh(predict, tmp_path, capsys, suffix):
    callback = WriteEmbeddings(str(tmp_path / f"file{suffix}"))
    predict(callback)
    predict(callback)
    assert len(READERS[suffix](tmp_path / f"file{suffix}")) == 12
    assert capsys.readouterr().out.count(": 12 embeddings") == 2


def test_rejects_a_folder(predict, tmp_path):
    with pytest.raises(ValueError, match="a folder; it must be the name of a file"):
        predict(WriteEmbeddings(str(tmp_path)))


@pytest.mark.parametrize("name", ["file.csv", "file", "file.NPY", ".npy"])
def test_rejects_other_files(predict, make_trainer, module, tmp_path, name):
    with pytest.raises(ValueError, match=r"its name must end in \.parquet or \.npy") as raised:
        predict(WriteEmbeddings(str(tmp_path / name)))
    assert f"path is {str(tmp_path / name)!r}" in str(raised.value)
    WriteEmbeddings(name).setup(make_trainer(), module, "test")


def test_rejects_several_devices(make_trainer, module):
    trainer = make_trainer(devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="not 2: predict on one device"):
        WriteEmbeddings().setup(trainer, module, "predict")
    WriteEmbeddings().setup(trainer, module, "fit")
