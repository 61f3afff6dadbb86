"""CrossBatchMemory: what is kept, what is left out, and that every loss ranks it."""

import functools

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from torch.nn.functional import normalize

from dml.losses import CalibrationLoss, PairLoss, SupAPLoss, WeightedSum
from dml.memory import CrossBatchMemory
from dml.models import TimmEmbedder
from dml.module import RetrievalModule
from tests.losses.batches import assert_same, batch
from tests.test_module import data, trainer


def images(first, count):
    """A batch of the images ``first`` and on; the embedding of an image names it."""
    index = torch.arange(first, first + count)
    return torch.stack([index, index + 0.5], dim=1), index.unsqueeze(1) % 5, index


def filled(size, *batches, start_after=0):
    memory = CrossBatchMemory(size, start_after)
    for first, count in batches:
        memory.remember(*images(first, count))
    return memory


def recalled(memory, *index):
    found = memory.recall(torch.tensor(index or [-5]))
    return None if found is None else found.embeddings[:, 0].long().tolist()


def test_nothing_is_recalled_before_anything_was_remembered():
    assert recalled(CrossBatchMemory(4)) is None


def test_the_last_ones_are_kept():
    assert sorted(recalled(filled(10, (0, 4), (4, 4)))) == list(range(8))
    assert sorted(recalled(filled(6, (0, 4), (4, 4)))) == [2, 3, 4, 5, 6, 7]
    assert sorted(recalled(filled(6, *((4 * k, 4) for k in range(20))))) == [74, 75, 76, 77, 78, 79]


def test_of_a_batch_that_does_not_fit_the_last_ones_are_kept():
    assert sorted(recalled(filled(3, (0, 8)))) == [5, 6, 7]


def test_labels_belong_to_their_embeddings():
    found = filled(6, (0, 4), (4, 4)).recall(torch.tensor([3]))
    assert torch.equal(found.labels[:, 0], found.embeddings[:, 0].long() % 5)


def test_images_of_the_batch_are_left_out_wherever_they_are():
    memory = filled(10, (0, 4), (4, 4))
    assert sorted(recalled(memory, 5, 0, 99)) == [1, 2, 3, 4, 6, 7]
    assert recalled(memory, *range(8)) == []


def test_it_is_used_after_some_steps():
    memory = CrossBatchMemory(8, start_after=2)
    for step in range(4):
        assert (recalled(memory) is None) == (step < 2)
        memory.remember(*images(step, 1))


def test_what_is_remembered_has_no_gradient_and_is_no_view():
    memory, (embeddings, labels, index) = CrossBatchMemory(4), images(0, 4)
    embeddings.requires_grad_()
    memory.remember(embeddings * 1, labels, index)
    found = memory.recall(torch.tensor([9]))
    assert not found.embeddings.requires_grad
    with torch.no_grad():
        embeddings.zero_()
    assert found.embeddings[:, 0].tolist() == [0, 1, 2, 3]
    memory.remember(*images(4, 4))  # which a step does before it takes the gradient of what it has recalled
    assert found.embeddings[:, 0].tolist() == [0, 1, 2, 3]


def test_it_is_saved_and_restored():
    memory, again = filled(6, (0, 4), (4, 4)), CrossBatchMemory(6)
    again.load_state_dict(memory.state_dict())
    for step in range(3):
        assert recalled(again) == recalled(memory)
        memory.remember(*images(50 + 4 * step, 4))
        assert recalled(again) != recalled(memory)  # a copy
        again.remember(*images(50 + 4 * step, 4))
    assert again.steps == memory.steps == 5


def test_a_memory_of_another_size_is_refused():
    with pytest.raises(ValueError, match="size is 5; the checkpoint has a memory of 6"):
        CrossBatchMemory(5).load_state_dict(filled(6, (0, 4)).state_dict())


@pytest.mark.parametrize(("arguments", "message"), [((0,), "size is 0"), ((4, -1), "start_after is -1")])
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossBatchMemory(*arguments)


