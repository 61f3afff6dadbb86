import dataclasses
import itertools

import pytest
import torch

from dml.ranking import blocks
from dml.ranking.binned import Bins, binned_ranks
from dml.ranking.blackbox import blackbox_ranks
from dml.ranking.blocks import gallery_of, walk
from dml.ranking.exact import exact_ranks
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.steps import Sigmoid, UpperBound
from tests.ranking.rankings import assert_same_ranks, class_batch, gradient, untied_ranking

UPPER_BOUND = UpperBound(0.5, 3.0, 0.25)


def ragged(num_queries=13, num_items=17):
    """From no relevant item to most of the gallery."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(-6, 6, (num_queries, num_items), generator=generator).double() / 6
    share = torch.linspace(0, 0.9, num_queries)[torch.randperm(num_queries, generator=generator), None]
    relevance = torch.rand(scores.shape, generator=generator) * (torch.rand(scores.shape, generator=generator) < share)
    return scores, relevance.double(), torch.rand(scores.shape, generator=generator) < 0.9


def balanced(num_queries=13, num_items=17, num_relevant=5, valid=0.9):
    """Equally many relevant items for every query, wherever they are."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.randint(-6, 6, (num_queries, num_items), generator=generator).double() / 6
    chosen = torch.rand(scores.shape, generator=generator).argsort(dim=1) < num_relevant
    relevance = torch.randint(1, 4, scores.shape, generator=generator).double() / 3 * chosen
    return scores, relevance, (torch.rand(scores.shape, generator=generator) < valid) | chosen


RANKINGS = {
    "ragged": ragged(),
    "balanced": balanced(),
    "balanced, all in the gallery": balanced(valid=1.0),
    "balanced batch": class_batch((3,) * 5),
    "ragged batch": class_batch((1, 4, 2, 1, 6)),
    "everything relevant": balanced(num_relevant=17),
    "one query": balanced(num_queries=1),
    "one item": (torch.zeros(5, 1), torch.tensor([[1.0], [0], [1], [1], [0]]), torch.tensor([[True]] * 4 + [[False]])),
}
every_ranking = pytest.mark.parametrize("ranking", RANKINGS.values(), ids=RANKINGS.keys())
every_size = pytest.mark.parametrize("size", [1, 64, 200])


def pairwise(scores, relevance, valid):
    return pairwise_ranks(scores, relevance, valid, positive_step=Sigmoid(0.5), negative_step=UPPER_BOUND)


def levelled(scores, relevance, valid):
    levels = 4 * relevance.bool() - relevance
    return pairwise_ranks(
        scores, relevance, valid, levels=levels, positive_step=UPPER_BOUND, negative_step=Sigmoid(0.5)
    )


def binned_in_five(scores, relevance, valid):
    return binned_ranks(scores, relevance, valid, bins=Bins(5, -0.9, 0.7))


def blackbox(scores, relevance, valid):
    return blackbox_ranks(scores, relevance, valid, interpolation=0.5)


every_ranker = pytest.mark.parametrize(
    "ranker", [pairwise, levelled, exact_ranks, binned_in_five, blackbox], ids=lambda ranker: ranker.__name__
)


@pytest.fixture
def block_elements(monkeypatch):
    def set_to(size):
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", size)

    return set_to


@every_size
@every_ranking
@pytest.mark.parametrize(
    "ranker", [pairwise, levelled, exact_ranks, binned_in_five, blackbox], ids=lambda f: f.__name__
)
def test_ranks_do_not_depend_on_the_blocks(ranker, ranking, size, block_elements):
    scores, relevance, valid = ranking
    whole_scores, cut_scores = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    whole = ranker(whole_scores, relevance, valid)
    whole_gradient = gradient(whole, whole_scores)
    block_elements(size)
    cut = ranker(cut_scores, relevance, valid)
    assert_same_ranks(cut, whole)
    torch.testing.assert_close(gradient(cut, cut_scores), whole_gradient, rtol=1e-10, atol=1e-10)


@every_size
@every_ranking
def test_blocks_hold_the_pairs_in_order(ranking, size, block_elements):
    block_elements(size)
    _, relevance, valid = ranking
    walked = list(walk(relevance, valid))
    query, item = ((relevance > 0) & valid).nonzero(as_tuple=True)
    assert torch.cat([block.query for block in walked]).tolist() == query.tolist()
    assert torch.cat([block.item for block in walked]).tolist() == item.tolist()


