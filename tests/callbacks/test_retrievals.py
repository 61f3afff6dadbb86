import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import wandb
from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from dml.callbacks.retrievals import Retrieval, parquet_table, small_images, wandb_table
from dml.module import RetrievalModule

from .conftest import COLOURS, SIZES, Colours, MeanColour, Spread, paint
from .offline import told_by
from .test_picture import CLASSES, NAMES, QUERIES, average_precision, cosines, ranking, with_metrics

COLUMNS = {
    "section": "object",
    "query": "int64",
    "query_path": "object",
    "query_image": "object",
    "average_precision": "float64",
    "place": "int64",
    "path": "object",
    "image": "object",
    "similarity": "float64",
    "is_right": "bool",
}


def colour_of(content):
    return Image.open(io.BytesIO(content)).getpixel((0, 0))


def test_a_test_writes_what_it_retrieves(make_trainer, module, datamodule, tmp_path):
    make_trainer(*with_metrics(num_worst=4, num_neighbours=3)).test(module, datamodule, verbose=False)
    frame = pd.read_parquet(tmp_path / "run" / "retrievals" / "test.parquet")
    assert list(frame) == list(COLUMNS)
    numbers = {name: kind for name, kind in COLUMNS.items() if kind != "object"}
    assert frame.dtypes[list(numbers)].astype(str).to_dict() == numbers
    worst = frame[frame["section"] == "worst queries"]
    assert list(worst["query"].unique()) == sorted(QUERIES, key=average_precision)[:4]
    for query, rows in worst.groupby("query"):
        expected = ranking(query)[:3]
        assert rows["place"].tolist() == [0, 1, 2]
        assert rows["path"].tolist() == [f"{NAMES[row]}.png" for row in expected]
        assert rows["is_right"].tolist() == [CLASSES[row] == CLASSES[query] for row in expected]
        assert rows["similarity"].to_numpy() == pytest.approx(cosines()[query, expected], abs=1e-5)
        assert rows["average_precision"].to_numpy() == pytest.approx(average_precision(query))
        assert set(rows["query_path"]) == {f"{NAMES[query]}.png"}
        assert [colour_of(image) for image in rows["image"]] == [COLOURS[NAMES[row]] for row in expected]
        assert colour_of(rows["query_image"].iloc[0]) == COLOURS[NAMES[query]]


def test_a_validation_writes_nothing_but_its_picture(make_trainer, module, datamodule, tmp_path):
    make_trainer(*with_metrics()).validate(module, datamodule, verbose=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["pictures"]


def test_the_random_queries_are_those_of_any_model(make_trainer, module, datamodule, tmp_path):
    class MeanRed(MeanColour):
        def forward(self, images):
            return super().forward(images.float() * torch.tensor([1.0, 0.1, 0.0])[:, None, None])

    chosen = []
    for each in (module, RetrievalModule(MeanRed(), Spread())):
        make_trainer(*with_metrics(num_random=3, num_worst=3)).test(each, datamodule, verbose=False)
        frame = pd.read_parquet(tmp_path / "run" / "retrievals" / "test.parquet")
        chosen.append({name: list(rows["query"].unique()) for name, rows in frame.groupby("section")})
    assert chosen[0]["random queries"] == chosen[1]["random queries"]
    assert chosen[0]["worst queries"] != chosen[1]["worst queries"]


def test_small_images_keep_their_shape(root):
    paint(root, "d-0-both", (1, 2, 3), (400, 100))
    images = small_images(Colours(root, "test"), {"all": [Retrieval(12, 1.0, [0, 1, 3], [0.0] * 3, [True] * 3)]})
    assert list(images) == [0, 1, 3, 12]
    sizes = [Image.open(io.BytesIO(images[index])).size for index in (12, 0, 1, 3)]
    assert sizes == [(96, 24), SIZES[0], SIZES[1], (96, 72)]


def test_an_unreadable_image_is_null(root):
    (root / "d-0-both.png").write_bytes(b"not an image")
    dataset, sections = Colours(root, "test"), {"one": [Retrieval(12, 1.0, [0, 12], [0.9, 0.8], [True, False])]}
    images = small_images(dataset, sections)
    frame = parquet_table(dataset, sections, images).to_pandas()
    assert frame["query_image"].isna().tolist() == [True, True]
    assert frame["image"].isna().tolist() == [False, True]
    (row,) = wandb_table(dataset, sections, images).data
    assert row[1] is None
    assert isinstance(row[4], wandb.Image)


def test_a_query_without_neighbours_is_in_the_table_of_wandb(root):
    dataset = Colours(root, "test")
    sections = {"one": [Retrieval(0, 1.0, [], [], []), Retrieval(1, 0.5, [0, 2], [0.9, 0.8], [True, False])]}
    table = wandb_table(dataset, sections, small_images(dataset, sections))
    assert table.columns == ["section", "query", "path", "AP", "neighbour 1", "neighbour 2", "similarity", "right"]
    assert table.data[0][2:] == [f"{NAMES[0]}.png", 1.0, None, None, [], []]
    assert table.data[1][-2:] == [[0.9, 0.8], [True, False]]
    assert [image._caption for image in table.data[1][4:6]] == ["0.900 right", "0.800 wrong"]


def test_tables_are_logged_after_each_evaluation(make_trainer, module, datamodule, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    try:
        trainer = make_trainer(*with_metrics(num_worst=2, num_random=1, num_neighbours=3), logger=logger)
        trainer.validate(module, datamodule, verbose=False)
        trainer.test(module, datamodule, verbose=False)
    finally:
        told = told_by(tmp_path)
    for stage, artifact in zip(("val", "test"), told.artifacts_of("run_table"), strict=True):
        (logged,) = told.logged(f"{stage}/retrieval_table")
        assert (logged["_type"], logged["nrows"], logged["ncols"]) == ("table-file", 3, 9)
        entries = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        table = json.loads(Path(entries[f"{stage}/retrieval_table.table.json"]).read_text())
        worst = min(QUERIES, key=average_precision)
        row = dict(zip(table["columns"], table["data"][0], strict=True))
        assert (row["section"], row["path"]) == ("worst queries", f"{NAMES[worst]}.png")
        assert row["AP"] == pytest.approx(average_precision(worst))
        assert row["right"] == [CLASSES[item] == CLASSES[worst] for item in ranking(worst)[:3]]
        with Image.open(entries[row["neighbour 1"]["path"]]) as image:
            assert image.getpixel((0, 0)) == COLOURS[NAMES[ranking(worst)[0]]]
