"""Scores of many queries against a gallery of any size, in memory or on disk."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dml.ranking.precision import matmul_precision

ScorePrecision = Literal["float64", "float32", "tf32", "bfloat16"]

# All products have one shape, at most so many queries and items, padded with zeros where they run out. What a matrix
# product rounds off depends on its shape and, at its edges, on where a row is: without this, duplicates would not tie,
# and scores would change with the size of a block. Products of this size are the fastest on a CPU, too.
_TILE_QUERIES, _TILE_ITEMS = 512, 2048
_MULTIPLE = 64  # of both: whole vectors of any processor
_MAX_SCORES = 2**27  # of a block: 512 MiB of float32
_BLOCK_SCORES = 2**22  # of a block whose size is not given, or those of one tile


def score_blocks(
    queries: Tensor,
    gallery: Sequence[Tensor],
    *,
    block_size: int | None = None,
    precision: ScorePrecision = "float32",
    share: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Inner products of all queries with the whole gallery, a block of queries at a time.

    A score depends on the two embeddings and on how many queries and items there are: not on the place of either, on
    what the others are, or on ``block_size``. So equal embeddings tie. Queries and gallery may lie elsewhere than the
    scores, in the memory of the host or in a file mapped into memory: a block and a tile at a time are brought to the
    device.

    Args:
        queries: ``[Q, D]``.
        gallery: Parts ``[n, D]`` of the gallery, one after the other.
        block_size: Queries of a block; by default as many as keep scores in the cache and products efficient. Fewer if
            scores would take more than half a GiB, which a gallery of more than a million does.
        precision: Of products and scores. TF32 and bfloat16 tie items that differ.
        share: ``(i, n)``: of the queries in blocks of one size, every n-th block, from the i-th.
        device: Where products are taken and scores are; by default where the queries are.

    Yields:
        Which queries, and their scores ``[b, N]``, in memory that the next block overwrites.

    Raises:
        ValueError: If an embedding or a score is not finite, dimensions differ, or an argument is out of range.
    """
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size is {block_size}; it is a number of queries, at least 1")
    if precision not in get_args(ScorePrecision):
        raise ValueError(f"precision is {precision!r}; it must be one of {list(get_args(ScorePrecision))}")
    for part in gallery:
        if part.ndim != 2 or part.shape[1] != queries.shape[1]:
            raise ValueError(f"gallery has shape {list(part.shape)}; queries are {list(queries.shape)}, D last")
    largest = _largest("queries", queries, 0)
    num_items = sum(len(part) for part in gallery)
    most = max(1, _MAX_SCORES // max(1, num_items))
    height, width = _even(len(queries), min(_TILE_QUERIES, most)), _even(num_items, _TILE_ITEMS)
    block_size = block_size or max(1, _BLOCK_SCORES // max(1, num_items) // height) * height
    # Blocks of less than a tile are handed out one by one from what is computed at once.
    size = min(-(-block_size // height) * height, most if most < height else most // height * height)
    device = queries.device if device is None else device
    scores = torch.empty(0, dtype=torch.float64 if precision == "float64" else torch.float32, device=device)
    gallery = [part for part in gallery if len(part)]
    tiles = [_padded(rows, width) for part in gallery for rows in torch.split(part, width)]  # views but for the last
    columns = [min(width, len(part) - first) for part in gallery for first in range(0, len(part), width)]
    unchecked: float | None = largest  # the gallery is looked through with the first block, rather than read twice
    for start in range(share[0] * size, len(queries), share[1] * size):
        stop = min(start + size, len(queries))
        if len(scores) < stop - start:
            scores = scores.new_empty(stop - start, num_items)
        blocks = [_padded(rows, height) for rows in torch.split(queries[start:stop].to(device), height)]
        _fill(scores[: stop - start], blocks, list(zip(tiles, columns, strict=True)), precision, unchecked)
        unchecked = None
        for first in range(start, stop, block_size):
            rows = slice(first, min(first + block_size, stop))
            yield rows, scores[first - start : rows.stop - start]


@torch.no_grad()
def _fill(
    scores: Tensor,
    queries: Sequence[Tensor],
    gallery: Sequence[tuple[Tensor, int]],
    precision: ScorePrecision,
    largest: float | None,
) -> None:
    """Put the scores of queries into ``scores [b, N]``.

    Args:
        scores: ``[b, N]``.
        queries: Tiles; rows behind the b-th are of no account.
        gallery: Tiles, and how many of their rows are items.
        precision: Of the products.
        largest: Number in the queries, with which those of the gallery must not overflow; None if that is known.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else scores.dtype
    height, first = len(queries[0]), 0
    blocks = [rows.to(dtype) for rows in queries]
    product = scores.new_empty(height, len(gallery[0][0]) if gallery else 0, dtype=dtype)
    with (
        torch.autocast(scores.device.type, enabled=False),
        matmul_precision("high" if precision == "tf32" else "highest"),
    ):
        for tile, number in gallery:
            if largest is not None and (
                largest * _largest("gallery", tile[:number], first) * tile.shape[1] > torch.finfo(dtype).max
            ):
                raise ValueError(
                    f"scores overflow: queries hold numbers up to {largest:g}; embeddings are of unit norm"
                )
            items = tile.to(scores.device, dtype)
            for row, block in enumerate(blocks):
                torch.mm(block, items.T, out=product)
                target = scores[row * height : (row + 1) * height, first : first + number]
                target.copy_(product[: len(target), :number])
            first += number


def _even(number: int, most: int) -> int:
    """Rows of a tile: as many as make tiles of one size, with little to pad."""
    num_tiles = max(1, -(-number // most))
    return max(1, -(-number // (num_tiles * _MULTIPLE))) * _MULTIPLE


def _padded(rows: Tensor, num_rows: int) -> Tensor:
    if len(rows) == num_rows:
        return rows
    return torch.cat([rows, rows.new_zeros(num_rows - len(rows), rows.shape[1])])


def _largest(name: str, embeddings: Tensor, first: int) -> float:
    """The largest number in embeddings, whatever its sign; a ValueError names the rows of those that are not finite."""
    if embeddings.numel() == 0:
        return 0.0
    low, high = embeddings.detach().aminmax()
    largest = max(-float(low), float(high))
    if not math.isfinite(largest) or math.isnan(float(low)):
        broken = (~embeddings.isfinite().all(dim=1)).nonzero().squeeze(1)
        rows = (first + broken[:5]).tolist()
        raise ValueError(f"{name} has embeddings that are not finite, {len(broken)} of them here: rows {rows}")
    return largest