@every_size
@every_ranking
def test_rows_of_a_block_hold_the_relevant_items(ranking, size, block_elements):
    block_elements(size)
    _, relevance, valid = ranking
    relevant = (relevance > 0) & valid
    for block in walk(relevance, valid):
        rows = torch.arange(len(relevance))[block.rows]
        counts = [int(relevant[row].sum()) for row in rows]
        assert sorted(rows.tolist()) == sorted(set(block.query.tolist()))
        assert counts == sorted(counts, reverse=True)
        assert block.present.sum(dim=1).tolist() == counts
        assert block.num_rows == [sum(count > k for count in counts) for k in range(max(counts))]
        for row, items, present, pair in zip(rows, block.items, block.present, block.pair, strict=True):
            assert items[present].tolist() == relevant[row].nonzero().flatten().tolist()
            assert (block.query[pair[present]] == row).all()
            assert block.item[pair[present]].tolist() == items[present].tolist()
            assert not items[~present].any()


@pytest.mark.parametrize("name", ["ragged", "balanced"])
def test_rows_are_a_view_exactly_if_counts_are_equal(name, block_elements):
    block_elements(10_000)
    (block,) = walk(*RANKINGS[name][1:])
    assert isinstance(block.rows, slice) == (name == "balanced")


@every_size
@every_ranking
def test_a_block_is_as_large_as_it_may_be(ranking, size, block_elements):
    block_elements(size)
    _, relevance, valid = ranking
    num_rows = max(1, size // relevance.shape[1])
    queries = ((relevance > 0) & valid).any(dim=1).nonzero().flatten().tolist()
    expected = [list(rows) for _, rows in itertools.groupby(queries, lambda query: query // num_rows)]
    assert [block.query.unique().tolist() for block in walk(relevance, valid)] == expected


@every_size
@every_ranking
def test_slabs_cover_every_relevant_item_once(ranking, size, block_elements):
    block_elements(size)
    _, relevance, valid = ranking
    for block in walk(relevance, valid):
        for num_columns in (1, 7, relevance.shape[1]):
            covered = torch.zeros_like(block.items)
            for rows, items in block.slabs(num_columns):
                covered[:rows, items] += 1
                slab = block.present[:rows, items]
                assert slab[:, 0].all()
                assert slab.shape[1] == 1 or slab.numel() * num_columns <= size
            assert covered.max() == 1
            assert covered[block.present].all()


@every_ranking
def test_padding_and_back(ranking, block_elements):
    block_elements(64)
    for block in walk(*ranking[1:]):
        values = torch.arange(1.0, len(block.query) + 1)
        padded = block.to_padded(values)
        assert padded.shape == block.items.shape
        assert torch.equal(padded != 0, block.present)
        assert torch.equal(block.to_pairs(padded), values)


def test_queries_without_a_valid_relevant_item_have_no_row():
    relevance = torch.tensor([[0.0, 0.0], [0.0, 0.5], [1.0, 0.0], [1.0, 1.0]])
    valid = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    (block,) = walk(relevance, valid)
    assert block.rows.tolist() == [3, 2]
    assert block.query.tolist() == [2, 3, 3]


@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4), (0, 0)], ids=str)
def test_no_pair_makes_no_block(shape):
    assert list(walk(torch.zeros(shape), torch.ones(shape, dtype=torch.bool))) == []


@every_ranking
def test_the_gallery_of_a_block_has_its_rows(ranking, block_elements):
    block_elements(100)
    scores, relevance, valid = ranking
    for block in walk(relevance, valid):
        expected = torch.where(valid, scores, -torch.inf)[block.rows]
        assert torch.equal(gallery_of(block, scores, valid), expected)


def test_a_complete_balanced_gallery_is_not_copied():
    scores, relevance, valid = RANKINGS["balanced, all in the gallery"]
    (block,) = walk(relevance, valid)
    assert gallery_of(block, scores, valid).data_ptr() == scores.data_ptr()


@dataclasses.dataclass(frozen=True)
class Spy:
    """A step that records how many differences it is given."""

    seen: list

    def __call__(self, difference):
        self.seen.append(difference.numel())
        return difference.sigmoid()

    def slope(self, difference):
        return self(difference) * self(-difference)


def test_no_more_differences_at_a_time_than_a_block_holds(block_elements):
    block_elements(300)
    scores, relevance, valid = untied_ranking(40, 30)
    step = Spy([])
    ranks = pairwise_ranks(scores.requires_grad_(), relevance, valid, positive_step=step, negative_step=step)
    gradient(ranks, scores)
    assert max(step.seen) <= 300
    assert sum(step.seen) >= 2 * len(ranks.query) * 30
