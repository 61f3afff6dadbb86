"""Any measure, a few queries at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def over_queries(measure: Callable[[slice], Tensor], num_queries: int, chunk_size: int | None) -> Tensor:
    """Measure a chunk of queries at a time; scores are recomputed in the backward pass.

    Memory is that of one chunk, ``O(chunk_size * N)`` instead of ``O(Q * N)``, for twice the forward cost.

    Args:
        measure: From a range of queries to a value for each; computes what it needs (scores, relevance) inside.
        num_queries: ``Q``.
        chunk_size: Queries at a time; None for all at once.

    Returns:
        ``[Q]``.
    """
    if chunk_size is None or chunk_size >= num_queries:
        return measure(slice(0, num_queries))
    chunks = (slice(start, min(start + chunk_size, num_queries)) for start in range(0, num_queries, chunk_size))
    # The scores of a chunk are a deterministic function: no random state needs to be kept for the second pass.
    return torch.cat([checkpoint(measure, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])
