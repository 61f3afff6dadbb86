"""The mathematics of ranking. Imports torch only; knows no loss, no dataset, no Lightning."""

from dml.ranking.binned import Bins, binned_ranks
from dml.ranking.blackbox import blackbox_ranks
from dml.ranking.chunked import check_chunk_size, query_chunks, shared_queries, sum_over_queries
from dml.ranking.exact import Ties, exact_ranks, ranks_of_pairs
from dml.ranking.measures import (
    SoftRecall,
    average_precision,
    average_precision_at_k,
    average_set_intersection,
    found_at_k,
    mean_average_precision_at_r,
    ndcg,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
    tie_aware_average_precision,
)
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.relevance import exponential_gain, shared_levels, split_over_population
from dml.ranking.scores import ScorePrecision, score_blocks
from dml.ranking.steps import Sigmoid, Step, UpperBound, heaviside

__all__ = [
    "Bins",
    "Ranks",
    "ScorePrecision",
    "Sigmoid",
    "SoftRecall",
    "Step",
    "Ties",
    "UpperBound",
    "average_precision",
    "average_precision_at_k",
    "average_set_intersection",
    "binned_ranks",
    "blackbox_ranks",
    "check_chunk_size",
    "exact_ranks",
    "exponential_gain",
    "found_at_k",
    "heaviside",
    "mean_average_precision_at_r",
    "ndcg",
    "pairwise_ranks",
    "precision_at_k",
    "query_chunks",
    "r_precision",
    "ranks_of_pairs",
    "recall_at_k",
    "reciprocal_rank",
    "score_blocks",
    "shared_levels",
    "shared_queries",
    "split_over_population",
    "sum_over_queries",
    "tie_aware_average_precision",
]
