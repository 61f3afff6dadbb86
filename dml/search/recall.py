"""How much of the exact neighbours an index finds, and how fast."""

import time
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from dml.search.kinds import Embeddings

CUTOFFS = (1, 10, 100)
_TIMED = 100  # queries that are searched for one by one
_CLOSE = 1e-5  # of two sums of the same products: a tie


@dataclass(frozen=True)
class Recall:
    """What an index was measured to find.

    Args:
        num_queries: On how many queries.
        recall: Of the exact nearest k, the mean share that is among the k found, by k. What ties with the last of them
            is as good.
        milliseconds: Of a search for the largest k, one query at a time.
        exact_milliseconds: Of an exact search for the same.
    """

    num_queries: int
    recall: dict[str, float]
    milliseconds: float
    exact_milliseconds: float


def measure_recall(
    index: faiss.Index, gallery: Embeddings, queries: Embeddings, own_rows: npt.NDArray[np.int64]
) -> Recall:
    """Compare an index with an exact search.

    Args:
        index: Of ``gallery``.
        gallery: ``[N, D]``.
        queries: ``[Q, D]``.
        own_rows: ``[Q]``, the row of each query in the gallery, -1 if it has none. No query counts as found by itself.
    """
    exact = faiss.IndexFlatIP(gallery.shape[1])
    exact.add(gallery)
    others = len(gallery) - int((own_rows >= 0).any())
    cutoffs = [k for k in CUTOFFS if k <= others] or [others]
    found = _without_own(_search(index, queries, cutoffs[-1] + 1), own_rows, cutoffs[-1])
    true = _without_own(_search(exact, queries, cutoffs[-1] + 1), own_rows, cutoffs[-1])
    # By the embeddings themselves, whatever scores the index has of them.
    of_found = np.where(found >= 0, _scores(gallery, queries, found), -np.inf)
    of_true = _scores(gallery, queries, true)
    recall = {
        f"recall@{k}": float((of_found[:, :k] >= of_true[:, k - 1 : k] - _CLOSE).mean()) for k in cutoffs if k > 0
    }
    milliseconds = [_milliseconds(each, queries[:_TIMED], cutoffs[-1] + 1) for each in (index, exact)]
    return Recall(len(queries), recall, *milliseconds)


def _search(index: faiss.Index, queries: Embeddings, k: int) -> npt.NDArray[np.int64]:
    rows: npt.NDArray[np.int64] = index.search(queries, min(k, index.ntotal))[1]
    return rows


def _without_own(rows: npt.NDArray[np.int64], own_rows: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """The first k of each row that are not the query itself; missing ones, -1, last."""
    is_out = (rows == own_rows[:, None]) | (rows < 0)
    order = np.argsort(is_out, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(rows, order, axis=1)
    return np.where(np.take_along_axis(is_out, order, axis=1), -1, kept)


def _scores(gallery: Embeddings, queries: Embeddings, rows: npt.NDArray[np.int64]) -> Embeddings:
    # A query at a time: of all at once, the neighbours would be a copy of many galleries.
    scores = [gallery[neighbours] @ query for query, neighbours in zip(queries, rows, strict=True)]
    return np.stack(scores).astype(np.float32)


def _milliseconds(index: faiss.Index, queries: Embeddings, k: int) -> float:
    k = min(k, index.ntotal)
    index.search(queries[:1], k)
    started = time.perf_counter()
    for row in range(len(queries)):
        index.search(queries[row : row + 1], k)
    return 1000 * (time.perf_counter() - started) / len(queries)
