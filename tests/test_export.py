"""``dml export``: the file gives what the model gives, or there is no file."""

import copy
import importlib.util
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import normalize

from dml import export
from dml.__main__ import main
from dml.losses import SmoothAPLoss
from dml.models import TimmEmbedder
from dml.module import RetrievalModule


def save(path, *, learn=False, **changes):
    """A checkpoint as a run leaves it, and its embedder."""
    torch.manual_seed(0)
    arguments = {"name": "test_resnet", "embedding_dim": 8, "image_size": 32, **changes}
    embedder = TimmEmbedder(**arguments, pretrained=False).eval()
    for layer in embedder.modules():  # statistics of a trained model, and not those of none
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    if learn:
        embedder.whitening.learn(normalize(torch.randn(50, 8) + 0.5, dim=1))
    module = RetrievalModule(embedder, SmoothAPLoss())
    # Of a run from downloaded weights, which an export must not ask for again.
    of_the_run = {"class_path": "dml.models.TimmEmbedder", "init_args": {**arguments, "pretrained": True}}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": {"embedder": of_the_run}}, path)
    return copy.deepcopy(embedder)  # which is not compiled


def images(count, size=32):
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def command(folder, kind, name):
    main(["export", "--ckpt_path", str(folder / "a.ckpt"), "--format", kind, "--out", str(folder / name)])


def exported(folder, kind, capsys):
    """What the exported file makes of images, and what it says of itself."""
    name = f"model.{kind}"
    with pytest.raises(SystemExit) as exit_:
        command(folder, kind, name)
    assert exit_.value.code == 0
    assert "embeddings differ by" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["a.ckpt", name]
    if kind == "pt2":
        extra = {"metadata.json": ""}
        program = torch.export.load(folder / name, extra_files=extra).module()
        return program, json.loads(extra["metadata.json"])
    session = onnxruntime.InferenceSession(folder / name)
    assert [argument.type for argument in session.get_inputs()] == ["tensor(uint8)"]
    facts = {entry.key: entry.value for entry in onnx.load(folder / name).metadata_props}
    return lambda batch: torch.from_numpy(session.run(["embeddings"], {"images": batch.numpy()})[0]), facts


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "gem", "channels_last": True, "chunk_size": 2, "compile": True},
        {"name": "test_vit", "layer_norm": "affine", "head": "mlp", "dropout": 0.5},
        {"whitening_dim": 3, "learn": True},
    ],
    ids=["resnet", "vit", "whitening"],
)
def test_the_file_gives_what_the_model_gives(kind, changes, tmp_path, capsys):
    embedder = save(tmp_path / "a.ckpt", **changes)
    model, facts = exported(tmp_path, kind, capsys)
    dim = 3 if changes.get("learn") else 8
    with torch.no_grad():
        for count in (1, 3, 11):
            embeddings = model(images(count))
            assert embeddings.shape == (count, dim)
            torch.testing.assert_close(embeddings, embedder(images(count)), atol=1e-4, rtol=0)
    name = changes.get("name", "test_resnet")
    assert (facts["backbone"], facts["image_size"], facts["embedding_dim"]) == (name, "32", str(dim))
    assert facts["whitened"] == ("true" if changes.get("learn") else "false")
    mean, std = (np.round(values.flatten().tolist(), 4).tolist() for values in (embedder.mean, embedder.std))
    assert facts["normalisation"].endswith(f"mean {mean}, std {std} of 0 to 1")


def test_whitening_that_is_not_learned_is_left_out(tmp_path, capsys):
    embedder = save(tmp_path / "a.ckpt", whitening_dim=3)
    model, facts = exported(tmp_path, "pt2", capsys)
    torch.testing.assert_close(model(images(2)), embedder(images(2)), atol=1e-4, rtol=0)
    assert facts["embedding_dim"] == "8"


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_file_that_differs_is_not_kept(kind, tmp_path, monkeypatch, capsys):
    save(tmp_path / "a.ckpt")
    (tmp_path / f"model.{kind}").write_text("of another export")
    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    with pytest.raises(SystemExit) as exit_:
        command(tmp_path, kind, f"model.{kind}")
    assert exit_.value.code == 2
    assert "what was written differs by" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", f"model.{kind}"]
    assert (tmp_path / f"model.{kind}").read_text() == "of another export"


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    embedder = save(tmp_path / "a.ckpt")
    monkeypatch.setattr(export, "_LARGEST", 1000)
    assert export.export(str(tmp_path / "a.ckpt"), "onnx", tmp_path / "model.onnx") <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "model.onnx", "model.onnx.data"]
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images(2).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), embedder(images(2)), atol=1e-4, rtol=0)


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        main(["export", *map(str, words)])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a.ckpt")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    error = error_of(capsys, "--ckpt", tmp_path / "a.ckpt", "--out", tmp_path / "model.onnx")
    assert error == "dml: error: format is 'onnx', which needs onnxscript: pip install 'dml[export]'"


def test_errors_are_one_line(tmp_path, capsys):
    save(tmp_path / "a.ckpt")
    here = tmp_path / "a.ckpt"
    assert "there is no such file" in error_of(capsys, "--ckpt_path", tmp_path / "b.ckpt", "--out", tmp_path / "m.onnx")
    assert "a folder that does not exist" in error_of(capsys, "--ckpt", here, "--out", tmp_path / "no" / "m.onnx")
    assert "ends in .pt2" in error_of(capsys, "--ckpt", here, "--format", "pt2", "--out", tmp_path / "m.pt")
    assert "torchscript" in error_of(capsys, "--ckpt", here, "--format", "torchscript", "--out", tmp_path / "m")
    assert "out" in error_of(capsys, "--ckpt", here)
    foreign = torch.load(here, weights_only=True)
    foreign["hyper_parameters"]["embedder"]["class_path"] = "os.system"
    torch.save(foreign, tmp_path / "foreign.ckpt")
    assert "whose embedder is os.system" in error_of(
        capsys, "--ckpt", tmp_path / "foreign.ckpt", "--out", tmp_path / "m.onnx"
    )
