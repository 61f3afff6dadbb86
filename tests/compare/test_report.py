import base64
import hashlib
import json
import re

import numpy as np
import pytest

from dml.compare.logs import together
from dml.compare.report import write_html
from dml.compare.table import compare
from tests.compare.drawn import MEASURES, drawn, drawn_classes
from tests.compare.page import parsed


def written(tmp_path, logs, *comparisons, **options):
    path = tmp_path / "report.html"
    write_html(logs, comparisons, path, **options)
    return parsed(path)


def table(document):
    """Rows of the first table, each with its cells."""
    (found, *_) = document.find("table", class_="sortable")
    return [row.find("td") for row in found.find("tbody")[0].find("tr")]


def test_the_numbers_are_those_of_the_rows(tmp_path):
    logs, comparison = drawn(5, 3)
    rows = comparison.rows
    document = written(tmp_path, logs, comparison)
    (found, *_) = document.find("table", class_="sortable")
    titles = [header.text() for header in found.find("thead")[0].find("th")]
    assert titles[:6] == ["loss", "seeds", "test/AP", "difference", "p", "test/mAP@R"]
    columns = {"test/AP": "test/AP", "p": "p_holm", "val/AP": "val", "minutes": "minutes", "seeds": "seeds"}
    columns |= {name: name for name in MEASURES} | {"peak GiB": "peak_memory", "best epoch": "best_epoch"}
    for title, name in columns.items():
        place = titles.index(title) - 1
        values = [row[place].attributes["data-value"] for row in table(document)]
        expected = ["" if np.isnan(value) else value for value in rows[name]]
        assert [value and float(value) for value in values] == expected, title
    second = [cell.text() for cell in table(document)[1]]
    assert second[1] == (
        f"{rows['test/AP'][1]:.3f} ± {rows['test/AP_std'][1]:.3f}[{rows['low'][1]:.3f}, {rows['high'][1]:.3f}]"
    )
    assert second[2:4] == [f"\N{MINUS SIGN}{-rows['difference'][1]:.3f}", "0.020 *"]
    assert second[-1] == "1.50"
    assert [cell.text() for cell in table(document)[0]][2:4] == ["reference", "\N{EN DASH}"]


def test_the_best_of_a_column_is_bold(tmp_path):
    logs, comparison = drawn(3, 2)
    rows = comparison.rows.assign(**{"test/R@1": [0.5, 0.9, 0.7]})
    found = table(written(tmp_path, logs, comparison._replace(rows=rows)))
    best = [[cell.has(class_="best") for cell in row] for row in found]
    assert [row[1] for row in best] == [True, False, False]  # test/AP
    assert [row[5] for row in best] == [False, True, False]  # test/R@1


def test_the_finding_counts_what_is_significant(tmp_path):
    logs, comparison = drawn(4, 2)
    rows = comparison.rows.assign(p_holm=[np.nan, 0.01, 0.2, 0.04], difference=[np.nan, -0.1, -0.05, 0.02])
    rows["p_seeds"] = 0.01
    document = written(tmp_path, logs, comparison._replace(rows=rows))
    (finding,) = document.find("p", class_="finding")
    assert finding.text() == (
        f"SmoothAPLoss has the highest test/AP, {rows['test/AP'][0]:.3f}. "
        "Tested against SmoothAPLoss: 1 lower and 1 higher at p < 0.05, of classes and of seeds, "
        "1 that cannot be told apart."
    )
    rows["p_seeds"] = np.nan
    document = written(tmp_path, logs, comparison._replace(rows=rows))
    assert "0 lower and 0 higher" in document.find("p", class_="finding")[0].text()


def test_takes_what_compare_gives(tmp_path):
    logs, _ = drawn(3, 2)
    logs = logs._replace(classes=drawn_classes(logs))
    comparisons = compare(logs, first="SupAPLoss", confidence=0.9)
    rows = comparisons[0].rows
    document = written(tmp_path, logs, *comparisons, confidence=0.9)
    found = [[cell.attributes["data-value"] for cell in row] for row in table(document)]
    assert [float(row[1]) for row in found] == rows["test/AP"].tolist()
    assert [float(row[3]) for row in found[1:]] == rows["p_holm"][1:].tolist()
    assert "the 90 % interval" in document.text()


