"""Sparse rows of weights, and how much they share."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_AT_A_TIME = 2**22  # entries


class Codes(NamedTuple):
    """``R`` rows over ``M`` columns, of which a row has few that are not 0."""

    start: Tensor  # [R + 1] of each row among the entries
    column: Tensor  # [nnz] in order in each row
    value: Tensor  # [nnz]

    @classmethod
    def of_rows(cls, num_rows: int, row: Tensor, column: Tensor, value: Tensor) -> "Codes":
        """From entries in order of their rows."""
        count = torch.bincount(row, minlength=num_rows)
        return cls(torch.cat([count.new_zeros(1), count.cumsum(0)]), column, value)

    @classmethod
    def cat(cls, parts: Sequence["Codes"]) -> "Codes":
        """Of rows one below the other."""
        counts = torch.cat([part.start.diff() for part in parts])
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(start, torch.cat([part.column for part in parts]), torch.cat([part.value for part in parts]))

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of some rows: for each, which of ``rows`` it is of, and its place in ``column`` and ``value``."""
        count = self.start[rows + 1] - self.start[rows]
        which = torch.arange(len(rows), device=rows.device).repeat_interleave(count)
        within = torch.arange(len(which), device=rows.device) - (count.cumsum(0) - count)[which]
        return which, self.start[rows][which] + within

    def transposed(self, num_rows: int, num_columns: int) -> "Codes":
        """Of the first rows, those that each column has."""
        last = int(self.start[num_rows])
        row = torch.arange(num_rows, device=self.start.device).repeat_interleave(self.start[: num_rows + 1].diff())
        column, order = self.column[:last].sort(stable=True)
        return Codes.of_rows(num_columns, column, row[order], self.value[:last][order])


def averaged(codes: Codes, members: Tensor, num_columns: int) -> Codes:
    """The mean of some rows.

    Args:
        codes: Of ``R`` rows.
        members: ``[S, k]``, which rows make each new one.
        num_columns: ``M``.

    Returns:
        ``S`` rows.
    """
    parts = []
    num_members = members.shape[1]
    for block in torch.split(members, _rows_at_a_time(codes, num_members)):
        which, place = codes.take(block.flatten())
        key, order = (which // num_members * num_columns + codes.column[place]).sort(stable=True)
        key, entry = torch.unique_consecutive(key, return_inverse=True)
        value = codes.value.new_zeros(len(key)).index_add_(0, entry, codes.value[place][order] / num_members)
        parts.append(Codes.of_rows(len(block), key // num_columns, key % num_columns, value))
    return Codes.cat(parts)


def shared(codes: Codes, rows: Tensor, inverted: Codes, num_items: int) -> Tensor:
    """Sum over columns of the lesser of two weights ``[b, N]``, of rows with all of those that are inverted."""
    which, place = codes.take(rows)
    column = codes.column[place]
    work = inverted.start[column + 1] - inverted.start[column]
    # A column that many have in common makes much work.
    bounds = torch.searchsorted(work.cumsum(0), torch.arange(0, int(work.sum()), _AT_A_TIME, device=rows.device) + 1)
    total = codes.value.new_zeros(len(rows) * num_items)
    starts = [*bounds.tolist(), len(work)]
    for first, last in itertools.pairwise(starts):
        entry, found = inverted.take(column[first:last])
        least = torch.minimum(codes.value[place[first:last]][entry], inverted.value[found])
        total.index_add_(0, which[first:last][entry] * num_items + inverted.column[found], least)
    return total.view(len(rows), num_items)


def _rows_at_a_time(codes: Codes, num_members: int) -> int:
    mean = len(codes.column) / max(1, len(codes.start) - 1)
    return max(1, int(_AT_A_TIME / max(1.0, mean * num_members)))
