"""Pooling, on backbones that lay their features out in different ways."""

import pytest
import torch
from torch.nn.functional import normalize

from dml.models import GeM, TimmEmbedder
from dml.models.pooling import Average, AverageAndMaximum, Maximum

SIZES = {"swin_tiny_patch4_window7_224": 64, "deit_tiny_distilled_patch16_224": 32}


def embedder(name, pooling, **changes):
    torch.manual_seed(0)
    arguments = {"pretrained": False, "image_size": SIZES.get(name, 64), "pooling": pooling, **changes}
    return TimmEmbedder(name, 8, **arguments).eval()


def images(model, count=2):
    shape = (count, model.channels, model.image_size, model.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def seen_by_the_head(model, batch):
    """What goes into the head, ``[B, F]``."""
    seen = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    return seen[0]


SMALL = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


@pytest.mark.parametrize(
    ("name", "pooling"),
    [(name, pooling) for name in SMALL for pooling in ("avg", "max", "avg+max", "gem")]
    + [(name, "gem") for name in ("mobilenetv3_small_050", *SIZES)],
)
def test_any_backbone_is_pooled(name, pooling):
    model = embedder(name, pooling)
    embeddings = model(images(model))
    assert embeddings.shape == (2, 8)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_the_mean_is_what_timm_does_for_these(name):
    ours, theirs = embedder(name, "avg"), embedder(name, None)
    torch.testing.assert_close(ours(images(ours)), theirs(images(theirs)))


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_tokens_of_the_image_are_pooled_and_no_others(name):
    model = embedder(name, "avg+max")
    prefix = {"test_vit": 1, "deit_tiny_distilled_patch16_224": 2}[name]
    with torch.no_grad():
        batch = images(model)
        tokens = model.backbone.forward_features((batch / 255 - model.mean) / model.std)[:, prefix:]
        assert tokens.shape[1] == (model.image_size // 16) ** 2
        torch.testing.assert_close(seen_by_the_head(model, batch), tokens.mean(1) + tokens.amax(1))


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_the_class_token_is_the_first(name):
    model = embedder(name, "cls")
    with torch.no_grad():
        batch = images(model)
        tokens = model.backbone.forward_features((batch / 255 - model.mean) / model.std)
        torch.testing.assert_close(seen_by_the_head(model, batch), tokens[:, 0])


def test_positions_are_those_of_a_map_with_channels_last():
    model = embedder("swin_tiny_patch4_window7_224", "max")
    with torch.no_grad():
        batch = images(model)
        features = model.backbone.forward_features((batch / 255 - model.mean) / model.std)
        assert features.shape == (2, 2, 2, 768)
        torch.testing.assert_close(seen_by_the_head(model, batch), features.amax(dim=(1, 2)))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit2"])
def test_a_class_token_that_is_not_there(name):
    with pytest.raises(
        ValueError, match=f"pooling is 'cls', but '{name}' has no class token; avg, max, avg\\+max or gem"
    ):
        embedder(name, "cls")


def test_a_backbone_that_cannot_give_up_its_pooling():
    with pytest.raises(ValueError, match="pooling is 'avg', but 'inception_next_atto' only has a pooling of its own"):
        embedder("inception_next_atto", "avg", image_size=None)


def test_a_backbone_that_does_not_say_that_it_cannot():
    with pytest.raises(ValueError, match="pooling is 'avg', but 'crossvit_tiny_240' only has a pooling of its own"):
        embedder("crossvit_tiny_240", "avg", image_size=None)


def test_generalised_mean():
    features = torch.rand(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    pooled = GeM(3.0).double()(features)
    torch.testing.assert_close(pooled, (features.float() ** 3).mean(2).double() ** (1 / 3), atol=1e-6, rtol=0)
    features = features.float()
    torch.testing.assert_close(GeM(1.0)(features), Average()(features))
    torch.testing.assert_close(
        GeM(400.0)(features.clamp(min=0.9)), Maximum()(features).clamp(min=0.9), atol=0.01, rtol=0
    )
    torch.testing.assert_close(AverageAndMaximum()(features), features.mean(2) + features.max(2).values)


def test_the_exponent_is_learned_and_belongs_to_the_head():
    model = embedder("test_resnet", "gem").train()
    (name,) = (name for name, _ in model.named_parameters() if name.startswith("pool"))
    exponent = model.get_parameter(name)
    assert exponent.tolist() == [3.0]
    model(images(model))[:, 0].sum().backward()
    assert exponent.grad.abs() > 0
    assert {id(p) for p in model.backbone.parameters()}.isdisjoint({id(exponent)})


def test_the_exponent_has_the_right_gradient():
    features = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) * 5 - 1  # some are below eps
    pool, delta = GeM(), 1e-2
    (gradient,) = torch.autograd.grad(pool(features).sum(), pool.exponent)
    with torch.no_grad():
        slope = (GeM(3 + delta)(features) - GeM(3 - delta)(features)).sum() / (2 * delta)
    assert gradient.item() == pytest.approx(slope.item(), rel=1e-3)


def test_powers_are_float32_under_autocast():
    features = torch.full((1, 2, 4), 60.0, dtype=torch.float16)  # whose cube float16 cannot hold
    with torch.autocast("cpu", torch.float16):
        pooled = GeM()(features)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((1, 2), 60.0))


def test_nothing_but_negative_features_is_finite():
    features = torch.full((1, 2, 4), -1.0, requires_grad=True)
    pooled = GeM()(features)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert features.grad.isfinite().all()
    assert normalize(pooled, dim=1).isfinite().all()
