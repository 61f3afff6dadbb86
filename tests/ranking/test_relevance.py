import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.ranking.relevance import shared_levels, split_over_population

LABELS = [0, 1, -1, -2, 2**24, 2**24 + 1, 2**62, 2**62 + 1, -(2**63)]


@st.composite
def labels_of(draw):
    """Labels ``[Q, L]`` of up to 4 queries and ``[N, L]`` of up to 6 items."""
    num_levels = draw(st.integers(1, 4))

    def drawn(most):
        label = st.sampled_from(LABELS)
        rows = draw(st.lists(st.lists(label, min_size=num_levels, max_size=num_levels), max_size=most))
        return torch.tensor(rows, dtype=torch.int64).view(-1, num_levels)

    return drawn(4), drawn(6)


@st.composite
def levels_of(draw):
    """Levels ``[Q, N]`` and which of the items are in the gallery."""
    num_queries, num_items = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    size = num_queries * num_items
    levels = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    valid = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    shape = (num_queries, num_items)
    return torch.tensor(levels, dtype=torch.float32).view(shape), torch.tensor(valid, dtype=torch.bool).view(shape)


@settings(max_examples=100, deadline=None)
@given(labels_of())
def test_shared_levels_match_counting(labels):
    own, others = (tensor.tolist() for tensor in labels)
    expected = [[sum(a == b for a, b in zip(query, item, strict=True)) for item in others] for query in own]
    actual = shared_levels(*labels)
    assert actual.dtype == torch.float32
    assert actual.shape == (len(own), len(others))
    assert actual.tolist() == expected


def test_a_worked_example_of_shared_levels():
    labels = torch.tensor([[3, -1, 0], [4, -1, 0]])
    ref_labels = torch.tensor([[3, -1, 0], [4, -1, 0], [7, -1, 0], [8, 5, 0], [9, 6, 1]])
    assert shared_levels(labels, ref_labels).tolist() == [[3, 2, 2, 1, 0], [2, 3, 2, 1, 0]]


def test_one_level_is_binary():
    labels = torch.tensor([[1], [2]])
    assert shared_levels(labels, torch.tensor([[2], [1], [2]])).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_labels_must_have_as_many_levels():
    with pytest.raises(ValueError, match="zip"):
        shared_levels(torch.zeros(2, 1), torch.zeros(3, 2))


def restated_split(levels, valid, exponent):
    rows = []
    for own, kept in zip(levels.tolist(), valid.tolist(), strict=True):
        population = [level for level, is_kept in zip(own, kept, strict=True) if is_kept]
        rows.append(
            [
                level**exponent / population.count(level) if level > 0 and is_kept else 0.0
                for level, is_kept in zip(own, kept, strict=True)
            ]
        )
    return torch.tensor(rows).view(levels.shape)


@pytest.mark.parametrize("exponent", [1.0, 0.0, 0.5, 3, -1.0])
@settings(max_examples=50, deadline=None)
@given(ranking=levels_of())
def test_the_split_matches_counting(exponent, ranking):
    torch.testing.assert_close(split_over_population(*ranking, exponent=exponent), restated_split(*ranking, exponent))


@settings(max_examples=50, deadline=None)
@given(ranking=levels_of())
def test_relevance_grows_linearly_by_default(ranking):
    torch.testing.assert_close(split_over_population(*ranking), restated_split(*ranking, 1))


def test_a_worked_example_of_the_split():
    levels = torch.tensor([[2.0, 2, 1, 1, 1, 0, 2]])
    valid = torch.tensor([[True, True, True, True, False, True, False]])
    assert split_over_population(levels, valid).tolist() == [[1, 1, 0.5, 0.5, 0, 0, 0]]
    assert split_over_population(levels, valid, exponent=3).tolist() == [[4, 4, 0.5, 0.5, 0, 0, 0]]


@settings(max_examples=50, deadline=None)
@given(ranking=levels_of())
def test_a_level_weighs_the_same_however_many_share_it(ranking):
    levels, valid = ranking
    relevance = split_over_population(levels, valid, exponent=2)
    for own, kept, split in zip(levels, valid, relevance, strict=True):
        for level in range(1, 5):
            present = (own == level) & kept
            assert split[present].sum().item() == pytest.approx(level**2 if present.any() else 0, rel=1e-5)


def test_a_rare_coarse_level_may_outweigh_a_frequent_finer_one():
    (relevance,) = split_over_population(torch.tensor([[2.0] * 5 + [1.0]]), torch.ones(1, 6).bool())
    assert relevance[5] > relevance[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relevance_has_the_precision_of_the_levels(dtype):
    levels = torch.tensor([[2.0, 1, 1, 1]], dtype=dtype)
    relevance = split_over_population(levels, torch.ones(1, 4).bool())
    assert relevance.dtype == dtype
    torch.testing.assert_close(relevance, torch.tensor([[2, 1 / 3, 1 / 3, 1 / 3]], dtype=dtype))


def test_inputs_are_left_alone():
    levels, valid = torch.tensor([[2.0, 1, 0, 1]]), torch.tensor([[True, True, False, False]])
    copies = levels.clone(), valid.clone()
    split_over_population(levels, valid)
    assert torch.equal(levels, copies[0])
    assert torch.equal(valid, copies[1])
