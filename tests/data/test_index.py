import numpy as np
import pandas as pd
import pytest

from dml.data.index import check_index, hold_out_classes

LEVELS = ("fine", "coarse")


def table(**columns):
    return pd.DataFrame(
        {
            "path": ["a.png", "b.png", "c.png", "d.png"],
            "split": ["train", "train", "test", "test"],
            "role": "both",
            "fine": ["oak", "elm", "cat", "oak"],
            "coarse": ["tree", "tree", "beast", "tree"],
        }
        | columns
    )


def test_labels_become_codes_in_sorted_order_over_all_splits():
    index = check_index(table(), LEVELS)
    assert index["fine"].tolist() == [2, 1, 0, 2]
    assert index["coarse"].tolist() == [1, 1, 0, 1]


def test_numbers_are_sorted_as_numbers():
    assert check_index(table(fine=[10, 2, 7, 10]), LEVELS)["fine"].tolist() == [2, 0, 1, 2]


def test_columns_are_ordered_and_rows_renumbered():
    messy = table(note="x").set_index(pd.Index([7, 7, 3, 1]))[["note", "coarse", "role", "fine", "split", "path"]]
    index = check_index(messy, LEVELS)
    assert index.columns.tolist() == ["path", "split", "role", "fine", "coarse", "note"]
    assert index.index.tolist() == [0, 1, 2, 3]
    assert index["path"].tolist() == ["a.png", "b.png", "c.png", "d.png"]


def test_table_of_the_caller_is_left_alone():
    before = table()
    check_index(before, LEVELS)
    pd.testing.assert_frame_equal(before, table())


@pytest.mark.parametrize("column", ["path", "split", "role", "fine", "coarse"])
def test_missing_column_is_named(column):
    with pytest.raises(ValueError, match=rf"lacks columns \['{column}'\]; it has \["):
        check_index(table().drop(columns=column), LEVELS)


def test_index_without_rows():
    with pytest.raises(ValueError, match="no rows"):
        check_index(table().iloc[:0], LEVELS)


@pytest.mark.parametrize("nothing", [None, np.nan])
@pytest.mark.parametrize("column", ["path", "split", "role", "fine", "coarse"])
def test_empty_cell_is_counted_and_located(column, nothing):
    cells = table()[column].astype(object).tolist()
    cells[1] = cells[3] = nothing
    with pytest.raises(ValueError, match=rf"no '{column}' in 2 rows, first row 1$"):
        check_index(table(**{column: cells}), LEVELS)


def test_empty_cell_is_located_whatever_the_row_labels():
    broken = table(fine=["oak", None, "cat", "oak"]).set_index(pd.Index(["w", "x", "y", "z"]))
    with pytest.raises(ValueError, match=r"first row 1$"):
        check_index(broken, LEVELS)


@pytest.mark.parametrize("role", ["query", "gallery", "both"])
def test_known_roles(role):
    assert check_index(table(role=role), LEVELS)["role"].eq(role).all()


def test_unknown_role_is_named_with_those_allowed():
    with pytest.raises(ValueError, match=r"\['query', 'gallery', 'both'\]; the index has \['Query', 'probe'\]"):
        check_index(table(role=["probe", "both", "Query", "query"]), LEVELS)


def test_path_repeated_within_a_split():
    with pytest.raises(ValueError, match=r"'a\.png' is repeated in split 'train' \(1 repeats\)"):
        check_index(table(path=["a.png", "a.png", "c.png", "d.png"]), LEVELS)


def test_path_repeated_across_splits_is_fine():
    paths = ["a.png", "b.png", "a.png", "b.png"]
    assert check_index(table(path=paths), LEVELS)["path"].tolist() == paths


@pytest.mark.parametrize(
    ("fine", "coarse", "message"),
    [
        (["oak", "elm", "cat", "oak"], ["tree", "tree", "beast", "table"], "fine 'oak' is in ['table', 'tree']"),
        ([3, 2, 1, 3], [8, 8, 7, 9], "fine 3 is in [8, 9]"),
    ],
)
def test_class_with_two_parents_is_named(fine, coarse, message):
    with pytest.raises(ValueError, match="level 'fine' is not nested in 'coarse'") as error:
        check_index(table(fine=fine, coarse=coarse), LEVELS)
    assert str(error.value).endswith(message)


