import pytest
import torch

from dml.losses import SmoothHAPLoss, SmoothNDCGLoss, SupHAPLoss, SupNDCGLoss
from tests.losses.batches import batch, ranking
from tests.losses.definitions import average_precision, defined_loss, split_over_population
from tests.ranking.restated_steps import restated_heaviside


@pytest.mark.parametrize("include_self", [True, False])
def test_tends_to_hierarchical_average_precision_as_the_temperature_tends_to_zero(include_self):
    queries = batch((3, 4, 1, 2), levels=3)
    steps = (restated_heaviside, restated_heaviside)
    exact = defined_loss(average_precision, split_over_population, steps, queries, include_self=include_self)
    errors = [
        (SmoothHAPLoss(temperature, include_self=include_self)(*queries) - exact).abs().item()
        for temperature in (1.0, 1e-2, 1e-4, 1e-8)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 1e-12


@pytest.mark.parametrize("cls", [SmoothHAPLoss, SmoothNDCGLoss, SupHAPLoss, SupNDCGLoss])
def test_a_mistake_within_the_superclass_costs_less(cls):
    labels = torch.tensor([[1, 0], [2, 0], [3, 1]])
    near_above, far_above = ranking([0.5, 0.8, 0.2]), ranking([0.5, 0.2, 0.8])
    cheap, dear = (
        cls()(query, labels[:1], ref_emb=references, ref_labels=labels) for query, references in (near_above, far_above)
    )
    assert 0.01 < cheap < dear - 0.01


def test_a_worked_example():
    # one query, temperature 0.2; levels 2, 1, 1 and 0, so relevance 2, 1/2, 1/2 and 0
    def above(difference):
        return 1 / (1 + torch.tensor(-difference / 0.2, dtype=torch.float64).exp())

    scores, relevance = [0.2, 0.6, 0.0, 0.4], [2.0, 0.5, 0.5, 0.0]
    total = 0
    for item in range(3):
        others = [other for other in range(4) if other != item]
        rank = 1 + sum(above(scores[other] - scores[item]) for other in others)
        hrank = relevance[item] + sum(
            min(relevance[item], relevance[other]) * above(scores[other] - scores[item]) for other in others
        )
        total += hrank / rank
    query, references = ranking(scores)
    labels = torch.tensor([[1, 0], [2, 0], [3, 0], [4, 1]])
    value = SmoothHAPLoss(0.2)(query, labels[:1], ref_emb=references, ref_labels=labels)
    torch.testing.assert_close(value, 1 - total / sum(relevance))
