"""Whitening, beside that of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

from dml.models import TimmEmbedder, Whitening


def sample(count=200, dim=12, seed=0):
    """Embeddings whose axes are turned, and vary more or less."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    return normalize(torch.randn(count, dim, generator=generator) * torch.linspace(0.2, 1, dim) @ axes + 0.2, dim=1)


def up_to_signs(actual, expected):
    """Axes have no sign: turn those of ``actual`` as those of ``expected``."""
    return actual * (actual * expected).sum(0).sign()


@pytest.mark.parametrize("dim", [12, 5])
def test_equals_scikit_learn(dim):
    embeddings, others = sample(), sample(30, seed=1)
    reference = PCA(dim, whiten=True, svd_solver="full").fit(embeddings.double().numpy())
    expected = normalize(torch.from_numpy(reference.transform(others.double().numpy())), dim=1).float()
    whitening = Whitening(12, dim)
    whitening.learn(embeddings)
    actual = whitening(others)
    torch.testing.assert_close(up_to_signs(actual, expected), expected, atol=1e-5, rtol=1e-5)


def test_the_square_root_of_whitening():
    embeddings = sample()
    reference = PCA(5, svd_solver="full").fit(embeddings.double().numpy())
    shrunk = reference.transform(embeddings.double().numpy()) / reference.explained_variance_**0.25
    expected = normalize(torch.from_numpy(shrunk), dim=1).float()
    whitening = Whitening(12, 5, power=0.25)
    whitening.learn(embeddings)
    torch.testing.assert_close(up_to_signs(whitening(embeddings), expected), expected, atol=1e-5, rtol=1e-5)


def test_whitened_axes_vary_alike():
    embeddings = sample(500)
    whitening = Whitening(12, 12)
    whitening.learn(embeddings)
    covariance = np.cov(((embeddings - whitening.mean) @ whitening.projection).double().T)
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-4)


def test_float32_under_autocast():
    whitening = Whitening(12, 5)
    whitening.learn(sample())
    embeddings = sample(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = whitening(embeddings)
    assert torch.equal(inside, whitening(embeddings))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Whitening(4, 5), "whitening_dim is 5; it must be from 1 to embedding_dim, which is 4"),
        (lambda: Whitening(4, 0), "whitening_dim is 0"),
        (lambda: Whitening(4, 2, power=-0.1), "whitening_power is -0.1"),
        (lambda: Whitening(12, 3).learn(sample(12)), "learned from 12 images; embeddings of dimension 12 need more"),
        (lambda: Whitening(12, 3).learn(torch.ones(20, 12)), "whitening_dim is 3, but .* vary in 0 directions"),
        (lambda: Whitening(4, 3).learn(sample(20, 2).repeat(1, 2)), "vary in 2 directions only"),
        (lambda: Whitening(2, 2).learn(torch.tensor([[1.0, torch.nan]] * 5)), "not finite"),
    ],
)
def test_errors_say_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def embedder(**changes):
    torch.manual_seed(0)
    return TimmEmbedder("test_resnet", 8, pretrained=False, image_size=32, **{"whitening_dim": 3, **changes})


def test_applied_in_evaluation_once_learned():
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    model = embedder().eval()
    embeddings = model(images)
    assert embeddings.shape == (30, 8)
    model.whitening.learn(embeddings.detach())
    whitened = model(images)
    assert whitened.shape == (30, 3)
    torch.testing.assert_close(whitened, model.whitening(embeddings))
    assert model.train()(images).shape == (30, 8)


def test_what_is_learned_is_in_the_weights():
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    model, loaded = embedder().eval(), embedder().eval()
    model.whitening.learn(model(images).detach())
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded(images), model(images))
    assert loaded(images).shape == (30, 3)
