"""The mathematics of ranking. Imports torch only; knows no loss, no dataset, no Lightning."""

from dml.ranking.binned import Bins, binned_ranks
from dml.ranking.blackbox import blackbox_ranks
from dml.ranking.chunked import check_chunk_size, query_chunks, shared_queries, sum_over_queries
from dml.ranking.exact import exact_ranks
from dml.ranking.measures import (
    SoftRecall,
    average_precision,
    mean_average_precision_at_r,
    ndcg,
    r_precision,
    recall_at_k,
    tie_aware_average_precision,
)
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.relevance import exponential_gain, shared_levels, split_over_population
from dml.ranking.steps import Sigmoid, Step, UpperBound, heaviside

__all__ = [
    "Bins",
    "Ranks",
    "Sigmoid",
    "SoftRecall",
    "Step",
    "UpperBound",
    "average_precision",
    "binned_ranks",
    "blackbox_ranks",
    "check_chunk_size",
    "exact_ranks",
    "exponential_gain",
    "heaviside",
    "mean_average_precision_at_r",
    "ndcg",
    "pairwise_ranks",
    "query_chunks",
    "r_precision",
    "recall_at_k",
    "shared_levels",
    "shared_queries",
    "split_over_population",
    "sum_over_queries",
    "tie_aware_average_precision",
]
