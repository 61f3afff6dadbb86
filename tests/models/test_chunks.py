"""A batch that goes through the model a chunk at a time: the gradient of the whole, at the memory of a part."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from dml.models import TimmEmbedder
from dml.models.batch_norm import Recomputation, batch_norms

SEES_CHUNKS = "chunk_size is 3 in a batch of 8: batch normalisation sees a chunk at a time"


def embedder(name="test_resnet", **changes):
    torch.manual_seed(0)
    arguments = {"pretrained": False, "image_size": 32, "freeze_batch_norm": "statistics", **changes}
    return TimmEmbedder(name, 8, **arguments)


def images(count=8):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def loss_of(embeddings):
    """A loss of all pairs, so that each image's gradient depends on every other's embedding."""
    return (embeddings @ embeddings.T / 0.1).exp().triu(1).mean().log()


def gradients(model, batch, scaler=None):
    torch.manual_seed(2)
    loss = loss_of(model(batch))
    (loss if scaler is None else scaler.scale(loss)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(actual, expected, tolerance=1e-6):
    assert actual.keys() == expected.keys()
    assert len(expected) > 10
    for name, gradient in expected.items():
        largest = gradient.abs().max().clamp(min=1e-3)
        assert (actual[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize(("name", "pooling"), [("test_resnet", "gem"), ("test_vit", "cls"), ("test_convnext", None)])
def test_the_gradient_is_that_of_the_whole_batch(name, pooling, chunk_size):
    # In float64, where a sum over chunks has no rounding of its own; GeM's powers are float32 always.
    whole, chunked = (embedder(name, pooling=pooling, chunk_size=size).double() for size in (None, chunk_size))
    tolerance = 1e-6 if pooling == "gem" else 1e-10
    assert_close(gradients(chunked, images()), gradients(whole, images()), tolerance)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_gradient_in_float32(name):
    assert_close(gradients(embedder(name, chunk_size=3), images()), gradients(embedder(name), images()), 1e-5)


class WithoutCheckpoint(TimmEmbedder):
    """Keeps everything of every chunk."""

    def _in_chunks(self, batch):
        return torch.cat([self._embed(chunk) for chunk in batch.split(self.chunk_size)])


def random_embedder(kind, **changes):
    torch.manual_seed(0)
    arguments = {"pretrained": False, "image_size": 32, "chunk_size": 3, "dropout": 0.3, "drop_path_rate": 0.4}
    return kind("test_vit", 8, **{**arguments, **changes})


def test_what_is_dropped_is_dropped_the_second_time():
    expected = gradients(random_embedder(WithoutCheckpoint), images())
    assert_close(gradients(random_embedder(TimmEmbedder), images()), expected)
    kept = gradients(random_embedder(TimmEmbedder, dropout=0.0, drop_path_rate=0.0), images())
    assert not torch.allclose(kept["head.weight"], expected["head.weight"], rtol=1e-2)


def test_random_numbers_go_on_as_if_nothing_was_computed_twice():
    following = []
    for kind in (WithoutCheckpoint, TimmEmbedder):
        gradients(random_embedder(kind), images())
        following.append(torch.rand(4))
    assert torch.equal(*following)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_autocast_is_that_of_forward_the_second_time(name, dtype):
    found = []
    for kind in (WithoutCheckpoint, TimmEmbedder):
        torch.manual_seed(0)
        model = kind(
            name, 8, pretrained=False, image_size=32, chunk_size=3, freeze_batch_norm="statistics", pooling="gem"
        )
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype):
            embeddings = model(images())
        assert embeddings.dtype == torch.float32
        loss_of(embeddings).backward()  # outside of autocast, as Lightning does it
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_close(found[1], found[0])


def test_a_scaled_loss_is_scaled_once():
    model = embedder(chunk_size=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients(model, images(), scaler)
    scaler.unscale_(optimizer)
    unscaled = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_close(unscaled, gradients(embedder(), images()), 1e-5)


def test_only_chunks_in_evaluation_and_without_gradient(monkeypatch):
    sizes = []
    model = embedder(chunk_size=3)
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("dml.models.embedder.checkpoint", None)  # must not be called
    with torch.no_grad():
        model(images())
    assert sizes == [3, 3, 2]
    torch.testing.assert_close(model.eval()(images()), embedder().eval()(images()))
    assert sizes == [3, 3, 2] * 2


def test_a_batch_of_one_chunk_is_computed_once():
    calls = []
    model = embedder(chunk_size=8)
    model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(model(images())).backward()
    assert len(calls) == 1


def kept_bytes(model, batch):
    """Bytes of the activations that are alive after forward."""
    alive = []

    def watch(module, inputs, output):
        if isinstance(output, torch.Tensor):
            alive.append(weakref.ref(output.untyped_storage()))
            sizes[id(output.untyped_storage())] = output.untyped_storage().nbytes()

    sizes = {}
    for module in model.backbone.modules():
        module.register_forward_hook(watch)
    embeddings = model(batch)
    gc.collect()
    storages = {
        id(storage): storage.nbytes() for storage in (reference() for reference in alive) if storage is not None
    }
    return sum(storages.values()), embeddings


def saved_bytes(model, batch):
    """Bytes that autograd itself keeps for backward, outside of what is computed again."""
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings = model(batch)
    weights.add(batch.untyped_storage().data_ptr())  # of uint8: a chunk is computed from it again
    return sum(size for pointer, size in saved.items() if pointer not in weights), embeddings


@pytest.mark.parametrize("measure", [kept_bytes, saved_bytes])
def test_activations_of_a_chunk_are_not_kept(measure):
    whole, kept_graph = measure(embedder(), images(16))
    chunked, _ = measure(embedder(chunk_size=2), images(16))
    more, _ = measure(embedder(chunk_size=2), images(32))
    assert whole > 1_000_000
    assert chunked < whole / 100
    assert more <= 2 * chunked < whole / 100
    assert kept_graph.requires_grad


def running(model):
    return {name: value for name, value in model.named_buffers() if "running" in name or "num_batches" in name}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_running_statistics_count_each_chunk_once(name, momentum):
    chunked = embedder(name, chunk_size=3, freeze_batch_norm=None)
    for layer in batch_norms(chunked):
        layer.momentum = momentum
    expected = copy.deepcopy(chunked)
    with torch.no_grad():
        for chunk in images().split(3):
            expected(chunk)
    with pytest.warns(UserWarning, match=SEES_CHUNKS):
        embeddings = chunked(images())
    loss_of(embeddings).backward()
    expected, actual = running(expected), running(chunked)
    assert {int(value) for name, value in actual.items() if "num_batches" in name} == {3}
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_batch_norm_in_training_has_the_gradient_of_its_chunks():
    found = []
    for kind in (WithoutCheckpoint, TimmEmbedder):
        torch.manual_seed(0)
        model = kind("test_resnet", 8, pretrained=False, image_size=32, chunk_size=3)
        model._warned_of_chunks = True
        found.append(gradients(model, images()))
    assert_close(found[1], found[0])


def test_what_batch_norm_does_with_chunks_is_said_once(recwarn):
    model = embedder(chunk_size=3, freeze_batch_norm=None)
    model(images())
    model(images())
    model.eval()(images())
    assert sum(SEES_CHUNKS in str(warning.message) for warning in recwarn) == 1
    frozen = embedder(chunk_size=3)
    frozen(images())
    assert sum(SEES_CHUNKS in str(warning.message) for warning in recwarn) == 1


def synchronised():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.BatchNorm2d(4, track_running_stats=False))
    return layers.train()


@pytest.mark.parametrize("build", [lambda: embedder(freeze_batch_norm=None).backbone, synchronised])
def test_layers_are_as_before_after_an_error(build):
    backbone = build()
    before = [(layer.momentum, layer.num_batches_tracked) for layer in batch_norms(backbone)]
    context = Recomputation(backbone)

    def fail():
        with context:
            assert batch_norms(backbone)[0].momentum == 0
            raise RuntimeError("midway")

    for _ in range(2):  # it can be entered again
        with pytest.raises(RuntimeError, match="midway"):
            fail()
        after = [(layer.momentum, layer.num_batches_tracked) for layer in batch_norms(backbone)]
        for (momentum, counted), (old_momentum, old_counted) in zip(after, before, strict=True):
            assert momentum == old_momentum
            assert counted is old_counted


def test_backward_twice():
    model = embedder(chunk_size=3)
    loss = loss_of(model(images()))
    loss.backward(retain_graph=True)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_embeddings_are_normalised_outside_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = embedder(chunk_size=3)(images())
    torch.testing.assert_close(embeddings, normalize(embeddings, dim=1))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8))


def test_a_chunk_has_at_least_one_image():
    with pytest.raises(ValueError, match="chunk_size is 0; it must be at least 1"):
        embedder(chunk_size=0)
