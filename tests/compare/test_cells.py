import numpy as np
import pandas as pd
import pytest

from dml.compare.cells import chance, columns, number
from tests.compare.drawn import drawn


@pytest.mark.parametrize("value", [None, np.nan, np.inf, pd.NA], ids=["none", "nan", "inf", "na"])
def test_what_is_not_known_is_a_dash(value):
    assert number(value) == chance(value) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("p_value", "shown"),
    [(0.0001, "< 0.001 ***"), (0.001, "0.001 **"), (0.01, "0.010 *"), (0.05, "0.050"), (1.0, "1.000")],
    ids=lambda value: str(value),
)
def test_stars_are_for_less_than_their_limit(p_value, shown):
    assert chance(p_value) == shown


def test_stars_are_for_what_seeds_confirm_too():
    _, comparison = drawn(4, 2)
    rows = comparison.rows.assign(p_seeds=[np.nan, 0.01, np.nan, np.nan])
    (found,) = (column.cells for column in columns(rows, "test/AP", "val/AP") if column.title == "p")
    assert [cell.text for cell in found] == ["\N{EN DASH}", "0.020 *", "0.013", "0.010"]


def test_with_one_seed_there_is_no_spread():
    _, comparison = drawn(2, 1)
    found = {column.title: column.cells[0] for column in columns(comparison.rows, "test/AP", "val/AP")}
    assert (found["test/AP"].text, found["test/AP"].detail) == ("0.700", "[0.680, 0.720]")
    assert (found["test/R@1"].text, found["test/R@1"].detail) == ("0.500", "")


def test_epochs_that_differ_between_seeds_have_a_decimal():
    _, comparison = drawn(2, 2)
    rows = comparison.rows.assign(best_epoch=[3.5, 4.0])
    found = {column.title: column.cells for column in columns(rows, "test/AP", "val/AP")}
    assert [cell.text for cell in found["best epoch"]] == ["3.5", "4.0"]


def test_the_main_column_is_the_measure_compared_by_and_costs_come_last():
    _, comparison = drawn(2, 2)
    found = columns(comparison.rows, "test/R@1", "val/AP")
    assert [column.title for column in found if column.kind == "main"] == ["test/R@1"]
    assert [column.kind for column in found[-3:]] == ["cost"] * 3
