# mypy: disallow-untyped-decorators=False
"""The pairwise ranker as two Triton kernels, for GPUs: the ranks of ``pairwise_ranks`` and their gradient.

PyTorch operations hand each other every difference of scores through memory. In a kernel, the differences between a few
relevant items of a query and a block of its gallery stay in registers. The forward kernel walks the gallery and sums
the steps, and also their slopes, which is all that the gradient of the relevant items themselves needs. The backward
kernel walks the relevant items, to sum what each item of the gallery receives. No atomics: sums have one order.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dml.ranking.once import once_differentiable
from dml.ranking.ranks import Ranks
from dml.ranking.steps import Heaviside, Sigmoid, Step, UpperBound

# A tile is 8 differences for each of the 128 threads of a program; sums over four such tiles stay in registers.
_GROUP_SIZE = tl.constexpr(4)  # relevant items, as many as a class of a batch usually has
_BLOCK_SIZE = tl.constexpr(256)  # items of the gallery
_MAX_GROUPS = 2**16 - 1  # how long the second dimension of a grid may be

_HEAVISIDE, _SIGMOID, _UPPER_BOUND = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_KINDS: dict[type, int] = {
    Heaviside: _HEAVISIDE.value,
    Sigmoid: _SIGMOID.value,
    UpperBound: _UPPER_BOUND.value,
}
_NUM_PARAMETERS = tl.constexpr(5)


def supports(*steps: Step) -> bool:
    """Whether the kernels know every one of the steps. They know no subclass, which may compute anything."""
    return all(type(step) in _KINDS for step in steps)


def fused_ranks(
    scores: Tensor,
    relevance: Tensor,
    valid: Tensor,
    *,
    positive_step: Step,
    negative_step: Step,
    levels: Tensor | None = None,
) -> Ranks:
    """Rank the relevant items of each query with a (differentiable) step, as ``pairwise_ranks`` does.

    Beyond its inputs, it needs memory for the pairs and for the gradient. Inputs that are not contiguous are copied.

    Args:
        scores: ``[Q, N]``, float32 or float64; gradients flow to it, once.
        relevance: ``[Q, N]``, bool or number, not negative.
        valid: ``[Q, N]`` bool.
        positive_step: Applied between a relevant item and the items at least as relevant.
        negative_step: Applied between a relevant item and the less relevant ones.
        levels: ``[Q, N]``, what "at least as relevant" compares; by default the relevance itself.

    Returns:
        Ranks of the valid items with relevance above 0.

    Raises:
        ValueError: If ``supports`` denies a step, or the scores are neither float32 nor float64.
    """
    if not supports(positive_step, negative_step):
        known = ", ".join(step.__name__ for step in _KINDS)
        raise ValueError(f"the steps are {positive_step} and {negative_step}; each must be one of {known}")
    if scores.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"scores are {scores.dtype}; they must be torch.float32 or torch.float64")
    ranks: tuple[Tensor, Tensor, Tensor, Tensor] = _FusedRanks.apply(
        scores, relevance, valid, relevance if levels is None else levels, positive_step, negative_step
    )
    query, relevance, rank, hrank = ranks
    return Ranks(query, relevance, rank, hrank, torch.ones_like(rank), len(scores))


class _FusedRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, relevance: Tensor, valid: Tensor, levels: Tensor, positive: Step, negative: Step
    ) -> tuple[Tensor, ...]:
        query, item = ((relevance > 0) & valid).nonzero().T.contiguous()
        first_pair = torch.searchsorted(query, torch.arange(len(scores) + 1, device=query.device))  # [Q + 1]
        own = relevance[query, item].to(scores.dtype)
        # Python floats reach a kernel as float32, whatever the scores are; the elements of a tensor keep its precision.
        parameters = scores.new_tensor(_parameters(positive) + _parameters(negative))
        gallery = [_as_numbers(values).contiguous() for values in (scores, relevance, valid, levels)]
        arguments = *gallery, item, first_pair, parameters
        rank, hrank, rank_slope, hrank_slope = (torch.empty_like(own) for _ in range(4))
        ctx.constants = scores.shape[1], _KINDS[type(positive)], _KINDS[type(negative)], positive == negative
        # As many programs for each query as the average query has groups; one with more takes turns.
        num_programs = min(triton.cdiv(len(query), max(1, len(scores)) * _GROUP_SIZE.value), _MAX_GROUPS)
        sums = rank, hrank, rank_slope, hrank_slope
        _launch(_rank_kernel, (len(scores), num_programs), *arguments, *sums, *ctx.constants)
        ctx.save_for_backward(query, rank_slope, hrank_slope, *arguments)
        ctx.mark_non_differentiable(query, own)
        return query, own, rank, hrank

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _query: Tensor, _own: Tensor, grad_rank: Tensor, grad_hrank: Tensor) -> tuple[Any, ...]:
        query, rank_slope, hrank_slope, *arguments = ctx.saved_tensors
        scores, item = arguments[0], arguments[4]
        grad = torch.empty_like(scores)
        incoming = grad_rank.contiguous(), grad_hrank.contiguous()
        num_blocks = triton.cdiv(scores.shape[1], _BLOCK_SIZE.value)
        _launch(_gradient_kernel, (len(scores), num_blocks), *arguments, *incoming, grad, *ctx.constants)
        # Raising the item itself lowers every difference. Pairs differ, so no element is assigned to twice.
        grad[query, item] -= grad_rank * rank_slope + grad_hrank * hrank_slope
        return grad, None, None, None, None, None


def _parameters(step: Step) -> list[float]:
    """What ``_load_step`` loads: rate, jump, margin, slope beyond the margin and value just beyond it."""
    if isinstance(step, Sigmoid):
        return [1 / step.temperature, 0, 0, 0, 0]
    if isinstance(step, UpperBound):
        beyond = torch.tensor(math.nextafter(step.margin, math.inf), dtype=torch.float64)
        return [1 / step.temperature, step.jump, step.margin, step.slope_beyond, float(step(beyond))]
    return [0, 0, 0, 0, 0]


def _as_numbers(values: Tensor) -> Tensor:
    """Bools as the bytes they are: of those, kernels can tell the larger."""
    return values.view(torch.uint8) if values.dtype == torch.bool else values


def _launch(kernel: Any, grid: tuple[int, int], scores: Tensor, *arguments: Any) -> None:
    if math.prod(grid) > 0:
        with torch.cuda.device_of(scores):  # type: ignore[no-untyped-call]  # a launch goes to the current device
            kernel[grid](scores, *arguments)


@triton.jit
def _rank_kernel(
    scores: tl.tensor,
    relevance: tl.tensor,
    valid: tl.tensor,
    levels: tl.tensor,
    item: tl.tensor,
    first_pair: tl.tensor,
    parameters: tl.tensor,
    rank: tl.tensor,
    hrank: tl.tensor,
    rank_slope: tl.tensor,
    hrank_slope: tl.tensor,
    num_items: tl.tensor,
    positive_kind: tl.constexpr,
    negative_kind: tl.constexpr,
    same_step: tl.constexpr,
) -> None:
    """Ranks of relevant items of a query, and sums over its gallery of the slopes at the same differences."""
    query = tl.program_id(0).to(tl.int64)  # beyond 2**31 elements, an int32 cannot hold the start of a row
    row = query * num_items
    positive, negative = _load_step(parameters), _load_step(parameters + _NUM_PARAMETERS)
    start, stop = tl.load(first_pair + query) + tl.program_id(1) * _GROUP_SIZE, tl.load(first_pair + query + 1)
    for first in range(start, stop, tl.num_programs(1) * _GROUP_SIZE):
        pair = first + tl.arange(0, _GROUP_SIZE)
        present = pair < stop
        own_item = tl.load(item + pair, mask=present, other=0).to(tl.int32)
        own = _load_items(scores, relevance, levels, row, own_item, present)
        above = tl.full((_GROUP_SIZE, _BLOCK_SIZE), 0, scores.dtype.element_ty)
        shared_above, slope, shared_slope = above, above, above
        for start_column in range(0, num_items, _BLOCK_SIZE):
            column = start_column + tl.arange(0, _BLOCK_SIZE)
            inside = column < num_items
            gallery = _load_items(scores, relevance, levels, row, column, inside)
            is_valid = tl.load(valid + row + column, mask=inside, other=0) != 0
            tile = _compare(own, gallery, is_valid, positive, negative, positive_kind, negative_kind, same_step)
            above += tile[0]
            shared_above += tile[1]
            slope += tile[2]
            shared_slope += tile[3]
        tl.store(rank + pair, 1 + tl.sum(above, axis=1), mask=present)
        tl.store(hrank + pair, own[2] + tl.sum(shared_above, axis=1), mask=present)
        tl.store(rank_slope + pair, tl.sum(slope, axis=1), mask=present)
        tl.store(hrank_slope + pair, tl.sum(shared_slope, axis=1), mask=present)


@triton.jit
def _gradient_kernel(
    scores: tl.tensor,
    relevance: tl.tensor,
    valid: tl.tensor,
    levels: tl.tensor,
    item: tl.tensor,
    first_pair: tl.tensor,
    parameters: tl.tensor,
    grad_rank: tl.tensor,
    grad_hrank: tl.tensor,
    grad: tl.tensor,
    num_items: tl.tensor,
    positive_kind: tl.constexpr,
    negative_kind: tl.constexpr,
    same_step: tl.constexpr,
) -> None:
    """What a block of a query's gallery receives from the ranks of the query's relevant items, but not of itself."""
    query = tl.program_id(0).to(tl.int64)
    row = query * num_items
    positive, negative = _load_step(parameters), _load_step(parameters + _NUM_PARAMETERS)
    column = tl.program_id(1) * _BLOCK_SIZE + tl.arange(0, _BLOCK_SIZE)
    inside = column < num_items
    gallery = _load_items(scores, relevance, levels, row, column, inside)
    is_valid = tl.load(valid + row + column, mask=inside, other=0) != 0
    received = tl.full((_GROUP_SIZE, _BLOCK_SIZE), 0, scores.dtype.element_ty)
    stop = tl.load(first_pair + query + 1)
    for first in range(tl.load(first_pair + query), stop, _GROUP_SIZE):
        pair = first + tl.arange(0, _GROUP_SIZE)
        present = pair < stop
        own_item = tl.load(item + pair, mask=present, other=0).to(tl.int32)
        own = _load_items(scores, relevance, levels, row, own_item, present)
        tile = _compare(own, gallery, is_valid, positive, negative, positive_kind, negative_kind, same_step)
        received += tl.load(grad_rank + pair, mask=present, other=0)[:, None] * tile[2]
        if positive_kind != _HEAVISIDE:  # else its zeros: a sum with them crashes the compiler of Triton 3.9.0
            received += tl.load(grad_hrank + pair, mask=present, other=0)[:, None] * tile[3]
    tl.store(grad + row + column, tl.sum(received, axis=0), mask=inside)


@triton.jit
def _load_items(
    scores: tl.tensor, relevance: tl.tensor, levels: tl.tensor, row: tl.tensor, item: tl.tensor, present: tl.tensor
) -> tl.tuple:
    """Item, score, relevance and level of each of some items of a row."""
    score = tl.load(scores + row + item, mask=present, other=0)
    weight = tl.load(relevance + row + item, mask=present, other=0).to(score.dtype)
    return item, score, weight, tl.load(levels + row + item, mask=present, other=0)


@triton.jit
def _compare(
    own: tl.tuple,
    gallery: tl.tuple,
    is_valid: tl.tensor,
    positive: tl.tuple,
    negative: tl.tuple,
    positive_kind: tl.constexpr,
    negative_kind: tl.constexpr,
    same_step: tl.constexpr,
) -> tl.tuple:
    """What a block of items adds to the rank and to the hrank of each of a group, and the slopes of both."""
    own_item, own_score, own_relevance, own_level = own
    item, score, relevance, level = gallery
    # What does not count is infinitely far below: every step is 0 there, and so is its slope. It is selected, because
    # the score of an item that is not in the gallery may be infinite, or no number at all.
    counted = is_valid[None, :] & (item[None, :] != own_item[:, None])
    difference = tl.where(counted, score[None, :] - own_score[:, None], float("-inf"))
    above, slope = _step(difference, positive, positive_kind)
    shared = tl.minimum(own_relevance[:, None], relevance[None, :])
    shared_above, shared_slope = shared * above, shared * slope
    if not same_step:
        less_relevant = level[None, :] < own_level[:, None]
        other_above, other_slope = _step(difference, negative, negative_kind)
        above, slope = tl.where(less_relevant, other_above, above), tl.where(less_relevant, other_slope, slope)
    return above, shared_above, slope, shared_slope


@triton.jit
def _load_step(step: tl.tensor) -> tl.tuple:
    return tl.load(step), tl.load(step + 1), tl.load(step + 2), tl.load(step + 3), tl.load(step + 4)


@triton.jit
def _step(difference: tl.tensor, step: tl.tuple, kind: tl.constexpr) -> tl.tuple:
    """Value and slope at each difference, as in ``dml.ranking.steps``."""
    if kind == _HEAVISIDE:
        value = (difference >= 0).to(difference.dtype)
        slope = tl.full(difference.shape, 0, difference.dtype)
    else:
        rate, jump, margin, slope_beyond, value_beyond = step
        decay = tl.exp(-tl.abs(difference * rate))  # at most 1: the exponential of a positive number may overflow
        inverse = 1 / (1 + decay)
        value = tl.where(difference >= 0, inverse, decay * inverse)
        slope = rate * decay * inverse * inverse
        if kind == _UPPER_BOUND:
            value = tl.where(difference > 0, value + jump, value)
            beyond = difference > margin
            value = tl.where(beyond, value_beyond + slope_beyond * (difference - margin), value)
            slope = tl.where(beyond, slope_beyond, slope)
    return value, slope
