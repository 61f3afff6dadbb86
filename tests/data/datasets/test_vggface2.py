import pandas as pd
import pytest

from dml.data.datasets.vggface2 import VGGFace2, VGGFace2Tight
from tests.data.datasets.miniatures import make_vggface2


@pytest.fixture
def root(tmp_path):
    return make_vggface2(tmp_path / "VGGFace2", num_identities=6, images_per_identity=4)


def test_lists_become_splits(root):
    train, test = VGGFace2(root, "train"), VGGFace2(root, "test")
    assert VGGFace2.levels == ("identity",)
    assert train.labels[:, 0].tolist() == [label for label in (1, 2, 4, 5, 7, 8) for _ in range(4)]
    assert test.labels[:, 0].tolist() == [label for label in (0, 3, 6) for _ in range(4)]
    assert train.index["path"][5] == "train/n000003/0002_01.jpg"
    for dataset in (train, test):
        assert dataset.index["role"].eq("both").all()


def test_images_are_where_the_index_says(root):
    for split in ("train", "test"):
        dataset = VGGFace2(root, split)
        assert {dataset[row]["image"].shape for row in range(len(dataset))} == {(3, 64, 80), (3, 80, 64)}


def test_gender_is_a_further_column_and_a_level_for_those_who_ask(root):
    assert VGGFace2(root).index["gender"][::4].tolist() == ["f", "m", "m", "f", "f", "m"]
    assert VGGFace2(root, "test", levels=("identity", "gender")).labels[::4].tolist() == [[0, 1], [3, 0], [6, 1]]


def test_release_without_people(root):
    (root / "identity_meta.csv").unlink()
    assert "gender" not in VGGFace2(root).index


def test_person_without_a_row_is_named(root):
    file = root / "identity_meta.csv"
    rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(rows[:3] + rows[4:]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"identity_meta.csv has no row of 'n000003'"):
        VGGFace2(root)


def test_people_saved_by_a_spreadsheet(root):
    before = VGGFace2(root).index
    file = root / "identity_meta.csv"
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    rows = [row.replace(', "', '," ""').replace('",', '""",') for row in rows]
    assert rows[1] == 'n000002," ""Sammy_Davis,_Jr.""",4,1, f'
    file.write_bytes("\r\n".join([header, *rows, ""]).encode("utf-8-sig"))
    assert VGGFace2(root).index.equals(before)


def test_tight_images_are_cropped_as_by_the_authors(root):
    # A box of 32 x 40 px at (20, 11): around its centre (36, 31), 52 px high and 7/8 as wide, from -3 to 57 down.
    loose, tight = VGGFace2(root), VGGFace2Tight(root)
    assert tight.box(0) == (13.25, 5.0, 58.75, 57.0)
    assert tight.load(0).equal(loose.load(0)[:, 5:57, 13:59])
    assert loose.box(0) is None
    assert tight.labels.equal(loose.labels)
    assert VGGFace2Tight(root, "test").box(3) == (13.25, 8.0, 58.75, 60.0)


def test_wide_boxes_keep_their_shape(root):
    file = root / "bb_landmark" / "loose_bb_train.csv"
    file.write_text(file.read_text().replace(",20,11,32,40\n", ",20.0,-10,60,40\n", 1))
    # Centre (50, 10), 1.3 times as high and wide: what is outside of the 64 x 80 px has no pixels.
    assert VGGFace2Tight(root).box(0) == (11.0, -16.0, 89.0, 36.0)
    assert VGGFace2Tight(root).load(0).shape == (3, 36, 53)


def test_boxes_may_be_in_another_order(root):
    before = VGGFace2Tight(root).index
    file = root / "bb_landmark" / "loose_bb_train.csv"
    header, *rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join([header, *reversed(rows)]))
    pd.testing.assert_frame_equal(VGGFace2Tight(root).index, before)


def test_image_without_a_box_is_named(root):
    file = root / "bb_landmark" / "loose_bb_train.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:6] + lines[7:]))
    with pytest.raises(ValueError, match=r"loose_bb_test.csv have no box of 'train/n000003/0002_01.jpg'"):
        VGGFace2Tight(root)


def test_lines_may_end_as_on_windows(root):
    before = VGGFace2Tight(root).index
    for file in (*root.glob("*.txt"), *root.glob("*.csv"), *root.glob("bb_landmark/*.csv")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert VGGFace2Tight(root).index.equals(before)


@pytest.mark.parametrize(
    ("name", "line", "row"),
    [
        ("train_list.txt", 8, "train/n000002/0001_01.jpg"),
        ("train_list.txt", 8, "n000002/0001_01"),
        ("test_list.txt", 8, "n000002/0001_01.jpg 1"),
        ("test_list.txt", 8, ""),
        ("identity_meta.csv", 1, "Class_ID,Name,Sample_Num,Flag,Gender"),
        ("identity_meta.csv", 3, 'n000002, "Somebody",424,0'),
        ("identity_meta.csv", 3, 'n000002, "Somebody",424,0, x'),
        ("bb_landmark/loose_bb_train.csv", 1, "NAME_ID,X1,Y1,X2,Y2"),
        ("bb_landmark/loose_bb_train.csv", 3, '"n000002/0002_01",60,60,79'),
        ("bb_landmark/loose_bb_test.csv", 3, '"n000002/0002_01.jpg",60,60,79,109'),
        ("bb_landmark/loose_bb_test.csv", 3, '"n000002/0002_01",60,60,-79,109'),
        ("bb_landmark/loose_bb_test.csv", 3, '"n000002/0002_01",60,60,79,0'),
    ],
)
def test_malformed_row_is_named(root, name, line, row):
    lines = (root / name).read_text(encoding="utf-8").split("\n")
    lines[line - 1] = row
    (root / name).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="is not") as error:
        VGGFace2Tight(root)
    assert str(error.value).startswith(f"{root / name}, line {line}: {row!r} is not ")


def test_missing_files_are_named_with_their_origin(root):
    (root / "bb_landmark" / "loose_bb_test.csv").unlink()
    assert len(VGGFace2(root)) == 24
    with pytest.raises(FileNotFoundError, match=r"it lacks bb_landmark/loose_bb_test.csv: it holds"):
        VGGFace2Tight(root)
    (root / "test_list.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"it lacks test_list.txt: .* from https://github.com/ox-vgg/vgg_face2$"
    ):
        VGGFace2(root)


def test_root_that_is_the_parent(root):
    with pytest.raises(FileNotFoundError) as error:
        VGGFace2(root.parent)
    assert f"those are in {str(root)!r}: point root there" in str(error.value)


def test_real_lists(real_data, tmp_path):
    """Excerpts: the first two people of the test list are among the first twenty of all people."""
    source = real_data / "vggface2_lists"
    rows = (source / "test_list.excerpt.txt").read_text().splitlines(keepends=True)
    (tmp_path / "test_list.txt").write_text("".join(rows[: 424 + 136]))
    (tmp_path / "train_list.txt").write_text("n000002/0001_01.jpg\n")
    (tmp_path / "identity_meta.csv").write_bytes((source / "identity_meta.excerpt.csv").read_bytes())
    index = VGGFace2(tmp_path, "test").index
    # As many of each as Sample_Num of identity_meta.csv says.
    assert index.groupby("identity").size().tolist() == [424, 136]
    assert index.groupby("identity")["gender"].unique().map(list).tolist() == [["m"], ["f"]]
