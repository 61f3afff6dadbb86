"""Each step with a restatement, for autograd, that owes nothing to ``dml.ranking.steps``."""

import math

import torch

from dml.ranking.steps import Sigmoid, UpperBound, heaviside


def restated_heaviside(difference):
    return (difference >= 0).to(difference.dtype)


def restated_sigmoid(temperature):
    return lambda difference: 1 / (1 + torch.exp(-difference / temperature))


def restated_upper_bound(temperature, slope, margin, jump, offset):
    logistic = restated_sigmoid(temperature)
    if offset is None:
        offset = jump + 1 / (1 + math.exp(-margin / temperature))

    def step(difference):
        near = torch.where(difference > 0, jump + logistic(difference), logistic(difference))
        return torch.where(difference > margin, offset + slope * (difference - margin), near)

    return step


HEAVISIDE = (heaviside, restated_heaviside)
WIDE = (Sigmoid(0.5), restated_sigmoid(0.5))
NARROW = (Sigmoid(0.05), restated_sigmoid(0.05))
BOUND = (UpperBound(0.5, 3.0, 0.25), restated_upper_bound(0.5, 3.0, 0.25, 0.5, None))
DROPPING = (UpperBound(0.1, 2.0, 0.5, 0.2, 0.9), restated_upper_bound(0.1, 2.0, 0.5, 0.2, 0.9))
STEPS = {
    "heaviside": (HEAVISIDE, HEAVISIDE),
    "sigmoid": (WIDE, WIDE),
    "heaviside-sigmoid": (HEAVISIDE, WIDE),
    "sigmoid-heaviside": (NARROW, HEAVISIDE),
    "two-sigmoids": (WIDE, NARROW),
    "heaviside-upper-bound": (HEAVISIDE, BOUND),
    "two-upper-bounds": (BOUND, DROPPING),
}
