import numpy as np
import pandas as pd
import pytest

from dml.compare.curves import SIDE, learning_curves
from tests.compare.drawn import drawn


def with_curve(values):
    """Logs of one row, whose runs have logged ``val/AP`` so: step and value by run."""
    logs, comparison = drawn(1, len(values), with_retrievals=False)
    rows = [
        (run, epoch, step, "val/AP", value)
        for run, logged in zip(logs.runs.index, values, strict=True)
        for epoch, (step, value) in enumerate(logged)
    ]
    curves = pd.DataFrame(rows, columns=logs.curves.columns).astype({"epoch": "Int64"})
    return logs._replace(curves=curves), comparison


def test_mean_and_range_over_seeds():
    logs, comparison = with_curve([[(10, 0.2), (20, 0.6)], [(10, 0.4), (20, 0.5)]])
    (curve,) = learning_curves(logs, comparison, "val/AP").curves
    assert curve.points["step"].tolist() == [10, 20]
    assert curve.points["mean"].tolist() == pytest.approx([0.3, 0.55])
    assert curve.points["low"].tolist() == [0.2, 0.5]
    assert curve.points["high"].tolist() == [0.4, 0.6]


def test_evaluations_are_matched_by_their_order():
    """The last batch of an epoch may be missing in one seed, and its steps then are others."""
    logs, comparison = with_curve([[(10, 0.2), (20, 0.6)], [(12, 0.4), (24, 0.8), (36, 0.9)]])
    (curve,) = learning_curves(logs, comparison, "val/AP").curves
    assert curve.points["step"].tolist() == [11, 22, 36]
    assert curve.points["mean"].tolist() == pytest.approx([0.3, 0.7, 0.9])


def test_a_step_that_a_resumed_run_repeats_counts_once():
    logs, comparison = with_curve([[(10, 0.2), (20, 0.5), (20, 0.6)]])
    (curve,) = learning_curves(logs, comparison, "val/AP").curves
    assert curve.points["mean"].tolist() == [0.2, 0.6]


def test_lines_are_where_the_axes_say():
    logs, comparison = with_curve([[(0, 0.0), (10, 0.5), (20, 1.0)]])
    chart = learning_curves(logs, comparison, "val/AP")
    assert (chart.x.low, chart.x.high) == (0, 20)
    assert (chart.y.low, chart.y.high) == (0, 1)
    (curve,) = chart.curves
    assert curve.line == f"M0.0 {SIDE}.0L{SIDE / 2} {SIDE / 2}L{SIDE}.0 0.0"
    assert curve.band == ""  # of one seed there is no range


def test_a_band_goes_there_and_back():
    logs, comparison = with_curve([[(0, 0.0), (20, 1.0)], [(0, 0.0), (20, 0.5)]])
    (curve,) = learning_curves(logs, comparison, "val/AP").curves
    assert curve.band == "M0.0 1000.0L1000.0 0.0L1000.0 500.0L0.0 1000.0Z"


def test_the_chosen_epoch_is_on_the_line():
    logs, comparison = with_curve([[(10, 0.2), (20, 0.6), (30, 0.4)]])
    rows = comparison.rows.assign(best_epoch=1.0)
    (curve,) = learning_curves(logs, comparison._replace(rows=rows), "val/AP").curves
    assert curve.chosen == (20, 0.6)
    rows = comparison.rows.assign(best_epoch=np.nan)
    (curve,) = learning_curves(logs, comparison._replace(rows=rows), "val/AP").curves
    assert curve.chosen is None


def test_long_curves_are_thinned_and_keep_their_ends():
    logs, comparison = with_curve([[(step, step / 5000) for step in range(5000)]])
    (curve,) = learning_curves(logs, comparison, "val/AP").curves
    assert len(curve.points) == 200
    assert curve.points["step"].iloc[[0, -1]].tolist() == [0, 4999]


def test_no_curve_of_what_was_not_logged():
    logs, comparison = drawn(2, 1)
    assert learning_curves(logs, comparison, "val/R@1") is None
