"""Rank losses by definition: ranks in plain loops, relevance and measures written out; slow, differentiable."""

import math

import torch

from dml.ranking.reference import reference_ranks


def shared_levels(labels, ref_labels):
    """How many levels each item shares with each query ``[Q, N]``."""
    return torch.tensor(
        [[sum(map(int.__eq__, own, other)) for other in ref_labels.tolist()] for own in labels.tolist()]
    )


def split_over_population(levels, exponent=1.0):
    """Relevance of each item of a gallery ``[N]``: items of a level share its weight. As published, in float32."""
    return torch.tensor([level**exponent / levels.count(level) for level in levels], dtype=torch.float32).double()


def exponential_gain(levels):
    return torch.tensor([2**level - 1 for level in levels], dtype=torch.float64)


def binary(levels):
    return torch.tensor([float(level > 0) for level in levels], dtype=torch.float64)


def average_precision(ranks):
    return (ranks.hrank / ranks.rank).sum() / ranks.relevance.sum()


def ndcg(ranks):
    best_first = sorted(ranks.relevance.tolist(), reverse=True)
    ideal = sum(gain / math.log2(1 + place) for place, gain in enumerate(best_first, start=1))
    return (ranks.relevance / torch.log2(1 + ranks.rank)).sum() / ideal


def recall(at_k, temperature):
    def measure(ranks):
        retrieved = [1 / (1 + torch.exp((ranks.rank - k) / temperature)) for k in at_k]
        return sum(each.sum() / min(k, len(ranks.rank)) for k, each in zip(at_k, retrieved, strict=True)) / len(at_k)

    return measure


def defined_loss(measure, relevance, steps, queries, gallery=None, *, include_self=True):
    """Mean over the queries that have something to retrieve of 1 less their measure.

    Args:
        measure: From the ranks of one query to a number.
        relevance: From the levels that items share with the query to their relevance.
        steps: The positive and the negative one.
        queries: Embeddings and labels.
        gallery: Embeddings and labels; by default the queries.
        include_self: Whether a query is in its own gallery.
    """
    (embeddings, labels), (ref_emb, ref_labels) = queries, gallery or queries
    scores, levels = embeddings @ ref_emb.T, shared_levels(labels, ref_labels)
    costs = []
    for query in range(len(labels)):
        others = [item for item in range(len(ref_labels)) if gallery is not None or item != query]
        if not levels[query, others].any():
            continue
        items = list(range(len(ref_labels))) if include_self else others
        own_levels = levels[query, items]
        ranks = reference_ranks(
            scores[query, items].unsqueeze(0),
            relevance(own_levels.tolist()).unsqueeze(0),
            torch.ones(1, len(items), dtype=torch.bool),
            positive_step=steps[0],
            negative_step=steps[1],
            levels=own_levels.unsqueeze(0),
        )
        costs.append(1 - measure(ranks))
    return torch.stack(costs).mean()
