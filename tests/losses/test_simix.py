import copy

import pytest
import torch
from torch import nn

from dml.losses import RecallAtKLoss, SiMix, SmoothAPLoss, SmoothHAPLoss
from tests.losses.batches import assert_same, batch


class Recorder(nn.Module):
    """Keeps what it is called with."""

    def forward(self, embeddings, labels, *, ref_emb=None, ref_labels=None, include_batch=False):
        self.seen = embeddings, labels, ref_emb, ref_labels
        return embeddings.sum()


def mixtures_of(embeddings, labels, seed=0):
    recorder = Recorder()
    SiMix(recorder, seed=seed)(embeddings, labels)
    mixed, mixed_labels, *_ = recorder.seen
    assert torch.equal(mixed[: len(labels)], embeddings)
    assert torch.equal(mixed_labels[: len(labels)], labels)
    return mixed[len(labels) :], mixed_labels[len(labels) :]


@pytest.mark.parametrize("num_levels", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 2, 5, 7), (1, 1)], ids=str)
def test_every_pair_of_a_class_adds_a_mixture(sizes, num_levels):
    embeddings, labels = batch(sizes, levels=2)
    labels = labels[:, 0] if num_levels == 0 else labels[:, :num_levels]
    mixtures, mixed_labels = mixtures_of(embeddings, labels)
    assert mixed_labels.shape[1:] == labels.shape[1:]
    classes = labels.reshape(len(labels), -1)[:, 0].tolist()
    size = len(classes)
    pairs = [(one, other) for one in range(size) for other in range(one + 1, size) if classes[one] == classes[other]]
    assert len(mixtures) == len(pairs) == sum(size * (size - 1) // 2 for size in sizes)
    assert mixed_labels.tolist() == [labels[one].tolist() for one, _ in pairs]
    for mixture, (one, other) in zip(mixtures, pairs, strict=True):
        edge = embeddings[one] - embeddings[other]
        share = (mixture - embeddings[other]) @ edge / edge.square().sum()
        assert 0 < share < 1
        torch.testing.assert_close(mixture, share * embeddings[one] + (1 - share) * embeddings[other])


def test_mixtures_are_not_brought_back_to_unit_norm():
    mixtures, _ = mixtures_of(*batch((2, 5, 7)))
    assert mixtures.norm(dim=1).max() < 1
    assert mixtures.norm(dim=1).min() < 0.9


def test_shares_are_uniform():
    embeddings, labels = torch.tensor([[0.0], [1.0]]).repeat(100, 1), torch.zeros(200, dtype=torch.long)
    mixtures, _ = mixtures_of(embeddings, labels)
    shares = mixtures[(mixtures > 0) & (mixtures < 1)]  # of pairs of a 0 and a 1
    assert len(shares) == 100 * 100
    expected = torch.linspace(0.05, 0.95, 10)
    torch.testing.assert_close(shares.quantile(expected), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("loss", [SmoothAPLoss(0.1), SmoothHAPLoss(0.1), RecallAtKLoss(temperature=0.1, chunk_size=5)])
def test_is_the_loss_of_the_mixed_batch(loss):
    embeddings, labels = batch((1, 2, 5, 4))
    mixtures, mixed_labels = mixtures_of(embeddings, labels, seed=3)
    expected = loss(torch.cat([embeddings, mixtures]), torch.cat([labels, mixed_labels]))
    assert_same(SiMix(loss, seed=3)(embeddings, labels), expected, embeddings)
    assert expected != loss(embeddings, labels)


def test_gradient_flows_through_the_mixtures():
    embeddings, labels = batch((2, 3, 4), dimension=3)
    assert torch.autograd.gradcheck(lambda embeddings: SiMix(SmoothAPLoss(0.1), seed=3)(embeddings, labels), embeddings)


def test_mixtures_are_queries_but_no_references():
    (embeddings, labels), (references, ref_labels) = batch((3, 4)), batch((3, 2), seed=1)
    recorder = Recorder()
    SiMix(recorder)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    assert len(recorder.seen[0]) == 7 + 3 + 6
    assert recorder.seen[2] is references
    assert recorder.seen[3] is ref_labels
    loss = SmoothAPLoss(0.1)
    mixtures, mixed_labels = mixtures_of(embeddings, labels)
    actual = SiMix(loss)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    queries = torch.cat([embeddings, mixtures]), torch.cat([labels, mixed_labels])
    expected = loss(*queries, ref_emb=references, ref_labels=ref_labels)
    assert_same(actual, expected, (embeddings, references))


def test_draws_are_those_of_the_seed():
    embeddings, labels = batch()
    first, second = mixtures_of(embeddings, labels, seed=1), mixtures_of(embeddings, labels, seed=1)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], mixtures_of(embeddings, labels, seed=2)[0])


def test_draws_do_not_look_at_the_global_generator():
    embeddings, labels = batch()
    state = torch.get_rng_state()
    mixtures_of(embeddings, labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("copied", ["state_dict", "deepcopy"])
def test_draws_go_on_where_they_were_saved(copied):
    embeddings, labels = batch()
    loss = SiMix(SmoothAPLoss(0.1), seed=1)
    before = loss(embeddings, labels)
    if copied == "deepcopy":
        resumed = copy.deepcopy(loss)
    else:
        resumed = SiMix(SmoothAPLoss(0.1), seed=2)
        resumed.load_state_dict(loss.state_dict())
    after = loss(embeddings, labels)
    assert before != after
    assert resumed(embeddings, labels) == after
    assert resumed(embeddings, labels) == loss(embeddings, labels)


def test_reports_what_the_loss_reports():
    embeddings, labels = batch((1, 4, 1), levels=1)
    loss = SiMix(SmoothAPLoss())
    loss(embeddings, labels)
    assert loss.logged == {"queries_left_out": 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_has_the_precision_of_the_embeddings(dtype):
    embeddings, labels = batch(dtype=dtype)
    value = SiMix(SmoothAPLoss())(embeddings, labels)
    assert value.dtype == torch.autograd.grad(value, embeddings)[0].dtype == dtype


def test_empty_batch_is_zero_with_zero_gradient():
    embeddings = torch.empty(0, 5, requires_grad=True)
    value = SiMix(SmoothAPLoss())(embeddings, torch.empty(0, 2, dtype=torch.long))
    assert value == 0
    value.backward()
    assert embeddings.grad.shape == (0, 5)
