"""``dml index`` and ``dml search``, as a user calls them."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dml.__main__ import main
from dml.callbacks.run import CONFIG_KEY
from dml.search import SearchIndex
from tests.search.conftest import CLASSES, draw, error_of, run, save_checkpoint


@pytest.fixture(autouse=True)
def in_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def predicted(checkpoint, tmp_path, monkeypatch):
    """What ``dml predict`` writes, by its own way from images to embeddings."""
    main(
        [
            *("predict", "--ckpt_path", str(checkpoint), "--embeddings.path", "shop.parquet"),
            *("--trainer.logger=false", "--trainer.enable_progress_bar=false"),
        ]
    )
    return tmp_path / "shop.parquet"


def test_an_index_holds_what_predict_gives(built, predicted, shop):
    index, frame = SearchIndex(built), pd.read_parquet(predicted)
    assert (index.count, len(index.images)) == (20, 24)
    assert index.root == shop.resolve()
    assert index.facts.split == "test"
    for path, embedding in zip(frame["path"], frame["embedding"], strict=True):
        np.testing.assert_allclose(index.embedding(index.row(path)), embedding, atol=1e-5)
    assert index.labels(index.row("hat/3.png")) == {"product": "hat", "kind": "worn"}
    assert sorted(path.name for path in built.iterdir()) == [
        "images.parquet",
        "index.faiss",
        "index.json",
        "queries.faiss",
    ]


def test_the_report(checkpoint, capsys):
    run("index", "--ckpt_path", checkpoint, "--kind", "hnsw", "--hnsw.m", 4, "--out", "a")
    printed = capsys.readouterr().out
    assert "hnsw, 20 images, D 16" in printed
    assert "recall@1 " in printed
    assert "recall@10 " in printed
    assert "recall@100" not in printed  # of 20 images
    assert "20 queries; 4 more images are queries only" in printed
    facts = json.loads((SearchIndex("a").folder / "index.json").read_text())
    assert facts["parameters"] == {"m": 4, "ef_construction": 200, "ef_search": 128, "num_threads": 1}
    assert facts["command"].startswith("dml index --ckpt_path")


def test_an_index_of_embeddings(predicted, checkpoint, shop, capsys):
    run("index", "--embeddings", predicted, "--root", shop, "--split", "test", "--out", "a")
    index = SearchIndex("a")
    assert (index.count, len(index.images)) == (20, 24)
    assert index.labels(index.row("hat/3.png")) == {"product": "1", "kind": "1"}  # codes: names are not in the file
    assert "built from embeddings without one" in error_of(
        capsys, "search", "--index", "a", "--image", shop / "cup" / "0.png"
    )
    run("search", "--index", "a", "--ckpt_path", checkpoint, "--image", shop / "cup" / "1.png")
    output = capsys.readouterr()
    assert "is not the model" not in output.err
    run("index", "--embeddings", predicted, "--root", shop, "--ckpt_path", checkpoint, "--out", "b")
    run("search", "--index", "b", "--image", shop / "cup" / "1.png")


def test_search_prints_and_draws(built, shop, tmp_path, capsys):
    draw("shoe", 999).save(tmp_path / "new [one].jpg")
    words = ["--image", "new [one].jpg", "--query", "hat/2.png", "--query", 0, "-k", 4, "--out", "found.png"]
    run("search", "--index", built, *words)
    printed = capsys.readouterr().out
    index = SearchIndex(built)
    assert "new [one].jpg" in printed
    assert "hat/2.png, hat, worn" in printed
    scores, rows = index.neighbours(index.row("hat/2.png"), 4)
    shown = printed[printed.index("hat/2.png, hat, worn") :]
    for rank, (score, row) in enumerate(zip(scores, rows, strict=True), start=1):
        line = next(line for line in shown.splitlines() if line.startswith(f"│ {rank:4} │"))
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        path = index.images["path"][row]
        assert cells == [str(rank), f"{score:.4f}", str(row), path, *index.labels(row).values()]
    with Image.open("found.png") as picture:
        assert picture.size == (2 * 36 + 30 + 5 * 154, 70 + 3 * 196 + 18)


def test_the_nearest_image_is_the_image_itself(built, shop, capsys):
    run("search", "--index", built, "--image", shop / "spoon" / "4.png", "-k", 1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│    1 │")]
    assert "spoon/4.png" in line
    assert "1.0000" in line


def test_an_image_that_is_gone_is_drawn_as_such(built, shop, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    run("search", "--index", built, "--root", "elsewhere", "--query", 3, "--out", "a.png")
    assert (tmp_path / "a.png").is_file()


def test_a_checkpoint_that_has_changed(shop, tmp_path, capsys):
    path = save_checkpoint(tmp_path / "a.ckpt", shop)
    run("index", "--ckpt_path", path, "--out", "a")
    words = ["search", "--index", "a", "--image", shop / "cup" / "0.png"]
    run(*words)
    save_checkpoint(path, shop, seed=1)
    assert "has changed since" in error_of(capsys, *words)
    run(*words, "--ckpt_path", path)
    assert "a.ckpt is not the model of the index: it embeds 'cup/1.png' otherwise" in capsys.readouterr().err
    path.unlink()
    assert "--ckpt_path says where it is" in error_of(capsys, *words)
    run("search", "--index", "a", "--query", 0)  # needs no model


def test_transforms_other_than_when_it_was_built(checkpoint, shop, capsys):
    transform = (
        '[{"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [32, 32]}}, '
        '{"class_path": "torchvision.transforms.v2.RandomInvert", "init_args": {"p": 1.0}}]'
    )
    run("index", "--ckpt_path", checkpoint, "--data.eval_transforms", transform, "--out", "a")
    words = ["search", "--index", "a", "--image", shop / "cup" / "0.png"]
    error = error_of(capsys, *words)
    assert "is not that of the index: it embeds 'cup/1.png' otherwise" in error
    assert "RandomInvert" in error  # the command that built it
    run(*words, f"--data.eval_transforms={transform}")


def test_a_configuration_changes_the_data(checkpoint, shop, tmp_path):
    (tmp_path / "eval.yaml").write_text(
        f"data:\n  root: {shop / 'index.csv'}\ntrainer:\n  max_epochs: 9\nmodel:\n  loss: dml.losses.FastAPLoss\n"
    )
    run("index", "--ckpt_path", checkpoint, "-c", "eval.yaml", "--out", "a")
    assert SearchIndex("a").root == shop.resolve()


def test_boxes_are_kept(checkpoint, shop, tmp_path):
    (tmp_path / "boxed").mkdir()
    draw("cup", 1).save(tmp_path / "boxed" / "a.png")
    draw("hat", 1).save(tmp_path / "boxed" / "b.png")
    rows = {"path": ["a.png", "b.png"], "label": ["x", "y"], "split": "test"}
    boxes = {"left": [4, None], "top": [2, None], "right": [30, None], "bottom": [28, None]}
    pd.DataFrame({**rows, **boxes}).to_csv("boxed/index.csv", index=False)
    run("index", "--ckpt_path", checkpoint, "--data.root", tmp_path / "boxed", "--out", "a")
    index = SearchIndex("a")
    assert (index.box(0), index.box(1)) == ((4, 2, 30, 28), None)
    run("search", "--index", "a", "--image", "boxed/b.png")  # its own images are embedded as they were: by their boxes


def test_nothing_in_a_checkpoint_is_executed(shop, tmp_path, capsys):
    path = save_checkpoint(tmp_path / "a.ckpt", shop)
    content = torch.load(path, weights_only=True)
    content[CONFIG_KEY] = content[CONFIG_KEY].replace("dml.data.datasets.DataFrameDataset", "os.system")
    torch.save(content, path)
    assert "names 'os.system' as data.dataset" in error_of(capsys, "index", "--ckpt_path", path, "--out", "a")


def test_errors_are_one_line(built, checkpoint, predicted, shop, tmp_path, capsys):
    def of_index(*words):
        return error_of(capsys, "index", *words)

    def of_search(*words):
        return error_of(capsys, "search", *words)

    from_checkpoint = ("--ckpt_path", checkpoint, "--out", "a")
    assert "dml index needs a checkpoint" in of_index("--out", "a")
    assert "out" in of_index("--ckpt_path", checkpoint)
    assert "--overwrite replaces it" in of_index("--ckpt_path", checkpoint, "--out", built)
    assert "has 20 images and must have at least 256" in of_index(*from_checkpoint, "--kind", "ivfpq")
    assert "has no parameters ivfpq.*" in of_index(*from_checkpoint, "--ivfpq.m", 2)
    assert "here it is --data.root" in of_index(*from_checkpoint, "--root", shop)
    assert "has splits ['test'], not 'train'" in of_index(*from_checkpoint, "--split", "train")
    assert "is_quick" in of_index(*from_checkpoint, "--data.is_quick", "true")
    from_file = ("--embeddings", predicted, "--out", "a")
    assert "--embeddings needs the folder" in of_index(*from_file)
    assert "has no effect" in of_index(*from_file, "--root", shop, "--data.root", shop)
    assert "there is no image 'cup/0.png'" in of_index(*from_file, "--root", tmp_path)
    assert "the embeddings are of ['test']" in of_index(*from_file, "--root", shop, "--split", "val")
    assert "no such file" in of_index(*from_file, "--root", shop, "--ckpt_path", "none.ckpt")
    assert "cannot be read as Parquet" in of_index("--embeddings", checkpoint, "--root", shop, "--out", "a")
    (tmp_path / "no.jpg").write_bytes(b"GIF89a no image")
    assert "needs --image FILE" in of_search("--index", built)
    assert "k is 0" in of_search("--index", built, "--query", 0, "-k", 0)
    assert "which cannot be read: No such file" in of_search("--index", built, "--image", "none.jpg")
    assert "is not a whole image" in of_search("--index", built, "--image", "no.jpg")
    assert "images 0 to 23" in of_search("--index", built, "--query", 24)
    assert "no image of the index" in of_search("--index", built, "--query", "cup/9.png")
    assert "is not a folder" in of_search("--index", tmp_path, "--query", 0)
    assert "the name of a file" in of_search("--index", built, "--query", 0, "--out", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "no.jpg", "shop.parquet"]


@pytest.mark.parametrize(("command", "needs"), [("index", "faiss"), ("search", "faiss"), ("browse", "uvicorn")])
def test_without_the_extra(command, needs, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == needs else find(name))
    assert error_of(capsys, command) == f"dml: error: dml {command} needs {needs}: pip install 'dml[search]'"


def test_every_class_is_in_the_shop(index):
    assert sorted(index.images["product"].unique()) == CLASSES
