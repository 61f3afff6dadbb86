import pytest

from dml.compare.bars import panels
from tests.compare.drawn import MEASURES, drawn


def test_bars_have_the_interval_or_the_spread_of_seeds():
    logs, comparison = drawn(3, 2)
    rows = comparison.rows
    first, second, _ = panels(logs, comparison, "test/AP")
    assert [bar.value for bar in first.bars] == rows["test/AP"].tolist()
    assert [(bar.low, bar.high) for bar in first.bars] == list(zip(rows["low"], rows["high"], strict=True))
    assert first.bars[0].seeds == pytest.approx([0.7, 0.704])
    spread = rows["test/mAP@R_std"]
    assert [bar.high for bar in second.bars] == (rows["test/mAP@R"] + spread).tolist()
    assert [bar.low for bar in second.bars] == (rows["test/mAP@R"] - spread).tolist()


def test_the_measure_compared_by_has_the_first_panel():
    logs, comparison = drawn(3, 2)
    found = panels(logs, comparison, "test/R@1", max_panels=2)
    assert [(panel.measure, panel.is_interval) for panel in found] == [("test/R@1", True), ("test/AP", False)]
    assert {panel.measure for panel in panels(logs, comparison, "test/R@1")} == set(MEASURES)


def test_bars_begin_at_zero():
    logs, comparison = drawn(2, 2)
    assert all(panel.axis.low == 0 for panel in panels(logs, comparison, "test/AP"))
    rows = comparison.rows.assign(**{"test/R@1": [-0.3, 0.2]})
    negative = panels(logs, comparison._replace(rows=rows), "test/AP")[2].axis
    assert negative.low < -0.3 < 0.2 < negative.high
    assert 0 in negative.ticks