def test_calibration_pairs_with_both():
    (embeddings, labels), (others, other_labels) = batch((3, 4, 2)), batch((4, 2, 2), seed=1)
    others = others.detach()
    everything, all_labels = torch.cat([embeddings, others]), torch.cat([labels, other_labels])
    scores, same = embeddings @ everything.T, labels[:, :1] == all_labels[:, 0]
    apart = ~torch.eye(9, 17, dtype=torch.bool)
    positive, negative = (0.9 - scores)[same & apart].clamp(min=0), (scores - 0.6)[~same].clamp(min=0)
    expected = sum(values.sum() / max(1, (values > 0).sum()) for values in (positive, negative))
    actual = CalibrationLoss()(embeddings, labels, ref_emb=others, ref_labels=other_labels, include_batch=True)
    assert_same(actual, expected, embeddings)


@pytest.mark.parametrize(
    ("loss", "miner"),
    [
        (pml.ContrastiveLoss(), None),
        (pml.MultiSimilarityLoss(), None),
        (pml.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
        (pml.TripletMarginLoss(), miners.TripletMarginMiner(type_of_triplets="semihard")),
    ],
    ids=["contrastive", "multi-similarity", "mined", "triplets"],
)
def test_pairs_are_those_of_the_memory_of_pytorch_metric_learning(loss, miner):
    (first, first_labels), (second, second_labels) = batch((3, 4, 2)), batch((4, 3, 2), seed=1)
    first, second = first.detach().float(), second.detach().float().requires_grad_()
    theirs = pml.CrossBatchMemory(loss, embedding_size=8, memory_size=18, miner=miner)
    theirs(first, first_labels[:, 0])
    expected = theirs(second, second_labels[:, 0])
    actual = PairLoss(loss, miner)(second, second_labels, ref_emb=first, ref_labels=first_labels, include_batch=True)
    assert expected > 0
    # In value: theirs takes the batch in the memory as constant, here its pairs are as those of any batch.
    torch.testing.assert_close(actual, expected)
    assert torch.autograd.grad(actual, second)[0].abs().sum() > 0


class Recorded(SupAPLoss):
    """Remembers the sizes of the galleries that it is given."""

    def forward(self, embeddings, labels, *, ref_emb=None, ref_labels=None, include_batch=False):
        self.sizes = [*getattr(self, "sizes", []), 0 if ref_emb is None else len(ref_emb)]
        return super().forward(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels, include_batch=include_batch)


def test_a_run_ranks_what_it_remembers(glyphs_root, tmp_path):
    embedder = TimmEmbedder("test_resnet", 8, pretrained=False, channels=1, image_size=32)
    loss = Recorded()
    module = RetrievalModule(
        embedder, loss, functools.partial(torch.optim.SGD, lr=0.1), memory=CrossBatchMemory(30, start_after=2)
    )
    trainer(tmp_path).fit(module, datamodule=data(glyphs_root))
    # The memory of 30 is used from the third batch of 8, and has room for three and three quarters of them.
    assert loss.sizes[:2] == [0, 0]
    assert len(loss.sizes) > 4
    assert all(8 <= size <= 30 for size in loss.sizes[2:])


def test_a_loss_without_references_is_refused():
    with pytest.raises(ValueError, match=r"memory needs a loss that ranks other embeddings .* forward of Identity"):
        RetrievalModule(
            TimmEmbedder("test_resnet", 8, pretrained=False), torch.nn.Identity(), memory=CrossBatchMemory(4)
        )


def test_every_term_of_a_sum_gets_the_memory():
    (embeddings, labels), (others, other_labels) = batch((3, 4, 2)), batch((4, 2, 2), seed=1)
    references = {"ref_emb": normalize(others.detach(), dim=1), "ref_labels": other_labels, "include_batch": True}
    terms = [SupAPLoss(), CalibrationLoss()]
    expected = sum(term(embeddings, labels, **references) for term in terms)
    assert_same(WeightedSum(terms)(embeddings, labels, **references), expected, embeddings)
