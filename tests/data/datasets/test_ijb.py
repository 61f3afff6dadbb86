import pandas as pd
import pytest

from dml.data.datasets.ijb import IJBB, IJBC, POINTS
from tests.data.datasets.miniatures import make_ijbb, make_ijbc


@pytest.fixture
def root(tmp_path):
    return make_ijbc(tmp_path / "IJBC", num_subjects=4)


def edit(file, line, row):
    lines = file.read_text().split("\n")
    lines[line - 1 : line] = [] if row is None else [row]
    file.write_text("\n".join(lines))


def test_lists_become_subjects_templates_and_media(root):
    dataset = IJBC(root, "test")
    assert IJBC.levels == ("subject",)
    assert dataset.labels[:, 0].tolist() == [row // 9 for row in range(36)]
    index = dataset.index
    assert index["path"].tolist() == [f"loose_crop/{row + 1}.jpg" for row in range(36)]
    assert index["template"].tolist() == [1 + row // 3 for row in range(36)]
    assert index["media"][:4].tolist() == [1001, 2001, 2001, 1002]
    assert index["split"].eq("test").all()


def test_templates_are_in_a_gallery_or_probes(root):
    dataset = IJBC(root, "test")
    templates = dataset.index.drop_duplicates("template")
    assert templates["gallery"].tolist() == [1, 0, 0, 2, 0, 0, 1, 0, 0, 2, 0, 0]
    assert templates["role"].tolist() == ["gallery", "query", "query"] * 4
    assert dataset[0]["is_gallery"]
    assert not dataset[0]["is_query"]
    assert dataset[3]["is_query"]
    assert not dataset[3]["is_gallery"]


def test_points_and_score_are_those_of_the_face(root):
    edit(root / "meta" / "ijbc_name_5pts_score.txt", 3, "3.jpg 1 2.5 3 4 5 6 7 8 9 -10.25 5e-01")
    face = IJBC(root, "test").index.iloc[2]
    assert [face[f"{point}_{axis}"] for point in POINTS for axis in "xy"] == [1, 2.5, 3, 4, 5, 6, 7, 8, 9, -10.25]
    assert face["score"] == 0.5


def test_images_are_where_the_index_says(root):
    dataset = IJBC(root, "test")
    assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_pairs_are_those_of_the_list(root):
    pairs = IJBC.read_pairs(root)
    assert [str(dtype) for dtype in pairs.dtypes] == ["int32", "int32", "bool"]
    assert len(pairs) == 12 * 11 // 2
    assert pairs.head(3).to_numpy().tolist() == [[1, 2, True], [1, 3, True], [1, 4, False]]
    subject = IJBC(root, "test").index.drop_duplicates("template").set_index("template")["subject"]
    same = pairs["template_a"].map(subject) == pairs["template_b"].map(subject)
    assert same.equals(pairs["same"])
    assert same.sum() == 4 * 3  # three pairs among the three templates of each person


def test_ijbb_differs_in_names_alone(root, tmp_path):
    ijbb = make_ijbb(tmp_path / "IJBB", num_subjects=4)
    pd.testing.assert_frame_equal(IJBB(ijbb, "test").index, IJBC(root, "test").index)
    assert IJBB.read_pairs(ijbb).equals(IJBC.read_pairs(root))
    with pytest.raises(FileNotFoundError, match=r"it lacks meta/ijbc_face_tid_mid.txt, meta/ijbc_name_5pts_score.txt"):
        IJBC(ijbb, "test")


def test_lines_may_end_as_on_windows(root):
    before, pairs = IJBC(root, "test").index, IJBC.read_pairs(root)
    for file in root.glob("meta/*"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert IJBC(root, "test").index.equals(before)
    assert IJBC.read_pairs(root).equals(pairs)
    edit(root / "meta" / "ijbc_template_pair_label.txt", 5, "1 6 2")
    with pytest.raises(ValueError, match=r"line 5: '1 6 2' is not written"):
        IJBC.read_pairs(root)


@pytest.mark.parametrize(
    ("name", "line", "row"),
    [
        ("face_tid_mid.txt", 8, "8.jpg 3"),
        ("face_tid_mid.txt", 8, "8.png 3 2003"),
        ("face_tid_mid.txt", 8, ""),
        ("name_5pts_score.txt", 8, "8.jpg 1 2 3 4 5 6 7 8 9 10"),
        ("name_5pts_score.txt", 8, "8.jpg 1 2 3 4 5 6 7 8 9 ten 0.9"),
        ("1N_gallery_G1.csv", 1, "1,1,img/1.jpg"),
        ("1N_gallery_G1.csv", 3, "1;1;img/1.jpg"),
        ("1N_gallery_G2.csv", 3, "one,1,img/1.jpg"),
        ("1N_probe_mixed.csv", 3, ""),
    ],
)
def test_malformed_row_is_named(root, name, line, row):
    file = root / "meta" / f"ijbc_{name}"
    edit(file, line, row)
    with pytest.raises(ValueError, match="is not") as error:
        IJBC(root, "test")
    assert str(error.value).startswith(f"{file}, line {line}: {row!r} is not ")


@pytest.mark.parametrize("row", ["1 6", "1 6 2", "1 6 true", "1  6 1", "1,6,1", "1 6 1 1", "one 6 1", " 1 6 1", ""])
def test_malformed_pair_is_named(root, row):
    file = root / "meta" / "ijbc_template_pair_label.txt"
    edit(file, 5, row)
    with pytest.raises(ValueError, match="is not written") as error:
        IJBC.read_pairs(root)
    assert str(error.value) == f"{file}, line 5: {row!r} is not written 'template template 0 or 1'"


def test_a_face_is_listed_once(root):
    for name in ("face_tid_mid.txt", "name_5pts_score.txt"):
        file = root / "meta" / f"ijbc_{name}"
        file.write_text(file.read_text().replace("\n9.jpg", "\n8.jpg"))
    with pytest.raises(ValueError, match=r"path 'loose_crop/8.jpg' is repeated in split 'test' \(1 repeats\)"):
        IJBC(root, "test")


def test_points_in_another_order(root):
    file = root / "meta" / "ijbc_name_5pts_score.txt"
    first, second, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first, *others, second]))
    with pytest.raises(ValueError, match="should be") as error:
        IJBC(root, "test")
    assert str(error.value) == f"{file}, line 2: image '3.jpg' should be '2.jpg'"


