"""The mathematics of ranking. Imports torch only; knows no loss, no dataset, no Lightning."""

from dml.ranking.chunked import over_queries
from dml.ranking.exact import exact_ranks
from dml.ranking.measures import average_precision, mean_average_precision_at_r, r_precision, recall_at_k
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.steps import Sigmoid, Step, heaviside

__all__ = [
    "Ranks",
    "Sigmoid",
    "Step",
    "average_precision",
    "exact_ranks",
    "heaviside",
    "mean_average_precision_at_r",
    "over_queries",
    "pairwise_ranks",
    "r_precision",
    "recall_at_k",
]
