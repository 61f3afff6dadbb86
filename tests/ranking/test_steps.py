import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.ranking.steps import Sigmoid, UpperBound, heaviside
from tests.ranking.restated_steps import restated_upper_bound

TEMPERATURES = [0.01, 0.1, 1.0, 3.0]
PUBLISHED_SOP = UpperBound(offset=1.44)
PUBLISHED_INATURALIST = UpperBound(jump=0.0, offset=1.0)
UPPER_BOUNDS = {
    "default": UpperBound(),
    "SOP": PUBLISHED_SOP,
    "iNaturalist": PUBLISHED_INATURALIST,
    "wide": UpperBound(0.5, 3.0, 0.3, 0.2),
    "no margin": UpperBound(0.1, 2.0, 0.0, 0.5),
    "flat beyond": UpperBound(0.1, 0.0, 0.2, 0.5, 0.7),
}
every_step = pytest.mark.parametrize(
    "step", [heaviside, Sigmoid(0.3), *UPPER_BOUNDS.values()], ids=["heaviside", "Sigmoid", *UPPER_BOUNDS]
)
every_upper_bound = pytest.mark.parametrize("step", UPPER_BOUNDS.values(), ids=UPPER_BOUNDS.keys())


def upper_bound_of(step, difference):
    """The three pieces, for one number."""
    if difference > step.margin:
        offset = step.offset
        if offset is None:
            offset = step.jump + 1 / (1 + math.exp(-step.margin / step.temperature))
        return offset + step.slope_beyond * (difference - step.margin)
    scaled = difference / step.temperature
    value = 1 / (1 + math.exp(-scaled)) if scaled > -700 else 0.0
    return value + step.jump if difference > 0 else value


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_step
def test_what_is_infinitely_far_below_is_not_above(step, dtype):
    below = torch.tensor([-torch.inf, -1e30], dtype=dtype)
    torch.testing.assert_close(step(below), torch.zeros(2, dtype=dtype), rtol=0, atol=0)
    torch.testing.assert_close(step.slope(below), torch.zeros(2, dtype=dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_upper_bound
def test_upper_bounds_of_extreme_differences_are_finite(step, dtype):
    difference = torch.tensor([-1e30, -1e4, 1e4, 1e30], dtype=dtype)
    expected = torch.tensor([upper_bound_of(step, x) for x in difference.tolist()], dtype=dtype)
    torch.testing.assert_close(step(difference), expected)
    slope = torch.tensor([0.0, 0.0, step.slope_beyond, step.slope_beyond], dtype=dtype)
    torch.testing.assert_close(step.slope(difference), slope)


@every_step
def test_shape_is_kept(step):
    assert step(torch.randn(2, 0, 3)).shape == (2, 0, 3)
    assert step.slope(torch.randn(4, 5)).shape == (4, 5)


@every_step
def test_the_difference_is_left_alone(step):
    difference = torch.linspace(-1, 1, 9).expand(2, 9)
    step(difference)
    step.slope(difference)
    assert torch.equal(difference, torch.linspace(-1, 1, 9).expand(2, 9))


@every_step
def test_memory_layout_is_irrelevant(step):
    difference = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
    for function in (step, step.slope):
        torch.testing.assert_close(function(difference.T), function(difference.T.contiguous()), rtol=1e-12, atol=0)


@every_step
def test_single_precision_is_kept_and_suffices(step):
    difference = torch.linspace(-1, 1, 1001, dtype=torch.float64) + 1e-4
    for function in (step, step.slope):
        actual = function(difference.float())
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), function(difference), rtol=1e-4, atol=1e-4)


