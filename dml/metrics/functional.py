"""Retrieval metrics of embeddings at hand, without a trainer or a metric's state."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from dml.metrics.evaluation import Evaluation
from dml.metrics.hierarchical import HierarchicalMetrics
from dml.metrics.retrieval import RetrievalMetrics
from dml.metrics.search import Search, in_precision

_SEARCH = Search()


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    index: Tensor | None = None,
    ref_index: Tensor | None = None,
    recall_at: Sequence[int] = (1, 10, 100, 1000),
    also: Sequence[str] = (),
    level: int = 0,
    hierarchical: bool = False,
    search: Search = _SEARCH,
) -> dict[str, float]:
    """AP, mAP@R, R-precision and Recall@k, or what else is asked for, averaged over queries.

    Leave-one-out if there is no gallery: each embedding retrieves all others. The ranks are exact and over the whole
    gallery; ties count against, unless ``search`` says otherwise.

    Args:
        embeddings: ``[Q, D]`` of the queries, unit norm: scores are inner products.
        labels: ``[Q]`` or ``[Q, L]``, finest level first.
        ref_emb: ``[N, D]`` of the gallery, on any device, or in a file that is mapped into memory.
        ref_labels: ``[N]`` or ``[N, L]``.
        index: ``[Q]``, which image each query is. A query does not retrieve the item of its own index; without indices,
            no item of ``ref_emb`` is a query.
        ref_index: ``[N]``, which image each item of the gallery is.
        recall_at: Values of k.
        also: More measures by name, see :class:`~dml.metrics.RetrievalMetrics`.
        level: Which column of the labels is the class.
        hierarchical: Whether to measure all levels, and H-AP, nDCG and ASI: see
            :class:`~dml.metrics.HierarchicalMetrics`.
        search: What the gallery is ranked by, what happens to ties.

    Returns:
        Name and value of each measure; 0, with a warning, if no query has anything to retrieve.

    Raises:
        ValueError: If shapes do not fit, an embedding is not finite, or a measure is not known.

    Example:
        >>> embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.3, 1.0], [0.2, 1.0]]))
        >>> retrieval_metrics(embeddings, torch.tensor([0, 0, 1, 1]), recall_at=[1], also=["MRR"])
        {'AP': 1.0, 'mAP@R': 1.0, 'RP': 1.0, 'R@1': 1.0, 'MRR': 1.0}
    """
    if hierarchical and level != 0:
        raise ValueError(f"level is {level}, and hierarchical measures all levels; leave one of them out")
    if hierarchical:
        metrics: RetrievalMetrics = HierarchicalMetrics(recall_at, also=also, search=search)
    else:
        metrics = RetrievalMetrics(recall_at, level, also=also, search=search)
    values = per_query_metrics(
        embeddings, labels, ref_emb, ref_labels, index=index, ref_index=ref_index, metrics=metrics
    )
    if all(value.isnan().all() for value in values.values()):
        rank_zero_warn("no query has a relevant item in the gallery: every metric is 0")
    return {name: float(value) for name, value in metrics.mean(values).items()}


def per_query_metrics(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    index: Tensor | None = None,
    ref_index: Tensor | None = None,
    metrics: RetrievalMetrics | None = None,
) -> dict[str, Tensor]:
    """Each measure of each query ``[Q]``, NaN where it has nothing to retrieve.

    Args:
        embeddings: See :func:`retrieval_metrics`, as for all but the last.
        labels: ``[Q]`` or ``[Q, L]``.
        ref_emb: ``[N, D]``.
        ref_labels: ``[N]`` or ``[N, L]``.
        index: ``[Q]``.
        ref_index: ``[N]``.
        metrics: What to measure, and how to search; what it holds already is of no account. By default
            :class:`~dml.metrics.RetrievalMetrics` as it is.
    """
    given = RetrievalMetrics() if metrics is None else metrics
    metrics = given if given.device == embeddings.device else copy.deepcopy(given).to(embeddings.device)
    queries = in_precision(embeddings, given.search)
    gallery = None if ref_emb is None else ref_emb.detach()  # converted a tile at a time
    evaluation = _evaluation(queries, labels, gallery, ref_labels, index, ref_index)
    num_levels = evaluation.query_labels.shape[1]
    if not 0 <= metrics.level < num_levels:
        raise ValueError(f"level is {metrics.level}; the labels have levels 0 to {num_levels - 1}")
    answered, values = metrics.per_query_of(evaluation)
    table = {name: value.new_full((len(embeddings),), torch.nan) for name, value in values.items()}
    return {name: row.index_copy(0, answered, values[name]) for name, row in table.items()}


def _evaluation(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    index: Tensor | None,
    ref_index: Tensor | None,
) -> Evaluation:
    """Queries and gallery; the index of a query is its row."""
    if (ref_emb is None) != (ref_labels is None):
        raise ValueError("ref_emb and ref_labels belong together: give both, or neither for leave-one-out")
    if (index is None) != (ref_index is None) or (ref_emb is None and index is not None):
        raise ValueError("index and ref_index belong together, and to ref_emb: leave-one-out knows what is what")
    given = [("labels", labels, embeddings), ("index", index, embeddings)]
    of_gallery = [("ref_labels", ref_labels, ref_emb), ("ref_index", ref_index, ref_emb)]
    for name, values, about in [*given, *of_gallery]:
        if values is not None and about is not None and len(values) != len(about):
            raise ValueError(f"{name} has {len(values)} rows; there are {len(about)} embeddings")
    rows, device = torch.arange(len(embeddings), device=embeddings.device), embeddings.device
    labels = _of_levels(labels, device)
    if ref_emb is None or ref_labels is None:
        own, ref_emb, ref_labels = rows, embeddings, labels
    else:
        own = torch.full_like(rows, -1)
        ref_labels = _of_levels(ref_labels, device)
        if index is not None and ref_index is not None:
            own = _places(index.to(device), ref_index.to(device))
    if labels.shape[1] != ref_labels.shape[1]:
        raise ValueError(f"labels have {labels.shape[1]} levels and ref_labels {ref_labels.shape[1]}; they must agree")
    places = torch.arange(len(ref_emb), device=device)
    return Evaluation(rows, embeddings, labels, own, places, ref_emb, ref_labels)


def _of_levels(labels: Tensor, device: torch.device) -> Tensor:
    if labels.ndim not in (1, 2):
        raise ValueError(f"labels have shape {list(labels.shape)}; they must be [Q] or [Q, L]")
    return (labels.unsqueeze(1) if labels.ndim == 1 else labels).to(device)


def _places(index: Tensor, ref_index: Tensor) -> Tensor:
    """Where in ``ref_index [N]`` each ``index [Q]`` is, -1 where it is not.

    Raises:
        ValueError: If one is there twice.
    """
    ordered, order = ref_index.sort()
    repeated = ordered[1:][ordered.diff() == 0]
    if len(repeated):
        raise ValueError(f"ref_index has {int(repeated[0])} more than once; it says which image each item is")
    if len(ordered) == 0:
        return torch.full_like(index, -1)
    place = torch.searchsorted(ordered, index).clamp(max=len(ordered) - 1)
    return torch.where(ordered[place] == index, order[place], -1)
