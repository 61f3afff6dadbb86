"""TimmEmbedder."""

import copy
import functools
import pickle
import shutil

import huggingface_hub
import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import linear, normalize, relu

from dml.models import TimmEmbedder
from dml.models.batch_norm import batch_norms


def images(channels=3, size=32, count=4):
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


def embedder(**changes):
    arguments = {"name": "test_resnet", "embedding_dim": 8, "pretrained": False, "image_size": 32, **changes}
    return TimmEmbedder(**arguments).eval()


def first(model):
    return next(model.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_backbone_gives_unit_norm_embeddings(name, channels):
    embeddings = embedder(name=name, channels=channels, image_size=64)(images(channels, 64))
    assert embeddings.shape == (4, 8)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


def test_the_backbone_sees_images_normalised_as_timm_says():
    model = embedder(name="test_vit", image_size=None)
    config = timm.data.resolve_model_data_config(model.backbone)
    assert model.image_size == config["input_size"][-1]
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = images(size=model.image_size)
    model(batch)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    expected = (batch.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(seen[0], expected)


def test_embeddings_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = embedder()(images())
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


def test_weights_are_read_from_a_local_file(tmp_path):
    source = timm.create_model("test_resnet", pretrained=False, in_chans=3)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = embedder(weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(first(loaded.backbone), first(source))


def test_greyscale_keeps_what_the_weights_know(tmp_path):
    source = timm.create_model("test_resnet", pretrained=False, in_chans=3)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = embedder(weights=str(tmp_path / "weights.pth"), channels=1)
    torch.testing.assert_close(first(loaded.backbone), first(source).sum(dim=1, keepdim=True))


def test_weights_that_cannot_be_had_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"the weights of 'test_resnet' could not be had from .*; set pretrained=false"
    ):
        embedder(pretrained=True)
    with pytest.raises(ValueError, match=r"could not be had from .*nowhere\.pth"):
        embedder(weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet51"}, "timm has no model 'resnet51'; similar ones: .*resnet"),
        ({"channels": 2}, "channels is 2; it must be 1"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and less than 1"),
        (
            {"head": "none"},
            "head is 'none' and embedding_dim is 8; without a head it must be 96, the number of .*resnet",
        ),
        ({"whitening_dim": 9}, "whitening_dim is 9; it must be from 1 to embedding_dim, which is 8"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "drop_path_rate is 0.1, but 'vgg11' has no stochastic depth"),
        (
            {"name": "deit_tiny_distilled_patch16_224", "pooling": "cls", "compile": True},
            "compile is true and pooling is 'cls', which do not go together for 'deit_tiny_dist",
        ),
    ],
)
def test_errors_name_the_argument(changes, message):
    with pytest.raises(ValueError, match=message):
        embedder(**changes)


def test_the_weights_of_a_plain_embedder_have_the_names_that_they_always_had():
    backbone = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    expected = {f"backbone.{name}" for name in backbone.state_dict()} | {"head.weight", "head.bias"}
    for changes in ({}, {"freeze_batch_norm": "affine", "chunk_size": 2, "dropout": 0.1, "layer_norm": "plain"}):
        assert set(embedder(**changes).state_dict()) == expected
    assert set(embedder(compile=True).state_dict()) == expected


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11", "densenet121"])
def test_backbones_with_a_layer_after_the_pooling_or_without_stochastic_depth(name):
    assert embedder(name=name, image_size=64)(images(size=64, count=2)).shape == (2, 8)


def features(model, batch):
    return model.backbone((batch / 255 - model.mean) / model.std)


def test_heads():
    batch = images()
    with torch.no_grad():
        model = embedder(head="none", embedding_dim=96)
        torch.testing.assert_close(model(batch), normalize(features(model, batch)))
        model = embedder(head="mlp")
        first, _, second = model.head
        assert first.weight.shape == (96, 96)
        hidden = relu(linear(features(model, batch), first.weight, first.bias))
        torch.testing.assert_close(model(batch), normalize(linear(hidden, second.weight, second.bias)))


@pytest.mark.parametrize(("kind", "learned"), [("affine", 2), ("plain", 0)])
def test_layer_norm_comes_before_the_head(kind, learned):
    model = embedder(layer_norm=kind, head="none", embedding_dim=96)
    assert len(list(model.layer_norm.parameters())) == learned
    with torch.no_grad():
        for parameter in model.layer_norm.parameters():
            parameter.add_(0.5)
        batch = images()
        expected = features(model, batch)
        expected = (expected - expected.mean(1, keepdim=True)) / (expected.var(1, False, keepdim=True) + 1e-5).sqrt()
        if learned:
            expected = 1.5 * expected + 0.5
        torch.testing.assert_close(model(batch), normalize(expected), atol=1e-6, rtol=1e-4)


def test_dropout_hides_features_from_the_head_in_training():
    seen = []
    model = embedder(dropout=0.9, freeze_batch_norm="statistics")
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = images()
    model(batch)
    model.train()(batch)
    evaluated, trained = seen
    hidden = trained == 0
    assert 0.8 < hidden.float().mean() < 1
    torch.testing.assert_close(trained[~hidden], 10 * evaluated[~hidden])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_frozen_statistics_stay_through_training(name):
    model = embedder(name=name, freeze_batch_norm="statistics")
    layers = batch_norms(model)
    assert layers
    before = [layer.running_mean.clone() for layer in layers]
    model.train()
    assert model.training
    assert model.backbone.training
    assert not any(layer.training for layer in layers)
    batch = images()
    trained = model(batch)
    torch.testing.assert_close(model.eval()(batch), trained)
    assert all(torch.equal(layer.running_mean, old) for layer, old in zip(layers, before, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    free = embedder(name=name).train()
    free(batch)
    assert not torch.equal(batch_norms(free)[0].running_mean, before[0])


def test_frozen_scale_and_shift_are_not_trained():
    model = embedder(name="test_efficientnet", freeze_batch_norm="affine").train()
    layers = batch_norms(model)
    frozen = {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert len(frozen) == 2 * len(layers) > 0
    for parameter in model.parameters():
        assert parameter.requires_grad == (id(parameter) not in frozen)
    assert not any(layer.training for layer in layers)


def test_layers_that_are_synchronised_later_are_frozen_too():
    model = embedder(name="test_resnet", freeze_batch_norm="affine")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    layers = batch_norms(model)
    assert {type(layer) for layer in layers} == {nn.SyncBatchNorm}
    assert not any(layer.training for layer in layers)
    assert not any(parameter.requires_grad for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_norms_of_the_last_training_batch(chunk_size):
    model = embedder(chunk_size=chunk_size, freeze_batch_norm="statistics")
    outputs = []
    model.head.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    model(images())
    assert model.last_norms is None
    outputs.clear()
    model.train()(images())
    norms = torch.cat(outputs).norm(dim=1)
    torch.testing.assert_close(model.last_norms, norms)
    assert not model.last_norms.requires_grad
    model.eval()(images(count=1))
    torch.testing.assert_close(model.last_norms, norms)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same():
    plain, compiled = embedder(), embedder(compile=True)
    compiled.load_state_dict(plain.state_dict())
    batch = images()
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), plain(batch), atol=1e-5, rtol=1e-4)
        copies = [copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))]
        for model in copies:
            torch.testing.assert_close(model(batch), plain(batch), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:chunk_size is 3")
def test_chunks_of_a_compiled_backbone_are_matched_the_second_time(monkeypatch):
    # Graphs as for any backend, without waiting for a C++ compiler.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    batch = images(count=8)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = embedder(compile=compiled, chunk_size=3).train()
        model(batch)[:, 0].sum().backward()
        found.append(model)
    plain, compiled = found
    for expected, actual in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, atol=1e-4 * float(expected.grad.abs().max()), rtol=1e-3)
    for expected, actual in zip(plain.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    assert {int(layer.num_batches_tracked) for layer in batch_norms(compiled)} == {3}