@every_upper_bound
def test_upper_bound_matches_its_pieces(step):
    edges = [0.0, -0.0, 5e-324, -5e-324, step.margin, math.nextafter(step.margin, 0), math.nextafter(step.margin, 9)]
    differences = [*torch.linspace(-2, 2, 101, dtype=torch.float64).tolist(), *edges]
    expected = torch.tensor([upper_bound_of(step, x) for x in differences], dtype=torch.float64)
    actual = step(torch.tensor(differences, dtype=torch.float64))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    temperature=st.floats(1e-3, 10),
    slope=st.floats(0, 1000),
    margin=st.floats(0, 2),
    jump=st.floats(0, 2),
    offset=st.none() | st.floats(-1, 3),
    differences=st.lists(st.floats(-3, 3), max_size=10),
)
def test_any_upper_bound_matches_its_pieces(temperature, slope, margin, jump, offset, differences):
    step = UpperBound(temperature, slope, margin, jump, offset)
    differences = [*differences, margin]
    expected = torch.tensor([upper_bound_of(step, x) for x in differences], dtype=torch.float64)
    actual = step(torch.tensor(differences, dtype=torch.float64))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_upper_bound
def test_upper_bound_slope_is_the_derivative_of_its_pieces(step):
    """At a kink, of the piece on the left."""
    points = torch.tensor([*torch.linspace(-2, 2, 101).tolist(), 0.0, step.margin], dtype=torch.float64)
    difference = points.clone().requires_grad_()
    restated = restated_upper_bound(*dataclasses.astuple(step))
    (derivative,) = torch.autograd.grad(restated(difference).sum(), difference)
    torch.testing.assert_close(step.slope(points), derivative, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("offset", [None, 1.44])
def test_with_its_jump_the_upper_bound_is_one(offset):
    distance = torch.logspace(-300, 0, 500, dtype=torch.float64)
    difference = torch.cat([distance, -distance])
    step = UpperBound(offset=offset)
    assert (step(difference) >= heaviside(difference)).all()


def test_an_upper_bound_counts_half_a_tie():
    assert UpperBound()(torch.tensor([0.0, -0.0])).tolist() == [0.5, 0.5]


def test_without_its_jump_the_upper_bound_is_none():
    near = torch.tensor([1e-9, 0.01, 0.049, 0.05], dtype=torch.float64)
    assert (PUBLISHED_INATURALIST(near) < heaviside(near)).all()
    beyond = torch.tensor([0.0501, 0.1, 1.0], dtype=torch.float64)
    assert (PUBLISHED_INATURALIST(beyond) >= heaviside(beyond)).all()


def test_the_upper_bound_is_continuous_at_the_margin_by_default():
    around = torch.tensor([0.05, math.nextafter(0.05, 1)], dtype=torch.float64)
    at, beyond = UpperBound()(around).tolist()
    assert at == pytest.approx(beyond, abs=1e-12)
    assert at == pytest.approx(1.4933071490757153, abs=1e-12)


def test_published_values_of_the_upper_bound():
    """An offset of 1.44 makes it drop at the margin."""
    difference = torch.tensor([-0.05, 0.0, 1e-12, 0.05, math.nextafter(0.05, 1), 0.051, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.00669, 0.5, 1.0, 1.49331, 1.44, 1.54, 96.44], dtype=torch.float64)
    torch.testing.assert_close(PUBLISHED_SOP(difference), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("temperature", value) for value in (0.0, -0.5, math.nan)),
        *((argument, value) for argument in ("slope_beyond", "margin") for value in (-1e-3, -2.0, math.nan)),
    ],
)
def test_an_unusable_upper_bound_names_the_argument(argument, value):
    name = argument.removesuffix("_beyond")
    with pytest.raises(ValueError, match=rf"^{name}.* {value};"):
        UpperBound(**{argument: value})


@pytest.mark.parametrize("temperature", [0.0, -0.5])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=str(temperature)):
        Sigmoid(temperature)


def test_steps_are_values():
    step = Sigmoid(0.1)
    assert step == Sigmoid(0.1)
    assert step != Sigmoid(0.2)
    assert UpperBound() == UpperBound(0.01, 100.0, 0.05, 0.5, None)
    assert UpperBound() != PUBLISHED_SOP
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.temperature = 0.2
