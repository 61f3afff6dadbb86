"""Images at several scales and mirrored, in evaluation."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from dml.models import TimmEmbedder
from dml.models.multi_scale import MultiScale, View, ViewClock, combine

ROOT_HALF = 2**-0.5


def embedder(name="test_resnet", **changes):
    torch.manual_seed(0)
    return TimmEmbedder(name, **{"embedding_dim": 8, "pretrained": False, "image_size": 64, **changes}).eval()


def alone(**changes):
    """Nothing follows its generalised mean, so that no feature is negative."""
    return embedder(pooling="gem", head="none", embedding_dim=96, **changes)


def images(height=64, width=64, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def embedded(model, pixels):
    """Of floats from 0 to 255, by the parts of the embedder."""
    normalised = (pixels / 255 - model.mean) / model.std
    features = model.backbone(normalised) if model.pool is None else model.pool(model.backbone, normalised)
    return normalize(model.head(features), dim=1)


def published(model, batch, scales, power):
    """``extract_ms`` of cnnimageretrieval-pytorch, but that images are resized with antialias."""
    total = 0
    for scale in scales:
        size = [round(side * scale) for side in batch.shape[-2:]]
        resized = interpolate(batch.float(), size, mode="bilinear", antialias=True)
        total = total + embedded(model, resized).pow(power)
    return normalize((total / len(scales)).pow(1 / power), dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(96, 96), (80, 112)])
def test_scales_of_non_negative_descriptors_have_the_power_of_the_pooling(height, width):
    model, batch = alone(scales=[1.0, ROOT_HALF, 0.5]), images(height, width)
    with torch.no_grad():
        model.pool.over_positions.exponent.fill_(2.5)
    torch.testing.assert_close(model(batch), published(model, batch, [1.0, ROOT_HALF, 0.5], 2.5))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"pooling": "gem"}, {}])
def test_other_descriptors_are_averaged(changes):
    model, batch = embedder(scales=[1.0, 0.5], **changes), images()
    torch.testing.assert_close(model(batch), published(model, batch, [1.0, 0.5], 1))


@pytest.mark.parametrize(("layer_norm", "power"), [(None, 3), ("plain", 1), ("affine", 1)])
def test_a_norm_after_the_pooling_makes_negative_features(layer_norm, power):
    assert alone(scales=[1.0, 0.5], layer_norm=layer_norm).multi_scale.power == power


@torch.no_grad()
def test_a_power_that_is_given_keeps_signs():
    model, batch = embedder(scales=[1.0, 0.5], view_power=3.0), images()
    views = [embedder(scales=[scale])(batch) for scale in (1.0, 0.5)]
    mean = sum(view.sign() * view.abs() ** 3 for view in views) / 2
    assert (mean < 0).any()
    torch.testing.assert_close(model(batch), normalize(mean.sign() * mean.abs() ** (1 / 3), dim=1))


@torch.no_grad()
def test_mirror_images_are_embedded_as_well():
    model, batch = embedder(flip=True), images()
    expected = normalize(embedded(model, batch.float()) + embedded(model, batch.flip(-1).float()), dim=1)
    torch.testing.assert_close(model(batch), expected)
    torch.testing.assert_close(model(batch.flip(-1)), expected)


@torch.no_grad()
def test_every_scale_is_mirrored():
    model = embedder(scales=[1.0, 0.5], flip=True)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images())
    assert [batch.shape[-1] for batch in seen] == [64, 64, 32, 32]
    assert torch.equal(seen[1], seen[0].flip(-1))
    torch.testing.assert_close(seen[3], seen[2].flip(-1))


@torch.no_grad()
def test_one_view_is_what_it_was():
    plain, model = embedder(), embedder(scales=(1.0,), flip=False)
    assert torch.equal(model(images()), embedded(plain, images().float()))


def test_training_sees_the_image_only():
    plain, model = embedder().train(), embedder(scales=[0.5, 1.0], flip=True).train()
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    for _ in range(2):
        assert torch.equal(model(images()), plain(images()))
        with torch.no_grad():  # an evaluation in between
            model.eval()(images())
            plain.eval()(images())
        model.train()
        plain.train()
    assert sizes.count((3, 3, 64, 64)) == 2 * (1 + 2)
    assert model.multi_scale.clock.seconds().keys() == {"x0.5", "x0.5 mirrored", "x1", "x1 mirrored"}
    torch.testing.assert_close(model.last_norms, plain.last_norms)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"channels_last": True}, {"chunk_size": 2}, {"chunk_size": 1, "pooling": "gem"}])
def test_with_layouts_and_chunks(changes):
    views = {"scales": [1.0, ROOT_HALF, 1.25], "flip": True}
    same = {key: value for key, value in changes.items() if key == "pooling"}
    torch.testing.assert_close(embedder(**views, **changes)(images()), embedder(**views, **same)(images()))


@torch.no_grad()
def test_a_chunk_at_a_time():
    model = embedder(scales=[1.0, 0.5], chunk_size=2)
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append((len(inputs[0]), inputs[0].shape[-1])))
    model(images())
    assert sizes == [(2, 64), (1, 64), (2, 32), (1, 32)]


@torch.no_grad()
def test_combined_in_float32_under_autocast():
    model = alone(scales=[1.0, 0.5])
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model(images())
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embeddings, model(images()), atol=0.02, rtol=0)


@torch.no_grad()
def test_in_double_precision():
    model = alone(scales=[1.0, 0.5]).double()
    assert model(images()).dtype == torch.float64


@torch.no_grad()
def test_whitened_after_they_are_combined():
    model = embedder(scales=[1.0, 0.5], whitening_dim=3)
    combined = model(images(count=20))
    model.whitening.learn(combined)
    torch.testing.assert_close(model(images(count=20)), model.whitening(combined))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_a_transformer_that_can_takes_any_size(name):
    model, plain = embedder(name, scales=[1.0, 0.6], image_size=96), embedder(name, image_size=96)
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    batch = images(96, 96)
    assert model(batch).shape == (3, 8)
    assert sizes == [(96, 96), (64, 64)]  # 57.6, to the next multiple of a patch of 16
    assert model(images(64, 96)).shape == (3, 8)
    torch.testing.assert_close(model.train()(batch), plain.train()(batch))
    assert model.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_mirrored_by_a_transformer_of_one_size():
    model = embedder("vit_tiny_patch16_224", flip=True)
    assert not model.backbone.dynamic_img_size
    torch.testing.assert_close(model(images()), model(images().flip(-1)))


def test_drop_path_goes_with_any_size():
    assert embedder("vit_tiny_patch16_224", scales=[1.0, 0.5], drop_path_rate=0.2).backbone.dynamic_img_size
    with pytest.raises(ValueError, match=r"drop_path_rate is 0\.2"):
        embedder("vgg11", scales=[1.0, 0.5], drop_path_rate=0.2, image_size=32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_no_view_is_smaller_than_the_stride(name):
    model = embedder(name, scales=[1.0, 0.1])
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    assert model(images()).isfinite().all()
    assert sizes == [64, 32]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": []}, r"scales is \[\]; it must be factors of both sides, above 0, each once"),
        ({"scales": [1.0, 0.0]}, r"scales is \[1.0, 0.0\]"),
        ({"scales": [1.0, -0.5]}, "scales is"),
        ({"scales": [1.0, float("inf")]}, "scales is"),
        ({"scales": [1.0, float("nan")]}, "scales is"),
        ({"scales": [0.5, 0.5]}, "each once"),
        ({"scales": [1.0, 0.5], "view_power": 0.0}, "view_power is 0.0; it must be above 0, and 1 is the mean"),
        (
            {"name": "mixer_s32_224", "scales": [1.0, 0.5], "image_size": None},
            r"scales is \[1.0, 0.5\], but 'mixer_s32_224' takes images of one size only; leave scales at \[1.0\]",
        ),
    ],
)
def test_errors_say_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        embedder(**changes)


def test_more_views_than_one_are_not_exported():
    with pytest.raises(Exception, match=r"takes the views \['x1', 'x1 mirrored'\] of an image.*build it with scales"):
        torch.export.export(embedder(flip=True), (images(),))


@torch.no_grad()
def test_one_view_is_exported_without_a_clock():
    model = embedder()
    program = torch.export.export(model, (images(),)).module()
    torch.testing.assert_close(program(images()), model(images()))


@torch.no_grad()
def test_seconds_of_each_view_add_up():
    model = embedder(scales=[1.0, 0.5])
    assert model.view_seconds == {}
    model(images())
    first = model.view_seconds
    assert first.keys() == {"x1", "x0.5"}
    assert all(seconds > 0 for seconds in first.values())
    model(images())
    assert all(seconds > first[name] for name, seconds in model.view_seconds.items())
    model.reset_view_seconds()
    assert model.view_seconds == {}


@torch.no_grad()
def test_copies_have_a_clock_and_a_power_of_their_own():
    model = alone(scales=[1.0, 0.5])
    model(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.view_seconds == {}
        other.pool.over_positions.exponent.fill_(2.0)
        assert float(other.multi_scale.power) == 2
        assert float(model.multi_scale.power) == 3


class Event:
    """Of a GPU that is done when it is waited for."""

    now = 0

    def __init__(self):
        self.done = False

    def record(self, stream):
        Event.now += 500
        self.at = Event.now

    def query(self):
        return self.done

    def synchronize(self):
        self.done = True

    def elapsed_time(self, end):
        return float(end.at - self.at)


def test_a_gpu_is_waited_for_when_the_clock_is_read(monkeypatch):
    monkeypatch.setattr("dml.models.multi_scale._event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = ViewClock()
    ends = []
    for view in (View(1.0, False), View(0.5, True), View(1.0, False)):
        with clock.measure(view, torch.device("cuda")):
            pass
        ends.append(clock._running[-1][2])
    assert not any(event.done for event in ends)
    assert clock.seconds() == {"x1": 1.0, "x0.5 mirrored": 0.5}
    assert all(event.done for event in ends)
    assert clock.seconds() == {"x1": 1.0, "x0.5 mirrored": 0.5}


def test_zero_stays_zero():
    views = [torch.tensor([[0.6, 0.0, -0.8]]), torch.tensor([[0.8, 0.0, -0.6]])]
    combined = combine(views, 3.0)
    assert combined[0, 1] == 0
    torch.testing.assert_close(combined, normalize(torch.tensor([[1.0, 0.0, -1.0]]), dim=1))


def test_sizes_are_rounded_to_pixels():
    scales = MultiScale(embedder().backbone, "test_resnet", [1.0, ROOT_HALF], flip=False)
    assert scales.size(1024, 768, ROOT_HALF) == (724, 543)
    assert scales.size(1001, 767, 1) == (1001, 767)
