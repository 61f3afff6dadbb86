"""Rankings to test with, and what it means for two to be the same."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

GRID = [*np.linspace(-1, 1, 9).tolist(), -0.0]  # few values: many ties, half of them negative
LEVELS = [0.0, 1 / 3, 2 / 3, 1.0]


@st.composite
def rankings(draw, levels=(0.0, 1.0), scores=tuple(GRID), dtype=np.float64):
    """Scores, relevance and validity of up to 4 queries against up to 9 items."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    drawn = draw(arrays(dtype, shape, elements=st.sampled_from(scores)))
    relevance = draw(arrays(np.float64, shape, elements=st.sampled_from(levels))).astype(dtype)
    return torch.from_numpy(drawn), torch.from_numpy(relevance), torch.from_numpy(draw(arrays(bool, shape)))


def untied_ranking(num_queries, num_items, relevant=0.4, valid=0.8, dtype=torch.float64, seed=0):
    """Normal scores, all different; a share of the items is relevant and in the gallery, but for no query the same."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_queries, num_items, generator=generator, dtype=torch.float64)
    is_relevant = torch.rand(scores.shape, generator=generator) < relevant
    return scores.to(dtype), is_relevant.to(dtype), torch.rand(scores.shape, generator=generator) < valid


def class_batch(sizes, dimension=6, seed=0):
    """Scores, relevance and validity of a batch with classes of these sizes, each query left out of its own gallery."""
    embeddings = torch.randn(sum(sizes), dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return embeddings @ embeddings.T, (labels[:, None] == labels).double(), ~torch.eye(len(labels), dtype=torch.bool)


@st.composite
def levelled_rankings(draw):
    """Relevance is positive exactly where levels are, and otherwise has nothing to do with them."""
    scores, levels, valid = draw(rankings([0.0, 1.0, 2.0, 3.0]))
    gains = draw(arrays(np.float64, tuple(scores.shape), elements=st.sampled_from([0.125, 0.5, 1.0, 2.5])))
    return scores, torch.from_numpy(gains) * (levels > 0), valid, levels


def gradient(ranks, scores, rank_weight=1.0, hrank_weight=1.0):
    """Gradient of an arbitrary combination of the ranks with respect to the scores."""
    pair = torch.arange(len(ranks.rank), dtype=ranks.rank.dtype)
    value = (rank_weight * torch.cos(pair) * ranks.rank + hrank_weight * torch.sin(pair + 1) * ranks.hrank).sum()
    if not value.requires_grad:  # every step was flat
        return torch.zeros_like(scores)
    return torch.autograd.grad(value, scores, retain_graph=True, materialize_grads=True)[0]


def assert_same_ranks(actual, expected, tolerance=1e-10):
    assert actual.num_queries == expected.num_queries
    assert actual.query.dtype == torch.long
    for name in ("query", "relevance", "rank", "hrank", "weight"):
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), rtol=tolerance, atol=tolerance, msg=name
        )
