"""TimmEmbedder."""

import huggingface_hub
import pytest
import timm
import torch

from dml.models import TimmEmbedder


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
    ],
)
def test_errors_name_the_argument(changes, message):
    with pytest.raises(ValueError, match=message):
        embedder(**changes)
