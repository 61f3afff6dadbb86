"""The loss of an item that moves, and how hard it pulls: what the figures show, by the code of the losses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dml import losses as L

# Scores of irrelevant items; with levels, of items that share nothing, and of one each that shares something.
IRRELEVANT = (0.10, 0.22, 0.31, 0.42, 0.48, 0.55, 0.63, 0.70)
STAYS = {"same class": 0.60, "same super-class": 0.36}
MOVES = torch.linspace(-0.1, 0.95, 250)
Curve = tuple[Tensor, Tensor]  # the loss at each place, and its pull


def of_ranking(loss: L.RankLoss, *, levels: int = 1, kind: str = "same class") -> Curve:
    """The loss of the ranking with the item at each of the places, each a query of its own.

    Args:
        loss: What is drawn.
        levels: Of the labels; with two, other items of both kinds stay in the gallery.
        kind: What the item that moves shares with the query.
    """
    of_kind = {"same class": (0, 0), "same super-class": (1, 0)}
    others = dict.fromkeys(IRRELEVANT, (2, 1)) | ({STAYS[k]: of_kind[k] for k in STAYS} if levels == 2 else {})
    labels = torch.tensor([of_kind[kind], *others.values()])[:, :levels]
    relevance = loss.relevance(torch.zeros(len(MOVES), levels, dtype=torch.long), labels)
    item = MOVES.clone().requires_grad_()
    scores = torch.cat([item[:, None], torch.tensor([*others]).expand(len(MOVES), -1)], dim=1)
    value = 1 - loss.measure(scores, relevance, torch.ones_like(scores, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value.sum(), item)
    return value.detach(), -gradient


def along(loss: Callable[[Tensor], Tensor]) -> Curve:
    """A loss with its item at each of the places, one call for each."""
    values, pulls = [], []
    for place in MOVES:
        item = place.clone().requires_grad_()
        value = loss(item)
        values.append(value.detach())
        pulls.append(-torch.autograd.grad(value, item)[0] if value.requires_grad else torch.zeros(()))
    return torch.stack(values), torch.stack(pulls)


def on_circle(score: Tensor) -> Tensor:
    """The unit vector ``[2]`` that has this score with (1, 0)."""
    return torch.stack([score, (1 - score**2).sqrt()])


def of_pairs(loss: nn.Module, *, same: bool = True, others: tuple[float, ...] = IRRELEVANT) -> Curve:
    """The loss of a query (1, 0), an item that moves, and irrelevant ones."""
    query = torch.tensor([[1.0, 0.0]])
    stay = [on_circle(torch.tensor(score)) for score in others]
    labels = torch.tensor([0, 0 if same else 1, *(1 for _ in others)])
    return along(
        lambda item: loss(query, labels[:1], ref_emb=torch.stack([on_circle(item), *stay]), ref_labels=labels[1:])
    )


def of_proxies(loss: L.NormSoftmaxLoss | L.CSLLoss, levels: int) -> Curve:
    """The loss of an embedding between its own proxy (1, 0), that of a sibling at 45 degrees, and another at 90."""
    loss.proxies.weight.data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    hierarchy = torch.tensor([[0, 0], [1, 0], [2, 1]])[:, :levels]
    if isinstance(loss, L.CSLLoss):
        loss.proxy_labels.copy_(hierarchy)
    return along(lambda item: loss(on_circle(item)[None], hierarchy[:1]))
