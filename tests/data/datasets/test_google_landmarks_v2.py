import pytest

from dml.data.datasets import GoogleLandmarksV2
from tests.data.datasets.miniatures import make_google_landmarks_v2
from tests.data.datasets.miniatures.google_landmarks_v2 import image_id, image_path

HIERARCHY = ("landmark", "hierarchical_label", "natural_or_human_made")


@pytest.fixture
def root(tmp_path):
    return make_google_landmarks_v2(tmp_path / "gldv2", num_landmarks=4, images_per_landmark=2)


def label(dataset, split, name):
    return dataset.labels[dataset.index["path"].eq(image_path(split, name)).argmax()].tolist()


def test_cleaned_list_is_train(root):
    train = GoogleLandmarksV2(root)
    assert GoogleLandmarksV2.levels == ("landmark",)
    assert train.labels.tolist() == [[1 + row // 2] for row in range(8)]  # code 0 are queries without an answer
    names = [f"train {landmark} {image}" for landmark in range(4) for image in range(2)]
    assert train.index["path"].tolist() == [image_path("train", name) for name in names]
    first = image_id(names[0])
    assert train.index["path"][0] == f"train/{first[0]}/{first[1]}/{first[2]}/{first}.jpg"
    assert train.index["role"].eq("both").all()


def test_index_and_test_images_are_gallery_and_queries(root):
    test = GoogleLandmarksV2(root, "test")
    assert test.index["role"].tolist() == ["gallery"] * 9 + ["query"] * 5
    assert test.index["path"].str.slice(0, 6).tolist() == ["index/"] * 9 + [
        "test/" + path[5] for path in test.index["path"][9:]
    ]


def test_same_number_in_train_and_index_is_two_landmarks(root):
    train, test = GoogleLandmarksV2(root), GoogleLandmarksV2(root, "test")
    assert not set(train.labels.flatten().tolist()) & set(test.labels.flatten().tolist())


def test_query_has_the_landmark_of_its_first_listed_image_or_its_own(root):
    test = GoogleLandmarksV2(root, "test")
    of_10, of_20 = label(test, "index", "index 0 0"), label(test, "index", "index 1 0")
    assert of_10 != of_20
    assert label(test, "test", "public") == label(test, "test", "private") == of_10
    assert label(test, "test", "other") == of_20
    gallery = test.labels[:9].tolist()
    for name in ("none", "ignored"):
        assert label(test, "test", name) not in gallery


@pytest.mark.parametrize("split", ["test", "test_hierarchical"])
def test_judgements_are_the_listed_images_with_the_part_of_the_challenge(root, split):
    test = GoogleLandmarksV2(root, split)
    judged = test.judgements()
    paths = test.index["path"]
    found = [(paths[query], paths[item], word) for query, item, word in judged.itertuples(index=False)]
    listed = {
        ("public", "public"): ["index 0 0", "index 0 1", "index 0 2"],
        ("private", "private"): ["index 0 1"],
        ("other", "private"): ["index 1 2", "index 0 0"],
    }
    assert found == [
        (image_path("test", query), image_path("index", item), word)
        for (query, word), items in listed.items()
        for item in items
    ]


def test_ignored_query_with_images_is_in_no_judgement(root):
    file = root / "retrieval_solution_v2.1.csv"
    file.write_text(file.read_text().replace("None,Ignored", f"{image_id('index 0 0')},Ignored"))
    test = GoogleLandmarksV2(root, "test")
    assert len(test.judgements()) == 6
    assert label(test, "test", "ignored") == label(test, "test", "none")


def test_hierarchical_splits_hold_landmarks_with_both_labels(root):
    train = GoogleLandmarksV2(root, "train_hierarchical", levels=HIERARCHY)
    assert train.index["path"].equals(GoogleLandmarksV2(root).index["path"][:4])
    assert len(train.labels.unique(dim=0)) == 2
    test = GoogleLandmarksV2(root, "test_hierarchical", levels=HIERARCHY)
    assert test.index["role"].tolist() == ["gallery"] * 6 + ["query"] * 3
    # Names, in contrast to numbers of landmarks, mean the same in train and index.
    mountain, church = train.labels[0, 1:].tolist(), train.labels[2, 1:].tolist()
    assert mountain != church
    assert label(test, "index", "index 0 0")[1:] == church
    assert label(test, "test", "other")[1:] == mountain


def test_labels_of_the_hierarchy_are_readable_where_they_are_no_levels(root):
    train = GoogleLandmarksV2(root, "train_hierarchical").index
    assert train["hierarchical_label"].tolist() == ["mountain"] * 2 + ["church"] * 2
    assert train["natural_or_human_made"].tolist() == ["natural"] * 2 + ["human-made"] * 2


def test_landmark_without_hierarchy_is_alone_at_each_level(root):
    for split, alone in (("train", [4, 5, 6, 7]), ("test", [6, 7, 8])):
        dataset = GoogleLandmarksV2(root, split, levels=HIERARCHY)
        for level in (1, 2):
            for row in alone:
                same = dataset.labels[:, level] == dataset.labels[row, level]
                assert same.equal(dataset.labels[:, 0] == dataset.labels[row, 0])


def test_without_its_lists_there_is_no_hierarchy(root):
    (root / "index_label_to_hierarchical.csv").unlink()
    with pytest.raises(ValueError, match=r"has splits \['test', 'train'\], not 'train_hierarchical'"):
        GoogleLandmarksV2(root, "train_hierarchical")
    with pytest.raises(ValueError, match=r"index lacks columns \['hierarchical_label', 'natural_or_human_made'\]"):
        GoogleLandmarksV2(root, levels=HIERARCHY)


def test_quotes_of_a_label_are_no_part_of_it(root):
    file = root / "train_label_to_hierarchical.csv"
    file.write_text(file.read_text().replace("mountain,natural", '"mountain","natural"').replace(",,,", ',"","",""'))
    train = GoogleLandmarksV2(root, "train_hierarchical").index
    assert train["hierarchical_label"].tolist() == ["mountain"] * 2 + ["church"] * 2


def test_images_are_where_the_index_says(root):
    for split in ("train", "test"):
        assert {item["image"].shape for item in GoogleLandmarksV2(root, split)} == {(3, 64, 80), (3, 80, 64)}


def test_lines_may_end_as_on_windows_after_a_mark(root):
    before, judged = GoogleLandmarksV2.read_index(root), GoogleLandmarksV2.read_judgements(root)
    for file in root.glob("*.csv"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert GoogleLandmarksV2.read_index(root).equals(before)
    assert GoogleLandmarksV2.read_judgements(root).equals(judged)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train_clean.csv", "1,0123456789abcdef  0123456789abcdef"),
        ("train_clean.csv", "1,"),
        ("train_clean.csv", "one,0123456789abcdef"),
        ("train_clean.csv", "1,0123456789abcde"),
        ("train_clean.csv", ""),
        ("index_image_to_landmark.csv", "0123456789abcdef,"),
        ("index_image_to_landmark.csv", "../456789abcdef,1"),
        ("test.csv", "0123456789abcdef,1"),
        ("retrieval_solution_v2.1.csv", "0123456789abcdef,0123456789abcdef,Both"),
        ("retrieval_solution_v2.1.csv", "0123456789abcdef,,Private"),
        ("train_label_to_hierarchical.csv", "1,http://a,b,c"),
        ("index_label_to_hierarchical.csv", '1,"http://a,b,c,d'),
    ],
)
def test_malformed_row_is_named(root, name, row):
    file = root / name
    lines = file.read_text().split("\n")
    lines[2] = row
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not written") as error:
        GoogleLandmarksV2(root)
    assert str(error.value) == f"{file}, line 3: {row!r} is not written {lines[0]!r}"


def test_list_without_its_header_is_refused(root):
    file = root / "test.csv"
    file.write_text(file.read_text().removeprefix("id\n"))
    with pytest.raises(ValueError, match=r"test.csv, line 1: '[0-9a-f]{16}' is not the header 'id'"):
        GoogleLandmarksV2(root)


def test_missing_list_is_named(root):
    (root / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"but it lacks test.csv: it holds .*cvdfoundation/google-landmark$"):
        GoogleLandmarksV2(root)


def test_solution_may_ignore_every_query(root):
    (root / "retrieval_solution_v2.1.csv").write_text(f"id,images,Usage\n{image_id('public')},None,Ignored\n")
    test = GoogleLandmarksV2(root, "test")
    assert len(test.judgements()) == 0
    assert len(test.labels[9:].unique()) == 1
