"""How well clusters of the embeddings agree with the classes."""

import importlib.util
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dml.metrics.retrieval import RetrievalMetrics
from dml.metrics.search import Search


class ClusteringMetrics(RetrievalMetrics):
    """What :class:`RetrievalMetrics` gives, and ``NMI`` and ``AMI`` of a clustering of the embeddings.

    Papers of metric learning report NMI; it depends on one run of k-means, and rises with the number of clusters even
    if they are drawn at random, which AMI does not (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020,
    https://arxiv.org/abs/2003.08505). All images are clustered, queries and gallery alike. With as many clusters as
    classes, this takes minutes where there are thousands: for a test, not for each epoch.

    Args:
        recall_at: Values of k.
        level: Which column of the labels is the class, 0 for the finest.
        block_size: Queries ranked at a time.
        also: More measures by name, those of :class:`RetrievalMetrics`.
        search: What the gallery is ranked by; clusters are of the embeddings as they are.
        num_iterations: Of k-means.
        restarts: How many times k-means starts anew; the tightest clusters count.
        seed: Of k-means.

    Raises:
        ValueError: If faiss is not installed, or ``num_iterations`` or ``restarts`` is below 1.
    """

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 10, 100, 1000),
        level: int = 0,
        block_size: int | None = None,
        also: Sequence[str] = (),
        search: Search = Search(),  # noqa: B008  # frozen
        num_iterations: int = 20,
        restarts: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(recall_at=recall_at, level=level, block_size=block_size, also=also, search=search)
        _check(num_iterations, restarts)
        self.num_iterations, self.restarts, self.seed = num_iterations, restarts, seed

    def compute(self) -> dict[str, Tensor]:
        """Mean of each measure over the queries that have something to retrieve, and agreement of the clusters."""
        values = super().compute()
        images = self.images()
        agreement = clustering_metrics(
            images.embeddings,
            images.labels[:, self.level],
            num_iterations=self.num_iterations,
            restarts=self.restarts,
            seed=self.seed,
        )
        return {**values, **{name: torch.tensor(value, device=self.device) for name, value in agreement.items()}}


def clustering_metrics(
    embeddings: Tensor, labels: Tensor, *, num_iterations: int = 20, restarts: int = 1, seed: int = 0
) -> dict[str, float]:
    """Agreement of the classes with as many clusters, found by plain k-means: 1 at best.

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]``.
        num_iterations: Of k-means.
        restarts: How many times k-means starts anew; the tightest clusters count.
        seed: Of k-means.

    Returns:
        ``NMI``, mutual information over the arithmetic mean of both entropies, and ``AMI``, the same adjusted for
        chance: about 0 for clusters drawn at random.

    Raises:
        ValueError: If faiss is not installed, an option is below 1, there are no images, or not one label for each.
    """
    _check(num_iterations, restarts)
    # A second to import, which those who do not cluster should not pay.
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or len(labels) == 0:
        shapes = f"{list(embeddings.shape)} and {list(labels.shape)}"
        raise ValueError(f"embeddings and labels are {shapes}; they must be [N, D] and [N], of at least one image")
    classes = labels.cpu().numpy()
    clusters = _clusters(embeddings, len(np.unique(classes)), num_iterations, restarts, seed)
    agreement = {"NMI": normalized_mutual_info_score, "AMI": adjusted_mutual_info_score}
    return {name: float(score(classes, clusters)) for name, score in agreement.items()}


def _clusters(embeddings: Tensor, number: int, num_iterations: int, restarts: int, seed: int) -> npt.NDArray[np.int64]:
    """The cluster of each image ``[N]``."""
    import faiss  # not everyone has it

    points = np.ascontiguousarray(embeddings.detach().float().cpu().numpy())
    # No bounds on the points of a cluster: faiss would complain of small classes, and leave out points of large ones.
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    kmeans = faiss.Kmeans(points.shape[1], number, niter=num_iterations, nredo=restarts, seed=seed, **bounds)
    kmeans.train(points)
    clusters: npt.NDArray[np.int64] = kmeans.assign(points)[1]
    return clusters


def _check(num_iterations: int, restarts: int) -> None:
    if importlib.util.find_spec("faiss") is None:  # said before the evaluation rather than after it
        raise ValueError("clusters are found by faiss, which is not installed: pip install 'dml[search]'")
    for name, value in (("num_iterations", num_iterations), ("restarts", restarts)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