def test_each_pair_of_levels_must_be_nested():
    with pytest.raises(ValueError, match="level 'coarse' is not nested in 'realm'"):
        check_index(table(realm=["x", "y", "z", "x"]), (*LEVELS, "realm"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/x.png",
        "../x.png",
        "a/../../x.png",
        "a/..",
        "..",
        "..\\x.png",
        "a\\..\\x.png",
        "\\\\host\\x.png",
        "C:\\x.png",
        "c:x.png",
    ],
)
def test_path_that_leaves_the_root(path):
    with pytest.raises(ValueError, match="leaves the root") as error:
        check_index(table(path=["a.png", path, "c.png", "d.png"]), LEVELS)
    assert repr(path) in str(error.value)


@pytest.mark.parametrize("path", ["a..b.png", "..a/b.png", "a../b.png", "./a.png", "ab:c.png", "a b/ü.png"])
def test_path_that_looks_odd_but_stays(path):
    assert check_index(table(path=["1.png", path, "c.png", "d.png"]), LEVELS)["path"][1] == path


def twenty_classes():
    return pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(60)],
            "split": ["train"] * 40 + ["test"] * 20,
            "role": "both",
            "fine": np.arange(60) // 2,
            "coarse": np.arange(60) // 10,
        }
    )


@pytest.mark.parametrize(("fraction", "num_classes"), [(0.1, 2), (0.25, 5), (0.5, 10), (0.95, 19)])
def test_so_many_classes_are_held_out(fraction, num_classes):
    before = twenty_classes()
    index = hold_out_classes(before, "fine", fraction, seed=0)
    classes = {split: set(rows["fine"]) for split, rows in index.groupby("split")}
    assert len(classes["val"]) == num_classes
    assert classes["val"].isdisjoint(classes["train"])
    assert classes["val"] | classes["train"] == set(range(20))
    assert classes["test"] == set(range(20, 30))
    pd.testing.assert_frame_equal(index.drop(columns="split"), before.drop(columns="split"))


def test_classes_of_another_level_are_held_out_whole():
    index = hold_out_classes(twenty_classes(), "coarse", 0.5, seed=0)
    assert index.loc[index["split"] == "val", "coarse"].nunique() == 2
    assert index[index["split"] != "test"].groupby("coarse")["split"].nunique().eq(1).all()


def test_seed_chooses_the_classes():
    held_out = [
        frozenset(index.loc[index["split"] == "val", "fine"])
        for index in (hold_out_classes(twenty_classes(), "fine", 0.25, seed) for seed in (0, 0, 1, 2))
    ]
    assert held_out[0] == held_out[1]
    assert len(set(held_out)) == 3


def test_test_classes_that_are_also_training_classes_stay_in_test():
    shared = twenty_classes().assign(fine=np.arange(60) % 20)
    index = hold_out_classes(shared, "fine", 0.25, seed=0)
    assert index["split"].eq("test").tolist() == shared["split"].eq("test").tolist()


@pytest.mark.parametrize("fraction", [-0.5, 0.0, 1.0, 2, float("nan")])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(ValueError, match=rf"val_classes is {fraction}; .*between 0 and 1"):
        hold_out_classes(twenty_classes(), "fine", fraction, seed=0)


@pytest.mark.parametrize(("fraction", "num_classes"), [(0.01, 0), (0.99, 20)])
def test_fraction_that_leaves_one_side_empty(fraction, num_classes):
    with pytest.raises(ValueError, match=f"holds out {num_classes} of 20 training classes"):
        hold_out_classes(twenty_classes(), "fine", fraction, seed=0)


def test_dataset_with_a_val_split_of_its_own():
    index = twenty_classes()
    index.loc[0, "split"] = "val"
    with pytest.raises(ValueError, match="has a split 'val' of its own"):
        hold_out_classes(index, "fine", 0.5, seed=0)
