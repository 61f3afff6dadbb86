import dataclasses
import math

import pytest
import torch

from dml.ranking.steps import Sigmoid, heaviside

TEMPERATURES = [0.01, 0.1, 1.0, 3.0]


def test_heaviside_counts_a_tie_as_above():
    difference = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 2.0])
    torch.testing.assert_close(heaviside(difference), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))


def test_heaviside_is_flat():
    difference = torch.tensor([[-2.0, 0.0, 1e-30]], dtype=torch.float64)
    torch.testing.assert_close(heaviside.slope(difference), torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sigmoid_is_the_logistic_function_of_the_scaled_difference(temperature):
    differences = [-1.5, -0.02, 0.0, 0.003, 0.4, 2.0]
    expected = [1 / (1 + math.exp(-difference / temperature)) for difference in differences]
    actual = Sigmoid(temperature)(torch.tensor(differences, dtype=torch.float64))
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sigmoid_slope_is_its_derivative(temperature):
    difference = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    step = Sigmoid(temperature)
    (derivative,) = torch.autograd.grad(step(difference).sum(), difference)
    torch.testing.assert_close(step.slope(difference.detach()), derivative, rtol=1e-10, atol=1e-12)


def test_sigmoid_slope_at_a_tie_is_a_quarter_of_the_inverse_temperature():
    torch.testing.assert_close(Sigmoid(0.1).slope(torch.zeros(1)), torch.tensor([0.25 / 0.1]))


@pytest.mark.parametrize("step", [heaviside, Sigmoid(0.01)], ids=["heaviside", "Sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_differences_saturate(step, dtype):
    difference = torch.tensor([-1e30, -1e4, -2.0, 2.0, 1e4, 1e30], dtype=dtype)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=dtype)
    torch.testing.assert_close(step(difference), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.slope(difference), torch.zeros(6, dtype=dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [heaviside, Sigmoid(0.3)], ids=["heaviside", "Sigmoid"])
def test_shape_is_kept(step):
    assert step(torch.randn(2, 0, 3)).shape == (2, 0, 3)
    assert step.slope(torch.randn(4, 5)).shape == (4, 5)


@pytest.mark.parametrize("temperature", [0.0, -0.5])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=str(temperature)):
        Sigmoid(temperature)


def test_sigmoid_is_a_value():
    step = Sigmoid(0.1)
    assert step == Sigmoid(0.1)
    assert step != Sigmoid(0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.temperature = 0.2
