"""How the gallery is searched: what evaluation ranks by, apart from what it measures."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dml.ranking import Ties, score_blocks
from dml.ranking.scores import ScorePrecision
from dml.stages import Reranker, Stage

KeepOn = Literal["device", "cpu"]


@dataclass(frozen=True)
class Search:
    """How evaluation searches: by inner products in float32, unless told otherwise.

    Args:
        ties: What a relevant item gets that has the score of others: ``"pessimistic"``, the rank of the last of them;
            ``"optimistic"``, the best; ``"expected"``, the mean over all orders. See
            :func:`dml.ranking.ranks_of_pairs`.
        precision: Of the scores. TF32 and bfloat16 tie items that differ, which costs them ranks. What stages and a
            reranker find is found in float32.
        keep_on: Where embeddings wait for the end of the evaluation: on the device of the model, or in the memory of
            the host, from where a gallery too large for the device is brought to it piece by piece.
        distractors: A ``.npy`` file of float32 or float16 ``[N, D]``, embeddings that are relevant to no query, as
            ``dml predict --embeddings.path distractors.npy`` writes it. It is read piece by piece, unless there are
            stages.
        stages: Transform queries and gallery, one after the other, before they are searched.
        reranker: Gives scores other than inner products.

    Raises:
        ValueError: If a value is none of these, or ``distractors`` is no such file.
    """

    ties: Ties = "pessimistic"
    precision: ScorePrecision = "float32"
    keep_on: KeepOn = "device"
    distractors: str | None = None
    stages: Sequence[Stage] = ()
    reranker: Reranker | None = None

    def __post_init__(self) -> None:
        for name, kind in (("ties", Ties), ("precision", ScorePrecision), ("keep_on", KeepOn)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {list(known)}")
        if self.distractors is not None:
            _mapped(self.distractors)
        object.__setattr__(self, "stages", tuple(self.stages))  # or one without stages would not equal the default

    @functools.cached_property
    def seconds(self) -> dict[str, float]:
        """What each stage has cost since this was cleared, as each evaluation does."""
        return {}

    def blocks(
        self,
        queries: Tensor,
        gallery: Tensor,
        own: Tensor,
        *,
        block_size: int | None = None,
        share: tuple[int, int] = (0, 1),
        device: torch.device | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Scores of all queries, a block of queries at a time.

        Args:
            queries: ``[Q, D]``.
            gallery: ``[N, D]``.
            own: ``[Q]``, the row of the gallery that is the image of the query, -1 if there is none.
            block_size: Queries of a block; by default as many as are fast.
            share: ``(i, n)``: only every n-th block, from the i-th.
            device: Where scores are computed.

        Yields:
            Which queries, and their scores ``[b, N + E]``, those of E distractors last; minus infinity for its own
            image. The next block overwrites them.
        """
        parts = [gallery] if self.distractors is None else [gallery, _mapped(self.distractors)]
        if self.distractors is not None and parts[1].shape[1] != queries.shape[1]:
            raise ValueError(
                f"distractors is {self.distractors!r}, of shape {list(parts[1].shape)}; queries are of dimension "
                f"{queries.shape[1]}"
            )
        if self.stages or self.reranker:
            # What is found for an item depends on all others: they have to be at hand.
            where = queries.device if device is None else device
            queries, own = queries.to(where, torch.float32), own.to(where)
            gallery = torch.cat([part.to(where, torch.float32) for part in parts])
            for number, stage in enumerate(self.stages, start=1):
                name = f"{number}. {type(stage).__name__}"
                queries, gallery = self._timed(name, queries, functools.partial(stage, queries, gallery, own))
            parts = [gallery]
        found = self._scores(queries, parts, own, block_size, share, device)
        for rows, scores in found:
            itself = own[rows].to(scores.device)
            query = (itself >= 0).nonzero().squeeze(1)
            scores[query, itself[query]] = -torch.inf
            yield rows, scores

    def _scores(
        self,
        queries: Tensor,
        parts: list[Tensor],
        own: Tensor,
        block_size: int | None,
        share: tuple[int, int],
        device: torch.device | None,
    ) -> Iterator[tuple[slice, Tensor]]:
        if self.reranker is None:
            yield from score_blocks(
                queries, parts, block_size=block_size, precision=self.precision, share=share, device=device
            )
            return
        name = type(self.reranker).__name__
        rescore = self._timed(name, queries, functools.partial(self.reranker.prepare, queries, parts[0], own))
        block_size = block_size or 128
        for start in range(share[0] * block_size, len(queries), share[1] * block_size):
            rows = slice(start, min(start + block_size, len(queries)))
            yield rows, self._timed(name, queries, functools.partial(rescore, rows))

    def _timed(self, name: str, tensor: Tensor, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if tensor.is_cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
        return result


def _mapped(path: str) -> Tensor:
    """The rows of a ``.npy`` file, in the file."""
    where = Path(path).expanduser()
    if not where.is_file():
        raise ValueError(f"distractors is {path!r}, which is no file; it must be a .npy of float32 [N, D]")
    try:
        rows = np.load(where, mmap_mode="c", allow_pickle=False)  # copy on write, as torch has no read-only tensors
    except (ValueError, EOFError) as error:
        raise ValueError(f"distractors is {path!r}, which cannot be read as a .npy of numbers: {error}") from error
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"distractors is {path!r}, an archive of arrays; it must be a .npy of one")
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16) or not rows.flags.c_contiguous:
        raise ValueError(
            f"distractors is {path!r}, {rows.dtype} of shape {list(rows.shape)}; it must be float32 or float16, [N, D] "
            "in row order"
        )
    return torch.from_numpy(rows)


def in_precision(embeddings: Tensor, search: Search) -> Tensor:
    """Embeddings as they are searched: in float64 if the scores are to be, else in float32."""
    exact = search.precision == "float64" and embeddings.dtype == torch.float64
    return embeddings.detach() if exact else embeddings.detach().float()
