"""Embeddings in clusters, and the searches among them in loops."""

import numpy as np
import torch
from torch.nn.functional import normalize


def embeddings(count, dim=8, clusters=6, noise=0.6, seed=0):
    """Of unit norm, some near each other; clusters are those of any seed."""
    centres = torch.randn(clusters, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, clusters, (count,), generator=generator)
    return normalize(centres[which] + noise * torch.randn(count, dim, generator=generator), dim=1)


def outside(queries):
    """No query is in the gallery."""
    return torch.full((len(queries),), -1)


def search(query, gallery, k, own=-1):
    """Rows of the ``k`` nearest, the first of equals first, and their similarities; in float64."""
    similarity = gallery @ query
    order = [row for row in np.argsort(-similarity, kind="stable") if row != own][:k]
    return order, similarity[order]


def expanded(query, gallery, k, alpha, own=-1):
    """A query and its neighbours, by their definition."""
    total = query.copy()
    for row, similarity in zip(*search(query, gallery, k, own), strict=True):
        total += max(similarity, 0) ** alpha * gallery[row]
    return total / np.linalg.norm(total)
