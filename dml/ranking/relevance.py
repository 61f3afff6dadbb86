"""Graded relevance from label levels."""

import torch
from torch import Tensor


def shared_levels(labels: Tensor, ref_labels: Tensor) -> Tensor:
    """How many label levels each item shares with each query ``[Q, N]``, from 0 to ``L``.

    Args:
        labels: ``[Q, L]`` of the queries, finest level first.
        ref_labels: ``[N, L]`` of the gallery.
    """
    shared = torch.zeros(len(labels), len(ref_labels), device=labels.device)
    for own, others in zip(labels.unbind(dim=1), ref_labels.unbind(dim=1), strict=True):
        shared.add_(own.unsqueeze(1) == others)
    return shared


def exponential_gain(levels: Tensor) -> Tensor:
    """The gain of nDCG, ``2**l - 1`` for an item that shares ``l`` levels.

    Args:
        levels: ``[Q, N]``, what :func:`shared_levels` returned.
    """
    return levels.exp2().sub_(1)


def split_over_population(levels: Tensor, valid: Tensor, *, exponent: float = 1.0) -> Tensor:
    r"""Relevance in which the items of a level share the weight of the level.

    .. math:: r = l^\alpha / n_l, \qquad n_l = \text{items of the gallery that share exactly } l \text{ levels}

    The relevance of HAPPIER (Ramzi et al., ECCV 2022, https://arxiv.org/abs/2207.04873). Only its proportions matter to
    hierarchical AP. Because a level is divided by its population, an item of a rare coarse level may weigh more than
    one of a frequent finer level.

    Args:
        levels: ``[Q, N]``, what :func:`shared_levels` returned.
        valid: ``[Q, N]`` bool, False where an item is not in the gallery of the query.
        exponent: :math:`\alpha`.

    Returns:
        ``[Q, N]``, 0 where no level is shared.
    """
    relevance = torch.zeros_like(levels)
    for level in range(1, int(levels.max()) + 1 if levels.numel() else 1):
        at_level = torch.eq(levels, level, out=torch.empty_like(levels)).mul_(valid)
        population = at_level.sum(dim=1, keepdim=True).clamp_(min=1)
        relevance.addcmul_(at_level, level**exponent / population)
    return relevance
