import pytest

from dml.compare.axes import axis


@pytest.mark.parametrize("values", [[], [0.5], [float("nan")], [0.0, 0.0], [-2.0, 3.5], [0.301, 0.302], [0, 1e6]])
def test_axes_span_their_values(values):
    found = axis(values)
    assert found.low < found.high
    assert (found.ticks[0], found.ticks[-1]) == pytest.approx((found.low, found.high))
    assert 2 <= len(found.ticks) <= 8
    known = [value for value in values if value == value]
    assert all(0 <= found.share(value) <= 1 for value in known)
