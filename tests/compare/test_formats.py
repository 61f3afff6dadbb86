"""The same numbers in every format, and nothing that breaks it."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dml.compare import Comparison
from dml.compare.formats import print_tables, to_csv, to_latex, to_markdown


def _comparison(losses=("SmoothAPLoss", "TripletMarginLoss with TripletMarginMiner"), name="Omniglot", notes=()):
    number = np.arange(len(losses))
    rows = pd.DataFrame(
        {
            "data": name,
            "loss": losses,
            "backbone": "resnet10t",
            "variant": "",
            "seeds": 3,
            "runs": [[f"runs/{each}/0", f"runs/{each}/1"] for each in number],
            "test/AP": 0.6661 - 0.1 * number,
            "test/AP_std": np.where(number == 1, np.nan, 0.0041),
            "test/R@1": 0.8 + 0.01 * number,
            "test/R@1_std": 0.002,
            "low": np.where(number == 1, np.nan, 0.651),
            "high": np.where(number == 1, np.nan, 0.679),
            "difference": np.where(number == 0, np.nan, -0.1 * number),
            "difference_error": np.where(number == 0, np.nan, 0.004),
            "p_classes": np.where(number == 0, np.nan, 0.002),
            "p_seeds": np.where(number == 0, np.nan, 0.002),
            "p_holm": np.where(number == 0, np.nan, 0.004),
            "val": 0.7,
            "best_epoch": 7.5,
            "minutes": 11.14,
            "images_per_second": 1234.5,
            "peak_memory": 1.5 * 2**30,
        }
    )
    return Comparison({"dataset": name}, name, rows, tuple(notes))


def _printed(comparisons, width):
    console = Console(file=io.StringIO(), width=width)
    print_tables(comparisons, "test/AP", "val/AP", console)
    return console.file.getvalue()


def test_a_narrow_terminal_keeps_the_key_columns_whole():
    losses = ("SmoothAPLoss", "SupAPLoss+CalibrationLossOfALongName", "TripletMarginLoss with TripletMarginMiner")
    text = _printed([_comparison(losses)], 80)
    assert max(map(len, text.splitlines())) <= max(80, len(text.splitlines()[-1]))
    for whole in ("0.666 ± 0.004", "[0.651, 0.679]", "0.004 **", "seeds"):
        assert whole in text
    assert "…" not in text
    letters = re.sub(r"[^A-Za-z+]", "", text)
    assert "SmoothAPLoss" in letters
    assert "not shown, for want of room: test/R@1" in text
    assert "images/s" in text.splitlines()[-1]


def test_costs_are_left_out_first_and_validation_last():
    for width, shown, hidden in ((110, "test/R@1", "minutes"), (100, "best", "test/R@1")):
        table, _, left_out = _printed([_comparison()], width).partition("not shown")
        assert shown in table
        assert shown not in left_out
        assert hidden in left_out


def test_a_wide_terminal_shows_everything():
    text = _printed([_comparison(notes=("one [note]",)), _comparison(name="Glyphs")], 250)
    for word in (
        "Omniglot",
        "Glyphs",
        "TripletMarginLoss with",
        "11.1",
        "1,234",
        "1.50",
        "± 0.002",
        "- one [note]",
    ):
        assert word in text
    assert "not shown" not in text


@pytest.mark.parametrize("evil", ["[/x]", "[bold]", ":x:", "a\\"])
def test_what_runs_are_called_is_no_markup(evil):
    comparison = _comparison((evil, "BLoss"), name=evil, notes=(evil,))
    rows = comparison.rows.assign(variant=[f"lr={evil}", ""]).rename(columns={"test/R@1": f"test/{evil}"})
    rows = rows.rename(columns={"test/R@1_std": f"test/{evil}_std"})
    text = _printed([comparison._replace(rows=rows)], 250)
    assert text.splitlines()[0].strip() == evil
    assert text.splitlines()[-1] == f"- {evil}"
    for whole in (f" {evil} ", f"lr={evil}", f"test/{evil}", "[0.651, 0.679]"):
        assert whole in text


def test_csv_has_the_numbers_as_they_are():
    comparisons = [_comparison(), _comparison(name="Glyphs, image_size 48")]
    found = pd.read_csv(io.StringIO(to_csv(comparisons)), keep_default_na=True)
    assert found["comparison"].tolist() == ["Omniglot"] * 2 + ["Glyphs, image_size 48"] * 2
    assert found["test/AP"].tolist() == pytest.approx([0.6661, 0.5661] * 2, abs=1e-12)
    assert found["runs"][0] == "runs/0/0;runs/0/1"
    assert list(found.columns[1:]) == list(comparisons[0].rows.columns)


def test_markdown():
    text = to_markdown([_comparison(notes=("a|b",))], "test/AP", "val/AP")
    title, head, rule, first, second, note = (line for line in text.splitlines() if line)
    assert title == "**Omniglot**"
    assert head.startswith("| loss | seeds | test/AP |")
    assert len(head.split(" | ")) == len(rule.split(" | ")) == len(first.split(" | ")) == len(second.split(" | "))
    assert first.startswith("| SmoothAPLoss | 3 | **0.666 ± 0.004** [0.651, 0.679] |")
    assert second.startswith("| TripletMarginLoss with TripletMarginMiner | 3 | 0.566 |")
    assert r"| 0.004 \*\* |" in second
    assert note == r"- a\|b"


def test_latex():
    comparison = _comparison(("A_Loss & 5%", "BLoss"), notes=("100% sure",))
    text = to_latex([comparison], "test/AP", "val/AP")
    lines = text.splitlines()
    assert lines[:2] == ["% Omniglot", "% 100% sure"]
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    first, second = (line for line in lines if "Loss" in line)
    assert first.startswith(r"A\_Loss \& 5\% & 3 & \textbf{0.666 $\pm$ 0.004} [0.651, 0.679] & ")
    assert r" & $-$0.100 & 0.004\textsuperscript{**} & " in second
    columns = len(re.search(r"tabular}{(\w+)}", text)[1])
    assert first.count(" & ") == second.count(" & ") == columns - 1
    assert text.isascii()


def test_labels_are_those_that_differ():
    comparison = _comparison()
    rows = comparison.rows.assign(backbone=["resnet10t", "vit"], variant=["lr=0.1", ""])
    text = to_markdown([comparison._replace(rows=rows)], "test/AP", "val/AP")
    assert "| loss | backbone | variant | seeds |" in text
    assert "| SmoothAPLoss | resnet10t | lr=0.1 | 3 |" in text
