"""Re-identification: one random image of each identity makes the gallery."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dml.metrics.relevant import SameLabel
from dml.metrics.retrieval import RetrievalMetrics
from dml.metrics.search import Search
from dml.ranking import ranks_of_pairs


class ReidentificationMetrics(RetrievalMetrics):
    """CMC@k and reciprocal rank against a gallery of one random image of each identity, averaged over several draws.

    The protocol of VehicleID (Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar
    Vehicles", CVPR 2016) and of other re-identification sets. All images that were not drawn are queries, so an
    identity of one image is in the gallery only. A gallery as small as the number of identities, with one right answer,
    is harder than leave-one-out: never compare the two.

    The values are ``CMC@k``, the share of queries whose identity is among the first ``k``, and ``reid_AP``, their mean
    average precision, which with one right answer is the mean reciprocal rank. Each is a mean over the queries of all
    draws. Ties count against. A draw depends on ``seed`` and on which images there are, not on their order or on the
    number of processes.

    Args:
        recall_at: Values of k.
        num_draws: How many galleries are drawn; the papers draw 10.
        level: Which column of the labels is the identity, 0 for the finest.
        block_size: Queries ranked at a time.
        seed: Of the draws.
        search: What the galleries are ranked by. Ties count against, whatever it says; its distractors are in each.

    Raises:
        ValueError: If ``num_draws`` is below 1.

    Example:
        >>> metrics = ReidentificationMetrics(recall_at=[1])
        >>> embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.3, 1.0], [0.2, 1.0]]))
        >>> metrics.update(embeddings, labels=torch.tensor([0, 0, 1, 1]), index=torch.arange(4))
        >>> metrics.compute()
        {'CMC@1': tensor(1.), 'reid_AP': tensor(1.)}
    """

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 5, 10),
        num_draws: int = 10,
        level: int = 0,
        block_size: int | None = None,
        seed: int = 0,
        search: Search = Search(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(recall_at, level, block_size, search=search)
        if num_draws < 1:
            raise ValueError(f"num_draws is {num_draws}; it is a number of galleries, at least 1")
        self.num_draws = num_draws
        self.seed = seed

    def compute(self) -> dict[str, Tensor]:
        """Mean of each value over the queries of all draws; 0, with a warning, if there is none."""
        values = super().compute()
        self.last_per_query = None  # an image is the query of several draws, each with a gallery of its own
        return values

    def per_query(self) -> tuple[Tensor, dict[str, Tensor]]:
        """``index`` of each query of each draw, draw by draw, and its values, all ``[Q]``."""
        images = self.images()
        index, labels = images.index, images.labels[:, self.level]
        identity = torch.unique(labels, return_inverse=True)[1]
        generator = torch.Generator().manual_seed(self.seed)  # of the CPU: the same draws on any device
        searches, ranks = [index[:0]], [torch.empty(0, device=index.device)]
        for draw in range(self.num_draws):
            priority = torch.randperm(len(index), generator=generator).to(index.device)
            drawn = _first_of_each(identity, priority.masked_fill(~images.is_gallery, -1))
            asked = images.is_query & ~drawn & torch.isin(identity, identity[drawn])
            same = SameLabel(identity[drawn])
            evaluation = images._replace(is_query=asked, is_gallery=drawn).split()
            asking = asked.nonzero().squeeze(1)
            for rows, scores in self.scored_blocks(evaluation):
                block = asking[rows]
                ranks.append(ranks_of_pairs(scores, *same.pairs(identity[block], evaluation.own[rows])).rank)
                searches.append(draw * len(index) + block)
        search, table = self._of_all_processes(torch.cat(searches), torch.cat(ranks)[:, None])
        rank = table[:, 0]
        hits = {f"CMC@{k}": (rank <= k).to(rank.dtype) for k in self.recall_at}
        return index[search % max(1, len(index))], {**hits, "reid_AP": 1 / rank}


def _first_of_each(identity: Tensor, priority: Tensor) -> Tensor:
    """``[N]`` bool, the image of the highest priority of each identity, unless that is negative."""
    best = priority.new_full((int(identity.max()) + 1,), -1).scatter_reduce(0, identity, priority, "amax")
    return (priority >= 0) & (priority == best[identity])