def test_nothing_is_fetched(tmp_path):
    logs, comparison = drawn()
    document = written(tmp_path, logs, comparison)
    text = (tmp_path / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    sources = [
        element.attributes[name]
        for tag, name in (("img", "src"), ("link", "href"), ("script", "src"))
        for element in document.find(tag)
        if name in element.attributes
    ]
    assert len(sources) > 20
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in text
    assert "@import" not in text


def test_the_browser_is_told_to_run_this_script_only(tmp_path):
    document = written(tmp_path, *drawn())
    (script,) = document.find("script")
    digest = base64.b64encode(hashlib.sha256(script.text().encode()).digest()).decode()
    policy = next(m.attributes["content"] for m in document.find("meta") if "http-equiv" in m.attributes)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_whatever_is_shown_is_escaped(tmp_path):
    logs, comparison = drawn(2, 1)
    evil = "<script>alert('x')</script>\"'&"
    rows = comparison.rows.assign(data=evil, loss=evil, variant=evil)
    runs = logs.runs.assign(config=logs.runs["config"].str.replace("0.01", json.dumps(evil), n=1, regex=False))
    retrievals = logs.retrievals.assign(query_path=evil, path=evil)
    document = written(
        tmp_path,
        logs._replace(runs=runs, retrievals=retrievals),
        comparison._replace(rows=rows, name=evil, notes=(evil,), protocol={evil: evil}),
        command=evil,
    )
    assert len(document.find("script")) == 1
    headings = [document.find(tag)[0].text() for tag in ("title", "h1", "h2", "li", "code")]
    assert all(evil in heading for heading in headings)
    assert evil in document.find("img")[0].attributes["alt"]
    assert document.find("figure")[0].attributes["title"] == evil


def test_a_strip_for_each_query_and_loss(tmp_path):
    logs, comparison = drawn(3, 2)
    document = written(tmp_path, logs, comparison)
    asked = document.find("div", class_="query")
    assert len(asked) == 3
    for query in asked:
        strips = query.find("div", class_="strip")
        assert [strip.find("b")[0].text() for strip in strips] == ["AP 0.75", "AP 0.74", "AP 0.73"]
        assert [strip.find("div", class_="name")[0].text() for strip in strips] == [
            "SmoothAPLossAP 0.75", "SupAPLossAP 0.74", "MultiSimilarityLossAP 0.73"
        ]  # fmt: skip
    tiles = asked[0].find("div", class_="strip")[0].find("figure")
    assert [tile.has(class_="wrong") for tile in tiles[1:]] == [True, False, False, False] * 2
    assert [tile.text().strip() for tile in tiles] == [
        "query", "0.90", "0.85", "0.80", "0.75", "0.70", "0.65", "0.60", "0.55"
    ]  # fmt: skip


def test_without_pictures_there_is_no_section_of_them(tmp_path):
    document = written(tmp_path, *drawn(with_retrievals=False))
    assert not document.find("div", class_="retrievals")
    assert not document.find("figure")


@pytest.mark.parametrize("num_rows", [1, 20])
def test_works_with_one_row_and_with_many(tmp_path, num_rows):
    logs, comparison = drawn(num_rows, 3)
    document = written(tmp_path, logs, comparison)
    assert len(table(document)) == num_rows
    assert len(document.find("g", class_="curve")) == num_rows
    panels = [div for div in document.find("div", class_="card") if "data-measure" in div.attributes]
    assert [panel.attributes["data-measure"] for panel in panels] == list(MEASURES)
    assert all(len(panel.find("rect")) == num_rows for panel in panels)


def test_sixty_runs_are_less_than_a_megabyte(tmp_path):
    logs, comparison = drawn(20, 3, with_retrievals=False, num_epochs=400)
    written(tmp_path, logs, comparison)
    assert (tmp_path / "report.html").stat().st_size < 2**20


def test_runs_that_have_little_to_tell(tmp_path):
    logs, comparison = drawn(3, 1, with_retrievals=False)
    unknown = [
        "low",
        "high",
        "p_classes",
        "p_seeds",
        "p_holm",
        "difference",
        "val",
        "best_epoch",
        "minutes",
        "images_per_second",
    ]
    rows = comparison.rows.assign(**dict.fromkeys([*unknown, "peak_memory"], np.nan))
    curves = logs.curves[logs.curves["metric"] != "val/AP"]
    document = written(tmp_path, logs._replace(curves=curves), comparison._replace(rows=rows))
    assert not document.find("div", class_="curves")
    last = [cell.text() for cell in table(document)[2]]
    assert last.count("\N{EN DASH}") == 7
    assert "nan" not in " ".join(last)
    assert not document.find("line", class_="whisker")


def test_a_section_for_each_comparison(tmp_path):
    (one, first), (other, second) = drawn(3, 2), drawn(2, 2, data="GroceryStore")
    document = written(tmp_path, together([one, other]), first, second)
    sections = document.find("section")
    assert [section.find("h2")[0].text() for section in sections] == ["Omniglot", "GroceryStore"]
    assert [link.attributes["href"] for link in document.find("nav")[0].find("a")] == [
        f"#{section.attributes['id']}" for section in sections
    ]
    assert [len(table(section)) for section in sections] == [3, 2]
    assert [section.find("li")[0].text() for section in sections] == ["one run was not tested"] * 2


def test_lists_the_runs_of_each_row(tmp_path):
    logs, comparison = drawn(2, 2)
    rows = written(tmp_path, logs, comparison).find("table", class_="runs")[0].find("tbody")[0].find("tr")
    found = [[cell.text() for cell in row.find("td")][:3] for row in rows]
    values = logs.curves[logs.curves["metric"] == "test/AP"].set_index("run")["value"]
    assert found == [[run, str(seed), f"{values[run]:.3f}"] for run, seed in logs.runs["seed"].items()]


def test_names_the_backbone_and_the_variant_where_rows_differ_in_them(tmp_path):
    logs, comparison = drawn(3, 1)
    rows = comparison.rows.assign(variant=["temperature=0.01", "", ""])
    found = written(tmp_path, logs, comparison._replace(rows=rows)).find("table", class_="sortable")[0]
    names = [header.text() for header in found.find("tbody")[0].find("th")]
    assert names == ["SmoothAPLoss temperature=0.01", "SupAPLoss", "MultiSimilarityLoss"]
    rows = rows.assign(backbone=["resnet10t", "resnet10t", "vit"])
    found = written(tmp_path, logs, comparison._replace(rows=rows)).find("table", class_="sortable")[0]
    names = [header.text() for header in found.find("tbody")[0].find("th")]
    assert names == ["SmoothAPLoss resnet10t, temperature=0.01", "SupAPLoss resnet10t", "MultiSimilarityLoss vit"]


def test_settings_that_differ_have_a_column_for_each_row(tmp_path):
    document = written(tmp_path, *drawn(3, 2))
    settings = document.find("table", class_="settings")[0].find("tbody")[0].find("tr")
    assert [[cell.text() for cell in row.find("th") + row.find("td")] for row in settings] == [
        ["model.loss", "dml.losses.SmoothAPLoss", "dml.losses.SupAPLoss", "dml.losses.MultiSimilarityLoss"]
    ]


def test_says_how_it_was_made(tmp_path):
    document = written(tmp_path, *drawn(), command="dml compare runs --html report.html")
    (footer,) = document.find("footer")
    assert "dml compare runs --html report.html" in footer.text()
    assert re.search(r"Made by dml \d+\.\d+\.\d+ on \d+ \w+ \d{4}", footer.text())


def test_errors_name_what_is_there(tmp_path):
    logs, comparison = drawn()
    with pytest.raises(ValueError, match="comparisons is empty"):
        write_html(logs, [], tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"measure is 'test/mAP'; Omniglot has columns .*'test/mAP@R'"):
        write_html(logs, [comparison], tmp_path / "report.html", measure="test/mAP")