def test_points_that_are_too_few(root):
    file = root / "meta" / "ijbc_name_5pts_score.txt"
    edit(file, 36, None)
    with pytest.raises(ValueError, match="lines") as error:
        IJBC(root, "test")
    assert str(error.value) == f"{file} has 35 lines; the list of faces has 36"


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("1N_gallery_G1.csv", "1,9,img/1.jpg", "template 1 has several subjects, or is in several lists of "),
        ("1N_gallery_G1.csv", "4,2,img/1.jpg", "template 4 has several subjects, or is in several lists of "),
        ("1N_gallery_G1.csv", "99,1,img/1.jpg", "template 99 has no face"),
        ("face_tid_mid.txt", "1.jpg 99 1", "template 99 is in none of ijbc_1N_gallery_G1.csv, "),
    ],
)
def test_lists_that_contradict_each_other(root, name, row, says):
    edit(root / "meta" / f"ijbc_{name}", 2 if name.endswith("csv") else 1, row)
    with pytest.raises(ValueError, match="template") as error:
        IJBC(root, "test")
    assert str(error.value).startswith(says)


def test_missing_list_is_named_with_its_origin(root):
    (root / "meta" / "ijbc_1N_probe_mixed.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks meta/ijbc_1N_probe_mixed.csv") as error:
        IJBC(root, "test")
    assert "from https://github.com/deepinsight/insightface" in str(error.value)


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        IJBC(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)
