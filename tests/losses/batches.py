"""Batches to test losses with, and what it means for two losses to be the same."""

import torch
from torch.nn.functional import normalize


def batch(sizes=(4, 4, 4, 4, 4, 4), *, levels=2, dimension=8, dtype=torch.float64, seed=0):
    """Unit embeddings, loosely clustered, and labels ``[B, levels]``, shuffled: classes of these sizes.

    Class ``c`` is in superclass ``c % 2``; with three levels, in ``c % 4`` between the two.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    classes = classes[torch.randperm(len(classes), generator=generator)]
    centres = torch.randn(len(sizes), dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(classes), dimension, generator=generator, dtype=torch.float64)
    embeddings = normalize(centres[classes] + noise, dim=1)
    columns = {1: [classes], 2: [classes, classes % 2], 3: [classes, classes % 4, classes % 2]}
    return embeddings.to(dtype).requires_grad_(), torch.stack(columns[levels], dim=1)


def tied_batch(sizes=(3, 1, 3, 2), *, levels=2, seed=0):
    """As ``batch``, but all scores are -1, -1/2, 0, 1/2 or 1, exactly: most of them tie."""
    _, labels = batch(sizes, levels=levels, seed=seed)
    signs = torch.randint(0, 2, (len(labels), 4), generator=torch.Generator().manual_seed(seed))
    return (signs.double() - 0.5).requires_grad_(), labels


def separated_batch():
    """One direction per class plus one per superclass: scores are 1 in the class, 1/2 in the superclass, else 0."""
    classes = torch.arange(6).repeat_interleave(4)
    directions = torch.cat([torch.eye(6)[classes], torch.eye(2)[classes % 2]], dim=1) / 2**0.5
    return directions.requires_grad_(), torch.stack([classes, classes % 2], dim=1)


def ranking(scores):
    """A query, and references that have these scores ``[N]``; the first column of a gradient is that of the scores."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    references = torch.stack([scores, (1 - scores.square()).clamp(min=0).sqrt()], dim=1)
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64), references.requires_grad_()


def assert_same(actual, expected, inputs, **tolerances):
    """Equal in value and in gradient."""
    torch.testing.assert_close(actual, expected, **tolerances)
    torch.testing.assert_close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), **tolerances)
