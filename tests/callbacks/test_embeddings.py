import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from dml.callbacks.embeddings import WriteEmbeddings


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
def test_failed_run_leaves_the_old_file(predict, module, tmp_path, error, raised):
    path = tmp_path / "out" / "file.parquet"
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
    assert len(pd.read_parquet(path)) == 12
    assert list(path.parent.iterdir()) == [path]


def test_new_file_appears_only_when_it_is_whole(predict, module, tmp_path):
    path = tmp_path / "out" / "file.parquet"
    seen = []
    module.embedder.register_forward_hook(lambda *_: seen.append([p.name for p in path.parent.glob("*")]))
    predict(WriteEmbeddings(str(path)))
    assert [len(names) for names in seen] == [0, 1, 1]
    assert not any(path.name in names for names in seen)


def test_second_run_starts_afresh(predict, tmp_path, capsys):
    callback = WriteEmbeddings(str(tmp_path / "file.parquet"))
    predict(callback)
    predict(callback)
    assert len(pd.read_parquet(tmp_path / "file.parquet")) == 12
    assert capsys.readouterr().out.count(": 12 embeddings") == 2


def test_rejects_a_folder(predict, tmp_path):
    with pytest.raises(ValueError, match="a folder; it must be the name of a file"):
        predict(WriteEmbeddings(str(tmp_path)))


def test_rejects_several_devices(make_trainer, module):
    trainer = make_trainer(devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="not 2: predict on one device"):
        WriteEmbeddings().setup(trainer, module, "predict")
    WriteEmbeddings().setup(trainer, module, "fit")
